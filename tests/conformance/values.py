"""Metadata as it came over HTTP, held to what pydicom reads in the file: every value of every attribute."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_NUMBERS = frozenset(("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"))
_TEXT = frozenset(("LT", "ST", "UT", "UR"))  # one value, whatever backslashes it has

Fetch = Callable[[str], bytes]


def differences(metadata: Mapping[str, Any], dataset: Dataset, fetch: Fetch, where: str = "") -> list[str]:
    """What in the DICOM JSON is other than in the data set; `fetch` gives the bytes behind a BulkDataURI."""
    found: list[str] = []
    for element in dataset:
        if element.tag.element == 0 or element.tag.group == 2:
            continue
        if element.tag.group == 0x7FE0:  # pixel data are compared decoded, frame by frame, by other tests
            continue
        key = f"{int(element.tag):08X}"
        found += [f"{where}{key} {text}" for text in _of_element(metadata.get(key), element, fetch, f"{where}{key}/")]
    return found


def _of_element(json: Mapping[str, Any] | None, element: DataElement, fetch: Fetch, where: str) -> list[str]:
    if json is None:
        return ["is missing"]
    if json["vr"] == "UN" and element.VR == "SQ":
        return []  # private, and UN in the file: it stays bytes (PS3.18 F.2.2), which pydicom reads as items
    if element.VR == "SQ":
        items = json.get("Value", [])
        if len(items) != len(element.value):
            return [f"has {len(items)} items, not {len(element.value)}"]
        pairs = enumerate(zip(items, element.value, strict=True))
        return [text for n, (item, inner) in pairs for text in differences(item, inner, fetch, f"{where}{n}/")]
    if "BulkDataURI" in json or "InlineBinary" in json:
        data = fetch(json["BulkDataURI"]) if "BulkDataURI" in json else base64.b64decode(json["InlineBinary"])
        if element.VR not in _BINARY:  # a long list of numbers, or NaN: its bytes are compared where the file has them
            return []
        return [] if _same_bytes(data, element.value or b"") else [f"has {len(data)} other bytes"]
    got, wanted = json.get("Value", []), _values(element)
    if len(got) != len(wanted):
        return [f"({element.VR}) has {got!r:.80}, not {wanted!r:.80}"]
    return [
        f"({element.VR}) has {one!r:.60}, not {other!r:.60}"
        for one, other in zip(got, wanted, strict=True)
        if not _same(one, other, element.VR)
    ]


def _values(element: DataElement) -> list[Any]:
    value = element.value
    if element.VR in _TEXT:
        return [value] if value else []
    values = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
    return [] if len(values) == 1 and values[0] in (None, "", b"") else values


def _same_bytes(data: bytes, other: bytes) -> bool:
    return data == other or data == other + b"\0" * (len(other) % 2)


def _same(json: Any, value: Any, vr: str) -> bool:
    if json is None:
        return value in (None, "")
    if vr == "PN":
        name = PersonName(str(value)) if not isinstance(value, PersonName) else value
        groups = (name.alphabetic, name.ideographic, name.phonetic)
        names = ("Alphabetic", "Ideographic", "Phonetic")
        return all(json.get(key, "").rstrip() == str(group).rstrip() for key, group in zip(names, groups, strict=True))
    if vr == "AT":
        return bool(int(json, 16) == int(value))
    if vr in _NUMBERS:
        try:
            return math.isclose(float(json), float(value), rel_tol=1e-12)
        except (TypeError, ValueError):
            return str(json).strip() == str(value).strip()
    return str(json).strip(" \0") == str(value).strip(" \0")
