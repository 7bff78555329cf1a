"""Elements of a data set as their raw bytes: read, told apart and replaced without converting what stays.

Values are text here, decoded by the character set of their data set. Whatever cannot be understood is
`CannotDeidentify`, whose message holds no value of the instance.
"""

from __future__ import annotations

import functools
from collections.abc import MutableSequence, Sized
from typing import TYPE_CHECKING, Any, Final

from dicomcloud.dicom.attributes import vr_of
from dicomcloud.dicom.replacement_values import DUMMIES, DUMMY_TEXT

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset

    Element = DataElement | RawDataElement

_MOST_ITEMS: Final = 500_000
_CHARACTER_SET: Final = 0x00080005
DATES: Final = frozenset({"DA", "DT", "TM"})
TEXTS: Final = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
BYTES: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


class CannotDeidentify(Exception):
    """The instance cannot be de-identified; the message says why and holds no value of the instance."""


def get(dataset: Dataset, tag: int) -> Element | None:
    return dataset.get_item(tag) if tag in dataset else None


def vr_of_element(element: Element) -> str:
    """The VR, from the dictionary where the data set gives none or hides a text or a sequence in bytes."""
    vr = element.VR
    if vr is None or vr in BYTES or len(vr) != 2:
        known = vr_of(int(element.tag))
        if known == "SQ" and vr not in (None, "UN"):
            raise CannotDeidentify("A sequence is not encoded as one")
        return known if vr in (None, "UN") or known not in BYTES else str(vr)
    return str(vr)


def is_empty(element: Element) -> bool:
    value = element.value
    return value is None or (isinstance(value, Sized) and not len(value))


def integer(element: Element) -> int:
    value = element.value
    if isinstance(value, bytes):
        order = "little" if element.is_little_endian else "big"  # type: ignore[union-attr]
        return int.from_bytes(value[:2], order)  # type: ignore[arg-type]
    return int(value or 0)


def put(dataset: Dataset, tag: int, vr: str, value: Any) -> None:
    from pydicom import config
    from pydicom.dataelem import DataElement

    dataset[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)


def put_bytes(dataset: Dataset, element: Element, value: bytes) -> None:
    if element.is_raw:
        dataset[element.tag] = element._replace(value=value, length=len(value))  # type: ignore[union-attr]
    else:
        put(dataset, int(element.tag), str(element.VR), value)


def encodings_of(dataset: Dataset, inherited: tuple[str, ...]) -> tuple[str, ...]:
    """Python's names of the character sets of this data set (PS3.3 C.12.1.1.2)."""
    element = get(dataset, _CHARACTER_SET)
    if element is None:
        return inherited
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    terms = value.split("\\") if isinstance(value, str) else [str(term) for term in value or []]
    return _python_encodings(tuple(term.strip(" \0") for term in terms))


@functools.lru_cache(256)
def _python_encodings(terms: tuple[str, ...]) -> tuple[str, ...]:
    from pydicom.charset import python_encoding

    return tuple(python_encoding.get(term, "iso8859") for term in terms) or ("iso8859",)


def _decoded(value: bytes, encodings: tuple[str, ...], vr: str) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    try:
        return decode_bytes(value, list(encodings), PN_DELIMS if vr == "PN" else TEXT_VR_DELIMS)
    except (UnicodeError, LookupError, ValueError):
        return value.decode("latin-1")


def _encoded(text: str, encodings: tuple[str, ...]) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    from pydicom.charset import encode_string

    return bytes(encode_string(text, list(encodings)))


def check_items(value: bytes) -> None:
    """Refuse a sequence of absurdly many items before pydicom makes an object of each."""
    if value.count(b"\xfe\xff\x00\xe0") + value.count(b"\xff\xfe\xe0\x00") > _MOST_ITEMS:
        raise CannotDeidentify(f"A sequence has more than {_MOST_ITEMS} items")


def values_of(element: Element, encodings: tuple[str, ...], vr: str = "") -> list[str]:
    """The values of a text, without padding. Several where the VR allows several."""
    vr = vr or vr_of_element(element)
    value = element.value
    if value is None:
        return []
    if isinstance(value, bytes):
        text = _decoded(value, encodings, vr)
    elif isinstance(value, list | MutableSequence):
        text = "\\".join(map(str, value))
    else:
        text = str(value)
    values = [text] if vr in ("LT", "ST", "UR", "UT") else text.split("\\")
    return [value.strip(" \0") for value in values if value.strip(" \0")]


def set_text(dataset: Dataset, element: Element, vr: str, text: str, encodings: tuple[str, ...]) -> None:
    """Replace the value; a text that the character set cannot express becomes a dummy."""
    if not element.is_raw:
        put(dataset, int(element.tag), str(element.VR), text)
        return
    try:
        raw = _encoded(text, encodings)
    except (UnicodeError, LookupError, ValueError):
        raw = DUMMIES.get(vr, DUMMY_TEXT).encode()
    put_bytes(dataset, element, raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2))
