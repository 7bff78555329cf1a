"""Where the frames and the bulk values of an instance lie in its file, found once and kept packed.

    BulkValue, find_bulk_value   one value that metadata give as a BulkDataURI
    Frames                       the bytes of each frame
    native_frames, encapsulated_frames   the frames of Pixel Data that have been found

The packed forms are made for the index: one entry of thousands is found without reading the others.
"""

from __future__ import annotations

import mmap
import re
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

_VIDEO_PREFIX: Final = "1.2.840.10008.1.2.4.10"  # .100 to .108: MPEG-2, MPEG-4, HEVC
_EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
_EXTENDED_OFFSET_TABLE_LENGTHS: Final = 0x7FE00002


@dataclass(frozen=True, slots=True)
class BulkValue:
    """Where one bulk value lies: `length` bytes at `offset` of the file (of the inflated data set if it is deflated).

    The bytes are as in the file: big endian in Explicit VR Big Endian. Encapsulated pixel data begin with the item of
    the Basic Offset Table and end before the Sequence Delimitation Item. An offset of -1 (only in data sets that
    pydicom had to mend) means that the value must be read with pydicom. `path` is "/7FE00010", or with the item
    numbers (from 1) of the sequences around it, "/54000100/1/54001010".
    """

    path: str
    vr: str
    offset: int
    length: int
    encapsulated: bool = False


_PATH: Final = re.compile(r"/[0-9A-F]{8}(?:/[1-9][0-9]{0,9}/[0-9A-F]{8})*")


def pack_bulk_data(values: Iterable[BulkValue]) -> bytes:
    """One line for each value: path, VR, offset, length, whether encapsulated."""
    return "".join(
        f"\n{value.path} {value.vr} {value.offset} {value.length} {value.encapsulated:d}" for value in values
    ).encode("ascii")


def unpack_bulk_data(packed: bytes) -> list[BulkValue]:
    """The inverse of `pack_bulk_data`."""
    return [_bulk_value(line) for line in packed.splitlines() if line]


def find_bulk_value(packed: bytes, path: str) -> BulkValue | None:
    """The value with this path (hexadecimal digits in either case), found without unpacking the others."""
    path = path.upper()
    if not _PATH.fullmatch(path):
        return None
    start = packed.find(f"\n{path} ".encode("ascii"))
    if start < 0:
        return None
    end = packed.find(b"\n", start + 1)
    return _bulk_value(packed[start + 1 : end if end > 0 else None])


def _bulk_value(line: bytes) -> BulkValue:
    path, vr, offset, length, encapsulated = line.decode("ascii").split(" ")
    return BulkValue(path, vr, int(offset), int(length), encapsulated == "1")


class Frames:
    """Where the bytes of each frame lie.

    Everything is read from the packed form when it is asked for, so that one frame of thousands costs no more than one
    of one. The packed form: a head (kind, number of frames, base offset, two numbers of the kind), then for
    encapsulated pixel data the fragments as (offset from the base, length), and where frames have several fragments
    the index of each frame's first one.
    """

    __slots__ = ("_base", "_first", "_kind", "_packed", "_second", "count")
    _base: int
    _first: int
    _kind: bytes
    _second: int
    count: int

    _HEAD = struct.Struct("<cxxxLqQQ")
    _RUN = struct.Struct("<QL")
    _NATIVE = b"N"  # first: bits of a frame; second: bytes of the value
    _SINGLE = b"S"  # one fragment for each frame; first: number of fragments
    _GROUPED = b"G"  # first: number of fragments; the index follows the fragments
    _STREAM = b"V"  # the frames cannot be told apart; first: number of fragments

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._kind, self.count, self._base, self._first, self._second = self._HEAD.unpack_from(packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frames) and self._packed == other._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    @classmethod
    def native(cls, count: int, offset: int, length: int, frame_bits: int) -> Frames:
        """Frames of `frame_bits` bits one after the other, without padding between them (PS3.5 8.1.1)."""
        return cls(cls._HEAD.pack(cls._NATIVE, count, offset, frame_bits, length))

    @classmethod
    def from_fragments(
        cls, runs: Sequence[tuple[int, int]], first_fragments: Sequence[int] | None, count: int
    ) -> Frames:
        """Frames of encapsulated pixel data: (offset, length) of each fragment, and the index of each frame's first
        fragment, or None where `count` frames cannot be told apart (PS3.5 A.4)."""
        base = runs[0][0] if runs else 0
        body = b"".join(cls._RUN.pack(offset - base, length) for offset, length in runs)
        if first_fragments is None:
            kind = cls._STREAM
        elif len(first_fragments) == len(runs):
            kind = cls._SINGLE
        else:
            kind = cls._GROUPED
            body += struct.pack(f"<{len(first_fragments)}L", *first_fragments)
        return cls(cls._HEAD.pack(kind, count, base, len(runs), 0) + body)

    @property
    def encapsulated(self) -> bool:
        """Whether the pixel data are fragments (PS3.5 A.4) rather than native pixel cells."""
        return self._kind != self._NATIVE

    @property
    def separable(self) -> bool:
        """Whether single frames can be located: False for a video, or if nothing tells where a frame begins."""
        return self._kind != self._STREAM

    def locate(self, number: int) -> list[tuple[int, int]]:
        """The (offset, length) runs that make up frame `number` (from 1), in order; see `bit_offset` for 1-bit frames.

        Raises IndexError for a number outside 1 to `count`, LookupError where frames cannot be told apart.
        """
        if not 1 <= number <= self.count:
            raise IndexError(f"there is no frame {number}: the frames are 1 to {self.count}")
        if self._kind == self._NATIVE:
            first_bit = (number - 1) * self._first
            start = first_bit >> 3
            return [(self._base + start, ((first_bit + self._first + 7) >> 3) - start)]
        if self._kind == self._SINGLE:
            return self._runs(number - 1, number)
        if self._kind == self._GROUPED:
            index = self._HEAD.size + self._first * self._RUN.size + (number - 1) * 4
            if number == self.count:
                return self._runs(struct.unpack_from("<L", self._packed, index)[0], self._first)
            return self._runs(*struct.unpack_from("<LL", self._packed, index))
        raise LookupError("the frames of this stream cannot be told apart: it can only be had as a whole")

    @property
    def on_byte_boundaries(self) -> bool:
        """Whether every frame begins and ends with a whole byte; only native 1-bit frames may not."""
        return self._kind != self._NATIVE or self._first % 8 == 0 or self.count == 1

    def bit_offset(self, number: int) -> int:
        """How many low bits of the first byte of a located frame belong to the frame before it: 0, but for native
        1-bit frames, whose size need not be a multiple of 8 (PS3.5 8.1.1)."""
        return (number - 1) * self._first & 7 if self._kind == self._NATIVE else 0

    def frame_bits(self) -> int | None:
        """The size of a native frame in bits; None for encapsulated pixel data."""
        return self._first if self._kind == self._NATIVE else None

    def stream(self) -> list[tuple[int, int]]:
        """The runs of all frames together: the native value, or every fragment in order (a whole video)."""
        if self._kind == self._NATIVE:
            return [(self._base, self._second)]
        return self._runs(0, self._first)

    def pack(self) -> bytes:
        return self._packed

    @classmethod
    def unpack(cls, packed: bytes) -> Frames:
        return cls(packed)

    def shift_offsets(self, delta: int) -> Frames:
        """The same frames, `delta` bytes further on in the file."""
        head = self._HEAD.pack(self._kind, self.count, self._base + delta, self._first, self._second)
        return Frames(head + self._packed[self._HEAD.size :])

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        size = self._RUN.size
        table = memoryview(self._packed)[self._HEAD.size + start * size : self._HEAD.size + stop * size]
        return [(self._base + offset, length) for offset, length in self._RUN.iter_unpack(table)]


# ---------------------------------------------------------------------------------------------------------------------
# The frames of Pixel Data (PS3.3 C.7.6.3, PS3.5 8.1.1, A.4)


def _number(attributes: Mapping[str, Any], key: str) -> int | None:
    value = attributes.get(key, {}).get("Value")
    return value[0] if value and isinstance(value[0], int) and value[0] > 0 else None


def native_frames(attributes: Mapping[str, Any], start: int, length: int, bits: int | None) -> Frames | None:
    """The frames of native pixel data, `length` bytes at `start`; `bits` of a sample, None for Bits Allocated.

    None without one whole frame, or without the attributes (DICOM JSON) that tell its size.
    """
    rows, columns = _number(attributes, "00280010"), _number(attributes, "00280011")
    bits = bits or _number(attributes, "00280100")
    if rows is None or columns is None or bits is None:
        return None
    samples = _number(attributes, "00280002") or 1
    declared = _number(attributes, "00280008")
    count = declared or 1
    frame_bits = rows * columns * samples * bits
    photometric = attributes.get("00280004", {}).get("Value")
    if samples == 3 and photometric in (["YBR_FULL_422"], ["YBR_PARTIAL_422"]) and count * frame_bits > length * 8:
        frame_bits = rows * columns * 2 * bits  # PS3.3 C.7.6.3.1.2: two samples for each pixel
    there = length * 8 // frame_bits
    # Number of Frames that is there but no number ("1A"): all that the data hold.
    unreadable = declared is None and bool(attributes.get("00280008", {}).get("Value"))
    count = there if unreadable else min(count, there)
    return Frames.native(min(count, 0xFFFFFFFF), start, length, frame_bits) if count else None


def encapsulated_frames(
    attributes: Mapping[str, Any],
    buffer: bytes | mmap.mmap,
    order: str,
    items: tuple[array[int], array[int]],
    extended: Mapping[int, tuple[int, int]],
    transfer_syntax: str,
) -> Frames | None:
    """The frames of encapsulated pixel data, None where there are no fragments.

    By the Extended or Basic Offset Table (PS3.5 A.4), else a fragment for each frame, else the end marks of JPEG.
    `items`: start and length of the Basic Offset Table and of each fragment in `buffer`, whose numbers are in `order`
    ("<" or ">"). `extended`: (start, length) of the Extended Offset Table and of its Lengths, by tag.
    """
    starts, lengths = items
    if len(starts) < 2:  # nothing but a Basic Offset Table
        return None
    table_start, table_length = starts[0], lengths[0]
    runs = list(zip(starts[1:], lengths[1:], strict=True))
    count = _number(attributes, "00280008") or 1
    if transfer_syntax.startswith(_VIDEO_PREFIX) and len(transfer_syntax) == len(_VIDEO_PREFIX) + 1:
        return Frames.from_fragments(runs, [0] if count == 1 else None, count)
    index_of = {start - runs[0][0]: index for index, (start, _) in enumerate(runs)}
    # A table with more entries than there are fragments is wrong, and not even read.
    at, size = extended.get(_EXTENDED_OFFSET_TABLE, (0, 0))
    if size // 8 == count <= len(runs):
        first = _first_fragments(struct.unpack_from(f"{order}{count}Q", buffer, at), index_of)
        if first:
            if count == len(runs):
                at, size = extended.get(_EXTENDED_OFFSET_TABLE_LENGTHS, (0, 0))
                if size == count * 8:
                    runs = _without_padding(runs, struct.unpack_from(f"{order}{count}Q", buffer, at))
            return Frames.from_fragments(runs, first, count)
    if 0 < table_length // 4 <= len(runs):
        first = _first_fragments(struct.unpack_from(f"{order}{table_length // 4}L", buffer, table_start), index_of)
        if first and (len(first) == count or count > len(runs)):
            return Frames.from_fragments(runs, first, len(first))
    if count == 1:
        return Frames.from_fragments(runs, [0], 1)
    if len(runs) > count:
        runs = [run for run in runs if run[1]] or runs
    if len(runs) <= count:
        return Frames.from_fragments(runs, range(len(runs)), len(runs))
    ends = [b"\xff\xd9" in buffer[max(start, start + length - 10) : start + length] for start, length in runs]
    if sum(ends) == count and ends[-1]:
        return Frames.from_fragments(runs, [0, *(index + 1 for index, end in enumerate(ends[:-1]) if end)], count)
    return Frames.from_fragments(runs, None, count)


def _first_fragments(offsets: Sequence[int], index_of: Mapping[int, int]) -> list[int] | None:
    """The index of the fragment at each offset; None if the offsets do not ascend from 0 or miss a fragment's start."""
    first = [index_of.get(offset, -1) for offset in offsets]
    if not first or first[0] != 0 or any(a >= b for a, b in pairwise(first)):
        return None
    return first


def _without_padding(runs: list[tuple[int, int]], exact: Sequence[int]) -> list[tuple[int, int]]:
    """Fragments cut to the Extended Offset Table Lengths, where these say no more than that a pad byte follows."""
    return [
        (start, size if length - size in (0, 1) else length) for (start, length), size in zip(runs, exact, strict=True)
    ]
