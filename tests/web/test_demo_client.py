"""The requests of the original's demo client (jQuery and cornerstone), against `/api`, `/wadouri` and `/ohif`."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from xml.etree import ElementTree

import pydicom
import pytest
from flask.testing import FlaskClient

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ORIGIN = {"Origin": "https://demo.example"}
JSON = {"Accept": "application/dicom+json", **ORIGIN}
XML = {"Accept": 'multipart/related; type="application/dicom+xml"', **ORIGIN}


@pytest.fixture
def client(make_app: AppMaker) -> FlaskClient:
    return make_app(cors_origins="https://demo.example", stow_query_attributes="true").test_client()


@pytest.fixture
def stored(client: FlaskClient) -> list[pydicom.Dataset]:
    """Two images of one series, names with accents, and a study of somebody else."""
    first = make_dataset(PatientName="Müller^Jörg^^Dr", StudyDescription="Schädel")
    names = ("StudyInstanceUID", "SeriesInstanceUID", "PatientName", "StudyDescription")
    second = make_dataset(**{name: first[name].value for name in names}, InstanceNumber=2)
    for dataset in (first, second, make_dataset(PatientID="P2")):
        assert post(client, [make_file(dataset)]).status_code == 200
    return [first, second]


def post(client: FlaskClient, files: list[bytes], query: str = "") -> Any:
    """Its STOW: a boundary with a blank, a line end in front, a header without a blank, a slash and an & at the end."""
    body = b"".join(b"\r\n--DICOM FILE\r\nContent-Type:application/dicom\r\n\r\n" + file for file in files)
    return client.post(
        f"/api/studies/?{query}",
        data=body + b"\r\n--DICOM FILE--",
        headers={"Accept": "application/json, application/dicom+xml; q=0.9, */*; q = 0.1", **ORIGIN},
        content_type='multipart/related; type="application/dicom"; boundary="DICOM FILE"',
    )


def as_keys(dataset: dict[str, Any]) -> str:
    """A whole result as matching keys, which is how the client asks for what is below it."""
    keys = {}
    for tag, element in dataset.items():
        values = [each["Alphabetic"] if isinstance(each, dict) else each for each in element.get("Value", [])]
        keys[tag] = "\\".join(map(str, values))
    return urlencode(keys)


def test_studies_are_listed_with_pages_that_the_browser_may_read(client: FlaskClient, stored: Any) -> None:
    answer = client.get("/api/studies?00100010=&00080061=CT&includefield=00081030&limit=1&offset=0", headers=JSON)
    assert (answer.status_code, answer.headers["X-Total-Count"]) == (200, "2")
    links = {
        relation.partition("=")[2].strip('"'): parse_qs(urlsplit(address.strip(" <>")).query)
        for address, relation in (link.split(";") for link in answer.headers["Link"].split(","))
    }
    assert (links["next"]["offset"], links["last"]["offset"], links["next"]["limit"]) == (["1"], ["1"], ["1"])
    exposed = answer.headers["Access-Control-Expose-Headers"].lower()
    assert all(name in exposed for name in ("link", "x-total-count", "x-dicom-instance"))


def test_children_are_found_by_the_whole_parent(client: FlaskClient, stored: Any) -> None:
    dataset = client.get(f"/api/studies?0020000D={stored[0].StudyInstanceUID}", headers=JSON).json[0]
    (series,) = client.get(f"/api/series?{as_keys(dataset)}&limit=12&offset=0", headers=JSON).json
    assert series["0020000D"]["Value"] == [stored[0].StudyInstanceUID]
    instances = client.get(f"/api/instances?{as_keys(dataset | series)}&limit=12&offset=0", headers=JSON).json
    assert {row["00080018"]["Value"][0] for row in instances} == {each.SOPInstanceUID for each in stored}
    assert {row["0020000E"]["Value"][0] for row in instances} == {stored[0].SeriesInstanceUID}


def test_results_are_given_as_xml(client: FlaskClient, stored: Any) -> None:
    answer = client.get(f"/api/studies/?0020000D={stored[0].StudyInstanceUID}", headers=XML)
    assert answer.mimetype == "multipart/related"
    assert "Müller" in answer.data.decode("utf-8")


@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_an_instance_of_each_result_is_named_in_a_header(client: FlaskClient, stored: Any, level: str) -> None:
    query = f"0020000D={stored[0].StudyInstanceUID}"
    answer = client.get(f"/api/{level}?{query}&_instance-header=true", headers=JSON)
    named = answer.headers.getlist("X-Dicom-Instance")
    assert len(named) == len(answer.json)
    assert set(named) <= {f"{each.StudyInstanceUID}:{each.SeriesInstanceUID}:{each.SOPInstanceUID}" for each in stored}
    assert "X-Dicom-Instance" not in client.get(f"/api/{level}?{query}", headers=JSON).headers


def test_files_are_stored_with_attributes_of_the_form(client: FlaskClient) -> None:
    answer = post(client, [make_file(), make_file()], "00100020=FORM-1&00100010=Form^Fred&")
    assert answer.status_code in (200, 202)
    rows = client.get("/api/studies?PatientID=FORM-1", headers=JSON).json
    assert {row["00100010"]["Value"][0]["Alphabetic"] for row in rows} == {"Form^Fred"}
    xml = client.post(
        "/api/studies/?",
        data=make_file(),
        headers={"Accept": "application/dicom+xml, */*; q=0.1"},
        content_type="application/dicom",
    )
    assert ElementTree.fromstring(xml.data).tag.endswith("NativeDicomModel")


def test_instances_frames_and_metadata_come_with_a_slash_at_the_end(client: FlaskClient, stored: Any) -> None:
    path = f"/api/studies/{stored[0].StudyInstanceUID}/series/{stored[0].SeriesInstanceUID}"
    instance = f"{path}/instances/{stored[0].SOPInstanceUID}"
    for accept, resource, expected in (
        ('multipart/related; type="application/dicom"', f"{path}/", b"DICM"),
        ('multipart/related; type="application/octet-stream"', f"{instance}/frames/1/", stored[0].PixelData),
        (
            "multipart/related; type=application/octet-stream;transfer-syntax=1.2.840.10008.1.2.1",
            f"{instance}/frames/1",
            b"",
        ),
        ("application/dicom+json", f"{instance}/metadata/", b"0020000D"),
        ('multipart/related; type="application/dicom+xml"', f"{instance}/metadata/", b"NativeDicomModel"),
    ):
        answer = client.get(resource, headers={"Accept": accept, **ORIGIN})
        assert (answer.status_code, expected in answer.data) == (200, True), (resource, accept)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70"])
@pytest.mark.parametrize("root", ["/wadouri", "/api/wadouri"])
def test_the_image_loader_of_cornerstone_gets_files(client: FlaskClient, stored: Any, root: str, syntax: str) -> None:
    uids = (stored[0].StudyInstanceUID, stored[0].SeriesInstanceUID, stored[0].SOPInstanceUID)
    query = "RequestType=wado&studyUID={}&seriesUID={}&objectUID={}&contentType=application/dicom".format(*uids)
    answer = client.get(f"{root}?{query}&frameNumber=1&transferSyntax={syntax}")
    assert (answer.status_code, answer.data[128:132]) == (200, b"DICM")


def test_a_study_is_deleted_with_a_slash_at_the_end(client: FlaskClient, stored: Any) -> None:
    path = f"/api/studies/{stored[0].StudyInstanceUID}/"
    preflight = ORIGIN | {"Access-Control-Request-Method": "DELETE"}
    assert "DELETE" in client.options(path, headers=preflight).headers["Access-Control-Allow-Methods"]
    assert client.delete(path, headers=ORIGIN).status_code in (200, 204)
    assert len(client.get("/api/studies", headers=JSON).json) == 1


def test_the_old_viewer_opens_what_the_ohif_service_names(client: FlaskClient, stored: Any) -> None:
    base = {"PATH_INFO": f"//ohif/study/{stored[0].StudyInstanceUID}/series"}
    body = client.get("/", environ_overrides=base, headers=ORIGIN).json
    ((series,),) = [study["seriesList"] for study in body["studies"]]
    assert [instance["numberOfFrames"] for instance in series["instances"]] == [None, None]
    assert [instance["rows"] for instance in series["instances"]] == [16, 16]
    for instance, dataset in zip(series["instances"], stored, strict=True):
        address = urlsplit(instance["url"].replace("dicomweb:", "http:"))
        answer = client.get(f"{address.path}?{address.query}")
        assert answer.data == make_file(dataset)
