"""What the columns of the index hold: the attributes of an instance, in DICOM JSON, as they are compared and sorted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from dicomcloud.dicom.attributes import EVERY_LEVEL, Level, is_uid, json_key, level_of
from dicomcloud.dicom.comparison import date_digits, name_groups, normalise, time_digits
from dicomcloud.index.models import NO_NUMBER

_Element = Mapping[str, Any]

_EVERY_LEVEL_KEYS: Final = frozenset(map(json_key, EVERY_LEVEL))


def text(attributes: Mapping[str, Any], key: str, length: int = 200) -> str:
    """The value of an attribute as it is compared in its column; several values are joined by backslashes."""
    element = attributes.get(key) or {}
    values = element.get("Value")
    if not values:
        return ""
    joined = str(values[0]) if len(values) == 1 else "\\".join("" if v is None else str(v) for v in values)
    return normalise(int(key, 16), element["vr"], joined)[:length] if values[0] is not None else ""


def names(attributes: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Alphabetic group, and the others as `ideographic=phonetic`, of a person name."""
    element = attributes.get(key)
    values = element.get("Value") if element else None
    if not values:
        return "", ""
    alphabetic, ideographic, phonetic = name_groups(values[0])
    return alphabetic[:200], f"{ideographic}={phonetic}".rstrip("=")[:400]


def number(attributes: Mapping[str, Any], key: str) -> int:
    """The value of an IS attribute; NO_NUMBER without one, which sorts it behind the others."""
    element = attributes.get(key)
    values = element.get("Value") if element else None
    try:
        return int(values[0]) if values and abs(int(values[0])) < NO_NUMBER else NO_NUMBER
    except (TypeError, ValueError):
        return NO_NUMBER


def moment(attributes: Mapping[str, Any], date_key: str, time_key: str) -> str:
    """Date and time as digits, YYYYMMDDHHMMSSFFFFFF, midnight without a time; "" without a date."""
    day = date_digits(text(attributes, date_key))
    return day + (time_digits(text(attributes, time_key)) or "000000000000") if day else ""


_level_cache: dict[str, Level | None] = {}


def split(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of the study and of the series. Bulk data are one instance's: left out."""
    study: dict[str, Any] = {}
    series: dict[str, Any] = {}
    for key, element in attributes.items():
        level = _level_cache.get(key, 0)
        if level == 0:
            level = level_of(int(key, 16))
            if len(_level_cache) < 20_000:
                _level_cache[key] = level
        if key in _EVERY_LEVEL_KEYS:
            study[key] = series[key] = element
        elif level is Level.INSTANCE or level is None or "BulkDataURI" in element:
            continue
        elif level is Level.STUDY:
            study[key] = element
        else:
            series[key] = element
    return study, series


def json_text(attributes: Mapping[str, Any]) -> str:
    """As DICOM JSON, without bulk data at any depth."""
    text = orjson.dumps(attributes).decode()
    if '"BulkDataURI"' in text:  # inside a sequence
        text = orjson.dumps({key: _without_bulk_data(element) for key, element in attributes.items()}).decode()
    return text


def _without_bulk_data(element: _Element) -> dict[str, Any]:
    if element["vr"] != "SQ":
        return {key: value for key, value in element.items() if key != "BulkDataURI"}
    items = ({key: _without_bulk_data(inner) for key, inner in item.items()} for item in element.get("Value", ()))
    return {**element, "Value": list(items)} if "Value" in element else dict(element)


def uid(attributes: Mapping[str, Any], key: str) -> str:
    """Raises ValueError where it is none."""
    value = text(attributes, key, 65)
    if not is_uid(value):
        raise ValueError(f"attribute {key} is not a UID")
    return value


def key_text(text: str) -> str:
    """Text that fits a key column and stays unique."""
    return text if len(text) <= 200 else text[:130] + ":" + hashlib.sha256(text.encode()).hexdigest()
