"""The header scanner: the bytes of one instance → its attributes as DICOM JSON, and where frames and bulk data lie.

It reads the structure of PS3.5 section 7 and Annex A straight from the buffer (Explicit and Implicit VR Little
Endian, Explicit VR Big Endian, deflated) and makes no object per element other than its JSON. Lengths are compared
with the bytes that are there before anything is sliced, counted or allocated. A data set whose nesting contradicts
itself goes to pydicom, whose raw elements pass through the same converters; that happens for damaged files only.

Choices where the Standard leaves room or files break it
- Of an element that occurs twice the last one counts, as in pydicom and dcmtk. Unsorted elements are sorted.
- A public element sent as UN (what converters from implicit VR write that do not know a tag) gets the VR of PS3.6, as
  PS3.5 6.2.2 allows: else its UIDs and names could not be found. Private and unknown ones stay bytes.
- A number value with a length that is no multiple of its size is given as UN with its bytes.
- An element with a VR that the Standard does not have is given as UN.
- Rows, Columns and Number of Frames are believed only as far as the Pixel Data reaches: with fewer bytes or fragments
  than they promise, the number of frames follows the data, and without one whole frame `Header.frames` is None.
"""

from __future__ import annotations

import io
import mmap
import struct
import zlib
from array import array
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final, NoReturn

from ..errors import FailureReason, InvalidInstance
from .attributes import AMBIGUOUS_VR, VR_BY_TAG, is_uid, keyword_of, vr_of
from .character_sets import Text, decoder_of, plain_text
from .frames import (
    BulkValue,
    Frames,
    encapsulated_frames,
    find_bulk_value,
    native_frames,
    pack_bulk_data,
    unpack_bulk_data,
)

# What a header is made of comes with it.
__all__ = ["BulkValue", "Frames", "Header", "find_bulk_value", "pack_bulk_data", "scan", "unpack_bulk_data"]

Buffer = bytes | bytearray | memoryview | mmap.mmap
Attribute = dict[str, Any]

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
# JPIP Referenced Deflate and JPIP HTJ2K Referenced Deflate deflate the data set too (PS3.5 A.7, A.11).
_DEFLATED_SYNTAXES: Final = {DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
_NATIVE_SYNTAXES: Final = {IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, *_DEFLATED_SYNTAXES}
_MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
IMPLEMENTATION_CLASS_UID: Final = "2.25.271403385262178305513964230867354142851"

_INLINE_BYTES: Final = 1024
_INLINE_VALUE: Final = 64 << 10
_MAX_DEPTH: Final = 64
_MAX_ITEMS: Final = (
    8_000_000  # sequence items of one instance; an item costs 8 bytes in the file and some 100 in memory
)
_MAX_FRAGMENTS: Final = 4_000_000
_MAX_FALLBACK: Final = 256 << 20  # bytes of a damaged data set that pydicom may still try
_UNDEFINED: Final = 0xFFFFFFFF
_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_DATA_BITS: Final[Mapping[int, int | None]] = {0x7FE00008: 32, 0x7FE00009: 64, _PIXEL_DATA: None}


# ---------------------------------------------------------------------------------------------------------------------
# What a scan gives


@dataclass(frozen=True, slots=True)
class Header:
    """What `scan` finds. Offsets are those of the scanned buffer, but for `bulk_data` and `frames` of a deflated data
    set, which count in the inflated one.

    `transfer_syntax` is the one of the File Meta Information, or what the bytes show where it is missing or wrong.
    `dataset_offset` is where the data set starts (0 without preamble and File Meta Information). `file_meta` is the
    group 0002 as it is in the buffer, None if there is none. `attributes` is the data set in the DICOM JSON Model
    (PS3.18 F.2), keys ascending at every level, without group 0002 and group lengths; a SOP Class UID that only the
    File Meta Information has is put in. A bulk value is {"vr": "OW", "BulkDataURI": path}.
    `prefix` is empty for a proper PS3.10 file, else the preamble, DICM and File Meta Information that make one when
    they are put in front of buffer[dataset_offset:]; `behind_prefix` gives the header of that file.
    """

    transfer_syntax: str
    dataset_offset: int
    file_meta: bytes | None
    attributes: dict[str, Any]
    bulk_data: tuple[BulkValue, ...]
    frames: Frames | None
    prefix: bytes
    deflated: bool = False

    def behind_prefix(self) -> Header:
        """The header of the file `prefix` + buffer[dataset_offset:] (itself if `prefix` is empty)."""
        if not self.prefix:
            return self
        delta = 0 if self.deflated else len(self.prefix) - self.dataset_offset
        return replace(
            self,
            dataset_offset=len(self.prefix),
            file_meta=self.prefix[132:],
            bulk_data=tuple(
                value if value.offset < 0 else replace(value, offset=value.offset + delta) for value in self.bulk_data
            ),
            frames=self.frames and self.frames.shift_offsets(delta),
            prefix=b"",
        )


# ---------------------------------------------------------------------------------------------------------------------
# Values: the bytes of one element → its DICOM JSON attribute. convert(raw, text), raw never empty.

Convert = Callable[[bytes, Text], Attribute]
# vr, whether the length field has 32 bits (PS3.5 7.1.2), bytes above which it is a bulk value, convert (None: SQ)
Row = tuple[str, bool, int, Convert | None]


def _inline(vr: str, raw: bytes) -> Attribute:
    return {"vr": vr, "InlineBinary": b2a_base64(raw, newline=False).decode("ascii")}


def _default_repertoire(vr: str, value_of: Callable[[str], Any] | None = None) -> Convert:
    def convert(raw: bytes, text: Text) -> Attribute:
        value = raw.decode("latin-1").strip(" \0")
        if "\\" in value:
            parts = (part.strip(" \0") for part in value.split("\\"))
            if value_of is None:
                return {"vr": vr, "Value": [part or None for part in parts]}
            return {"vr": vr, "Value": [value_of(part) if part else None for part in parts]}
        if not value:
            return {"vr": vr}
        return {"vr": vr, "Value": [value if value_of is None else value_of(value)]}

    return convert


def _decimal(value: str) -> float | str:
    try:
        number = float(value)
    except ValueError:
        return value
    return number if isfinite(number) and "_" not in value else value


def _integer(value: str) -> int | float | str:
    try:
        number: float = int(value)
    except ValueError:
        decimal = _decimal(value)
        if isinstance(decimal, str):
            return value
        number = int(decimal) if decimal.is_integer() else decimal
    return number if -(2**53) <= number <= 2**53 and "_" not in value else value


def _texts(vr: str) -> Convert:
    def convert(raw: bytes, text: Text) -> Attribute:
        value = text(raw).rstrip(" \0")
        if "\\" in value:
            return {"vr": vr, "Value": [part.rstrip(" \0") or None for part in value.split("\\")]}
        return {"vr": vr, "Value": [value]} if value else {"vr": vr}

    return convert


def _single_text(vr: str) -> Convert:
    def convert(raw: bytes, text: Text) -> Attribute:
        value = text(raw).rstrip(" \0")
        return {"vr": vr, "Value": [value]} if value else {"vr": vr}

    return convert


def _names(raw: bytes, text: Text) -> Attribute:
    value = text(raw).rstrip(" \0")
    return {"vr": "PN", "Value": [_name(part) for part in value.split("\\")]} if value else {"vr": "PN"}


def _name(value: str) -> dict[str, str] | None:
    if "=" not in value:
        value = value.rstrip(" \0")
        return {"Alphabetic": value} if value else None
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("=", 2), strict=False)
    return {label: stripped for label, group in groups if (stripped := group.rstrip(" \0"))} or None


def _numbers(vr: str, code: str, order: str) -> Convert:
    one = struct.Struct(order + code)
    size, unpack = one.size, one.unpack
    is_float, is_long = code in "fd", code in "qQ"

    def convert(raw: bytes, text: Text) -> Attribute:
        length = len(raw)
        if length == size:
            values = list(unpack(raw))
        elif length % size:
            return _inline("UN", raw)
        else:
            values = list(struct.unpack(f"{order}{length // size}{code}", raw))
        if is_float:
            if not all(map(isfinite, values)):
                values = [number if isfinite(number) else _not_finite(number) for number in values]
        elif is_long:
            values = [number if -(2**53) <= number <= 2**53 else str(number) for number in values]
        return {"vr": vr, "Value": values}

    return convert


def _not_finite(number: float) -> str:
    return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


def _tags(order: str) -> Convert:
    def convert(raw: bytes, text: Text) -> Attribute:
        if len(raw) % 4:
            return _inline("UN", raw)
        numbers = struct.unpack(f"{order}{len(raw) // 2}H", raw)
        return {"vr": "AT", "Value": [f"{a:04X}{b:04X}" for a, b in zip(numbers[::2], numbers[1::2], strict=True)]}

    return convert


def _bytes(vr: str, word: str = "", order: str = "<") -> Convert:
    if word and order == ">":

        def swapped(raw: bytes, text: Text) -> Attribute:
            whole = len(raw) - len(raw) % struct.calcsize("<" + word)
            count = whole // struct.calcsize("<" + word)
            little = struct.pack(f"<{count}{word}", *struct.unpack(f">{count}{word}", raw[:whole]))
            return _inline(vr, little + raw[whole:])

        return swapped
    return lambda raw, text: _inline(vr, raw)


def _rows(order: str) -> dict[str, Row]:
    rows: dict[str, Row] = {"SQ": ("SQ", True, 0, None)}
    for vr in ("AE", "AS", "CS", "DA", "DT", "TM", "UI"):
        rows[vr] = (vr, False, _INLINE_VALUE, _default_repertoire(vr))
    rows["DS"] = ("DS", False, _INLINE_VALUE, _default_repertoire("DS", _decimal))
    rows["IS"] = ("IS", False, _INLINE_VALUE, _default_repertoire("IS", _integer))
    rows["PN"] = ("PN", False, _INLINE_VALUE, _names)
    for vr in ("LO", "SH", "UC"):
        rows[vr] = (vr, vr == "UC", _INLINE_VALUE, _texts(vr))
    for vr in ("LT", "ST", "UT", "UR"):
        rows[vr] = (vr, vr in {"UT", "UR"}, _INLINE_VALUE, _single_text(vr))
    for vr, code in {"FL": "f", "FD": "d", "SL": "l", "SS": "h", "UL": "L", "US": "H", "SV": "q", "UV": "Q"}.items():
        rows[vr] = (vr, vr in {"SV", "UV"}, _INLINE_VALUE, _numbers(vr, code, order))
    rows["AT"] = ("AT", False, _INLINE_VALUE, _tags(order))
    for vr, word in {"OB": "", "UN": "", "OW": "H", "OF": "L", "OL": "L", "OD": "Q", "OV": "Q"}.items():
        rows[vr] = (vr, True, _INLINE_BYTES, _bytes(vr, word, order))
    return rows


_ROWS: Final = {order: _rows(order) for order in "<>"}
_EXPLICIT_ROWS: Final = {order: {vr.encode("ascii"): row for vr, row in rows.items()} for order, rows in _ROWS.items()}
_IMPLICIT_ROWS: Final = {tag: _ROWS["<"][vr] for tag, vr in VR_BY_TAG.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Structure


class _NotUnderstood(Exception):
    """The nesting contradicts itself: pydicom may have a try."""


def _invalid(message: str, reason: FailureReason = FailureReason.CANNOT_UNDERSTAND) -> NoReturn:
    raise InvalidInstance(reason, message)


def text_of(character_set: Attribute) -> Text:
    """The decoder that a Specific Character Set (0008,0005) of the DICOM JSON Model asks for."""
    return decoder_of(tuple(term if isinstance(term, str) else None for term in character_set.get("Value", ())))


def _label(tag: int) -> str:
    return f"{keyword_of(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})".lstrip()


class _DataSet:
    """One data set in a buffer, being scanned."""

    def __init__(self, buffer: bytes | mmap.mmap, big_endian: bool) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.order = ">" if big_endian else "<"
        self.header = struct.Struct(self.order + "HH2sH").unpack_from
        self.long = struct.Struct(self.order + "L").unpack_from
        self.item = struct.Struct(self.order + "HHL").unpack_from
        self.rows = _ROWS[self.order]
        self.attributes: dict[str, Any] = {}
        self.bulk: dict[str, BulkValue] = {}
        self.pixel_data: dict[int, tuple[int, int, tuple[array[int], array[int]] | None]] = {}
        self.offset_tables: dict[int, tuple[int, int]] = {}
        self.items = 0
        self.repeats = False

    def scan(self, offset: int, implicit: bool) -> None:
        self._elements(offset, self.size, plain_text, "/", 0, implicit, False, self.attributes)

    def _elements(
        self,
        pos: int,
        end: int,
        text: Text,
        path: str,
        depth: int,
        implicit: bool,
        delimited: bool,
        attributes: dict[str, Any],
    ) -> int:
        """Fills `attributes` from the elements at `pos`; gives the position after them (and after the delimiter)."""
        buffer, header, long = self.buffer, self.header, self.long
        rows = _EXPLICIT_ROWS[self.order]
        previous = -1
        ordered = True
        closed = not delimited
        row: Row | None
        while pos < end:
            if pos + 8 > end:
                if depth == 0 and not buffer[pos:end].strip(b"\0"):
                    break
                self._fail(f"the data end within the header of an element at byte {pos}", end)
            group, element, vr, length = header(buffer, pos)
            tag = group << 16 | element
            start = pos + 8
            if implicit or (row := rows.get(vr)) is None:
                if group == 0xFFFE:
                    if delimited and element == 0xE00D:
                        pos, closed = start, True
                        break
                    if delimited and element == 0xE0DD:  # the item's own delimiter was left out
                        closed = True
                        break
                    if depth == 0 and element in (0xE00D, 0xE0DD):
                        pos = start
                        continue
                    raise _NotUnderstood(f"an item or delimiter at byte {pos} where an element should be")
                if tag == 0 and depth == 0 and self._all_zero(pos):
                    break
                row, start, length = self._row(pos, end, tag, vr, implicit, attributes)
            elif row[1]:
                if start + 4 > end:
                    self._fail(f"the data end within the header of {_label(tag)}", end)
                (length,) = long(buffer, start)
                start += 4
                if vr == b"UN" and tag in _IMPLICIT_ROWS and length != _UNDEFINED and self.order == "<":
                    row = self._dictionary_row(tag, attributes)
            key = f"{tag:08X}"
            if tag <= previous:
                ordered = False
                self.repeats = self.repeats or key in attributes
            previous = tag
            vr_name, _, limit, convert = row
            if length == _UNDEFINED:
                pos = self._undefined(key, tag, row, start, end, text, path, depth, implicit, attributes)
                continue
            pos = start + length
            if pos > end:
                self._fail(f"{_label(tag)} should have {length} bytes, but only {end - start} are left", end)
            if not element or group == 2:
                continue
            if convert is None:
                attribute: Attribute = {"vr": "SQ"}
                if length:
                    switched = not implicit and vr == b"UN" and self._is_implicit_item(start, pos)
                    items, _ = self._sequence(start, pos, False, text, path + key, depth + 1, implicit or switched)
                    if items:
                        attribute["Value"] = items
                attributes[key] = attribute
            elif length > limit or group == 0x7FE0:
                attributes[key] = self._bulk_or_pixel_data(key, tag, row, start, length, text, path, depth)
            elif length:
                attribute = attributes[key] = convert(buffer[start:pos], text)
                if tag == _SPECIFIC_CHARACTER_SET:
                    text = text_of(attribute)
            else:
                attributes[key] = {"vr": vr_name}
        if not closed:
            self._fail(f"the data end within an item of {path}", end)
        if not ordered:
            in_order = sorted(attributes.items())
            attributes.clear()
            attributes.update(in_order)
        return pos

    def _row(
        self, pos: int, end: int, tag: int, vr: bytes, implicit: bool, attributes: dict[str, Any]
    ) -> tuple[Row, int, int]:
        """VR, start and length of an element that has no VR of the Standard in its header."""
        start = pos + 8
        (length,) = self.long(self.buffer, pos + 4)
        no_implicit = (
            length != _UNDEFINED and start + length > end and vr.isascii() and vr.decode("ascii").isprintable()
        )
        if not implicit and (no_implicit or (vr.isalpha() and vr.isupper())):
            # PS3.5 6.2: a VR of the future has a 32-bit length after two zero bytes.
            row = self.rows["UN"]
            short = length >> 16 if self.order == "<" else length & 0xFFFF
            if short == 0 and start + 4 <= end:
                (length,) = self.long(self.buffer, start)
                if length == _UNDEFINED or start + 4 + length <= end:
                    return row, start + 4, length
            return row, start, short
        # Some writers switch to implicit VR inside an explicit data set.
        return self._dictionary_row(tag, attributes), start, length

    def _dictionary_row(self, tag: int, attributes: dict[str, Any]) -> Row:
        """The VR that PS3.6 gives a tag; Pixel Representation decides between US and SS."""
        known = _IMPLICIT_ROWS.get(tag)
        if known is None:
            return self.rows[vr_of(tag)]
        if tag in AMBIGUOUS_VR and known[0] == "US":
            signed = attributes.get("00280103") or self.attributes.get("00280103") or {}
            return self.rows["SS" if signed.get("Value") == [1] else "US"]
        return self.rows[known[0]]

    def _undefined(
        self,
        key: str,
        tag: int,
        row: Row,
        start: int,
        end: int,
        text: Text,
        path: str,
        depth: int,
        implicit: bool,
        attributes: dict[str, Any],
    ) -> int:
        """An element of undefined length: a sequence (SQ, UN, unknown), or fragments. Gives the position after it."""
        vr = row[0]
        if vr not in {"SQ", "UN"} and tag != _PIXEL_DATA and not vr.startswith("O"):
            raise _NotUnderstood(f"{_label(tag)}: {vr} cannot have an undefined length")
        if vr in {"SQ", "UN"} and tag != _PIXEL_DATA:
            if vr == "UN":
                implicit = implicit or self._is_implicit_item(start, end)
            items, pos = self._sequence(start, end, True, text, path + key, depth + 1, implicit)
            attributes[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
            return pos
        starts, lengths, stop = self.fragments(start, end, tag)
        if depth == 0 and tag == _PIXEL_DATA:
            self.pixel_data[tag] = (start, stop - start, (starts, lengths))
        attributes[key] = self._bulk(key, row[0], start, stop - start, path, encapsulated=True)
        return stop + 8

    def _is_implicit_item(self, start: int, end: int) -> bool:
        """PS3.5 6.2.2 note 2: UN of undefined length holds Implicit VR Little Endian. Some writers keep explicit VR,
        which shows where the length would otherwise reach beyond the value."""
        if start + 16 > end:
            return True
        _, _, vr, _ = self.header(self.buffer, start + 8)
        (length,) = self.long(self.buffer, start + 12)
        return vr not in _EXPLICIT_ROWS["<"] or start + 16 + length <= end

    def _sequence(
        self, pos: int, end: int, undefined: bool, text: Text, path: str, depth: int, implicit: bool
    ) -> tuple[list[dict[str, Any]], int]:
        if depth > _MAX_DEPTH:
            _invalid(f"sequences are nested more than {_MAX_DEPTH} deep")
        items: list[dict[str, Any]] = []
        while pos < end:
            if pos + 8 > end:
                self._fail(f"the data end within {path}", end)
            group, element, length = self.item(self.buffer, pos)
            pos += 8
            if group != 0xFFFE or element not in (0xE000, 0xE0DD):
                raise _NotUnderstood(f"{path}: ({group:04X},{element:04X}) where an item should be")
            if element == 0xE0DD:
                if undefined:
                    return items, pos
                continue
            self.items += 1
            if self.items > _MAX_ITEMS:
                _invalid(f"more than {_MAX_ITEMS} sequence items", FailureReason.PROCESSING_FAILURE)
            attributes: dict[str, Any] = {}
            item_path = f"{path}/{len(items) + 1}/"
            if length == _UNDEFINED:
                pos = self._elements(pos, end, text, item_path, depth, implicit, True, attributes)
            else:
                stop = pos + length
                if stop > end:
                    self._fail(f"item {item_path} should have {length} bytes, but only {end - pos} are left", end)
                self._elements(pos, stop, text, item_path, depth, implicit, False, attributes)
                pos = stop
            items.append(attributes)
        if undefined:
            self._fail(f"the data end within {path}", end)
        return items, pos

    def fragments(self, pos: int, end: int, tag: int) -> tuple[array[int], array[int], int]:
        """Start and length of each item up to the Sequence Delimitation Item, and where that is (PS3.5 A.4)."""
        buffer, item = self.buffer, self.item
        starts, lengths = array("Q"), array("Q")
        while pos + 8 <= end:
            group, element, length = item(buffer, pos)
            if group != 0xFFFE or element not in (0xE000, 0xE0DD):
                _invalid(f"{_label(tag)}: ({group:04X},{element:04X}) at byte {pos} where a fragment should be")
            if element == 0xE0DD:
                return starts, lengths, pos
            pos += 8
            if pos + length > end:
                _invalid(f"{_label(tag)}: a fragment should have {length} bytes, but only {end - pos} are left")
            starts.append(pos)
            lengths.append(length)
            if len(starts) > _MAX_FRAGMENTS:
                _invalid(f"{_label(tag)}: more than {_MAX_FRAGMENTS} fragments", FailureReason.PROCESSING_FAILURE)
            pos += length
        _invalid(f"{_label(tag)}: the data end before the Sequence Delimitation Item")

    def _bulk_or_pixel_data(
        self, key: str, tag: int, row: Row, start: int, length: int, text: Text, path: str, depth: int
    ) -> Attribute:
        """An element of group 7FE0 or one that is too long to be given in line."""
        if depth == 0:
            if tag in _PIXEL_DATA_BITS:
                self.pixel_data.pop(tag, None)
                if length:
                    self.pixel_data[tag] = (start, length, None)
            elif tag in (0x7FE00001, 0x7FE00002):
                self.offset_tables[tag] = (start, length)
        if not length:
            return {"vr": row[0]}
        if length > row[2] or tag in _PIXEL_DATA_BITS or row[3] is None:
            return self._bulk(key, row[0], start, length, path)
        return row[3](self.buffer[start : start + length], text)

    def _bulk(self, key: str, vr: str, start: int, length: int, path: str, *, encapsulated: bool = False) -> Attribute:
        path += key
        self.bulk[path] = BulkValue(path, vr, start, length, encapsulated)
        return {"vr": vr, "BulkDataURI": path}

    def bulk_values(self) -> tuple[BulkValue, ...]:
        """The bulk values; of elements that came twice only the one that `attributes` has."""
        if not self.repeats:
            return tuple(self.bulk.values())
        return tuple(value for value in self.bulk.values() if self._is_at(value.path))

    def _is_at(self, path: str) -> bool:
        here: Any = self.attributes
        first, *steps = path[1:].split("/")
        attribute = here.get(first, {})
        for number, key in zip(steps[::2], steps[1::2], strict=True):
            items = attribute.get("Value", ())
            if attribute.get("vr") != "SQ" or int(number) > len(items):
                return False
            attribute = items[int(number) - 1].get(key, {})
        return bool(attribute.get("BulkDataURI") == path)

    def _all_zero(self, pos: int) -> bool:
        return all(not self.buffer[at : at + 65536].strip(b"\0") for at in range(pos, self.size, 65536))

    def _fail(self, message: str, end: int) -> NoReturn:
        """What reaches beyond the file is truncated; what reaches beyond its container contradicts itself."""
        if end == self.size:
            _invalid(f"truncated: {message}")
        raise _NotUnderstood(message)

    def scan_with_pydicom(self, offset: int, implicit: bool) -> None:
        """The same from pydicom's reading of a data set that contradicts itself."""
        if self.size - offset > _MAX_FALLBACK:
            raise _NotUnderstood("the data set is damaged and too long to be mended")
        from pydicom.filereader import read_dataset

        self.bulk.clear()
        self.pixel_data.clear()
        self.offset_tables.clear()
        self.attributes.clear()
        with io.BytesIO(self.buffer[offset:]) as stream:
            dataset = read_dataset(stream, implicit, self.order == "<")
            self._take(dataset, offset, plain_text, "/", 0, self.attributes)

    def _take(self, dataset: Any, offset: int, text: Text, path: str, depth: int, attributes: dict[str, Any]) -> None:
        from pydicom.dataelem import RawDataElement

        if depth > _MAX_DEPTH:
            _invalid(f"sequences are nested more than {_MAX_DEPTH} deep")
        for tag in sorted(map(int, dataset.keys())):
            if not tag & 0xFFFF or tag >> 16 == 2:
                continue
            key = f"{tag:08X}"
            raw = dataset.get_item(tag)
            vr = raw.VR or vr_of(tag)
            if vr == "SQ" or not isinstance(raw, RawDataElement):
                items: list[dict[str, Any]] = []
                for number, item in enumerate(dataset[tag].value or (), 1):
                    items.append({})
                    self._take(item, offset, text, f"{path}{key}/{number}/", depth + 1, items[-1])
                attributes[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                continue
            value = raw.value or b""
            row = self.rows.get(vr) or self.rows["UN"]
            if not raw.VR or (vr == "UN" and vr_of(tag) != "SQ"):
                row = self._dictionary_row(tag, attributes)
            start = offset + raw.value_tell
            if self.buffer[start : start + len(value)] != value:  # pydicom counts from the sequence around it
                start = -1
            if start >= 0 and raw.length == _UNDEFINED:
                starts, lengths, stop = self.fragments(start, self.size, tag)
                if depth == 0 and tag == _PIXEL_DATA:
                    self.pixel_data[tag] = (start, stop - start, (starts, lengths))
                attributes[key] = self._bulk(key, row[0], start, stop - start, path, encapsulated=True)
                continue
            if len(value) < raw.length != _UNDEFINED:
                _invalid(f"truncated: {_label(tag)} should have {raw.length} bytes, but only {len(value)} are left")
            if len(value) > row[2] or tag >> 16 == 0x7FE0:
                attributes[key] = self._bulk_or_pixel_data(key, tag, row, start, len(value), text, path, depth)
            else:
                attributes[key] = row[3](value, text) if value and row[3] else {"vr": row[0]}
            if tag == _SPECIFIC_CHARACTER_SET:
                text = text_of(attributes[key])


# ---------------------------------------------------------------------------------------------------------------------
# The file around the data set, PS3.10 section 7

Meta = dict[int, tuple[bytes, bytes]]  # element number of group 0002 → VR, value


def _read_file_meta(buffer: bytes | mmap.mmap, pos: int) -> tuple[Meta, int, bool]:
    """The elements of group 0002 at `pos`, where they end, and whether they are as PS3.10 7.1 has them."""
    meta: Meta = {}
    size = len(buffer)
    begin = pos
    order = ">" if buffer[pos : pos + 2] == b"\0\2" else "<"
    header, long = struct.Struct(order + "HH2sH"), struct.Struct(order + "L")
    proper = order == "<"
    while pos + 8 <= size:
        group, element, vr, length = header.unpack_from(buffer, pos)
        if group != 2:
            break
        start = pos + 8
        row = _EXPLICIT_ROWS["<"].get(vr)
        if row is None:
            proper = False
            vr = vr_of(group << 16 | element).encode("ascii")
            (length,) = long.unpack_from(buffer, pos + 4)
        elif row[1]:
            if start + 4 > size:
                _invalid("truncated: the file ends within the File Meta Information")
            (length,) = long.unpack_from(buffer, start)
            start += 4
        pos = start + length
        if pos > size:
            _invalid(f"truncated: {_label(2 << 16 | element)} should have {length} bytes, but the file ends before")
        meta[element] = (vr, buffer[start:pos])
    group_length = meta.get(0, (b"", b""))[1]
    proper = proper and len(group_length) == 4 and begin + 12 + int.from_bytes(group_length, "little") == pos
    return meta, pos, proper


def _meta_text(meta: Meta, element: int) -> str:
    return meta.get(element, (b"", b""))[1].decode("latin-1").strip(" \0")


def _prefix(preamble: bytes, meta: Meta, transfer_syntax: str, sop_class: str, sop_instance: str) -> bytes:
    """Preamble, DICM and File Meta Information (PS3.10 7.1), with what is usable of the one that was there."""

    def uid(value: str) -> tuple[bytes, bytes]:
        raw = value.encode("ascii")
        return b"UI", raw + b"\0" * (len(raw) & 1)

    mended = {element: entry for element, entry in meta.items() if element and len(entry[1]) <= 0xFFFF}
    mended[0x0001] = (b"OB", b"\0\1")
    mended[0x0002], mended[0x0003] = uid(sop_class), uid(sop_instance)
    mended[0x0010] = uid(transfer_syntax)
    if not is_uid(_meta_text(mended, 0x0012)):
        mended[0x0012] = uid(IMPLEMENTATION_CLASS_UID)
        mended[0x0013] = (b"SH", b"DICOMCLOUD")
    group = b""
    for element, (vr, raw) in sorted(mended.items()):
        raw += b"\0" * (len(raw) & 1)
        if _EXPLICIT_ROWS["<"].get(vr, ("", True))[1]:
            group += struct.pack("<HH2sxxL", 2, element, vr, len(raw)) + raw
        else:
            group += struct.pack("<HH2sH", 2, element, vr, len(raw)) + raw
    return preamble + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(group)) + group


def _encoding(buffer: bytes | mmap.mmap, pos: int, declared: str) -> tuple[bool, bool, str]:
    """Whether the data set at `pos` is implicit VR, whether big endian, and its transfer syntax: the declared one,
    unless the first element shows that it cannot be."""
    if len(buffer) - pos < 8:
        _invalid("truncated: there is no data set")
    little, _, vr, _ = struct.unpack_from("<HH2sH", buffer, pos)
    big = little >> 8 | (little & 0xFF) << 8
    explicit = vr in _EXPLICIT_ROWS["<"]
    big_endian = big < little and (explicit or declared == EXPLICIT_BIG)
    if big_endian:
        if declared and declared not in _NATIVE_SYNTAXES:
            _invalid(f"the data set is big endian, but its transfer syntax is {declared}")
        return False, True, EXPLICIT_BIG
    implicit = not explicit
    if implicit and big < little and not declared:
        _invalid("this is not DICOM: no data set begins where one should")
    if not declared or declared in _NATIVE_SYNTAXES:
        return implicit, False, IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE
    return implicit, False, declared


def _inflate(buffer: bytes | mmap.mmap, offset: int, max_inflated: int) -> bytes:
    """The data set of a deflated transfer syntax (PS3.5 A.5); a pad byte after the stream is left aside."""
    inflater = zlib.decompressobj(-15)
    data = inflater.decompress(buffer[offset:], max_inflated + 1)
    if len(data) > max_inflated:
        _invalid(f"the deflated data set has more than {max_inflated} bytes")
    if not inflater.eof:
        _invalid("truncated: the deflated data set ends too early")
    return data


def scan(buffer: Buffer, *, max_inflated: int = 1 << 30) -> Header:
    """The header of the instance that fills `buffer` (bytes or mmap; others are copied).

    Raises InvalidInstance, and nothing else: CANNOT_UNDERSTAND for what is not DICOM, is truncated, lacks a UID or
    would inflate to more than `max_inflated` bytes. Its UIDs are those that were read.
    """
    found = _Found()
    try:
        return _scan(buffer if isinstance(buffer, (bytes, mmap.mmap)) else bytes(buffer), max_inflated, found)
    except InvalidInstance as error:
        error.sop_class_uid, error.sop_instance_uid = found.uids()
        raise
    except Exception as error:  # nothing that a file holds may be more than that file's failure
        sop_class, sop_instance = found.uids()
        raise InvalidInstance(
            FailureReason.CANNOT_UNDERSTAND,
            f"the instance cannot be read: {error}",
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
        ) from error


class _Found:
    """What is known of an instance when its scan fails."""

    def __init__(self) -> None:
        self.meta: Meta = {}
        self.attributes: dict[str, Any] = {}

    def uids(self) -> tuple[str | None, str | None]:
        pairs = ((0x0002, "00080016"), (0x0003, "00080018"))
        texts = (self.text(key) or _meta_text(self.meta, element) for element, key in pairs)
        sop_class, sop_instance = (text if is_uid(text) else None for text in texts)
        return sop_class, sop_instance

    def text(self, key: str) -> str:
        value = self.attributes.get(key, {}).get("Value") or ("",)
        return value[0] if isinstance(value[0], str) else ""


def _frames(data: _DataSet, transfer_syntax: str) -> Frames | None:
    for tag in (_PIXEL_DATA, 0x7FE00008, 0x7FE00009):
        if tag in data.pixel_data:
            start, length, items = data.pixel_data[tag]
            if items is None:
                return native_frames(data.attributes, start, length, _PIXEL_DATA_BITS[tag])
            tables = data.offset_tables
            return encapsulated_frames(data.attributes, data.buffer, data.order, items, tables, transfer_syntax)
    return None


def _scan(buffer: bytes | mmap.mmap, max_inflated: int, found: _Found) -> Header:
    preamble, begin = bytes(128), 0
    proper = buffer[128:132] == b"DICM"
    if proper:
        preamble, begin = buffer[:128], 132
    elif buffer[:4] == b"DICM":
        begin = 4
    elif buffer[:2] not in (b"\2\0", b"\0\2", b"\x08\0", b"\0\x08"):
        _invalid("this is not DICOM: neither DICM at byte 128 nor a data set at byte 0")
    meta, offset, meta_proper = _read_file_meta(buffer, begin)
    found.meta = meta
    if _meta_text(meta, 0x0002) == _MEDIA_STORAGE_DIRECTORY or buffer[offset : offset + 2] in (b"\4\0", b"\0\4"):
        _invalid("a DICOMDIR (Media Storage Directory) lists instances and is none itself")
    declared = _meta_text(meta, 0x0010)
    if not is_uid(declared):
        declared = ""
    content, content_offset = buffer, offset
    deflated = declared in _DEFLATED_SYNTAXES
    if deflated:
        try:
            content, content_offset = _inflate(buffer, offset, max_inflated), 0
        except zlib.error:
            if buffer[offset + 4 : offset + 6] not in _EXPLICIT_ROWS["<"]:
                raise
            deflated = False
    implicit, big_endian, transfer_syntax = _encoding(content, content_offset, declared)
    if deflated:
        transfer_syntax = declared
    data = _DataSet(content, big_endian)
    found.attributes = data.attributes
    try:
        data.scan(content_offset, implicit)
    except _NotUnderstood as fault:
        _mend(data, content_offset, implicit, fault)
    attributes = data.attributes
    if any(fragments for _, _, fragments in data.pixel_data.values()) and transfer_syntax in _NATIVE_SYNTAXES:
        _invalid(
            f"the Pixel Data are encapsulated, but the transfer syntax is {declared}"
            if declared
            else "the Pixel Data are encapsulated, but there is no Transfer Syntax UID (0002,0010)"
        )
    if not found.text("00080016") and is_uid(_meta_text(meta, 0x0002)):
        attributes["00080016"] = {"vr": "UI", "Value": [_meta_text(meta, 0x0002)]}
        in_order = sorted(attributes.items())
        attributes.clear()
        attributes.update(in_order)
    for tag in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E):
        uid = found.text(f"{tag:08X}")
        if not uid and tag == 0x00080016:
            continue  # some old files have none; they are found by the other three
        if not uid:
            _invalid(f"{_label(tag)} is missing")
        if not is_uid(uid):
            _invalid(f"{_label(tag)} is no UID: {uid[:64]!r}")
    sop_class, sop_instance = found.text("00080016"), found.text("00080018")
    if sop_class == _MEDIA_STORAGE_DIRECTORY:
        _invalid("a DICOMDIR (Media Storage Directory) lists instances and is none itself")
    prefix = b""
    if not (proper and meta_proper and transfer_syntax == declared):
        prefix = _prefix(preamble, meta, transfer_syntax, sop_class, sop_instance)
    return Header(
        transfer_syntax=transfer_syntax,
        dataset_offset=offset,
        file_meta=buffer[begin:offset] if meta else None,
        attributes=attributes,
        bulk_data=data.bulk_values(),
        frames=_frames(data, transfer_syntax),
        prefix=prefix,
        deflated=deflated,
    )


def _mend(data: _DataSet, offset: int, implicit: bool, fault: _NotUnderstood) -> None:
    try:
        data.scan_with_pydicom(offset, implicit)
    except InvalidInstance:
        raise
    except Exception as error:  # pydicom raises whatever a damaged data set leads it to
        raise _NotUnderstood(f"{fault}; {error}") from error
