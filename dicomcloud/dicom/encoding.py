"""Values in the DICOM JSON Model → the bytes of elements: Explicit VR Little Endian, text in UTF-8 (PS3.5 6.2, 7.1).

Values are written as they came, valid for their VR or not, as long as they can be: a number in a text is not one.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from .attributes import keyword_of

MAX_SHORT: Final = 0xFFFE  # the longest value of a VR with a 16-bit length (PS3.5 7.1.1: even)


class Fault(Exception):
    """What is wrong with the instance, in words that name the attribute."""


def label(tag: int) -> str:
    """`PatientName (0010,0010)`, as messages name an attribute."""
    return f"{keyword_of(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})".lstrip()


def fail(key: str, message: str) -> NoReturn:
    raise Fault(f"{label(int(key, 16))}: {message}")


def number_text(value: float) -> str:
    """A number of DS or IS as text: whole ones without a decimal point, others with every digit that they have."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = repr(value)
    if len(text) > 16 and (text.startswith("0.") or text.startswith("-0.")):
        return text.replace("0.", ".", 1)  # as DS of 16 characters may have it
    return text


def _texts(values: Sequence[Any]) -> str:
    return "\\".join(["" if value is None else value for value in values])  # TypeError for what is no text


def _number_texts(values: Sequence[Any]) -> str:
    return "\\".join(
        "" if value is None else value if isinstance(value, str) else number_text(value + 0) for value in values
    )


def _single_text(values: Sequence[Any]) -> str:
    if len(values) > 1:
        raise Fault(f"{len(values)} values, where its VR has a single one")
    return values[0] or "" if isinstance(values[0] or "", str) else _texts(values)


def _names(values: Sequence[Any]) -> str:
    return "\\".join("" if not value else value if isinstance(value, str) else _name(value) for value in values)


def _name(value: Mapping[str, Any]) -> str:
    groups = [value.get(group) or "" for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


_NOT_FINITE: Final = {"NaN", "Infinity", "-Infinity", "+Infinity", "inf", "-inf", "nan"}


def _floats(code: str) -> Callable[[Sequence[Any]], bytes]:
    def encode(values: Sequence[Any]) -> bytes:
        numbers = [float(value) if value in _NOT_FINITE else value for value in values]
        return struct.pack(f"<{len(numbers)}{code}", *numbers)

    return encode


def _integers(code: str) -> Callable[[Sequence[Any]], bytes]:
    def encode(values: Sequence[Any]) -> bytes:
        try:
            return struct.pack(f"<{len(values)}{code}", *values)
        except struct.error:
            return struct.pack(f"<{len(values)}{code}", *map(_whole, values))

    return encode


def _whole(value: Any) -> int:
    """What stands for a whole number: 3.0, and "3" as JSON has 64-bit numbers beyond 2**53."""
    if isinstance(value, str) and len(value) <= 24:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is int:
        return value
    raise ValueError


def _tags(values: Sequence[Any]) -> bytes:
    out = []
    for value in values:
        if len(value) != 8:
            raise ValueError
        number = int(value, 16)
        out.append(struct.pack("<HH", number >> 16, number & 0xFFFF))
    return b"".join(out)


# VR → how its values become text, or bytes; and whether its length field has 32 bits (PS3.5 7.1.2)
TEXT_VRS: Final[Mapping[str, Callable[[Sequence[Any]], str]]] = {
    **dict.fromkeys(("AE", "AS", "CS", "DA", "DT", "TM", "UI", "LO", "SH", "UC"), _texts),
    **dict.fromkeys(("LT", "ST", "UT", "UR"), _single_text),
    **dict.fromkeys(("DS", "IS"), _number_texts),
    "PN": _names,
}
_NUMBERS: Final[Mapping[str, Callable[[Sequence[Any]], bytes]]] = {
    "FL": _floats("f"), "FD": _floats("d"), "SL": _integers("l"), "SS": _integers("h"), "UL": _integers("L"),
    "US": _integers("H"), "SV": _integers("q"), "UV": _integers("Q"), "AT": _tags,
}  # fmt: skip
BYTE_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
LONG_VRS: Final = frozenset({"SQ", "SV", "UC", "UR", "UT", "UV", *BYTE_VRS})
VR_BYTES: Final[Mapping[str, bytes]] = {vr: vr.encode("ascii") for vr in (*TEXT_VRS, *_NUMBERS, *BYTE_VRS, "SQ")}
VRS: Final = frozenset(VR_BYTES)
SHORT_HEADER: Final = struct.Struct("<HH2sH").pack
LONG_HEADER: Final = struct.Struct("<HH2sxxL").pack


def kind_of(vr: str) -> str:
    return "a sequence" if vr == "SQ" else "text" if vr in TEXT_VRS else "binary"


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One element with a value of even length."""
    if vr in LONG_VRS:
        return LONG_HEADER(tag >> 16, tag & 0xFFFF, VR_BYTES[vr], len(value)) + value
    if len(value) > MAX_SHORT:
        return LONG_HEADER(tag >> 16, tag & 0xFFFF, b"UN", len(value)) + value
    return SHORT_HEADER(tag >> 16, tag & 0xFFFF, VR_BYTES[vr], len(value)) + value


def encode_value(tag: int, attribute: Mapping[str, Any]) -> bytes:
    """The bytes of an attribute's Value (no sequence, no bulk data): little endian, UTF-8, of even length.

    Raises ValueError naming the attribute when its values do not fit its VR.
    """
    try:
        return value_bytes(f"{tag:08X}", attribute["vr"], attribute.get("Value") or ())
    except Fault as fault:
        raise ValueError(str(fault)) from None


def value_bytes(key: str, vr: str, values: Sequence[Any]) -> bytes:
    if not values:
        return b""
    try:
        if (as_text := TEXT_VRS.get(vr)) is not None:
            raw = as_text(values).encode("utf-8")
            return raw + (b"\0" if vr == "UI" else b" ") if len(raw) & 1 else raw
        if (as_bytes := _NUMBERS.get(vr)) is not None:
            return b"" if values == [None] else as_bytes(values)
    except Fault as fault:
        fail(key, str(fault))
    except (TypeError, ValueError, AttributeError, struct.error, OverflowError):
        shown = ", ".join(repr(value)[:40] for value in values[:3])
        fail(key, f"{shown[:120]} cannot be the value of an attribute with VR {vr}")
    fail(key, f"an attribute with VR {vr} has InlineBinary or BulkDataURI, not Value")


def first(attributes: Mapping[str, Any], key: str) -> Any:
    attribute = attributes.get(key)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return values[0] if isinstance(values, list) and values else None


def whole_number(attributes: Mapping[str, Any], key: str) -> int | None:
    """A whole number above 0, None where there is none; IS may have come as text."""
    value = first(attributes, key)
    try:
        number = int(value) if isinstance(value, (str, int, float)) and len(str(value)) < 20 else 0
    except (ValueError, OverflowError):
        return None
    return number if number > 0 else None


def inline_bytes(key: str, vr: str, text: Any) -> bytes:
    if vr not in BYTE_VRS:
        fail(key, f"an attribute with VR {vr} cannot have InlineBinary")
    if not isinstance(text, str):
        fail(key, "InlineBinary is no text")
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        fail(key, "InlineBinary is not base64")
    return data + b"\0" if len(data) & 1 else data
