"""Single values of a data set in the DICOM JSON Model, by keyword; what is missing or no such value is a default."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import isfinite
from typing import Any

from .attributes import json_key, tag_of

Attributes = Mapping[str, Any]


@cache
def key_of(keyword: str) -> str:
    """The key of a keyword of PS3.6 in the DICOM JSON Model."""
    tag = tag_of(keyword)
    if tag is None:
        raise LookupError(f"{keyword} is not in the data dictionary")
    return json_key(tag)


def values(attributes: Attributes, keyword: str) -> list[Any]:
    """All values; [] where the attribute is absent, empty or bulk data."""
    attribute = attributes.get(key_of(keyword))
    return (attribute.get("Value") or []) if attribute else []


def numbers(attributes: Attributes, keyword: str) -> list[float]:
    """All values as numbers; [] if one of them is none, or not finite."""
    try:
        found = [float(value) for value in values(attributes, keyword)]
    except (TypeError, ValueError):
        return []
    return found if all(map(isfinite, found)) else []


def number(attributes: Attributes, keyword: str) -> float | None:
    """The first value as a finite number."""
    found = values(attributes, keyword)
    try:
        value = float(found[0]) if found else None
    except (TypeError, ValueError):
        return None
    return value if value is not None and isfinite(value) else None


def integer(attributes: Attributes, keyword: str, default: int = 0) -> int:
    value = number(attributes, keyword)
    return default if value is None else int(value)


def string(attributes: Attributes, keyword: str) -> str:
    """The first value, if it is a text, without the spaces around it; else ''."""
    found = values(attributes, keyword)
    return found[0].strip() if found and isinstance(found[0], str) else ""


def items(attributes: Attributes, keyword: str) -> list[Attributes]:
    """The items of a sequence."""
    attribute = attributes.get(key_of(keyword))
    return (attribute.get("Value") or []) if attribute and attribute.get("vr") == "SQ" else []


def item(attributes: Attributes, keyword: str) -> Attributes:
    """The first item of a sequence; {} if there is none."""
    found = items(attributes, keyword)
    return found[0] if found else {}
