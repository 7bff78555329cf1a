"""Attacks on the whole server: polyglot files, bombs, traversal, injection. Each is refused, or does nothing."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from flask.testing import FlaskClient

from tests.conftest import AppMaker
from tests.data import data_set_bytes, make_dataset, make_file

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}


def post(client: FlaskClient, body: bytes, content_type: str = "application/dicom", **headers: str) -> Any:
    return client.post("/dicomweb/studies", data=body, content_type=content_type, headers=headers, buffered=True)


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "data" / "storage").rglob("*") if path.is_file())


# Files that are two things at once (the preamble of PS3.10 7.1 is 128 bytes of anything)

PREAMBLES = {
    "a Windows program": b"MZ" + bytes(58) + b"\x80\0\0\0",
    "a TIFF picture": b"II*\0\x08\0\0\0",
    "a shell script": b"#!/bin/sh\nrm -rf /\n",
    "a page": b"<html><script>alert(1)</script>",
    "a ZIP file": b"PK\x03\x04",
}


@pytest.mark.parametrize("preamble", PREAMBLES.values(), ids=PREAMBLES)
def test_a_file_with_two_natures_leaves_as_dicom_only(client: FlaskClient, preamble: bytes) -> None:
    file = preamble.ljust(128, b"\0") + make_file(dataset := make_dataset())[128:]
    assert post(client, file).status_code == 200
    base = f"/dicomweb/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
    answer = client.get(f"{base}/instances/{dataset.SOPInstanceUID}", headers=OCTETS, buffered=True)
    assert (answer.status_code, answer.data) == (200, file)  # kept as it came: the check sum has to stay
    assert answer.mimetype == "application/dicom"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    rendered = client.get(f"{base}/instances/{dataset.SOPInstanceUID}/rendered", headers={"Accept": "text/html"})
    assert rendered.status_code == 406


# Bombs


def deflated_bomb(size: int) -> bytes:
    """A deflated instance of a few kilobytes that unpacks to `size` bytes."""
    file = make_file(make_dataset(PixelData=bytes(size)))
    meta = file[: len(file) - len(data_set_bytes(file))]
    meta = meta.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    length = int.from_bytes(meta[140:144], "little") + 2
    at = meta.index(b"1.2.840.10008.1.2.1.99") - 2
    meta = meta[:140] + length.to_bytes(4, "little") + meta[144:at] + (22).to_bytes(2, "little") + meta[at + 2 :]
    packer = zlib.compressobj(9, wbits=-15)
    return meta + packer.compress(data_set_bytes(file)) + packer.flush()


def test_a_deflated_instance_that_unpacks_too_far_is_refused(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app(max_inflated_bytes="1 MB").test_client()
    bomb = deflated_bomb(20_000_000)
    assert len(bomb) < 50_000
    tracemalloc.start()
    answer = post(client, bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 409
    assert peak < 16_000_000
    assert files(tmp_path) == []


def test_a_gzipped_body_that_unpacks_too_far_is_refused(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app(max_request_bytes="1 MB").test_client()
    answer = post(client, gzip.compress(bytes(50_000_000)), **{"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert files(tmp_path) == []


def test_a_zip_file_that_unpacks_too_far_is_refused(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app(max_request_bytes="2 MB").test_client()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.dcm", make_file(make_dataset(PixelData=bytes(40_000_000 // 20))))
    answer = post(client, target.getvalue(), "application/zip")
    assert answer.status_code in (202, 409, 413)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 40_000_000
    assert list((tmp_path / "data" / "storage" / "incoming").iterdir()) == []


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
ENTITIES = {
    "laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><NativeDicomModel>&l11;</NativeDicomModel>',
    "a file": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><NativeDicomModel>&e;</NativeDicomModel>',
    "another host": '<?xml version="1.0"?><!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><NativeDicomModel/>',
    "depth": "<NativeDicomModel>" + "<DicomAttribute tag='00081140' vr='SQ'><Item number='1'>" * 5000,
}


@pytest.mark.parametrize("document", ENTITIES.values(), ids=ENTITIES)
def test_xml_that_would_grow_or_read_something_is_refused(client: FlaskClient, document: str, tmp_path: Path) -> None:
    answer = post(client, document.encode(), "application/dicom+xml")
    assert answer.status_code in (400, 409)
    assert "root:" not in answer.text
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "document", [b"[" * 1_000_000, b'{"00081140":{"vr":"SQ","Value":[' * 20_000, b'{"a":' * 900_000]
)
def test_json_that_is_nested_without_end_is_refused(client: FlaskClient, document: bytes) -> None:
    assert post(client, document, "application/dicom+json").status_code in (400, 409)


def test_a_bulk_data_uri_never_makes_the_server_fetch_something(client: FlaskClient, tmp_path: Path) -> None:
    for uri in ("file:///etc/passwd", "http://127.0.0.1:9/secret", "../../../etc/passwd", "/etc/passwd"):
        dataset = make_dataset(PixelData=None)
        attributes = dataset.to_json_dict()
        attributes["7FE00010"] = {"vr": "OW", "BulkDataURI": uri}
        answer = post(client, orjson.dumps([attributes]), "application/dicom+json")
        assert answer.status_code == 409, answer.text
        assert "root:" not in answer.text
    assert files(tmp_path) == []


# Traversal, injection

TRAVERSALS = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\..\\windows",
    "....//....//etc/passwd",
    "/etc/passwd",
    "%00",
    "..;/",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_the_archive(client: FlaskClient, path: str) -> None:
    for prefix in (
        "/",
        "/dicomweb/studies/",
        "/dicomweb/studies/1.2/series/1.3/instances/1.4/bulkdata/",
        "/swagger/",
        "/static/",
    ):
        answer = client.get(prefix + path, buffered=True)
        assert answer.status_code in (301, 302, 308, 400, 401, 404, 405), (prefix + path, answer.status_code)
        assert b"root:" not in answer.data


def test_a_uid_that_is_a_path_never_becomes_one(client: FlaskClient, tmp_path: Path) -> None:
    for uid in ("../../x", "1.2/../../x", "C:\\x", "1.2\0.3", "." * 64):
        file = make_file(make_dataset(SOPInstanceUID="1.2.3")).replace(b"1.2.3\0", uid.encode()[:6].ljust(6, b"\0"))
        assert post(client, file).status_code in (200, 202, 409)
    names = [path.name for path in files(tmp_path)]
    assert all(len(name) == 30 and name.endswith(".dcm") and name[:26].isalnum() for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE study; --",
    '" OR ""="',
    "x' UNION SELECT password FROM user --",
    "%' ESCAPE '",
    "\\",
    "a\0b",
    "1) OR (1=1",
    "*'*",
    "?'?",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_value_is_taken_for_sql(client: FlaskClient, text: str) -> None:
    assert post(client, make_file()).status_code == 200
    for name in (
        "PatientName",
        "PatientID",
        "StudyDate",
        "ModalitiesInStudy",
        "00081030",
        "AccessionNumber",
        "StudyInstanceUID",
        "includefield",
        "limit",
        "offset",
        "fuzzymatching",
        "RequestAttributesSequence.ScheduledProcedureStepID",
    ):
        answer = client.get(f"/dicomweb/studies?{name}={quote(text)}", buffered=True)
        assert answer.status_code in (200, 204, 400), (name, answer.status_code)
        assert answer.status_code != 200 or answer.json == [] or "Warning" in answer.headers or text == "\\"
    assert client.get(f"/dicomweb/studies?{quote(text)}=x").status_code in (200, 400)
    assert len(client.get("/dicomweb/studies").json) == 1


def test_stored_text_is_never_sql_either(client: FlaskClient) -> None:
    for text in INJECTIONS:
        if "\0" not in text and "\\" not in text:
            dataset = make_dataset(PatientName=text, StudyDescription=text, AccessionNumber="A1")
            assert post(client, make_file(dataset)).status_code == 200
            found = client.get(
                f"/dicomweb/studies?StudyInstanceUID={dataset.StudyInstanceUID}&includefield=00081030"
            ).json
            assert found[0]["00081030"]["Value"] == [text]


def test_what_comes_in_never_becomes_a_header(client: FlaskClient) -> None:
    evil = "x\r\nSet-Cookie: stolen=1\r\n\r\n<script>"
    dataset = make_dataset(StudyDescription="x\r\nSet-Cookie: a=b", PatientName="a\r\nX-Evil: 1")
    answers = [
        post(client, make_file(dataset)),
        client.get(f"/dicomweb/studies?{quote(evil)}={quote(evil)}"),
        client.get(f"/dicomweb/studies?PatientName={quote(evil)}&limit=1"),
        client.get(f"/dicomweb/studies/{quote(evil)}/metadata"),
        client.get(f"/wado?requestType=WADO&studyUID=1&seriesUID=2&objectUID=3&contentType={quote(evil)}"),
        client.get(f"/{quote(evil)}"),
        client.get("/dicomweb/studies", headers={"Accept": 'x/y; a="\\r\\n"'}),
    ]
    for answer in answers:
        assert answer.status_code < 500
        assert "Set-Cookie" not in answer.headers or "stolen" not in answer.headers["Set-Cookie"]
        assert "X-Evil" not in answer.headers
        assert all("\r" not in value and "\n" not in value for _, value in answer.headers)
        assert answer.mimetype != "text/html" or "<script>" not in answer.text


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "BREW", "PATCH"])
def test_methods_that_are_not_offered_are_refused(client: FlaskClient, method: str) -> None:
    assert client.open("/dicomweb/studies", method=method).status_code == 405
