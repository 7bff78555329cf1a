"""Bulk data and pixel data: of all levels, nested, private, mended, ranges, and documents in their own type."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from flask.testing import FlaskClient
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, EncapsulatedPDFStorage, ExplicitVRBigEndian, RLELossless
from werkzeug.test import TestResponse

from tests.data import make_dataset, make_file, sample_files
from tests.web.test_wado_rs import encoded, store

OCTETS = {"Accept": "application/octet-stream"}
TABLE = bytes(range(256)) * 8


def cut(answer: TestResponse) -> list[tuple[str, str, bytes]]:
    """Content-Location, Content-Type and content of each part, cut by its Content-Length."""
    assert answer.status_code == 200, answer.text
    found, at, body = [], 0, answer.data
    while (head := re.compile(rb"--\w+\r\n((?:[^\r]+\r\n)+)\r\n").search(body, at)) is not None:
        headers = dict(line.split(": ", 1) for line in head[1].decode().splitlines())
        end = head.end() + int(headers["Content-Length"])
        found.append((headers["Content-Location"], headers["Content-Type"], body[head.end() : end]))
        at = end
    assert re.fullmatch(rb"\r\n--\w+--\r\n", body[at:])
    return found


def uris(data_set: dict[str, dict[str, object]]) -> list[str]:
    found = []
    for element in data_set.values():
        if "BulkDataURI" in element:
            found.append(element["BulkDataURI"])
        elif element["vr"] == "SQ":
            for item in element.get("Value", []):  # type: ignore[attr-defined]
                found += uris(item)
    return found  # type: ignore[return-value]


def make_rich(**attributes: object) -> Dataset:
    """A table, a private value, an icon inside a sequence, and pixels."""
    dataset, icon = make_dataset(**attributes), Dataset()
    dataset.RedPaletteColorLookupTableData = TABLE
    dataset.private_block(0x0009, "DICOMCLOUD TEST", create=True).add_new(2, "OB", TABLE[:1500])
    icon.PixelData = TABLE
    icon["PixelData"].VR = "OW"
    dataset.IconImageSequence = [icon]
    return dataset


@pytest.mark.parametrize("level", ["instance", "series", "study"])
def test_all_bulk_data_have_the_uris_of_the_metadata(client: FlaskClient, level: str) -> None:
    dataset = make_rich()
    uids = {name: dataset[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    url = store(client, make_file(dataset), make_file(make_rich(**uids, InstanceNumber=2)))[0]
    url = {"instance": url, "series": url.partition("/instances/")[0], "study": url.partition("/series/")[0]}[level]
    expected = [uri for data_set in _list(client.get(f"{url}/metadata").json) for uri in uris(data_set)]
    answer = client.get(f"{url}/bulkdata")
    found = cut(answer)
    assert [location for location, _, _ in found] == expected
    assert len(expected) == (4 if level == "instance" else 8)
    for location, _, content in found:
        assert client.get(location, headers=OCTETS).data == content
    pixels = cut(client.get(f"{url}/pixeldata"))
    assert [location for location, _, _ in pixels] == [uri for uri in expected if uri.endswith("/bulkdata/7FE00010")]
    assert client.head(f"{url}/bulkdata").headers["ETag"] == answer.headers["ETag"]
    assert client.get(f"{url}/bulkdata", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def _list(value: object) -> list[dict[str, dict[str, object]]]:
    assert isinstance(value, list)
    return value


def test_what_has_no_bulk_data_says_so(client: FlaskClient) -> None:
    (url,) = store(client, make_file(PixelData=None, Rows=None, Columns=None))
    for level in (url, url.partition("/series/")[0]):
        for resource in ("bulkdata", "pixeldata"):
            for method in (client.get, client.head):
                assert method(f"{level}/{resource}").status_code == 404
    assert client.get("/dicomweb/studies/1.2.3/bulkdata").status_code == 404
    client.delete(url)
    assert client.get(f"{url}/pixeldata").status_code == 410


def test_pixel_data_of_a_study_in_several_transfer_syntaxes_come_uncompressed(client: FlaskClient) -> None:
    dataset, frames = make_dataset(), np.arange(512, dtype="<u2").tobytes()
    uids = {name: dataset[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    other = make_dataset(**uids, InstanceNumber=2, NumberOfFrames=2, PixelData=frames)
    url = store(client, make_file(dataset), encoded(other, RLELossless))[0].partition("/series/")[0]
    found = cut(client.get(f"{url}/pixeldata"))
    assert [content for _, _, content in found] == [dataset.PixelData, frames[:512], frames[512:]]
    stored = cut(client.get(f"{url}/pixeldata", headers={"Accept": "multipart/related; transfer-syntax=*"}))
    assert {kind for _, kind, _ in stored[1:]} == {"image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"}
    assert [len(content) for _, _, content in stored[1:]] != [512, 512]


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_values_of_other_encodings_come_little_endian(client: FlaskClient, syntax: str) -> None:
    dataset = make_rich()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    little = dataset.PixelData
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(little, "<u2").byteswap().tobytes()
    target = BytesIO()
    pydicom.dcmwrite(target, dataset, enforce_file_format=True)
    (url,) = store(client, target.getvalue())
    assert client.get(f"{url}/bulkdata/7FE00010", headers=OCTETS).data == little
    (_, _, content), *_ = cut(client.get(f"{url}/pixeldata"))
    assert content == little


@pytest.mark.parametrize(
    ("kind", "accept", "expected"),
    [
        ("application/pdf", "*/*", "application/pdf"),
        ("application/pdf", "application/pdf", "application/pdf"),
        ("application/pdf", "text/html,application/xhtml+xml,*/*;q=0.8", "application/pdf"),
        ("application/pdf", "application/octet-stream", "application/octet-stream"),
        ("text/html", "*/*", "text/html"),
        ("not a media type", "*/*", 'multipart/related; type="application/octet-stream"'),
        ("application/pdf", "image/png", None),
    ],
)
def test_a_document_comes_in_its_own_type(client: FlaskClient, kind: str, accept: str, expected: str | None) -> None:
    document = b"%PDF-1.7 " + bytes(2000)
    dataset = make_dataset(PixelData=None, Rows=None, Columns=None, SOPClassUID=EncapsulatedPDFStorage)
    dataset.MIMETypeOfEncapsulatedDocument = kind
    dataset.EncapsulatedDocument = document + b"\0"
    dataset.EncapsulatedDocumentLength = len(document)
    (url,) = store(client, make_file(dataset))
    answer = client.get(f"{url}/bulkdata/00420011", headers={"Accept": accept})
    if expected is None:
        assert answer.status_code == 406
        return
    assert answer.headers["Content-Type"].startswith(expected)
    if expected == kind:
        assert answer.data == document
        part = client.get(f"{url}/bulkdata/00420011", headers={"Accept": accept, "Range": "bytes=0-3"})
        assert (part.status_code, part.data) == (206, b"%PDF")
    assert ("Content-Security-Policy" in answer.headers) == (expected == "text/html")


@pytest.mark.parametrize("resource", ["", "/frames/2", "/bulkdata/7FE00010", "/pixeldata"])
def test_every_single_part_has_ranges(client: FlaskClient, resource: str) -> None:
    (url,) = store(client, make_file(NumberOfFrames=2, PixelData=np.arange(512, dtype="<u2").tobytes()))
    accept = {"Accept": "application/dicom" if not resource else "application/octet-stream"}
    whole = client.get(url + resource, headers=accept)
    assert whole.headers["Accept-Ranges"] == "bytes"
    for asked, part in (
        ("bytes=100-199", slice(100, 200)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=3-", slice(3, None)),
    ):
        answer = client.get(url + resource, headers={**accept, "Range": asked, "If-Range": whole.headers["ETag"]})
        assert (answer.status_code, answer.data) == (206, whole.data[part])
        assert answer.headers["Content-Length"] == str(len(answer.data))
    assert client.get(url + resource, headers={**accept, "Range": "bytes=999999-"}).status_code == 416
    changed = client.get(url + resource, headers={**accept, "Range": "bytes=0-1", "If-Range": '"other"'})
    assert (changed.status_code, changed.data) == (200, whole.data)
    head = client.head(url + resource, headers=accept)
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", str(len(whole.data)))


def test_a_value_that_only_pydicom_can_read_is_read_by_pydicom(tmp_path: Path) -> None:
    from dicomcloud.dicom.damaged import read_damaged_value

    dataset = make_rich()
    path = tmp_path / "file"
    path.write_bytes(make_file(dataset))
    for where, content in (
        ("/00281201", TABLE),
        ("/00091002", TABLE[:1500]),
        ("/00880200/1/7FE00010", TABLE),
        ("/7FE00010", dataset.PixelData),
    ):
        with path.open("rb") as file:
            assert read_damaged_value(file, where) == content
    with path.open("rb") as file, pytest.raises(LookupError):
        read_damaged_value(file, "/00281202")


def test_every_uri_in_the_metadata_of_real_files_can_be_read(client: FlaskClient) -> None:
    checked = 0
    for path in sample_files():
        answer = client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
        if answer.status_code != 200:
            continue
        url = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0]
        for uri in uris(client.get(f"{url}/metadata").json[0]):
            got = client.get(uri)
            assert got.status_code == 200, f"{path.name} {uri}: {got.text[:200]}"
            assert len(got.data) > 0
            checked += 1
    assert checked > 100 or not sample_files()
