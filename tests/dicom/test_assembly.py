"""Assembling against the scanner: what is written is read again as it was; whatever else comes in is a failure."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicomcloud.dicom import codestream
from dicomcloud.dicom.assembly import BulkPart, assemble
from dicomcloud.dicom.attributes import vr_of
from dicomcloud.dicom.header import scan
from dicomcloud.dicom.metadata import from_native_model_xml, native_model_xml
from dicomcloud.errors import InvalidInstance

UIDS: dict[str, Any] = {
    "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
    "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
    "00080018": {"vr": "UI", "Value": ["1.2.3"]},
    "0020000D": {"vr": "UI", "Value": ["1.2.4"]},
    "0020000E": {"vr": "UI", "Value": ["1.2.5"]},
}


def assembled(attributes: dict[str, Any], **bulk: bytes) -> bytes:
    def find(uri: str) -> list[BulkPart]:
        return [BulkPart("application/octet-stream", memoryview(bulk[uri]))] if uri in bulk else []

    return b"".join(assemble(attributes, find).chunks())


words = st.text(st.characters(codec="utf-8", exclude_characters="\\\0 ^=", exclude_categories=["Cc", "Zs"]), min_size=1)
VALUES = {
    "LO": words,
    "UT": words,
    "PN": st.fixed_dictionaries({"Alphabetic": words}, optional={"Ideographic": words, "Phonetic": words}),
    "US": st.integers(0, 65535),
    "SL": st.integers(-(2**31), 2**31 - 1),
    "FL": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FD": st.floats(allow_nan=False, allow_infinity=False),
    "DS": st.floats(-1e6, 1e6).map(lambda number: round(number, 6) + 0.0),
    "IS": st.integers(-(2**31), 2**31 - 1),
    "AT": st.from_regex(r"\A[0-9A-F]{8}\Z"),
}
# An attribute with each of these VRs, private for want of a public one that is free of meaning.
plain = st.fixed_dictionaries(
    {},
    optional={
        f"0009{0x1000 + number:04X}": st.lists(values, min_size=1, max_size=1 if vr == "UT" else 4).map(
            lambda found, vr=vr: {"vr": vr, "Value": found}
        )
        for number, (vr, values) in enumerate(VALUES.items())
    },
)
nested = st.recursive(
    plain,
    lambda inner: st.builds(
        lambda data_set, items: data_set | {"00091100": {"vr": "SQ", "Value": items}},
        plain,
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


@given(nested)
@settings(deadline=None, max_examples=150)
def test_what_was_assembled_is_scanned_as_it_was(attributes: dict[str, Any]) -> None:
    header = scan(assembled(UIDS | attributes))
    assert header.attributes == dict(sorted((UIDS | attributes).items()))
    assert (header.prefix, header.transfer_syntax) == (b"", "1.2.840.10008.1.2.1")


@given(nested)
@settings(deadline=None, max_examples=100)
def test_native_dicom_model_gives_back_what_it_was_made_of(attributes: dict[str, Any]) -> None:
    again = from_native_model_xml(native_model_xml(UIDS | attributes))
    assert scan(assembled(again)).attributes == scan(assembled(UIDS | attributes)).attributes


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["SQ", "OB", "US"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["vr", "Value", "BulkDataURI", "InlineBinary", "00400275", "7FE00010", "Alphabetic", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
tags = st.sampled_from(["7FE00010", "7FE00008", "00420011", "00280010", "00280008", "00080005", "00400275", "00020010"])


@given(st.dictionaries(tags | st.text(max_size=8), anything, max_size=5))
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_no_metadata_can_do_more_than_fail(attributes: dict[str, Any]) -> None:
    with suppress(InvalidInstance):
        scan(assembled(UIDS | attributes, x=bytes(8)))


def streams() -> dict[str, bytes]:
    import imagecodecs

    grey = np.arange(256, dtype="u1").reshape(16, 16)
    jpeg = io.BytesIO()
    PIL.Image.fromarray(grey).save(jpeg, "JPEG")
    return {
        "image/jpeg": jpeg.getvalue(),
        "image/jls": imagecodecs.jpegls_encode(grey),
        "image/jp2": imagecodecs.jpeg2k_encode(grey, reversible=True, codecformat="jp2"),
        "image/dicom-rle": struct.pack("<16L", 1, 64, *[0] * 14) + bytes(32),
        "video/mpeg": b"\0\0\1\xb3\x16\x01\x20\x33\xff\xff\xe0\x18\0\0\1\xb5\x14\x8a\0\1\0\0\0\1\0\0",
        "video/h265": b"\0\0\0\1\x40\1\x0c\1",
        "video/mp4": b"\0\0\0\1\x67\x64\0\x28\xac\xd9",
    }


STREAMS = streams()


@given(st.sampled_from(sorted(STREAMS)), st.data())
@settings(deadline=None, max_examples=600)
def test_no_stream_can_do_more_than_be_refused(media_type: str, data: st.DataObject) -> None:
    stream = bytearray(STREAMS[media_type])
    for _ in range(data.draw(st.integers(0, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    stream = stream[: data.draw(st.integers(0, len(stream)))]
    with suppress(ValueError):
        assert codestream.describe(media_type, bytes(stream)).transfer_syntax


def test_what_streams_say_of_themselves() -> None:
    found = {kind: codestream.describe(kind, stream) for kind, stream in STREAMS.items()}
    assert {kind: stream.transfer_syntax[18:] for kind, stream in found.items()} == {
        "image/jpeg": "4.50",
        "image/jls": "4.80",
        "image/jp2": "4.90",
        "image/dicom-rle": "5",
        "video/mpeg": "4.100",
        "video/h265": "4.107",
        "video/mp4": "4.102",
    }
    assert (found["video/mpeg"].rows, found["video/mpeg"].columns, found["video/mpeg"].frame_time) == (288, 352, 40)
    assert bytes(found["image/jp2"].data[:4]) == b"\xff\x4f\xff\x51"


def test_frames_are_fragments_behind_an_offset_table_or_an_extended_one() -> None:
    frames = [memoryview(STREAMS["image/jls"]), memoryview(STREAMS["image/jls"] + b"\0" * 3)]
    attributes = UIDS | {"7FE00010": {"vr": "OB", "BulkDataURI": "x"}}
    for extra in ({}, {"7FE00001": {"vr": "OV", "InlineBinary": "AAAAAAAAAAA="}}):
        made = assemble(attributes | extra, lambda _: [BulkPart("image/jls", frame) for frame in frames])
        file = b"".join(made.chunks())
        header = scan(file)
        assert header.frames is not None
        runs = [header.frames.locate(number) for number in (1, 2)]
        assert [file[at : at + size].rstrip(b"\0") for ((at, size),) in runs] == [bytes(frames[0]).rstrip(b"\0")] * 2
        assert ("7FE00002" in header.attributes) == bool(extra)


@pytest.mark.parametrize("vr", ["DS", "LO", "UT", "US", "FD", "PN", "AT", "SV"])
def test_empty_attributes_stay_empty(vr: str) -> None:
    header = scan(assembled(UIDS | {"00091001": {"vr": vr}, "00091002": {"vr": vr, "Value": []}}))
    assert header.attributes["00091001"] == header.attributes["00091002"] == {"vr": vr}


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, "1"), (0.1, "0.1"), (-0.12345678901234, "-.12345678901234"), (1e-10, "1e-10"), ("1.50", "1.50"), (3, "3")],
)
def test_decimal_strings_keep_every_digit(number: float | str, text: str) -> None:
    assert vr_of(0x00101030) == "DS"
    assert text.encode() in assembled(UIDS | {"00101030": {"vr": "DS", "Value": [number]}})


@pytest.mark.parametrize("depth", [64, 65])
def test_sequences_may_be_64_deep_and_no_deeper(depth: int) -> None:
    attributes: dict[str, Any] = {}
    for _ in range(depth):
        attributes = {"0040A730": {"vr": "SQ", "Value": [attributes]}}
    if depth == 64:
        assert scan(assembled(UIDS | attributes)).attributes["0040A730"] == attributes["0040A730"]
        return
    with pytest.raises(InvalidInstance, match="64 deep"):
        assembled(UIDS | attributes)
