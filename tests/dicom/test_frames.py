"""Where frames and bulk values lie, and the packed forms of both."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended

from dicomcloud.dicom.frames import BulkValue, Frames, find_bulk_value, pack_bulk_data, unpack_bulk_data
from dicomcloud.dicom.header import scan
from tests.dicom.made import JPEG, MPEG, RLE, element, encapsulated, frame_bytes, item, native

# ---------------------------------------------------------------------------------------------------------------------
# Frames


def test_native_frames_lie_one_after_the_other() -> None:
    data = native(2, 3, 16, bytes(range(24)), frames="2")
    frames = scan(data).frames
    assert frames is not None
    assert (frames.count, frames.encapsulated, frames.on_byte_boundaries) == (2, False, True)
    assert frame_bytes(data, frames, 2) == bytes(range(12, 24))


def test_one_bit_frames_may_begin_within_a_byte() -> None:
    data = native(3, 3, 1, bytes(range(1, 5)), frames="3")
    frames = scan(data).frames
    assert frames is not None
    assert not frames.on_byte_boundaries
    assert [(frame_bytes(data, frames, n), frames.bit_offset(n)) for n in (1, 2, 3)] == [
        (b"\1\2", 0),
        (b"\2\3", 1),
        (b"\3\4", 2),
    ]


def test_native_ybr_full_422_has_two_bytes_for_each_pixel() -> None:
    data = native(2, 2, 8, bytes(range(16)), frames="2", samples=3)
    photometric = element(0x00280004, "CS", b"YBR_FULL_422")
    at = data.index(b"\x28\0\x08\0IS")
    frames = scan(data[:at] + photometric + data[at:]).frames
    assert frames is not None
    assert frames.count == 2
    assert frames.frame_bits() == 64


@pytest.mark.parametrize(("tag", "vr", "size"), [(0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)])
def test_float_pixel_data_have_frames(tag: int, vr: str, size: int) -> None:
    data = native(2, 2, 32, b"")
    header = scan(data[:-12] + element(tag, vr, bytes(4 * size)))
    assert header.frames is not None
    assert header.frames.locate(1)[0][1] == 4 * size
    assert header.attributes[f"{tag:08X}"] == {"vr": vr, "BulkDataURI": f"/{tag:08X}"}


@pytest.mark.parametrize(
    ("rows", "frames", "count"),
    [(2, "1000000000", 2), (2, "1A", 2), (2, "0", 2), (2, "-5", 2), (65535, "1", None), (0, "1", None)],
)
def test_a_lying_header_gives_the_frames_that_are_there(rows: int, frames: str, count: int | None) -> None:
    header = scan(native(rows, 2, 16, bytes(17), frames=frames))
    assert (header.frames.count if header.frames else None) == count


def test_encapsulated_frames_are_found_by_the_basic_offset_table() -> None:
    content = [b"first", b"the second frame", b"3rd"]
    data = encapsulated(encapsulate(content, fragments_per_frame=2, has_bot=True), 3)
    frames = scan(data).frames
    assert frames is not None
    assert [frame_bytes(data, frames, number).rstrip(b"\0") for number in (1, 2, 3)] == content
    assert all(len(frames.locate(number)) > 1 for number in (1, 2))


def test_encapsulated_frames_are_found_by_the_extended_offset_table() -> None:
    content = [b"first", b"the second frame", b"3rd"]
    value, offsets, _ = encapsulate_extended(content)
    lengths = struct.pack("<3Q", *map(len, content))  # without the pad byte, PS3.3 C.7.6.3.1.8
    data = encapsulated(value, 3, JPEG, element(0x7FE00001, "OV", offsets), element(0x7FE00002, "OV", lengths))
    frames = scan(data).frames
    assert frames is not None
    assert [frame_bytes(data, frames, number) for number in (1, 2, 3)] == content


@pytest.mark.parametrize("table", [b"", b"\0\0\0\0\7\0\0\0\x20\0\0\0", b"\0\0\0\0"])
def test_without_a_true_offset_table_each_fragment_is_a_frame(table: bytes) -> None:
    data = encapsulated(item(table) + item(b"aa") + item(b"bbbb") + item(b"cc"), 3)
    frames = scan(data).frames
    assert frames is not None
    assert [frame_bytes(data, frames, number) for number in (1, 2, 3)] == [b"aa", b"bbbb", b"cc"]


@pytest.mark.parametrize("extended", [False, True])
def test_an_offset_table_longer_than_there_are_fragments_costs_no_memory(extended: bool) -> None:
    huge = bytes(16 << 20)
    table = [element(0x7FE00001, "OV", huge)] if extended else []
    data = encapsulated(item(b"" if extended else huge) + item(b"aa") + item(b"bb"), 2, JPEG, *table)
    tracemalloc.start()
    frames = scan(data).frames
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frames is not None
    assert [frame_bytes(data, frames, number) for number in (1, 2)] == [b"aa", b"bb"]
    assert peak < 1 << 20


def test_a_single_frame_has_all_fragments() -> None:
    data = encapsulated(item(b"") + item(b"aa") + item(b"bbbb"), 1, RLE)
    frames = scan(data).frames
    assert frames is not None
    assert frame_bytes(data, frames, 1) == b"aabbbb"


def test_end_marks_tell_frames_of_many_fragments_apart() -> None:
    parts = [b"aa", b"b\xff\xd9\0", b"cc\xff\xd9"]
    data = encapsulated(item(b"") + b"".join(map(item, parts)), 2)
    frames = scan(data).frames
    assert frames is not None
    assert [frame_bytes(data, frames, number) for number in (1, 2)] == [parts[0] + parts[1], parts[2]]


@pytest.mark.parametrize("syntax", [MPEG, JPEG])
def test_frames_that_cannot_be_told_apart_are_only_had_as_a_stream(syntax: str) -> None:
    data = encapsulated(item(b"") + item(b"aa") + item(b"bbbb") + item(b"cc"), 2, syntax)
    frames = scan(data).frames
    assert frames is not None
    assert not frames.separable
    with pytest.raises(LookupError, match="told apart"):
        frames.locate(1)
    assert b"".join(data[offset : offset + length] for offset, length in frames.stream()) == b"aabbbbcc"


def test_empty_fragments_are_no_frames() -> None:
    data = encapsulated(item(b"") + item(b"aa") + item(b"") + item(b"bb"), 2, RLE)
    frames = scan(data).frames
    assert frames is not None
    assert [frame_bytes(data, frames, number) for number in (1, 2)] == [b"aa", b"bb"]


def test_fewer_fragments_than_frames_give_the_frames_that_are_there() -> None:
    frames = scan(encapsulated(item(b"") + item(b"aa") + item(b"bb"), 4_000_000_000)).frames
    assert frames is not None
    assert frames.count == 2
    assert scan(encapsulated(item(b""), 3)).frames is None


def test_an_encapsulated_bulk_value_ends_before_its_delimiter() -> None:
    value = item(b"") + item(b"aa")
    data = encapsulated(value, 1)
    (bulk,) = scan(data).bulk_data
    assert bulk.encapsulated
    assert data[bulk.offset : bulk.offset + bulk.length] == value


@pytest.mark.parametrize("number", [0, -1, 3])
def test_a_frame_number_outside_the_frames_is_an_error(number: int) -> None:
    frames = scan(native(2, 3, 16, bytes(24), frames="2")).frames
    assert frames is not None
    with pytest.raises(IndexError, match="the frames are 1 to 2"):
        frames.locate(number)


# ---------------------------------------------------------------------------------------------------------------------
# Packed forms


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**32 - 1)), min_size=1, max_size=20),
    st.data(),
    st.integers(0, 2**40),
)
def test_packed_frames_are_the_same_frames(runs: list[tuple[int, int]], data: st.DataObject, delta: int) -> None:
    runs = [(runs[0][0] + offset, length) for offset, length in runs]
    runs[0] = (min(offset for offset, _ in runs), runs[0][1])
    starts = sorted({0, *data.draw(st.sets(st.integers(0, len(runs) - 1)))})
    frames = Frames.unpack(Frames.from_fragments(runs, starts, len(starts)).pack())
    moved = frames.shift_offsets(delta)
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(runs)], strict=True), 1):
        assert frames.locate(number) == runs[start:stop]
        assert moved.locate(number) == [(offset + delta, length) for offset, length in runs[start:stop]]


@given(st.integers(1, 2**20), st.integers(0, 2**40), st.integers(1, 2**40), st.integers(0, 2**40))
def test_packed_native_frames_are_the_same_frames(count: int, offset: int, bits: int, delta: int) -> None:
    frames = Frames.unpack(Frames.native(count, offset, count * bits, bits).pack()).shift_offsets(delta)
    assert frames.count == count
    ((start, length),) = frames.locate(count)
    assert start == offset + delta + (count - 1) * bits // 8
    assert (start - offset - delta + length) * 8 >= count * bits
    assert frames.stream() == [(offset + delta, count * bits)]


def test_packed_bulk_values_are_found_one_by_one() -> None:
    values = [BulkValue("/7FE00010", "OW", 1 << 40, 5), BulkValue("/54000100/1/54001010", "OB", 3, 4, True)]
    packed = pack_bulk_data(values)
    assert unpack_bulk_data(packed) == values
    assert [find_bulk_value(packed, value.path) for value in values] == values
    assert find_bulk_value(packed, "/7fe00010") == values[0]
    assert all(
        find_bulk_value(packed, path) is None for path in ("", "/", "/7FE0001", "/7FE00010 OW", "/54000100", "x")
    )
    assert unpack_bulk_data(pack_bulk_data([])) == []
