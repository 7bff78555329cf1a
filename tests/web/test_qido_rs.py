"""QIDO-RS over HTTP: paging, headers, faults; what OHIF and the original's demo client send."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.data import make_dataset, make_file


def store(client: FlaskClient, **attributes: Any) -> str:
    dataset = make_dataset(**attributes)
    answer = client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    assert answer.status_code == 200, answer.text
    return str(dataset.StudyInstanceUID)


@pytest.fixture
def studies(client: FlaskClient) -> list[str]:
    """Seven studies, the newest first."""
    days = range(7, 0, -1)
    return [
        store(client, StudyDate=f"2025010{day}", PatientID=f"P{day}", PatientName=f"Doe{day}^Jane", Modality="CT")
        for day in days
    ]


def links(header: str) -> dict[str, str]:
    return {relation: url for url, relation in re.findall(r'<([^>]*)>; rel="(\w+)"', header)}


def uids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["0020000D"]["Value"][0] for row in rows]


def test_links_lead_through_all_pages_and_back(client: FlaskClient, studies: list[str]) -> None:
    answer = client.get("/api/studies?limit=3&Modality=&ModalitiesInStudy=CT")
    assert answer.headers["X-Total-Count"] == "7"
    assert "There are 4 additional results that can be requested" in answer.headers["Warning"]
    assert set(links(answer.headers["Link"])) == {"next", "last"}
    seen = uids(answer.json)
    while following := links(answer.headers.get("Link", "")).get("next"):
        assert following.startswith("http://localhost/api/studies?")
        answer = client.get(following)
        seen += uids(answer.json)
    assert seen == studies
    assert set(links(answer.headers["Link"])) == {"first", "prev"}
    assert uids(client.get(links(answer.headers["Link"])["prev"]).json) == studies[3:6]
    assert uids(client.get(links(answer.headers["Link"])["first"]).json) == studies[:3]
    last = links(client.get("/api/studies?limit=3").headers["Link"])["last"]
    assert uids(client.get(last).json) == studies[6:]


def test_all_on_one_page_needs_no_links(client: FlaskClient, studies: list[str]) -> None:
    answer = client.get("/dicomweb/studies")
    assert "Link" not in answer.headers
    assert "Warning" not in answer.headers
    assert (answer.headers["X-Total-Count"], answer.mimetype) == ("7", "application/dicom+json")


def test_an_offset_behind_the_end_still_tells_the_total(client: FlaskClient, studies: list[str]) -> None:
    answer = client.get("/dicomweb/studies?offset=50&limit=5")
    assert (answer.json, answer.headers["X-Total-Count"]) == ([], "7")


def test_the_page_size_has_a_limit_of_its_own(make_app, client: FlaskClient, studies: list[str]) -> None:  # type: ignore[no-untyped-def]
    small = make_app(max_results=2).test_client()
    answer = small.get("/dicomweb/studies?limit=5")
    assert len(answer.json) == 2
    assert links(answer.headers["Link"])["next"].endswith("offset=2&limit=2")


def test_no_match_is_an_empty_list_or_by_setting_no_content(make_app, client: FlaskClient) -> None:  # type: ignore[no-untyped-def]
    assert (client.get("/dicomweb/studies").status_code, client.get("/dicomweb/studies").json) == (200, [])
    old = make_app(empty_search_status=204).test_client()
    assert (old.get("/dicomweb/studies").status_code, old.get("/dicomweb/studies").data) == (204, b"")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("PatientNam=x", "PatientNam "),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("offset=1.5", "offset"),
        ("StudyDate=20251301", "'20251301' of StudyDate"),
        ("StudyDate=2025-01-01", "StudyDate"),
        ("PatientID=a&PatientID=b", "PatientID"),
        ("PatientID=a&00100020=b", "more than once"),
        ("fuzzymatching=perhaps", "fuzzymatching"),
        ("includefield=Nonsense", "Nonsense"),
        ("PatientName=%00", "NUL"),
        ("0010002=1", "0010002"),
        ("00400275.Nonsense=1", "Nonsense"),
        ("StudyInstanceUID=not-a-uid", "not-a-uid"),
    ],
)
def test_a_wrong_query_is_refused_and_the_message_names_the_fault(client: FlaskClient, query: str, named: str) -> None:
    answer = client.get(f"/dicomweb/studies?{query}")
    assert answer.status_code == 400
    assert named in answer.json["message"]


def test_a_media_type_that_search_has_not_is_not_acceptable(client: FlaskClient) -> None:
    answer = client.get("/dicomweb/studies", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert "application/dicom+json" in answer.json["message"]


def test_the_accept_parameter_is_no_attribute(client: FlaskClient, studies: list[str]) -> None:
    answer = client.get("/dicomweb/studies?accept=application/dicom%2Bjson&limit=1", headers={"Accept": "text/html"})
    assert len(answer.json) == 1


# What OHIF 3 sends

_OHIF = "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("", [7, 6, 5, 4, 3, 2, 1]),
        ("PatientName=*jan*", [7, 6, 5, 4, 3, 2, 1]),
        ("PatientName=*Doe3*", [3]),
        ("00100020=*P5*", [5]),
        ("AccessionNumber=*1*", [7, 6, 5, 4, 3, 2, 1]),
        ("StudyDescription=*hora*", [7, 6, 5, 4, 3, 2, 1]),
        ("StudyDescription=*abdomen*", []),
        ("ModalitiesInStudy=CT", [7, 6, 5, 4, 3, 2, 1]),
        ("ModalitiesInStudy=MR,CT", [7, 6, 5, 4, 3, 2, 1]),
        ("ModalitiesInStudy=MR", []),
        ("StudyDate=20250102-20250103", [3, 2]),
    ],
)
def test_the_study_list_of_ohif(client: FlaskClient, studies: list[str], filters: str, found: list[int]) -> None:
    rows = client.get(f"/dicomweb/studies?{_OHIF}&{filters}", headers={"Accept": "application/dicom+json"}).json
    assert [int(row["00100020"]["Value"][0][1:]) for row in rows] == found
    for row in rows:
        assert row["00081030"]["Value"] == ["Thorax"]
        assert row["00080061"]["Value"] == ["CT"]
        assert {"00100010", "00100020", "00100030", "00201206", "00201208", "00080090"} <= set(row)


def test_what_ohif_asks_when_it_opens_a_study(client: FlaskClient, studies: list[str]) -> None:
    (study,) = client.get(f"/dicomweb/studies?{_OHIF}&StudyInstanceUID={studies[2]}").json
    assert study["0020000D"]["Value"] == [studies[2]]
    fields = "includefield=00080021%2C00080031%2C0008103E%2C00200011"
    (series,) = client.get(f"/dicomweb/studies/{studies[2]}/series?{fields}").json
    assert {"00080060", "0008103E", "00200011", "0020000E", "0020000D", "00201209"} <= set(series)
    path = f"/dicomweb/studies/{studies[2]}/series/{series['0020000E']['Value'][0]}/metadata"
    assert client.get(path, headers={"Accept": "application/dicom+json"}).json[0]["00280010"]["Value"] == [16]


def test_a_study_without_modality_has_no_empty_modalities(client: FlaskClient) -> None:
    store(client, Modality="")
    (row,) = client.get(f"/dicomweb/studies?{_OHIF}").json
    assert "00080061" not in row


# What the demo client of the original sends


def test_the_demo_client_sends_the_whole_parent_as_match_keys(client: FlaskClient, studies: list[str]) -> None:
    headers = {"Accept": "application/dicom+json"}
    study = client.get("/api/studies?limit=12&offset=0", headers=headers).json[2]
    series_rows = client.get(f"/api/studies/{studies[2]}/series", query_string=keys_of(study), headers=headers)
    assert (series_rows.status_code, len(series_rows.json)) == (200, 1)
    assert "00201206" in series_rows.headers["Warning"]
    series = series_rows.json[0]
    path = f"/api/studies/{studies[2]}/series/{series['0020000E']['Value'][0]}/instances"
    instances = client.get(path, query_string=keys_of(series) | {"limit": "12"}, headers=headers)
    assert (instances.status_code, len(instances.json)) == (200, 1)
    assert instances.json[0]["0020000D"]["Value"] == [studies[2]]


def keys_of(row: dict[str, Any]) -> dict[str, str]:
    keys = {"00020010": "1.2.840.10008.1.2.1"}
    for tag, attribute in row.items():
        values = [
            value["Alphabetic"] if isinstance(value, dict) else str(value) for value in attribute.get("Value", [])
        ]
        keys[tag] = "\\".join(values)
    return keys


def test_a_multipart_body_of_the_demo_client(client: FlaskClient) -> None:
    file = make_file()
    body = b"\r\n--DICOM FILE\r\nContent-Type:application/dicom\r\n\r\n" + file + b"\r\n--DICOM FILE--"
    answer = client.post(
        "/api/studies/?00100020=X&00100010=Y&",
        data=body,
        headers={
            "Content-Type": 'multipart/related; type="application/dicom"; boundary="DICOM FILE"',
            "Accept": "application/json, application/dicom+xml; q=0.9, */*; q = 0.1",
        },
    )
    assert answer.status_code == 200
    assert client.get("/dicomweb/studies").json[0]["00100020"]["Value"] == ["P1"]  # the keys are not taken over
