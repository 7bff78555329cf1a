"""The header scanner against pydicom over real files, against damaged ones, and against the Standard's own rules."""

from __future__ import annotations

import base64
import math
import mmap
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom.data import get_testdata_file
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from dicomcloud.dicom.attributes import AMBIGUOUS_VR
from dicomcloud.dicom.header import BulkValue, Header, scan
from dicomcloud.errors import FailureReason, InvalidInstance
from tests.dicom.made import (
    BIG,
    DEFLATED,
    END_ITEM,
    END_SEQUENCE,
    EXPLICIT,
    IDENTITY,
    IMPLICIT,
    OPEN_ITEM,
    UIDS,
    attribute,
    element,
    encapsulated,
    frame_bytes,
    implicit,
    instance,
    item,
    part10,
    uid,
)

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"
# pydicom's own files by folder: get_testdata_files would download the ones that are not bundled.
BUNDLED = Path(str(get_testdata_file("CT_small.dcm"))).parent
CT = (BUNDLED / "CT_small.dcm").read_bytes()

# Files that pydicom reads and a store must refuse: what the refusal says.
REFUSED = {
    "MR_truncated.dcm": "PixelData",
    "rtplan_truncated.dcm": "BeamSequence",
    "no_meta.dcm": "not DICOM",
}


@pytest.fixture(autouse=True)
def _raw_pydicom() -> Iterator[None]:
    """pydicom without validation: it must read what real files hold."""
    before = pydicom_config.settings.reading_validation_mode
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    pydicom_config.settings.reading_validation_mode = before


def attempt(data: bytes) -> Header | InvalidInstance:
    try:
        return scan(data)
    except InvalidInstance as failure:
        return failure


def refusal(data: bytes) -> InvalidInstance:
    with pytest.raises(InvalidInstance) as caught:
        scan(data)
    return caught.value


# ---------------------------------------------------------------------------------------------------------------------
# Against pydicom


def real_files() -> list[Path]:
    files = set(BUNDLED.rglob("*"))
    if SAMPLES.is_dir():
        files |= set(SAMPLES.rglob("*"))
    others = {".md", ".csv", ".txt", ".icc", ".json", ".dump", ".gz", ".py", ".zip"}
    return sorted(path for path in files if path.is_file() and path.suffix not in others and "README" not in path.name)


FILES = real_files()
READABLE = [path for path in FILES if "DICOMDIR" not in path.name and not path.name.endswith(tuple(REFUSED))]
each_file = pytest.mark.parametrize("path", READABLE, ids=lambda path: f"{path.parent.name}/{path.name}")


def read(path: Path) -> tuple[bytes, Dataset]:
    """The file, given the UIDs it lacks, and what pydicom reads of it."""
    data = path.read_bytes()
    dataset = pydicom.dcmread(BytesIO(data), force=True)
    empty = [tag for tag in UIDS if tag in dataset and not dataset.get_item(tag).value]
    for tag in reversed(empty):
        start = dataset.get_item(tag).value_tell
        data = data[: start - 8] + data[start:]
    missing = [tag for tag in UIDS if tag not in dataset or tag in empty]
    if missing:
        make = implicit if dataset.original_encoding[0] else lambda tag, value: element(tag, "UI", value)
        extra = b"".join(make(tag, uid(UIDS[tag])) for tag in missing)
        offset = end_of_meta(data)
        data = data[:offset] + extra + data[offset:]
        dataset = pydicom.dcmread(BytesIO(data), force=True)
    return data, dataset


def end_of_meta(data: bytes) -> int:
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\2\0":
        wide = data[at + 4 : at + 6] in (b"OB", b"UN")
        at += 12 + struct.unpack_from("<L", data, at + 8)[0] if wide else 8 + struct.unpack_from("<H", data, at + 6)[0]
    return at


class Comparison:
    """pydicom's values beside the scanner's, after what is known to differ."""

    def __init__(self, data: bytes, header: Header) -> None:
        self.content = zlib.decompress(data[header.dataset_offset :], -15) if header.deflated else data
        self.bulk = {value.path: value for value in header.bulk_data}
        self.big_endian = header.transfer_syntax == BIG
        self.seen: set[str] = set()

    def data_set(self, dataset: Dataset, attributes: dict[str, Any], path: str = "/") -> None:
        tags = [tag for tag in sorted(map(int, dataset.keys())) if tag & 0xFFFF and tag >> 16 != 2]
        assert list(attributes) == [f"{tag:08X}" for tag in tags]
        for tag in tags:
            self.element(dataset, tag, attributes[f"{tag:08X}"], f"{path}{tag:08X}")

    def element(self, dataset: Dataset, tag: int, found: dict[str, Any], path: str) -> None:
        raw = dataset.get_item(tag)
        if found["vr"] == "SQ":
            value = dataset[tag].value
            assert isinstance(value, DicomSequence)
            assert found["vr"] == "SQ"
            assert len(found.get("Value", ())) == len(value)
            for number, (theirs, ours) in enumerate(zip(value, found.get("Value", ()), strict=True), 1):
                self.data_set(theirs, ours, f"{path}/{number}/")
            return
        stored = raw.value if isinstance(raw, RawDataElement) and raw.value else b""
        if "BulkDataURI" in found:
            assert found["BulkDataURI"] == path
            where = self.bulk[path]
            self.seen.add(path)
            assert self.content[where.offset : where.offset + where.length] == stored
            return
        if "InlineBinary" in found:
            binary = base64.b64decode(found["InlineBinary"])
            assert binary == stored or (self.big_endian and sorted(binary) == sorted(stored))
            return
        element = dataset[tag]
        if tag not in AMBIGUOUS_VR and not (found["vr"] == "UN" and tag >> 16 & 1):  # pydicom knows private ones
            assert found["vr"] == element.VR
        assert found.get("Value", []) == [self.normal(found["vr"], value) for value in self.values(element)], path

    @staticmethod
    def values(element: Any) -> list[Any]:
        value = element.value
        if isinstance(value, (MultiValue, list)):
            return list(value)
        return [] if value is None or str(value).strip(" \0") == "" else [value]

    @staticmethod
    def normal(vr: str, value: Any) -> Any:
        if vr == "PN":
            names = zip(("Alphabetic", "Ideographic", "Phonetic"), value.components, strict=False)
            return {group: name.rstrip(" \0") for group, name in names if name.rstrip(" \0")} or None
        if vr in {"DS", "IS"}:
            return None if value in (None, "") else value if isinstance(value, str) else float(value)
        if vr == "AT":
            return f"{int(value):08X}"
        if vr in {"FL", "FD"}:
            return value if math.isfinite(value) else str(value).replace("nan", "NaN").replace("inf", "Infinity")
        if isinstance(value, str):  # keeps blanks around inner values
            return (
                value.strip(" \0") if vr in {"AE", "CS", "DA", "TM", "DT", "UI", "AS"} else value.rstrip(" \0")
            ) or None
        return value


@each_file
def test_a_real_file_has_the_attributes_and_bulk_values_that_pydicom_reads(path: Path) -> None:
    data, dataset = read(path)
    header = scan(data)
    comparison = Comparison(data, header)
    comparison.data_set(dataset, header.attributes)
    assert comparison.seen == {value.path for value in header.bulk_data}
    assert orjson.loads(orjson.dumps(header.attributes)) == header.attributes


@each_file
def test_the_frames_of_a_real_file_are_those_of_pydicom(path: Path) -> None:
    data, dataset = read(path)
    if "PixelData" not in dataset or not dataset.PixelData or not dataset.get("Rows"):
        pytest.skip("no pixel data")
    header = scan(data)
    frames = header.frames
    assert frames is not None
    content = zlib.decompress(data[header.dataset_offset :], -15) if header.deflated else data
    if not frames.encapsulated:
        stored = b"".join(content[offset : offset + length] for offset, length in frames.stream())
        assert stored == dataset.PixelData
        bits = frames.frame_bits() or 0
        for number in range(1, frames.count + 1):
            first = (number - 1) * bits
            assert frame_bytes(content, frames, number) == stored[first // 8 : -(-(first + bits) // 8)]
            assert frames.bit_offset(number) == first % 8
    elif frames.separable:
        theirs = generate_frames(dataset.PixelData, number_of_frames=frames.count)
        assert [frame_bytes(content, frames, number) for number in range(1, frames.count + 1)] == list(theirs)
    else:
        assert header.transfer_syntax.startswith("1.2.840.10008.1.2.4.10")


@each_file
def test_a_real_file_is_a_proper_one_or_becomes_one_by_its_prefix(path: Path) -> None:
    data, dataset = read(path)
    header = scan(data)
    stored = header.prefix + data[header.dataset_offset :] if header.prefix else data
    again = scan(stored)
    assert again.prefix == b""
    assert again == header.behind_prefix() or again.frames is not None
    assert again.bulk_data == header.behind_prefix().bulk_data
    assert again.attributes == header.attributes
    assert pydicom.dcmread(BytesIO(stored)).file_meta.TransferSyntaxUID == header.transfer_syntax


# ---------------------------------------------------------------------------------------------------------------------
# Values, PS3.18 F.2


@pytest.mark.parametrize(
    ("vr", "raw", "value"),
    [
        ("CS", b"DERIVED \\\\ AXIAL ", ["DERIVED", None, "AXIAL"]),
        ("DS", b"1.50\\1,5\\ -2e1 \\", [1.5, "1,5", -20.0, None]),
        ("DS", b"nan\\1_0\\1e999 ", ["nan", "1_0", "1e999"]),
        ("IS", b"7\\+3\\9007199254740993\\7.0\\1A", [7, 3, "9007199254740993", 7, "1A"]),
        ("LO", b"A\\ B \\", ["A", " B", None]),
        ("LT", b" one\\two ", [" one\\two"]),
        ("UR", b"http://a/b\\c", ["http://a/b\\c"]),
        ("UI", b"1.2\\1.3\0", ["1.2", "1.3"]),
        ("PN", b"Doe^J=^= \\\\=Ideo", [{"Alphabetic": "Doe^J", "Ideographic": "^"}, None, {"Ideographic": "Ideo"}]),
        ("US", b"\x01\0\xff\xff", [1, 65535]),
        ("SS", b"\xff\xff", [-1]),
        ("FD", struct.pack("<4d", 0.5, math.inf, -math.inf, math.nan), [0.5, "Infinity", "-Infinity", "NaN"]),
        ("FL", struct.pack("<f", math.nan), ["NaN"]),
        ("UV", struct.pack("<2Q", 2**53, 2**53 + 1), [2**53, "9007199254740993"]),
        ("SV", struct.pack("<q", -(2**60)), [str(-(2**60))]),
        ("AT", b"\x10\0\x20\0\xe0\x7f\x10\0", ["00100020", "7FE00010"]),
    ],
)
def test_values_are_those_of_the_json_model(vr: str, raw: bytes, value: list[Any]) -> None:
    assert attribute(0x00091001, vr, raw) == {"vr": vr, "Value": value}


@pytest.mark.parametrize("vr", ["CS", "DS", "LO", "LT", "PN", "US", "OB", "SQ", "UI"])
def test_an_empty_attribute_has_nothing_but_its_vr(vr: str) -> None:
    assert attribute(0x00091001, vr, b"") == {"vr": vr}


@pytest.mark.parametrize("vr", ["CS", "IS", "LO", "LT", "PN", "UI"])
def test_an_attribute_of_padding_is_empty(vr: str) -> None:
    assert attribute(0x00091001, vr, b"  ") == {"vr": vr}


def test_a_number_with_an_odd_length_keeps_its_bytes() -> None:
    assert attribute(0x00280010, "US", b"\x01\x02\x03") == {"vr": "UN", "InlineBinary": "AQID"}


def test_small_binary_values_are_inline_and_little_endian() -> None:
    data = part10(
        b"".join(element(tag, "UI", uid(value), ">") for tag, value in UIDS.items())
        + element(0x00280010, "US", b"\x02\x01", ">")
        + element(0x00660016, "OF", b"\1\2\3\4", ">")
        + element(0x00660023, "OW", b"\1\2\3\4", ">")
        + element(0x00660129, "OB", b"\1\2\3\4", ">"),
        BIG,
    )
    attributes = scan(data).attributes
    assert attributes["00280010"]["Value"] == [0x0201]
    inline = [base64.b64decode(attributes[key]["InlineBinary"]) for key in ("00660016", "00660023", "00660129")]
    assert inline == [b"\4\3\2\1", b"\2\1\4\3", b"\1\2\3\4"]


def test_what_is_long_becomes_bulk_data_and_what_is_short_stays() -> None:
    header = scan(
        instance(
            element(0x00091001, "OB", bytes(1024)),
            element(0x00091002, "OB", bytes(1026)),
            element(0x00091003, "UT", b"a" * 65536),
            element(0x00091004, "UT", b"a" * 65538),
        )
    )
    assert [value.path for value in header.bulk_data] == ["/00091002", "/00091004"]
    assert header.attributes["00091002"] == {"vr": "OB", "BulkDataURI": "/00091002"}
    assert header.bulk_data[1].length == 65538


def test_group_lengths_and_group_2_are_left_out_and_the_last_of_two_counts() -> None:
    header = scan(
        instance(
            element(0x00100020, "LO", b"second"),
            element(0x00100010, "PN", b"Doe "),
            element(0x00100000, "UL", bytes(4)),
            element(0x00091001, "OB", bytes(2000)),
            element(0x00091001, "OB", b"short "),
            element(0x00100020, "LO", b"last"),
        )
    )
    assert list(header.attributes) == [
        "00080016",
        "00080018",
        "00091001",
        "00100010",
        "00100020",
        "0020000D",
        "0020000E",
    ]
    assert header.attributes["00100020"]["Value"] == ["last"]
    assert header.bulk_data == ()


def test_a_public_element_sent_as_un_gets_its_vr_and_a_private_one_keeps_its_bytes() -> None:
    assert attribute(0x00100020, "UN", b"P1") == {"vr": "LO", "Value": ["P1"]}
    assert attribute(0x00091001, "UN", b"P1") == {"vr": "UN", "InlineBinary": "UDE="}


def test_a_vr_of_the_future_is_tolerated() -> None:
    wide = b"\x09\0\x01\x10ZZ\0\0\4\0\0\0abcd"
    narrow = b"\x09\0\x02\x10ZZ\4\0abcd"
    attributes = scan(instance(wide, narrow, element(0x00100020, "LO", b"P1"))).attributes
    assert attributes["00091001"] == attributes["00091002"] == {"vr": "UN", "InlineBinary": "YWJjZA=="}
    assert attributes["00100020"]["Value"] == ["P1"]


@pytest.mark.parametrize(("signed", "vr", "value"), [(0, "US", 65535), (1, "SS", -1)])
def test_pixel_representation_decides_between_us_and_ss(signed: int, vr: str, value: int) -> None:
    identity = b"".join(implicit(tag, uid(text)) for tag, text in UIDS.items())
    pixel = implicit(0x00280103, bytes([signed, 0])) + implicit(0x00280106, b"\xff\xff")
    nested = implicit(0x00409096, item(implicit(0x00409211, b"\xff\xff")))
    attributes = scan(part10(identity + pixel + nested, IMPLICIT)).attributes
    assert attributes["00280106"] == {"vr": vr, "Value": [value]}
    assert attributes["00409096"]["Value"] == [{"00409211": {"vr": vr, "Value": [value]}}]


# ---------------------------------------------------------------------------------------------------------------------
# Structure


def test_sequences_of_every_form_are_read_with_their_nested_bulk_values() -> None:
    inner = element(0x00091002, "OB", b"x" * 2000)
    open_sequence = b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff" + OPEN_ITEM + inner + END_ITEM + item(b"") + END_SEQUENCE
    data = instance(open_sequence, element(0x000B1001, "SQ", item(b"") + item(inner)))
    header = scan(data)
    assert header.attributes["00091001"]["Value"][1] == {}
    assert [value.path for value in header.bulk_data] == ["/00091001/1/00091002", "/000B1001/2/00091002"]
    assert all(data[value.offset : value.offset + value.length] == b"x" * 2000 for value in header.bulk_data)


@pytest.mark.parametrize("make", [implicit, lambda tag, value: element(tag, "LO", value)])
def test_un_of_undefined_length_is_a_sequence(make: Any) -> None:
    data = b"\x09\0\x01\x10UN\0\0\xff\xff\xff\xff" + item(make(0x00100020, b"P1")) + END_SEQUENCE
    attributes = scan(instance(data)).attributes
    assert attributes["00091001"] == {"vr": "SQ", "Value": [{"00100020": {"vr": "LO", "Value": ["P1"]}}]}


def test_implicit_elements_inside_an_explicit_data_set_are_read() -> None:
    attributes = scan(instance(implicit(0x00100020, b"P1"), element(0x00100040, "CS", b"F "))).attributes
    assert attributes["00100020"] == {"vr": "LO", "Value": ["P1"]}
    assert attributes["00100040"]["Value"] == ["F"]


def test_a_deflated_data_set_is_read_and_its_size_is_bounded() -> None:
    deflater = zlib.compressobj(wbits=-15)
    data_set = IDENTITY + element(0x00091001, "OB", bytes(500_000))
    data = part10(deflater.compress(data_set) + deflater.flush() + b"\0", DEFLATED)
    header = scan(data)
    assert header.transfer_syntax == DEFLATED
    assert header.bulk_data == (BulkValue("/00091001", "OB", len(data_set) - 500_000, 500_000),)
    with pytest.raises(InvalidInstance, match="more than 100000") as caught:
        scan(data, max_inflated=100_000)
    assert caught.value.reason is FailureReason.CANNOT_UNDERSTAND
    assert "truncated" in refusal(data[:-20]).message


@pytest.mark.parametrize("padding", [bytes(7), bytes(3000), element(0xFFFCFFFC, "OB", bytes(64))])
def test_padding_after_the_data_set_is_no_fault(padding: bytes) -> None:
    assert scan(CT + padding).attributes["00100020"] == scan(CT).attributes["00100020"]


def test_a_file_in_a_memory_map_is_read_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ct.dcm"
    path.write_bytes(CT)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert scan(mapped) == scan(CT) == scan(bytearray(CT)) == scan(memoryview(CT))


def test_sequences_may_be_64_deep_and_no_deeper() -> None:
    def nested(depth: int) -> bytes:
        value = b""
        for _ in range(depth):
            value = element(0x00091001, "SQ", item(value))
        return value

    header = scan(instance(nested(64)))
    assert orjson.dumps(header.attributes).count(b"00091001") == 64
    assert "64 deep" in refusal(instance(nested(65))).message
    assert "64 deep" in refusal(instance((b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff" + OPEN_ITEM) * 5000)).message


def test_an_item_that_contradicts_its_length_is_mended_by_pydicom() -> None:
    lying = b"\xfe\xff\x00\xe0\x08\0\0\0" + element(0x00080104, "LO", b"too long")
    data = instance(element(0x00081032, "SQ", lying), element(0x00091001, "OB", b"x" * 2000))
    header = scan(data)
    assert header.attributes["00081032"]["Value"] == [{"00080104": {"vr": "LO", "Value": ["too long"]}}]
    assert header.bulk_data[0].length == 2000
    assert data[header.bulk_data[0].offset :] == b"x" * 2000


# ---------------------------------------------------------------------------------------------------------------------
# The file around the data set


@pytest.mark.parametrize(
    "data",
    [
        CT[scan(CT).dataset_offset :],
        CT[128:],
        CT[132:],
        CT.replace(
            b"\x02\x00\x10\x00UI\x14\x00" + EXPLICIT.encode(), b"\x02\x00\x14\x00UI\x14\x00" + EXPLICIT.encode()
        ),
        CT.replace(EXPLICIT.encode() + b"\0", BIG.encode() + b"\0"),
        CT[:140] + b"\0\0\0\0" + CT[144:],
        CT[:132] + CT[144:],
    ],
    ids=["no meta", "no preamble", "no DICM", "no syntax", "wrong syntax", "wrong group length", "no group length"],
)
def test_a_file_without_proper_meta_information_is_read_and_completed(data: bytes) -> None:
    header = scan(data)
    assert header.transfer_syntax == EXPLICIT
    assert header.attributes == scan(CT).attributes
    stored = header.prefix + data[header.dataset_offset :]
    dataset = pydicom.dcmread(BytesIO(stored))
    assert dataset.file_meta.TransferSyntaxUID == EXPLICIT
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert scan(stored) == header.behind_prefix()
    where = header.behind_prefix().bulk_data[-1]
    assert stored[where.offset : where.offset + where.length] == dataset.PixelData


def test_a_proper_file_needs_no_prefix_and_shows_its_meta_information() -> None:
    header = scan(CT)
    assert header.prefix == b""
    assert header.behind_prefix() is header
    assert header.file_meta == CT[132 : header.dataset_offset]


def test_a_missing_sop_class_is_taken_from_the_meta_information() -> None:
    header = scan(part10(b"".join(element(tag, "UI", uid(UIDS[tag])) for tag in UIDS if tag != 0x00080016)))
    assert next(iter(header.attributes.items())) == ("00080016", {"vr": "UI", "Value": [UIDS[0x00080016]]})


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("tag", [0x00080018, 0x0020000D, 0x0020000E])
@pytest.mark.parametrize(("value", "message"), [(b"", "is missing"), (b"1.2.x ", "is no UID: '1.2.x'")])
def test_an_instance_without_a_uid_is_refused_by_its_name(tag: int, value: bytes, message: str) -> None:
    failure = refusal(instance(element(tag, "UI", value)))
    assert failure.reason is FailureReason.CANNOT_UNDERSTAND
    assert f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {message}" in failure.message
    assert failure.sop_class_uid == UIDS[0x00080016]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not DICOM"),
        (b"\x89PNG" + bytes(500), "not DICOM"),
        (bytes(128) + b"DICM", "no data set"),
        (part10(b""), "no data set"),
        (instance(element(0x00100020, "LO", b"P1")[:-1]), "PatientID (0010,0020) should have 2 bytes, but only 1"),
        (instance(element(0x00100020, "LO", b"P1")[:5]), "within the header of an element"),
        (instance(element(0x00091001, "OB", b"")[:9]), "within the header of (0009,1001)"),
        (instance(b"\x09\0\x01\x10OB\0\0\0\0\0\x7f"), "should have 2130706432 bytes"),
        (instance(b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff" + OPEN_ITEM), "within an item of /00091001/1/"),
        (instance(b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff"), "within /00091001"),
        (encapsulated(item(b"") + item(b"abcd"), 1)[:-10], "a fragment should have 4 bytes, but only 2"),
        (encapsulated(item(b"") + item(b"abcd"), 1)[:-8], "before the Sequence Delimitation Item"),
        (encapsulated(item(b"") + element(0x00100020, "LO", b"P1"), 1), "where a fragment should be"),
        (encapsulated(item(b"") + item(b"abcd"), 1, EXPLICIT), "encapsulated, but the transfer syntax is"),
        (part10(IDENTITY).replace(UIDS[0x00080016].encode(), b"1.2.840.10008.1.3.10\0\0\0\0\0"), "DICOMDIR"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_the_reason(data: bytes, message: str) -> None:
    failure = refusal(data)
    assert failure.reason is FailureReason.CANNOT_UNDERSTAND
    assert message in failure.message


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name.endswith(tuple(REFUSED))], ids=lambda path: path.name
)
def test_damaged_real_files_are_refused(path: Path) -> None:
    expected = next(text for name, text in REFUSED.items() if path.name.endswith(name))
    assert expected in refusal(path.read_bytes()).message


@pytest.mark.parametrize("path", [path for path in FILES if "DICOMDIR" in path.name], ids=lambda path: path.name)
def test_a_dicomdir_is_refused_as_one(path: Path) -> None:
    assert "Media Storage Directory" in refusal(path.read_bytes()).message


def test_a_truncated_file_is_refused_at_whatever_byte_it_ends() -> None:
    raw = pydicom.dcmread(BytesIO(CT))
    elements = [raw.get_item(tag) for tag in raw.keys()]  # noqa: SIM118
    ends = {each.value_tell + each.length for each in elements if isinstance(each, RawDataElement)}
    for length in range(0, len(CT), 7):
        failed = isinstance(attempt(CT[:length]), InvalidInstance)
        assert failed or length in ends  # what ends with an element looks whole
    assert "PixelData (7FE0,0010) should have 32768 bytes" in refusal(CT[:-200]).message
    assert refusal(CT[:-200]).sop_instance_uid == "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"


# ---------------------------------------------------------------------------------------------------------------------
# Hostile bytes


SEEDS = [path.read_bytes() for path in sorted(BUNDLED.glob("*.dcm")) if path.stat().st_size < 12_000]


@settings(max_examples=400, deadline=2000, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else_happens(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        action = data.draw(st.sampled_from(["set", "length", "cut", "insert", "truncate"]))
        if action == "set":
            damaged[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif action == "length":
            damaged[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)]))
        elif action == "cut":
            del damaged[at : at + data.draw(st.integers(1, 64))]
        elif action == "insert":
            damaged[at:at] = data.draw(st.sampled_from([OPEN_ITEM, END_ITEM, END_SEQUENCE, bytes(8), b"SQ\0\0"]))
        else:
            del damaged[at:]
    result = attempt(bytes(damaged))
    if isinstance(result, InvalidInstance):
        assert isinstance(result.reason, FailureReason)
        assert not isinstance(result.__cause__, (TypeError, AttributeError, AssertionError, KeyError))
    else:
        orjson.dumps(result.attributes)
        check_offsets(result, len(damaged))


def check_offsets(header: Header, size: int) -> None:
    if header.deflated:
        return
    for value in header.bulk_data:
        assert value.offset == -1 or 0 <= value.offset <= value.offset + value.length <= size
    if header.frames and header.frames.separable:
        for number in {1, header.frames.count}:
            assert all(0 <= offset <= offset + length <= size for offset, length in header.frames.locate(number))


@settings(max_examples=200, deadline=1000)
@given(st.binary(max_size=400))
def test_random_bytes_are_refused(noise: bytes) -> None:
    for data in (noise, bytes(128) + b"DICM" + noise, part10(noise), part10(noise, IMPLICIT), part10(noise, DEFLATED)):
        assert isinstance(refusal(data), InvalidInstance)


@pytest.mark.parametrize(
    "lie",
    [
        b"\x09\0\x01\x10OB\0\0\xfe\xff\xff\xff",
        b"\x09\0\x01\x10SQ\0\0\xfe\xff\xff\xff",
        b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xfe\xff\xff\xff",
        b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xfe\xff\xff\xff",
    ],
)
def test_a_lying_length_costs_no_memory(lie: bytes) -> None:
    data = instance(lie + bytes(1000))
    tracemalloc.start()
    try:
        assert "bytes" in refusal(data).message
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_many_repeated_bulk_values_take_linear_time() -> None:
    data = instance(element(0x00091001, "OB", bytes(1100)) * 20_000)
    start = time.process_time()
    assert len(scan(data).bulk_data) == 1
    assert time.process_time() - start < 2


def test_scanning_does_not_import_pydicom() -> None:
    code = "import sys; from dicomcloud.dicom.header import scan; scan(sys.stdin.buffer.read())"
    code += "; sys.exit('pydicom' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=CT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
