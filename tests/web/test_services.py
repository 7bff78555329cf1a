"""What all services share: prefixes, odd slashes, faults, health, CORS, OpenAPI; delete, WADO-URI and OHIF."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from openapi_spec_validator import validate

from tests.data import make_dataset, make_file


@pytest.fixture
def stored(client: FlaskClient) -> dict[str, str]:
    dataset = make_dataset(NumberOfFrames=1)
    assert (
        client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom").status_code == 200
    )
    return {
        "study": dataset.StudyInstanceUID,
        "series": dataset.SeriesInstanceUID,
        "instance": dataset.SOPInstanceUID,
    }


def instance_path(uids: dict[str, str]) -> str:
    return "/studies/{study}/series/{series}/instances/{instance}".format(**uids)


@pytest.mark.parametrize("root", ["/dicomweb", "/api", "/qidors", "//api/", "/dicomweb//"])
def test_search_answers_under_every_root(client: FlaskClient, stored: dict[str, str], root: str) -> None:
    for resource in ("studies", "studies/", "series", "instances", f"studies/{stored['study']}//series/"):
        answer = client.get("/", environ_overrides={"PATH_INFO": f"{root}/{resource}"})
        assert (answer.status_code, len(answer.json)) == (200, 1)


def test_bulk_data_in_search_results_has_full_urls(client: FlaskClient, stored: dict[str, str]) -> None:
    (found,) = client.get("/dicomweb/instances?includefield=all").json
    assert found["7FE00010"]["BulkDataURI"] == f"http://localhost/dicomweb{instance_path(stored)}/bulkdata/7FE00010"


@pytest.mark.parametrize("root", ["/dicomweb", "/api", "/wadors"])
def test_retrieve_answers_under_every_root(client: FlaskClient, stored: dict[str, str], root: str) -> None:
    for tail in ("", "/", "/metadata", "/metadata/", "/frames/1/", "/bulkdata/7FE00010"):
        assert client.get(root + instance_path(stored) + tail).status_code == 200


@pytest.mark.parametrize(
    "path", ["/dicomweb/studies", "/api/studies/", "/stowrs", "/stowrs/", "/stowrs/studies", "/stowrs/studies/{study}"]
)
def test_store_answers_under_every_root(client: FlaskClient, path: str) -> None:
    dataset = make_dataset()
    path = path.format(study=dataset.StudyInstanceUID)
    answer = client.post(path, data=make_file(dataset), content_type="application/dicom")
    assert answer.status_code == 200
    assert client.get(f"/dicomweb/studies/{dataset.StudyInstanceUID}/metadata").status_code == 200


@pytest.mark.parametrize("root", ["/dicomweb", "/api", "/delowrs"])
@pytest.mark.parametrize("levels", [2, 4, 6])
def test_delete_at_every_level_takes_empty_parents_along(
    client: FlaskClient, stored: dict[str, str], root: str, levels: int
) -> None:
    path = "/".join(instance_path(stored).split("/")[: levels + 1])
    assert client.delete(f"{root}{path}/").status_code == 204
    assert client.get("/dicomweb/studies").json == []
    assert client.delete(f"{root}{path}").status_code == 410
    assert client.delete(f"{root}/studies/1.2.3").status_code == 404
    assert client.delete(f"{root}/studies/nonsense").status_code == 400


def test_delete_leaves_what_is_beside(client: FlaskClient, stored: dict[str, str]) -> None:
    uids = {"StudyInstanceUID": stored["study"], "SeriesInstanceUID": stored["series"]}
    client.post("/dicomweb/studies", data=make_file(**uids), content_type="application/dicom")
    client.post("/dicomweb/studies", data=make_file(StudyInstanceUID=stored["study"]), content_type="application/dicom")
    assert client.delete("/dicomweb" + instance_path(stored)).status_code == 204
    (study,) = client.get("/dicomweb/studies").json
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([2], [2])
    assert client.delete(f"/dicomweb/studies/{stored['study']}/series/{stored['series']}").status_code == 204
    (study,) = client.get("/dicomweb/studies").json
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([1], [1])


# WADO-URI


@pytest.mark.parametrize("path", ["/wado", "/wadouri", "/api/wadouri", "/wadouri/"])
def test_wado_uri_gives_the_instance(client: FlaskClient, stored: dict[str, str], path: str) -> None:
    query = {"requestType": "WADO", "studyUID": stored["study"], "seriesUID": stored["series"]}
    query |= {"objectUID": stored["instance"], "contentType": "application/dicom", "transferSyntax": "*"}
    # OHIF sends the Accept header of frames with it: contentType wins
    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'
    answer = client.get(path, query_string=query, headers={"Accept": accept})
    assert (answer.status_code, answer.data[128:132]) == (200, b"DICM")


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"requestType": "QIDO"}, 400, "requestType"),
        ({"studyUID": None}, 400, "studyUID"),
        ({"objectUID": "x"}, 400, "objectUID"),
        ({"seriesUID": "1.2.3"}, 404, "1.2.3"),
        ({"contentType": "text/html"}, 406, "text/html"),
        ({"contentType": "application/dicom,image/png"}, 400, "mixes"),
        ({"contentType": "application/dicom;charset=utf-8"}, 400, "charset"),
        ({"contentType": "image/png", "transferSyntax": "1.2.840.10008.1.2.1"}, 400, "transferSyntax"),
        ({"rows": "64"}, 400, "rows"),
        ({"contentType": "image/png", "rows": "0"}, 400, "rows"),
        ({"contentType": "image/png", "windowCenter": "40"}, 400, "windowWidth"),
        ({"contentType": "image/png", "region": "0.5,0.5,0.1,0.9"}, 400, "region"),
        ({"contentType": "image/png", "imageQuality": "101"}, 400, "imageQuality"),
        ({"contentType": "image/png", "frameNumber": "2"}, 400, "frameNumber"),
        ({"contentType": "image/png", "presentationUID": "1.2.3"}, 400, "presentationSeriesUID"),
        (
            {"contentType": "image/png", "presentationUID": "1.2.3", "presentationSeriesUID": "1.2"},
            400,
            "presentation state 1.2.3",
        ),
        ({"charset": "ISO-8859-1"}, 400, "UTF-8"),
        ({"charset": "utf-8;q=0,latin1"}, 400, "UTF-8"),
        ({"anonymize": "no"}, 400, "anonymize"),
        ({"transferSyntax": "1.2.840.10008.1.2"}, 406, "1.2.840.10008.1.2.1"),
        ({"transferSyntax": "JPEG"}, 400, "transferSyntax"),
        ({"studyUID": ["1.2", "1.3"]}, 400, "studyUID"),
    ],
)
def test_wado_uri_names_what_is_wrong(
    client: FlaskClient, stored: dict[str, str], change: dict[str, str], status: int, named: str
) -> None:
    query = {"requestType": "WADO", "studyUID": stored["study"], "seriesUID": stored["series"]}
    query |= {"objectUID": stored["instance"], "contentType": "application/dicom"} | change
    answer = client.get("/wado", query_string={key: value for key, value in query.items() if value is not None})
    assert answer.status_code == status
    assert named in answer.json["message"]


# OHIF


def test_the_ohif_service_has_the_shape_of_the_original(client: FlaskClient, stored: dict[str, str]) -> None:
    body = client.get("/", environ_overrides={"PATH_INFO": f"//ohif/study/{stored['study']}/series"}).json
    (study,) = body["studies"]
    (series,) = study["seriesList"]
    (instance,) = series["instances"]
    assert (study["studyInstanceUid"], study["patientName"]) == (stored["study"], "Doe^Jane")
    assert (series["seriesInstanceUid"], series["seriesDescription"]) == (stored["series"], "Axial")
    assert (instance["sopInstanceUid"], instance["rows"], instance["numberOfFrames"]) == (stored["instance"], 16, None)
    url = urlsplit(instance["url"].replace("dicomweb:", "http:"))
    assert parse_qs(url.query)["objectUID"] == [stored["instance"]]
    assert client.get(f"{url.path}?{url.query}").status_code == 200
    narrower = f"/ohif/study/{stored['study']}/series/{stored['series']}/instances"
    assert client.get(narrower).json["studies"] == body["studies"]
    assert client.get(f"{narrower}/{stored['instance']}/frames").json["studies"] == body["studies"]
    assert client.get("/ohif/study/1.2.3/series").json["studies"] == []


# Faults


def test_faults_are_json_or_a_page_by_accept(client: FlaskClient) -> None:
    answer = client.get("/dicomweb/studies/1.2.3", headers={"Accept": "application/json, */*"})
    assert (answer.status_code, answer.json["status"], "1.2.3" in answer.json["message"]) == (404, 404, True)
    answer = client.get("/dicomweb/nothing", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "404 Not Found" in answer.text
    answer = client.get("/dicomweb/nothing", headers={"Accept": "text/plain"})
    assert (answer.status_code, answer.mimetype) == (404, "text/plain")


def test_a_method_that_is_not_allowed_says_which_are(client: FlaskClient) -> None:
    answer = client.put("/dicomweb/studies")
    assert (answer.status_code, "GET" in answer.headers["Allow"]) == (405, True)


def test_an_unforeseen_fault_is_told_without_its_inside(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("dicomcloud.archive.Archive.documents", fail)
    answer = client.get("/dicomweb/studies/1.2.3/metadata")
    assert answer.status_code in (404, 500)
    monkeypatch.setattr("dicomcloud.archive.Archive.instances", fail)
    answer = client.get("/dicomweb/studies/1.2.3")
    assert answer.status_code == 500
    assert "secret" not in answer.text


# Health, CORS, OpenAPI


def test_health(client: FlaskClient) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json["status"] == "ready"


def test_cross_origin_requests_are_refused_unless_they_are_allowed(make_app) -> None:  # type: ignore[no-untyped-def]
    origin = {"Origin": "https://viewer.example"}
    preflight = origin | {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization, cache-control, pragma",
    }
    closed = make_app().test_client()
    assert "Access-Control-Allow-Origin" not in closed.get("/dicomweb/studies", headers=origin).headers
    client = make_app(cors_origins="https://viewer.example").test_client()
    answer = client.get("/dicomweb/studies", headers=origin)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://viewer.example"
    assert "X-Total-Count" in answer.headers["Access-Control-Expose-Headers"]
    answer = client.options("/dicomweb/studies", headers=preflight)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, cache-control, pragma"
    other = client.get("/dicomweb/studies", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_the_openapi_document_is_valid_and_names_every_service(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    validate(document)
    operations = {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    expected = {rule.rule for rule in client.application.url_map.iter_rules() if rule.rule.startswith("/dicomweb/")}
    documented = {path.replace("{", "<").replace("}", ">") for path in document["paths"]}
    assert {rule.replace("<path:", "<") for rule in expected} <= documented
    identifiers = [operation["operationId"] for operation in operations.values()]
    assert len(identifiers) == len(set(identifiers))
    for operation in operations.values():
        assert operation["summary"]
        assert any(status.startswith(("2", "3")) for status in operation["responses"])


def test_swagger_ui_needs_no_other_server(client: FlaskClient) -> None:
    page = client.get("/swagger").text
    assert "http" not in page.replace("http-equiv", "")
    for asset in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"):
        assert f"swagger/assets/{asset}" in page
        assert client.get(f"/swagger/assets/{asset}").status_code == 200
    assert client.get("/swagger/assets/..%2f__init__.py").status_code == 404
    assert client.get("/swagger/assets/missing.js").status_code == 404


@pytest.mark.parametrize("function", ["before_request", "after_request", "teardown_request", "url_value_preprocessor"])
def test_what_only_one_blueprint_asks_for_around_a_request_is_not_left_out_silently(app: Flask, function: str) -> None:
    blueprint = Blueprint("own", __name__)
    getattr(blueprint, function)(lambda *_: None)
    app._got_first_request = False
    with pytest.raises(ValueError, match="own has functions of its own"):
        app.register_blueprint(blueprint)
