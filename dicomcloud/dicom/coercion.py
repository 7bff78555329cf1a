"""Attributes of an instance set to other values, and what they were recorded in it (PS3.3 C.12.1.1.9, PS3.18 10.5.2).

    read_change("00100010", "Doe^J")     text as it stands in a URL → an attribute
    coerce(buffer, header, changes, …)   the file with these values, or None where it has them already

All other elements keep their bytes, in every transfer syntax; only where the character set of the data set lacks a
new value, its texts become UTF-8. This is the one path on
which an attribute is changed at store, and it always leaves an item in the Original Attributes Sequence (0400,0561).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Final, Literal

from ..errors import FailureReason, InvalidInstance
from .attributes import is_multi_valued, vr_of
from .character_sets import decoder_of
from .encoding import LONG_VRS, VRS, encode_value, label
from .header import EXPLICIT_BIG, Header
from .processing import REMOVED

_PIECE: Final = 1 << 20
ORIGINAL_ATTRIBUTES: Final = "04000561"
_MODIFICATION_TIME, _SYSTEM, _REASON = "04000562", "04000563", "04000565"
_IDENTITY: Final = frozenset({0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00080005})
_TEXTS: Final = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "LO", "SH", "UC", "LT", "ST", "UT", "UR", "PN"})
_NUMBERS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("IS", "SL", "SS", "UL", "US", "SV", "UV"), int),
    **dict.fromkeys(("DS", "FL", "FD"), float),
}
_SIZES: Final = {"SL": "l", "SS": "h", "UL": "L", "US": "H", "SV": "q", "UV": "Q", "FL": "f", "FD": "d"}
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_MAX_DEPTH: Final = 64


def read_change(tag: int, text: str) -> dict[str, Any]:
    """The attribute that `tag=text` in a query stands for; several values are separated by backslashes.

    Raises ValueError naming the attribute when it cannot be set: a UID that identifies the instance, a sequence, bulk
    data, File Meta Information, a private attribute, or a text that is no value of its VR.
    """
    vr = vr_of(tag)
    if tag in _IDENTITY or tag >> 16 < 8 or tag >> 16 >= 0x7FE0 or tag >> 16 & 1 or not tag & 0xFFFF:
        raise ValueError(f"{label(tag)} cannot be set")
    if vr not in _TEXTS and vr not in _NUMBERS:
        raise ValueError(f"{label(tag)} has VR {vr} and cannot be set by a text")
    parts = text.split("\\") if is_multi_valued(tag) else [text]
    attribute: dict[str, Any] = {"vr": vr}
    if text:
        try:
            attribute["Value"] = [_value(vr, part) for part in parts]
        except ValueError:
            raise ValueError(f"{label(tag)}: {text[:40]!r} is no value of VR {vr}") from None
        encode_value(tag, attribute)
    return attribute


def _value(vr: str, part: str) -> Any:
    if not part:
        return None
    if vr == "PN":
        groups = zip(("Alphabetic", "Ideographic", "Phonetic"), part.split("=", 2), strict=False)
        return {name: group for name, group in groups if group} or None
    return _NUMBERS[vr](part) if vr in _NUMBERS else part


@dataclass(frozen=True, slots=True)
class Coerced:
    """`names` are the attributes that changed; `original` is the item that records what they were."""

    names: tuple[str, ...]
    original: dict[str, Any]
    pieces: tuple[bytes | memoryview, ...]

    def chunks(self) -> Iterator[bytes | memoryview]:
        for piece in self.pieces:
            for start in range(0, len(piece), _PIECE):
                yield memoryview(piece)[start : start + _PIECE]


def coerce(
    buffer: bytes | mmap,
    header: Header,
    changes: Mapping[str, Any],
    *,
    moment: str,
    system: str,
    reason: Literal["COERCE", "CORRECT"] = "COERCE",
) -> Coerced | None:
    """The proper PS3.10 file in `buffer` with these attributes; None where all of them are so already.

    `changes` maps keys of the DICOM JSON Model to attributes as in `read_change`, or to what `processing.processed`
    gives for those that go; `moment` is a DT, `reason` the Reason for the Attribute Modification (0400,0565). `pieces`
    of the result are views of `buffer`. Raises InvalidInstance where the data set cannot be changed.
    """
    different = {
        key: new
        for key, new in changes.items()
        if header.attributes.get(key, {}).get("Value") != new.get("Value")
        or (REMOVED in new and key in header.attributes)
    }
    if not different:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, about values that the sender's file has
            return _coerced(buffer, header, different, (moment, system, reason))
    except Exception as error:  # what pydicom raises depends on what it finds
        raise InvalidInstance(
            FailureReason.PROCESSING_FAILURE,
            f"{', '.join(label(int(key, 16)) for key in different)} could not be set: {error}",
            sop_class_uid=_text(header, "00080016"),
            sop_instance_uid=_text(header, "00080018"),
        ) from error


def moment_of_last(document: Mapping[str, Any], system: str) -> str | None:
    """When `system` last changed a stored instance. A repeated request that uses it again gives the same bytes."""
    items = document.get(ORIGINAL_ATTRIBUTES, {}).get("Value") or [{}]
    last = items[-1] or {}
    if (last.get(_SYSTEM, {}).get("Value") or [""])[0] != system:
        return None
    moment = (last.get(_MODIFICATION_TIME, {}).get("Value") or [None])[0]
    return moment if isinstance(moment, str) else None


def _text(header: Header, key: str) -> str | None:
    values = header.attributes.get(key, {}).get("Value")
    return values[0] if values else None


def _coerced(buffer: bytes | mmap, header: Header, changes: Mapping[str, Any], why: tuple[str, str, str]) -> Coerced:
    start = header.dataset_offset
    data: bytes | mmap = buffer
    codec = _codec(header, changes)
    if codec is None:
        data, codec = _in_unicode(buffer, header), "utf-8"
    if header.deflated:
        data = data[:start] + zlib.decompressobj(wbits=-15).decompress(data[start:])
    vr = data[start + 4 : start + 6]
    big = header.transfer_syntax == EXPLICIT_BIG
    form = _Form(implicit=not (vr.isalpha() and vr.isupper()), order=">" if big else "<")
    elements, end = _root_elements(data, start, form)
    originals = [
        elements[tag].whole(data) if tag in elements else form.element(tag, changes[f"{tag:08X}"]["vr"], b"")
        for tag in sorted(int(key, 16) for key in changes)
    ]
    new = {
        int(key, 16): b"" if REMOVED in attribute else _encoded(form, int(key, 16), attribute, codec)
        for key, attribute in changes.items()
    }
    record = int(ORIGINAL_ATTRIBUTES, 16)
    items = elements[record].items(data) if record in elements else b""
    new[record] = form.sequence(record, items + form.item(_record(form, originals, *why)))
    pieces: list[bytes] = []
    for tag in sorted({*elements, *new}):
        pieces.append(new[tag] if tag in new else elements[tag].whole(data))
    data_set = b"".join(pieces)
    tail = memoryview(data)[end:]
    if header.deflated:
        packer = zlib.compressobj(wbits=-15)
        data_set = packer.compress(data_set + tail) + packer.flush()
        data_set += b"\0" * (len(data_set) & 1)
        tail = memoryview(b"")
    return Coerced(
        tuple(label(int(key, 16)) for key in changes),
        _original_item(header, changes, *why),
        (buffer[: header.dataset_offset], data_set, tail),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The elements of the outermost level, as bytes


@dataclass(frozen=True, slots=True)
class _Form:
    """How the elements of a file are written."""

    implicit: bool
    order: str

    def element(self, tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
        length = len(value) if length is None else length
        group, element = tag >> 16, tag & 0xFFFF
        if self.implicit:
            return struct.pack(self.order + "HHL", group, element, length) + value
        if vr in LONG_VRS or length > 0xFFFE:
            vr = vr if vr in LONG_VRS else "UN"
            return struct.pack(self.order + "HH2sxxL", group, element, vr.encode("ascii"), length) + value
        return struct.pack(self.order + "HH2sH", group, element, vr.encode("ascii"), length) + value

    def item(self, content: bytes) -> bytes:
        return struct.pack(self.order + "HHL", 0xFFFE, 0xE000, len(content)) + content

    def sequence(self, tag: int, items: bytes) -> bytes:
        return self.element(tag, "SQ", items)

    def head(self, data: bytes | mmap, position: int) -> tuple[int, int, int]:
        """Tag, length and where the value begins of the element at `position`."""
        group, element, vr, short = struct.unpack_from(self.order + "HH2sH", data, position)
        name = vr.decode("latin-1")
        if self.implicit or group == 0xFFFE or name not in VRS:  # some writers switch to implicit VR inside
            return group << 16 | element, struct.unpack_from(self.order + "L", data, position + 4)[0], position + 8
        if name in LONG_VRS:
            return group << 16 | element, struct.unpack_from(self.order + "L", data, position + 8)[0], position + 12
        return group << 16 | element, short, position + 8


@dataclass(frozen=True, slots=True)
class _Element:
    start: int
    value: int
    end: int
    undefined: bool

    def whole(self, data: bytes | mmap) -> bytes:
        return data[self.start : self.end]

    def items(self, data: bytes | mmap) -> bytes:
        """The items of a sequence, without the delimiter behind them."""
        return data[self.value : self.end - 8 if self.undefined else self.end]


def _root_elements(data: bytes | mmap, position: int, form: _Form) -> tuple[dict[int, _Element], int]:
    """The elements in front of group 7FE0, the last of each tag, and where that group begins."""
    elements: dict[int, _Element] = {}
    size = len(data)
    while position + 8 <= size:
        tag, length, value = form.head(data, position)
        if tag >> 16 >= 0x7FE0:
            break
        end = _end_of(data, value, length, form, 0)
        if end > size:
            raise ValueError("the data set is damaged")
        elements[tag] = _Element(position, value, end, length == _UNDEFINED)
        position = end
    return elements, position


def _end_of(data: bytes | mmap, value: int, length: int, form: _Form, depth: int) -> int:
    """Where an element ends; of undefined length: behind its delimiter."""
    if length != _UNDEFINED:
        return value + length
    if depth > _MAX_DEPTH:
        raise ValueError("sequences are nested too deep")
    while True:
        tag, size, value = form.head(data, value)
        if tag == _SEQUENCE_END:
            return value
        if tag != _ITEM:
            raise ValueError("the data set is damaged")
        if size != _UNDEFINED:
            value += size
            continue
        while True:
            tag, size, value = form.head(data, value)
            if tag == _ITEM_END:
                break
            value = _end_of(data, value, size, form, depth + 1)


def _record(form: _Form, originals: list[bytes], moment: str, system: str, reason: str) -> bytes:
    """The content of an item of the Original Attributes Sequence (PS3.3 Table C.12-1)."""

    def text(tag: int, vr: str, value: str) -> bytes:
        raw = value.encode("ascii")
        return form.element(tag, vr, raw + b" " * (len(raw) & 1))

    return (
        form.sequence(0x04000550, form.item(b"".join(originals)))
        + text(0x04000562, "DT", moment)
        + text(0x04000563, "LO", system)
        + text(0x04000564, "LO", "")
        + text(0x04000565, "CS", reason)
    )


def _encoded(form: _Form, tag: int, attribute: Mapping[str, Any], codec: str) -> bytes:
    vr = attribute["vr"]
    if vr == "SQ":
        return _sequence(form, tag, attribute, codec)
    raw = encode_value(tag, attribute)
    if vr in _TEXTS:
        raw = raw.decode("utf-8").strip("\0 " if vr == "UI" else " ").encode(codec)
        raw += (b"\0" if vr == "UI" else b" ") * (len(raw) & 1)
    elif form.order == ">" and vr in _SIZES:
        code = _SIZES[vr]
        count = len(raw) // struct.calcsize("<" + code)
        raw = struct.pack(f">{count}{code}", *struct.unpack(f"<{count}{code}", raw))
    return form.element(tag, vr, raw)


def _sequence(form: _Form, tag: int, attribute: Mapping[str, Any], codec: str) -> bytes:
    from pydicom.dataset import Dataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = form.implicit, form.order == "<"
    write_dataset(target, Dataset.from_json({f"{tag:08X}": attribute}), codec)
    return target.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Character sets


def _codec(header: Header, changes: Mapping[str, Any]) -> str | None:
    """The Python codec with which the new texts can stand in this data set; None if its character set lacks them."""
    texts = "".join(str(attribute.get("Value", "")) for attribute in changes.values())
    if texts.isascii():
        return "ascii"
    from pydicom.charset import python_encoding

    terms = header.attributes.get("00080005", {}).get("Value") or [""]
    codec = python_encoding.get(terms[0] or "") if len(terms) == 1 else None
    try:
        if codec and decoder_of(tuple(terms))(texts.encode(codec)) == texts:
            return codec
    except UnicodeEncodeError:
        pass
    return None


def _in_unicode(data: bytes | mmap, header: Header) -> bytes:
    """The file with its texts in UTF-8, for a value that its own character set lacks."""
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data[:]), force=True)
    dataset.decode()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=False)
    return data[: header.dataset_offset] + target.getvalue()[_data_set_offset(target.getvalue()) :]


def _data_set_offset(file: bytes) -> int:
    return 144 + int.from_bytes(file[140:144], "little")


def _original_item(header: Header, changes: Mapping[str, Any], moment: str, system: str, reason: str) -> dict[str, Any]:
    """The item in the DICOM JSON Model, for the answer (PS3.18 Table I.1-1)."""
    modified = {
        key: header.attributes.get(key) or {"vr": attribute["vr"]} for key, attribute in sorted(changes.items())
    }
    return {
        "04000550": {"vr": "SQ", "Value": [modified]},
        _MODIFICATION_TIME: {"vr": "DT", "Value": [moment]},
        _SYSTEM: {"vr": "LO", "Value": [system]},
        "04000564": {"vr": "LO"},
        _REASON: {"vr": "CS", "Value": [reason]},
    }
