"""STOW-RS with metadata and bulk data, as JSON and as XML, against the real application (PS3.18 10.5, F, PS3.19 A)."""

from __future__ import annotations

import base64
import io
import re
import tracemalloc
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import PIL.Image
import pydicom
import pytest
from flask import Flask
from flask.testing import FlaskClient
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from werkzeug.test import TestResponse

from dicomcloud.dicom.metadata import native_model_xml
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file, pydicom_files, sample_files

STUDIES = "/dicomweb/studies"
DICOM, JSON, XML = "application/dicom", "application/dicom+json", "application/dicom+xml"
AS_STORED = {"Accept": "application/dicom; transfer-syntax=*"}
Part = tuple[str, str, bytes]  # Content-Type, Content-Location, content


def body_of(*parts: Part) -> bytes:
    out = []
    for kind, location, content in parts:
        head = f"--b\r\nContent-Type: {kind}\r\n" + (f"Content-Location: {location}\r\n" if location else "")
        out.append(head.encode() + b"\r\n" + content + b"\r\n")
    return b"".join(out) + b"--b--\r\n"


def post(client: FlaskClient, *parts: Part, root: str = JSON, url: str = STUDIES, **more: Any) -> TestResponse:
    return client.post(
        url, data=body_of(*parts), content_type=f'multipart/related; type="{root}"; boundary="b"', **more
    )


def metadata_of(dataset: Dataset | None = None, **attributes: Any) -> dict[str, Any]:
    """A small CT in the DICOM JSON Model with its pixel data at `pixels`."""
    dataset = dataset or make_dataset(**attributes)
    made: dict[str, Any] = dataset.to_json_dict(bulk_data_threshold=1 << 30, bulk_data_element_handler=None)
    if "7FE00010" in made:
        made["7FE00010"] = {"vr": "OW", "BulkDataURI": "pixels"}
    return made


def as_json(*data_sets: Any) -> Part:
    return JSON, "", orjson.dumps(list(data_sets))


PIXELS: Part = ("application/octet-stream", "pixels", np.arange(256, dtype="<u2").tobytes())


def stored(client: FlaskClient, answer: TestResponse) -> Dataset:
    """The one instance that the answer says is stored, as it is stored."""
    assert answer.status_code in (200, 202), (answer.json, answer.headers.getlist("Warning"))
    (item,) = answer.json["00081199"]["Value"]
    path = item["00081190"]["Value"][0].removeprefix("http://localhost")
    return pydicom.dcmread(io.BytesIO(client.get(path, headers=AS_STORED).data))


def warnings_of(answer: TestResponse) -> str:
    return "\n".join(answer.headers.getlist("Warning"))


def failure(answer: TestResponse) -> str:
    assert answer.status_code == 409, answer.data
    faults = answer.json.get("00081198", answer.json.get("0008119A"))["Value"]
    assert [fault["00081197"]["Value"] for fault in faults] == [[0xC000]]
    return warnings_of(answer)


# ------------------------------------------------------------------------------------------------ round trip


def fetched_bulk(client: FlaskClient, url: str) -> list[Part]:
    """What a BulkDataURI gives, as parts to be sent again: their own Content-Type, the BulkDataURI as location."""
    accept = "multipart/related; type=*/*; transfer-syntax=*, */*; transfer-syntax=*"
    answer = client.get(url.removeprefix("http://localhost"), headers={"Accept": accept})
    assert answer.status_code == 200, answer.data
    if not answer.content_type.startswith("multipart/"):
        return [(answer.content_type, url, answer.data)]
    head = b"Content-Type: " + answer.content_type.encode() + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + answer.data)
    return [(part["Content-Type"], url, part.get_payload(decode=True)) for part in message.iter_parts()]


def bulk_urls(data_set: dict[str, Any]) -> list[str]:
    found = []
    for attribute in data_set.values():
        if uri := attribute.get("BulkDataURI"):
            found.append(uri)
        for item in attribute.get("Value", ()) if attribute["vr"] == "SQ" else ():
            found += bulk_urls(item)
    return found


def differences(one: Dataset, other: Dataset, place: str = "") -> list[str]:
    """Where two data sets differ in what they say; the character set that their texts are written in may differ."""
    found = []
    tags = {tag for tag in {*one.keys(), *other.keys()} if tag & 0xFFFF}  # group lengths are not part of metadata
    for tag in sorted(tags - {0x00080005}):
        here = f"{place}{pydicom.datadict.keyword_for_tag(tag) or tag}"
        if tag not in one or tag not in other:
            found.append(f"{here} is missing")
        elif one[tag].VR == "SQ" and other[tag].VR == "SQ":
            items = list(one[tag].value), list(other[tag].value)
            if len(items[0]) != len(items[1]):
                found.append(f"{here} has {len(items[0])} and {len(items[1])} items")
            for number, pair in enumerate(zip(*items, strict=False)):
                found += differences(*pair, f"{here}[{number}].")
        elif tag == 0x7FE00010 and one[tag].value.startswith(b"\xfe\xff\x00\xe0"):
            if frames_of(one) != frames_of(other):
                found.append(f"{here}: other frames")
        elif said(one[tag]) != said(other[tag]):
            found.append(f"{here}: {said(one[tag])!r:.80} and {said(other[tag])!r:.80}")
    return found


def frames_of(dataset: Dataset) -> list[bytes]:
    """The frames, whatever Basic Offset Table and fragments they are in."""
    number = int(dataset.get("NumberOfFrames") or 1)
    return [padded(frame) for frame in pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=number)]


def said(element: pydicom.DataElement) -> Any:
    """The value without padding; of a name without empty components at the end."""
    value = element.value
    if isinstance(value, bytes):
        return value.rstrip(b"\0")
    values = list(value) if isinstance(value, MultiValue) else [] if value in (None, "") else [value]
    if element.VR == "PN":
        names = ["=".join(part.rstrip("^ ") for part in str(each).split("=")).rstrip("=") for each in values]
        return names if any(names) else []
    if isinstance(value, str | MultiValue):
        values = [each.strip(" \0") if isinstance(each, str) else each for each in values]
        return values if any(each != "" for each in values) else []
    return values


def padded(content: bytes) -> bytes:
    return content.rstrip(b"\0")


# Pixel data that contradict the attributes: as a file they are kept as they are, with metadata they are refused.
CONTRADICTIONS = {
    "pydicom_JPEG2000-embedded-sequence-delimiter.dcm",
    "pydicom_MR_small_padded.dcm",
    "pydicom_badVR.dcm",
    "MR_small_padded.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "badVR.dcm",
}


def retrieved(client: FlaskClient, path: str, form: str) -> list[Part]:
    """The instance as the parts of a store request, made of nothing but what this server answers."""
    if form == DICOM:
        return [(DICOM, "", client.get(path, headers=AS_STORED).data)]
    answer = client.get(f"{path}/metadata")
    parts = [part for url in bulk_urls(answer.json[0]) for part in fetched_bulk(client, url)]
    if form == JSON:
        return [(JSON, "", answer.data), *parts]
    answer = client.get(f"{path}/metadata", headers={"Accept": f'multipart/related; type="{XML}"'})
    head = b"Content-Type: " + answer.content_type.encode() + b"\r\n\r\n"
    (document,) = BytesParser(policy=HTTP).parsebytes(head + answer.data).iter_parts()
    return [(XML, "", document.get_payload(decode=True)), *parts]


@pytest.mark.parametrize("form", [DICOM, JSON, XML])
@pytest.mark.parametrize("files", [pydicom_files, sample_files], ids=["pydicom", "samples"])
def test_what_was_retrieved_is_stored_in_another_archive_as_the_same_object(
    make_app: AppMaker, tmp_path: Path, form: str, files: Any
) -> None:
    paths = files()
    if not paths:
        pytest.skip("no such files here")
    client = make_app().test_client()
    other = make_app(data_dir=tmp_path / "other").test_client()
    again = 0
    for path in paths:
        answer = client.post(STUDIES, data=path.read_bytes(), content_type=DICOM)
        if answer.status_code == 409:
            continue
        (item,) = answer.json["00081199"]["Value"]
        instance = item["00081190"]["Value"][0].removeprefix("http://localhost")
        answer = post(other, *retrieved(client, instance, form), root=form)
        if path.name in CONTRADICTIONS and form != DICOM:
            assert answer.status_code == 409, path
            assert "contradict" in warnings_of(answer), path
        else:
            assert answer.status_code in (200, 202), (path, warnings_of(answer))
            before, after = (each.get(instance, headers=AS_STORED).data for each in (client, other))
            if form == DICOM:
                assert before == after, path
            else:
                read = pydicom.dcmread(io.BytesIO(before), force=True), pydicom.dcmread(io.BytesIO(after))
                assert differences(*read) == [], path
            again += 1
        for each in (client, other):
            each.delete(re.sub("/series/.*", "", instance))
    assert again > len(paths) * 0.7


# ------------------------------------------------------------------------------------------------ forms of request


def test_one_part_of_json_holds_many_instances_and_each_finds_its_own_bulk_data(client):
    first, second = metadata_of(), metadata_of()
    second["7FE00010"]["BulkDataURI"] = "other"
    answer = post(client, as_json(first, second), PIXELS, (PIXELS[0], "other", bytes(512)))
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (200, 2)
    assert "Warning" not in answer.headers


def test_each_part_of_xml_is_an_instance(client):
    parts = [(XML, "", native_model_xml(metadata_of())) for _ in range(2)]
    answer = post(client, *parts, PIXELS, root=XML)
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (200, 2)


@pytest.mark.parametrize("content_type", [JSON, "application/json", XML])
def test_metadata_alone_are_stored_with_inline_binary(client, content_type):
    metadata = metadata_of()
    metadata["7FE00010"] = {"vr": "OW", "InlineBinary": base64.b64encode(PIXELS[2]).decode()}
    body = native_model_xml(metadata) if content_type == XML else orjson.dumps([metadata])
    answer = client.post(STUDIES, data=body, content_type=content_type)
    assert stored(client, answer).PixelData == PIXELS[2]


LOCATIONS = {
    "the same text": ("pixels/1 ?#\u00e4", "pixels/1 ?#\u00e4"),
    "a content id": ("cid:pixels@here", "cid:pixels@here"),
    "absolute and relative": ("http://localhost/bulk/1", "/bulk/1"),
    "relative and absolute": ("bulk/1", "http://localhost/dicomweb/bulk/1"),
    "a server that is not there": ("http://127.0.0.1:9/secret", "http://127.0.0.1:9/secret"),
}


@pytest.mark.parametrize(("uri", "location"), LOCATIONS.values(), ids=LOCATIONS)
def test_bulk_data_are_found_by_their_content_location(client, uri, location):
    metadata = metadata_of()
    metadata["7FE00010"]["BulkDataURI"] = uri
    assert post(client, as_json(metadata), (PIXELS[0], location, PIXELS[2])).status_code == 200


@pytest.mark.parametrize("uri", ["http://localhost/dicomweb/studies", "file:///etc/passwd", "pixel", "Pixels", ""])
def test_a_bulk_data_uri_that_no_part_has_fails_that_instance_and_is_never_fetched(client, uri):
    metadata = metadata_of()
    metadata["7FE00010"]["BulkDataURI"] = uri
    answer = post(client, as_json(metadata, metadata_of()), PIXELS)
    assert answer.status_code == 202
    failed = answer.json["00081198"]["Value"][0]
    assert failed["00081155"]["Value"] == metadata["00080018"]["Value"]
    assert "PixelData (7FE0,0010)" in warnings_of(answer)


def test_bulk_data_that_nobody_refers_to_are_told(client):
    answer = post(client, as_json(metadata_of()), PIXELS, ("image/png", "left-over", b"x"), ("image/png", "", b"x"))
    assert answer.status_code == 200
    assert "2 parts are the BulkDataURI of no attribute" in warnings_of(answer)
    assert "left-over" in warnings_of(answer)


def test_a_dicom_file_among_the_metadata_is_stored_too(client):
    answer = post(client, as_json(metadata_of()), PIXELS, ("application/dicom", "", make_file()))
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (200, 2)


def test_the_location_is_the_instance_or_the_study_that_was_stored(client):
    one = make_dataset()
    study = f"http://localhost{STUDIES}/{one.StudyInstanceUID}"
    answer = post(client, as_json(metadata_of(one)), PIXELS)
    assert answer.headers["Location"] == f"{study}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"
    others = [metadata_of(StudyInstanceUID=one.StudyInstanceUID) for _ in range(2)]
    assert post(client, as_json(*others), PIXELS).headers["Location"] == study
    assert "Location" not in post(client, as_json(metadata_of(), metadata_of()), PIXELS).headers


def test_the_same_metadata_again_are_the_same_instance(client):
    parts = as_json(metadata_of()), PIXELS
    assert [post(client, *parts).status_code for _ in range(2)] == [200, 200]


def test_metadata_of_another_study_than_that_of_the_url_fail(client):
    answer = post(client, as_json(metadata_of()), PIXELS, url=f"{STUDIES}/1.2.3")
    assert answer.status_code == 409
    assert answer.json["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]


# ------------------------------------------------------------------------------------------------ values


def test_values_of_every_vr_come_through(client):
    values: dict[str, Any] = {
        "00080054": {"vr": "AE", "Value": ["STORE"]},
        "00081070": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "\u5c71\u7530"}, None]},
        "00091001": {"vr": "UN", "InlineBinary": "AQI="},
        "00090010": {"vr": "LO", "Value": ["ACME"]},
        "00101010": {"vr": "AS", "Value": ["030Y"]},
        "00101030": {"vr": "DS", "Value": [71.25]},
        "00189074": {"vr": "DT", "Value": ["20250102101500"]},
        "00186030": {"vr": "UL", "Value": [4294967295]},
        "00186020": {"vr": "SL", "Value": [-2147483648]},
        "00189810": {"vr": "FD", "Value": [0.1, "NaN"]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},
        "00281224": {"vr": "OB", "InlineBinary": "AAEC"},
        "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["\u00e9tape"]}}, {}]},
        "0040A160": {"vr": "UT", "Value": ["a\\b \U0001f9b4"]},
        "00720082": {"vr": "SV", "Value": ["-9223372036854775808"]},
        "00720083": {"vr": "UV", "Value": [1]},
        "00080119": {"vr": "UC", "Value": ["x", None, "y"]},
        "00081190": {"vr": "UR", "Value": ["http://x/y"]},
    }
    answer = post(client, as_json(metadata_of() | values), PIXELS)
    dataset = stored(client, answer)
    (seen,) = client.get(f"{STUDIES}/{dataset.StudyInstanceUID}/metadata").json
    for tag, attribute in values.items():
        if tag not in ("00081190", "00281224"):
            assert seen[tag] == attribute, tag
    assert seen["00281224"]["InlineBinary"] == "AAECAA=="  # padded to an even length
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_text_too_long_for_its_length_field_becomes_un_and_stays_readable(client):
    metadata = metadata_of() | {"00181063": {"vr": "DS", "Value": [1.5] * 20000}}
    dataset = stored(client, post(client, as_json(metadata), PIXELS))
    (seen,) = client.get(f"{STUDIES}/{dataset.StudyInstanceUID}/metadata").json
    answer = client.get(seen["00181063"]["BulkDataURI"].removeprefix("http://localhost"))
    assert answer.data.count(b"1.5") == 20000


def test_bulk_text_in_the_character_set_of_the_metadata_becomes_utf_8(client):
    metadata = metadata_of() | {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 100"]},
        "0040A160": {"vr": "UT", "BulkDataURI": "text"},
    }
    text = ("\u00e4" * 40000).encode("latin-1")
    dataset = stored(client, post(client, as_json(metadata), PIXELS, ("text/plain", "text", text)))
    assert (dataset.TextValue, dataset.SpecificCharacterSet) == ("\u00e4" * 40000, "ISO_IR 192")


def test_a_private_attribute_of_xml_is_put_into_the_block_of_its_creator(client):
    text = native_model_xml(metadata_of()).decode()
    private = (
        '<DicomAttribute tag="00090002" vr="LO" privateCreator="ACME"><Value number="1">x</Value></DicomAttribute>'
    )
    text = text.replace('<DicomAttribute tag="00080005"', private + '<DicomAttribute tag="00080005"', 1)
    dataset = stored(client, post(client, (XML, "", text.encode()), PIXELS, root=XML))
    assert dataset.private_block(0x0009, "ACME")[2].value == "x"


def test_attributes_that_a_data_set_cannot_have_are_discarded_and_named(client):
    metadata = metadata_of() | {
        "00020010": {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]},
        "00041220": {"vr": "SQ"},
        "00280000": {"vr": "UL", "Value": [7]},
    }
    answer = post(client, as_json(metadata), PIXELS)
    assert answer.json["00081199"]["Value"][0]["00081196"]["Value"] == [0xB006]
    assert "B006 Discarded: DirectoryRecordSequence (0004,1220)" in warnings_of(answer)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"00280010": {"vr": "US", "Value": ["many"]}}, "Rows (0028,0010)"),
    "too large a number": ({"00280003": {"vr": "US", "Value": [65536]}}, "SamplesPerPixelUsed (0028,0003)"),
    "a number for text": ({"00100020": {"vr": "LO", "Value": [5]}}, "PatientID (0010,0020)"),
    "an object for text": ({"00100020": {"vr": "LO", "Value": [{"a": 1}]}}, "PatientID (0010,0020)"),
    "text for a sequence": ({"00400275": {"vr": "LO", "Value": ["x"]}}, "its VR is SQ, not LO"),
    "a number for a name": ({"00100010": {"vr": "US", "Value": [1]}}, "its VR is PN, not US"),
    "no VR of DICOM": ({"00100020": {"vr": "XX", "Value": ["1"]}}, "'XX' is no VR"),
    "no tag": ({"PatientID": {"vr": "LO", "Value": ["1"]}}, "'PatientID' is no tag"),
    "no object": ({"00100020": ["1"]}, "PatientID (0010,0020)"),
    "no array": ({"00100020": {"vr": "LO", "Value": "1"}}, "Value is no array"),
    "no base64": ({"00281201": {"vr": "OW", "InlineBinary": "AAA"}}, "InlineBinary is not base64"),
    "base64 garbage": ({"00281201": {"vr": "OW", "InlineBinary": "A*B="}}, "InlineBinary is not base64"),
    "binary text": ({"00100020": {"vr": "LO", "InlineBinary": "AAA="}}, "cannot have InlineBinary"),
    "values of bytes": ({"00281201": {"vr": "OW", "Value": [1]}}, "RedPaletteColorLookupTableData (0028,1201)"),
    "an item that is text": ({"00400275": {"vr": "SQ", "Value": ["x"]}}, "item 1 is no JSON object"),
    "too few pixels": ({"00280010": {"vr": "US", "Value": [17]}}, "512 bytes contradict Rows 17"),
    "too many frames": ({"00280008": {"vr": "IS", "Value": ["2"]}}, "NumberOfFrames 2"),
    "no instance UID": ({"00080018": {"vr": "UI"}}, "SOPInstanceUID (0008,0018): it is missing"),
    "no UID": ({"00080018": {"vr": "UI", "Value": ["1.2.x"]}}, "is no UID"),
    "a value and bulk data": ({"00281201": {"vr": "OW", "BulkDataURI": "pixels", "InlineBinary": "AA=="}}, "besides"),
}


@pytest.mark.parametrize(("fault", "named"), BAD.values(), ids=BAD)
def test_what_cannot_be_a_value_fails_its_instance_alone_and_is_named(client, fault, named):
    answer = post(client, as_json(metadata_of() | fault, metadata_of()), PIXELS)
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (202, 1)
    faults = answer.json.get("00081198", answer.json.get("0008119A"))["Value"]
    assert [each["00081197"]["Value"] for each in faults] == [[0xC000]]
    assert named in warnings_of(answer)


def test_sequences_that_are_too_deep_fail_their_instance(client):
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"0040A730": {"vr": "SQ", "Value": [deep]}}
    assert "nested more than 64 deep" in failure(post(client, as_json(metadata_of() | deep), PIXELS))
    xml = native_model_xml(metadata_of() | deep)
    assert "nested more than 64 deep" in failure(post(client, (XML, "", xml), PIXELS, root=XML))


ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(30))
EVIL_XML = {
    "entity bomb": (f"<!DOCTYPE x [{ENTITIES}]><NativeDicomModel>&a29;</NativeDicomModel>", "document type"),
    "external entity": ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><NativeDicomModel/>', "document type"),
    "external DTD": ('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x"><NativeDicomModel/>', "document type"),
    "another document": ("<html/>", "<html>"),
    "cut off": ("<NativeDicomModel>", "well-formed"),
    "no tag": ('<NativeDicomModel><DicomAttribute tag="x"/></NativeDicomModel>', "tag 'x'"),
}


@pytest.mark.parametrize(("text", "named"), EVIL_XML.values(), ids=EVIL_XML)
def test_xml_that_is_no_data_set_fails_alone(client, text, named):
    good = (XML, "", native_model_xml(metadata_of()))
    answer = post(client, (XML, "", text.encode()), good, PIXELS, root=XML)
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (202, 1)
    assert named in warnings_of(answer)


@pytest.mark.parametrize("size", [0, 9 << 20], ids=["parsed whole", "parsed one by one"])
@pytest.mark.parametrize("bad", [b'{"00080018": nonsense}', b"17", b'{"a": "\\ud800"}'])
def test_a_data_set_that_is_no_json_fails_alone(client, bad, size):
    good = orjson.dumps(metadata_of() | {"00102180": {"vr": "SH", "Value": ['}]\\"{[']}})
    text = b"[" + good + b" , " + bad + b" , " + orjson.dumps(metadata_of()) + b" " * size + b"]"
    answer = post(client, (JSON, "", text), PIXELS)
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (202, 2)
    assert len(answer.json["0008119A"]["Value"]) == 1


@pytest.mark.parametrize("text", [b"", b"[", b"[]]", b"[{}", b"{", b"<x/>", b"[{}]]", b'["', b"[{]", b'{"a": 1'])
def test_json_that_is_no_array_of_data_sets_is_a_bad_request(client, text):
    assert post(client, (JSON, "", text), PIXELS).status_code == 400


def test_an_empty_array_and_a_body_without_metadata_are_bad_requests(client):
    assert post(client, (JSON, "", b"[]")).status_code == 400
    assert post(client, PIXELS).status_code == 400


def test_more_metadata_than_the_setting_allows_are_refused_and_bulk_data_do_not_count(make_app: AppMaker):
    client = make_app(max_metadata_bytes=20_000).test_client()
    metadata = metadata_of(Rows=512, Columns=512)
    pixels = ("application/octet-stream", "pixels", bytes(512 * 512 * 2))
    assert post(client, as_json(metadata), pixels).status_code == 200
    assert post(client, as_json(*(metadata_of() for _ in range(20))), PIXELS).status_code == 413
    assert client.get(f"{STUDIES}").json[0]["00201208"]["Value"] == [1]


def test_a_large_bulk_part_costs_little_memory(client, archive):
    rows, frames = 4096, 16
    metadata = metadata_of(Rows=rows, Columns=rows, NumberOfFrames=frames)
    opening = body_of(as_json(metadata), PIXELS).replace(PIXELS[2] + b"\r\n--b--\r\n", b"")

    class Body(io.RawIOBase):
        left = rows * rows * 2 * frames
        head, tail = opening, b"\r\n--b--\r\n"

        def read(self, size: int = -1, /) -> bytes:
            if self.head:
                data, self.head = self.head[:size], self.head[size:]
            elif self.left:
                data = bytes(min(size, self.left))
                self.left -= len(data)
            else:
                data, self.tail = self.tail[:size], self.tail[size:]
            return data

    tracemalloc.start()
    answer = client.post(
        STUDIES,
        content_type=f'multipart/related; type="{JSON}"; boundary=b',
        environ_overrides={"wsgi.input": Body(), "wsgi.input_terminated": True},
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 200, warnings_of(answer)
    assert archive.index.counts()["bytes"] > 512 << 20
    assert peak < 16 << 20


# ------------------------------------------------------------------------------------------------ pixel data


def image(mode: str, colours: Any, form: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    PIL.Image.fromarray(np.asarray(colours, dtype="u1"), mode).save(target, form, **options)
    return target.getvalue()


GREY = np.arange(48).reshape(6, 8)
COLOURS = np.arange(144).reshape(6, 8, 3)
MINIMAL = {"00100020": {"vr": "LO", "Value": ["P1"]}, "7FE00010": {"vr": "OB", "BulkDataURI": "pixels"}}


def test_a_png_with_next_to_no_metadata_becomes_a_secondary_capture(client):
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/png", "pixels", image("RGB", COLOURS))))
    assert (dataset.SOPClassUID.name, dataset.Modality) == ("Secondary Capture Image Storage", "OT")
    assert (dataset.PatientID, dataset.PatientName, dataset.PhotometricInterpretation) == ("P1", "", "RGB")
    assert (dataset.pixel_array == COLOURS).all()


def test_a_grey_png_of_8_and_16_bits_stays_as_it_is(client):
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/png", "pixels", image("L", GREY))))
    assert (dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.pixel_array.tolist()) == (1, 8, GREY.tolist())
    deep, target = (GREY * 1000).astype("u2"), io.BytesIO()
    PIL.Image.fromarray(deep).save(target, "PNG")
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/png", "pixels", target.getvalue())))
    assert (dataset.BitsStored, dataset.pixel_array.tolist()) == (16, deep.tolist())


def test_a_png_of_16_bit_colour_is_not_cut(client):
    import imagecodecs

    deep = (COLOURS * 400).astype("u2")
    part = ("image/png", "pixels", imagecodecs.png_encode(deep))
    assert (stored(client, post(client, as_json(MINIMAL), part)).pixel_array == deep).all()


def test_an_animated_gif_becomes_a_multi_frame_object(client):
    frames = [PIL.Image.fromarray(((COLOURS * n) % 256).astype("u1"), "RGB").quantize(64) for n in (1, 3, 7)]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:], duration=40, loop=0)
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/gif", "pixels", target.getvalue())))
    assert dataset.SOPClassUID.name == "Multi-frame True Color Secondary Capture Image Storage"
    assert (dataset.NumberOfFrames, dataset.FrameTime, dataset.FrameIncrementPointer) == (3, 40, 0x00181063)
    with PIL.Image.open(io.BytesIO(target.getvalue())) as gif:
        for number, found in enumerate(dataset.pixel_array):
            gif.seek(number)
            assert (found == np.asarray(gif.convert("RGB"))).all()


def test_transparency_is_discarded_and_told(client):
    colours = np.concatenate([COLOURS, np.full((6, 8, 1), 128)], axis=2)
    answer = post(client, as_json(MINIMAL), ("image/png", "pixels", image("RGBA", colours)))
    assert answer.json["00081199"]["Value"][0]["00081196"]["Value"] == [0xB006]
    assert "transparency" in warnings_of(answer)


def test_a_consumer_jpeg_is_encapsulated_unchanged_with_its_attributes(client):
    jpeg = image("RGB", COLOURS, "JPEG", quality=90)
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/jpeg", "pixels", jpeg)))
    assert dataset.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
    assert (dataset.Rows, dataset.Columns, dataset.PhotometricInterpretation) == (6, 8, "YBR_FULL_422")
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    assert padded(frame) == padded(jpeg)


@pytest.mark.parametrize("options", [{"progressive": True}, {}], ids=["progressive", "CMYK"])
def test_a_jpeg_that_no_transfer_syntax_allows_is_decoded(client, options):
    target = io.BytesIO()
    mode = "RGB" if options else "CMYK"
    PIL.Image.fromarray(COLOURS.astype("u1"), "RGB").convert(mode).save(target, "JPEG", **options)
    dataset = stored(client, post(client, as_json(MINIMAL), ("image/jpeg", "pixels", target.getvalue())))
    assert (dataset.file_meta.TransferSyntaxUID.is_compressed, dataset.PhotometricInterpretation) == (False, "RGB")
    assert dataset.LossyImageCompression == "01"


CODESTREAMS = {
    "JPEG-LS": ("image/jls", "jpegls_encode", {}, "1.2.840.10008.1.2.4.80"),
    "near-lossless JPEG-LS": ("image/jls", "jpegls_encode", {"level": 2}, "1.2.840.10008.1.2.4.81"),
    "reversible J2K": (
        "image/jp2",
        "jpeg2k_encode",
        {"reversible": True, "codecformat": "j2k"},
        "1.2.840.10008.1.2.4.90",
    ),
    "irreversible J2K": ("image/jp2", "jpeg2k_encode", {"level": 60, "codecformat": "j2k"}, "1.2.840.10008.1.2.4.91"),
    "JP2 file": ("image/jp2", "jpeg2k_encode", {"reversible": True, "codecformat": "jp2"}, "1.2.840.10008.1.2.4.90"),
    "lossless JPEG": ("image/jpeg", "ljpeg_encode", {}, "1.2.840.10008.1.2.4.57"),
}


@pytest.mark.parametrize(("media_type", "encode", "options", "syntax"), CODESTREAMS.values(), ids=CODESTREAMS)
def test_the_transfer_syntax_is_derived_from_the_codestream(client, media_type, encode, options, syntax):
    import imagecodecs

    deep = (GREY * 60).astype("u2")
    stream = getattr(imagecodecs, encode)(deep, **options)
    metadata = {key: value for key, value in metadata_of().items() if not key.startswith("0028")}
    dataset = stored(client, post(client, as_json(metadata), (media_type, "pixels", stream)))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert (dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.PixelRepresentation) == (6, 8, 16, 0)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    assert not frame.startswith(b"\0\0\0\x0c")  # a JP2 file is never in a fragment: PS3.5 A.4.4
    if syntax[-2:] in ("80", "90"):
        assert (dataset.pixel_array == deep).all()


def test_frames_in_parts_of_their_own_make_a_multi_frame_object(client):
    frames = [image("L", GREY + n, "JPEG") for n in range(3)]
    kind = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
    metadata = {key: value for key, value in metadata_of().items() if not key.startswith("0028")}
    dataset = stored(client, post(client, as_json(metadata), *((kind, "pixels", frame) for frame in frames)))
    assert dataset.NumberOfFrames == 3
    found = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
    assert [padded(frame) for frame in found] == [padded(frame) for frame in frames]
    assert len(pydicom.encaps.parse_basic_offsets(dataset.PixelData)) == 3


J2K = "1.2.840.10008.1.2.4.90"
CONTRADICTORY = {
    "rows": ("image/jpeg", {"00280010": {"vr": "US", "Value": [7]}}, "Rows (0028,0010): 7 contradicts"),
    "columns of a PNG": ("image/png", {"00280011": {"vr": "US", "Value": [9]}}, "Columns (0028,0011): 9 contradicts"),
    "samples": ("image/jpeg", {"00280002": {"vr": "US", "Value": [3]}}, "SamplesPerPixel (0028,0002): 3"),
    "colours": ("image/jpeg", {"00280004": {"vr": "CS", "Value": ["RGB"]}}, "PhotometricInterpretation (0028,0004)"),
    "frames": ("image/jpeg", {"00280008": {"vr": "IS", "Value": [2]}}, "NumberOfFrames (0028,0008): 2 contradicts"),
    "frames of a PNG": ("image/png", {"00280008": {"vr": "IS", "Value": [2]}}, "NumberOfFrames (0028,0008): 2"),
    "media type": ("image/jp2", {}, "no image/jp2"),
    "transfer syntax": (f"image/jpeg; transfer-syntax={J2K}", {}, "cannot be in the transfer syntax"),
    "unknown transfer syntax": ("image/jpeg; transfer-syntax=1.2.3", {}, "1.2.3 is not known"),
    "big endian": ("application/octet-stream; transfer-syntax=1.2.840.10008.1.2.2", {}, "cannot be in"),
    "no image": ("application/pdf", {}, "cannot be application/pdf"),
}


@pytest.mark.parametrize(("kind", "attributes", "named"), CONTRADICTORY.values(), ids=CONTRADICTORY)
def test_an_image_that_contradicts_its_metadata_fails(client, kind, attributes, named):
    content = image("L", GREY, "PNG" if kind == "image/png" else "JPEG")
    answer = post(client, as_json(MINIMAL | attributes), (kind, "pixels", content))
    assert named in failure(answer)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "image/gif", "image/jp2", "image/jls", "image/dicom-rle",
                                  "video/mp4", "video/mpeg", "video/h265"])  # fmt: skip
def test_damaged_images_and_videos_fail_and_nothing_else_happens(client, kind):
    whole = image("L", GREY, "JPEG" if kind == "image/jpeg" else "PNG")
    for content in (b"", b"\0", whole[:20], b"\xff\xd8\xff", whole[:-30] if kind == "image/png" else b"\0\0\0\x18ftyp"):
        failure(post(client, as_json(MINIMAL), (kind, "pixels", content)))


def test_a_png_bomb_is_refused_before_it_is_decoded(make_app: AppMaker):
    client = make_app(max_inflated_bytes=1 << 20).test_client()
    target = io.BytesIO()
    PIL.Image.new("RGB", (4000, 4000)).save(target, "PNG")
    answer = post(client, as_json(MINIMAL), ("image/png", "pixels", target.getvalue()))
    assert "more than this server accepts" in failure(answer)


# ------------------------------------------------------------------------------------------------ documents, video

DOCUMENT = {
    "0020000D": {"vr": "UI", "Value": ["1.2.3.4"]},
    "00420011": {"vr": "OB", "BulkDataURI": "document"},
}


@pytest.mark.parametrize(
    ("kind", "content", "sop_class"),
    [
        ("application/pdf", b"%PDF-1.7\nabc", "Encapsulated PDF Storage"),
        ("text/xml", b"<ClinicalDocument/>", "Encapsulated CDA Storage"),
        ("model/stl", bytes(85), "Encapsulated STL Storage"),
    ],
)
def test_a_document_becomes_an_encapsulated_document(client, kind, content, sop_class):
    dataset = stored(client, post(client, as_json(DOCUMENT), (kind, "document", content)))
    assert (dataset.SOPClassUID.name, dataset.MIMETypeOfEncapsulatedDocument) == (sop_class, kind)
    assert (dataset.StudyInstanceUID, dataset.BurnedInAnnotation, dataset.Modality) == ("1.2.3.4", "YES", "DOC")
    assert dataset.EncapsulatedDocument[: len(content)] == content
    assert len(content) % 2 == 0 or dataset.EncapsulatedDocumentLength == len(content)


def test_a_document_without_a_study_goes_to_that_of_the_url(client):
    metadata = {"00420011": DOCUMENT["00420011"]}
    answer = post(client, as_json(metadata), ("application/pdf", "document", b"%PDF-1.7"), url=f"{STUDIES}/1.2.3.5")
    assert stored(client, answer).StudyInstanceUID == "1.2.3.5"


def test_a_document_that_is_not_what_it_says_fails(client):
    stated = DOCUMENT | {"00420012": {"vr": "LO", "Value": ["text/xml"]}}
    fault = failure(post(client, as_json(stated), ("application/pdf", "document", b"%PDF-1.7")))
    assert "MIMETypeOfEncapsulatedDocument (0042,0012)" in fault
    assert "no PDF" in failure(post(client, as_json(DOCUMENT), ("application/pdf", "document", b"PK")))


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def mp4(level: int) -> bytes:
    """The boxes of an MP4 file with one H.264 track: 320 × 240, 50 frames in 2 seconds."""
    entry = box(b"avc1", bytes(24) + (320).to_bytes(2, "big") + (240).to_bytes(2, "big") + bytes(50),
                box(b"avcC", bytes([1, 100, 0, level])))  # fmt: skip
    table = box(b"stbl", box(b"stsd", bytes(4) + b"\0\0\0\1" + entry),
                box(b"stsz", bytes(8) + (50).to_bytes(4, "big")))  # fmt: skip
    media = box(b"mdia", box(b"mdhd", bytes(12) + (1000).to_bytes(4, "big") + (2000).to_bytes(4, "big") + bytes(4)),
                box(b"hdlr", bytes(8) + b"vide" + bytes(13)), box(b"minf", table))  # fmt: skip
    return box(b"ftyp", b"isom" + bytes(4)) + box(b"moov", box(b"trak", media)) + box(b"mdat", bytes(101))


@pytest.mark.parametrize(("level", "syntax"), [(31, "102"), (41, "102"), (42, "104")])
def test_an_mp4_file_becomes_a_video_object(client, level, syntax):
    video = mp4(level)
    dataset = stored(client, post(client, as_json(MINIMAL), ("video/mp4", "pixels", video)))
    assert dataset.file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.4.{syntax}"
    assert dataset.SOPClassUID.name == "Video Photographic Image Storage"
    assert (dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.FrameTime) == (240, 320, 50, 40)
    assert dataset.PhotometricInterpretation == "YBR_PARTIAL_420"
    (stream,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    assert stream[: len(video)] == video


# ------------------------------------------------------------------------------------------------ response


def test_pixel_data_that_nobody_can_read_are_stored_with_a_warning_that_names_what_lacks(client):
    metadata = metadata_of()
    del metadata["00280100"]
    answer = post(client, as_json(metadata), PIXELS)
    assert answer.status_code == 202
    assert answer.json["00081199"]["Value"][0]["00081196"]["Value"] == [0xB007]
    assert "B007 Stored, although it has pixel data without BitsAllocated (0028,0100)" in warnings_of(answer)


@pytest.fixture
def setter(make_app: AppMaker) -> FlaskClient:
    """A client of a server that lets query keys set attributes."""
    return make_app(stow_query_attributes="on").test_client()


def test_query_keys_set_attributes_and_the_object_remembers_what_it_was(setter):
    original = make_dataset()
    url = f"{STUDIES}?00100010=M\u00fcller%5EJ%3D%E5%B1%B1&PatientWeight=71.5&accept={JSON}&no-tag=1"
    answer = setter.post(url, data=make_file(original), content_type="application/dicom")
    dataset = stored(setter, answer)
    assert (str(dataset.PatientName), dataset.PatientWeight) == ("M\u00fcller^J=\u5c71", 71.5)
    (record,) = dataset.OriginalAttributesSequence
    assert (record.ReasonForTheAttributeModification, record.ModifyingSystem) == ("COERCE", "DICOMcloud")
    assert record.ModifiedAttributesSequence[0].PatientName == "Doe^Jane"
    assert record.ModifiedAttributesSequence[0].PatientWeight is None
    assert dataset.PixelData == original.PixelData
    item = answer.json["00081199"]["Value"][0]
    assert item["00081196"]["Value"] == [0xB000]
    assert item["04000561"]["Value"][0]["04000550"]["Value"][0]["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    warnings = warnings_of(answer)
    assert "B000 Coerced: PatientName (0010,0010), PatientWeight (0010,1030)" in warnings
    assert "ignored: no-tag" in warnings


def test_the_same_request_with_query_keys_again_is_the_same_instance(setter):
    file, metadata = make_file(), as_json(metadata_of())
    for _ in range(2):
        answer = setter.post(f"{STUDIES}?PatientID=P9", data=file, content_type="application/dicom")
        assert answer.json["00081199"]["Value"][0]["00081196"]["Value"] == [0xB000]
        dataset = stored(setter, post(setter, metadata, PIXELS, url=f"{STUDIES}?PatientID=P9"))
        assert (dataset.PatientID, len(dataset.OriginalAttributesSequence)) == ("P9", 1)
    assert post(setter, as_json(metadata_of(PatientID="P9")), PIXELS, url=f"{STUDIES}?PatientID=P9").status_code == 200


TOKYO = "\u6771\u4eac"


@pytest.mark.parametrize(("name", "charset"), [("M\u00fcller", "ISO_IR 100"), (TOKYO, "ISO_IR 192")])
def test_a_value_that_the_character_set_lacks_brings_the_whole_data_set_to_unicode(setter, name, charset):
    sent = make_dataset(SpecificCharacterSet="ISO_IR 100", StudyDescription="Sch\u00e4del")
    answer = setter.post(f"{STUDIES}?PatientName={name}", data=make_file(sent), content_type="application/dicom")
    dataset = stored(setter, answer)
    assert (dataset.PatientName, dataset.StudyDescription) == (name, "Sch\u00e4del")
    assert (dataset.SpecificCharacterSet, dataset.PixelData) == (charset, sent.PixelData)


@pytest.mark.parametrize(
    "query", ["00100030=x\\y&0020000D=1.2.3", "00080018=1.2", "7FE00010=x", "RequestAttributesSequence=x",
              "00291001=x", "00280010=many", "00020010=1.2"]
)  # fmt: skip
def test_what_a_query_key_cannot_set_is_a_bad_request(setter, query):
    assert setter.post(f"{STUDIES}?{query}", data=make_file(), content_type="application/dicom").status_code == 400
    assert setter.get(STUDIES).json == []


@pytest.mark.parametrize("files", [pydicom_files, sample_files], ids=["pydicom", "samples"])
def test_an_attribute_of_every_real_file_can_be_set_and_nothing_else_changes(setter, files):
    paths = files()
    if not paths:
        pytest.skip("no such files here")
    done = 0
    for path in paths:
        answer = setter.post(STUDIES, data=path.read_bytes(), content_type="application/dicom")
        if answer.status_code == 409:
            continue
        url = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0].removeprefix("http://localhost")
        (before,) = setter.get(f"{url}/metadata").json
        assert setter.delete(f"{STUDIES}/{before['0020000D']['Value'][0]}").status_code == 204
        answer = setter.post(f"{STUDIES}?PatientID=NEW", data=path.read_bytes(), content_type="application/dicom")
        if "malformed" in path.parts and answer.status_code == 409:
            assert "PatientID (0010,0020) could not be set" in warnings_of(answer)
            continue
        assert answer.status_code == 202, (path, warnings_of(answer))
        (after,) = setter.get(f"{url}/metadata").json
        assert after.pop("00100020")["Value"] == ["NEW"]
        after.pop("04000561")
        assert after == {key: before[key] for key in before if key not in ("00100020", "04000561")}, path
        assert setter.delete(f"{STUDIES}/{after['0020000D']['Value'][0]}").status_code == 204
        done += 1
    assert done


# ------------------------------------------------------------------------------------------------ quarantine


def kept_in(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(path.read_bytes()) for path in sorted((folder / "data" / "quarantine").glob("*.json"))]


def test_what_cannot_be_stored_is_kept_with_its_reason(make_app: AppMaker, tmp_path: Path):
    client = make_app(quarantine="true").test_client()
    first, changed = make_dataset(), make_dataset()
    changed.SOPInstanceUID, changed.StudyInstanceUID = first.SOPInstanceUID, first.StudyInstanceUID
    changed.SeriesInstanceUID, changed.PatientID = first.SeriesInstanceUID, "P2"
    truncated = make_file()[:-100]
    for file in (make_file(first), truncated, make_file(changed)):
        client.post(STUDIES, data=file, content_type="application/dicom")
    reasons = {entry["failure_reason"]: entry for entry in kept_in(tmp_path)}
    assert set(reasons) == {"0111", "C000"}
    entry = reasons["C000"]
    assert (tmp_path / "data" / "quarantine" / entry["file"]).read_bytes() == truncated
    assert "truncated" in entry["message"]
    assert "Doe" not in str(sorted((tmp_path / "data" / "quarantine").iterdir()))
    assert (tmp_path / "data" / "quarantine" / reasons["0111"]["file"]).read_bytes() == make_file(changed)


def test_metadata_that_cannot_be_stored_are_kept_as_a_request_that_can_be_sent_again(
    make_app: AppMaker, tmp_path: Path
):
    client = make_app(quarantine="true").test_client()
    bad = metadata_of()
    bad["00280010"]["Value"] = [17]
    assert post(client, as_json(bad, metadata_of()), PIXELS).status_code == 202
    (entry,) = kept_in(tmp_path)
    kept = (tmp_path / "data" / "quarantine" / entry["file"]).read_bytes()
    head, _, body = kept.partition(b"\r\n\r\n")
    content_type = head.decode().removeprefix("Content-Type: ")
    assert client.post(STUDIES, data=body, content_type=content_type).status_code == 409
    mended = body.replace(b'"Value":[17]', b'"Value":[16]')
    assert client.post(STUDIES, data=mended, content_type=content_type).status_code == 200


def test_a_full_quarantine_takes_no_more_and_the_answer_is_the_same(make_app: AppMaker, tmp_path: Path):
    client = make_app(quarantine="true", quarantine_bytes=1000).test_client()
    for size in (600, 600):
        answer = client.post(STUDIES, data=make_file()[:size], content_type="application/dicom")
        assert answer.status_code == 409
    assert len(kept_in(tmp_path)) == 1
    assert len(list((tmp_path / "data" / "quarantine").iterdir())) == 2


def test_nothing_is_kept_without_the_setting(client, tmp_path):
    client.post(STUDIES, data=b"no DICOM", content_type="application/dicom")
    assert not (tmp_path / "data" / "quarantine").exists()


def test_the_openapi_document_names_all_forms(app: Flask):
    text = app.test_client().get("/openapi.json").get_data(as_text=True)
    for name in ("application/zip", 'type=\\"application/dicom+xml\\"', 'type=\\"application/dicom+json\\"'):
        assert name in text
