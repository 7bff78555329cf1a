"""Values of a data set in the DICOM JSON Model as people read them: codes, measurements, names, times, UIDs."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from ..attributes import _DICTIONARY, json_key, keyword_of, tag_of
from ..metadata import text
from .page import Value

Attributes = Mapping[str, Any]

_MAX_LISTED: Final = 24  # numbers of one attribute that are written out
LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")  # BCP 47, as far as it is used


def raw_values(attributes: Attributes, keyword: str) -> Sequence[Any]:
    element = attributes.get(json_key(tag_of(keyword) or 0))
    values = element.get("Value", ()) if isinstance(element, Mapping) else ()
    return values if isinstance(values, list | tuple) else ()


def all_texts(attributes: Attributes, keyword: str) -> list[str]:
    return [number_text(value) for value in raw_values(attributes, keyword) if value is not None]


def item_values(attributes: Attributes, keyword: str) -> Sequence[Any]:
    """The items as they are; a file may give the attribute another VR, and then it has none."""
    element = attributes.get(json_key(tag_of(keyword) or 0), {})
    return raw_values(attributes, keyword) if element.get("vr") == "SQ" else ()


def items_of(attributes: Attributes, keyword: str) -> list[Attributes]:
    """The items of a sequence, each at its place: an empty one is an empty data set."""
    return [item if isinstance(item, Mapping) else {} for item in item_values(attributes, keyword)]


def first_item(attributes: Attributes, keyword: str) -> Attributes:
    return next(iter(items_of(attributes, keyword)), {})


def is_filled(element: Any) -> bool:
    return isinstance(element, Mapping) and bool(
        element.get("Value") or "BulkDataURI" in element or "InlineBinary" in element
    )


def binary_of(element: Mapping[str, Any]) -> bytes | None:
    try:
        return base64.b64decode(element["InlineBinary"]) if "InlineBinary" in element else None
    except ValueError:
        return None


def whole_number(value: str) -> int:
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else 0


def number_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def plain(value: str) -> list[Value]:
    return [Value(value)] if value.strip() else []


def filled(*rows: tuple[str, Sequence[Value]]) -> list[tuple[str, Sequence[Value]]]:
    return [row for row in rows if row[1]]


def listing(values: Sequence[str]) -> str:
    if len(values) <= _MAX_LISTED:
        return ", ".join(values)
    return f"{', '.join(values[: _MAX_LISTED // 2])} … ({len(values):,} values)"


def code_meaning(code: Attributes) -> str:
    """The meaning of a coded concept (PS3.3 8.2), its value where it has no meaning."""
    return text(code, "CodeMeaning").strip() or code_value(code)


def code_value(code: Attributes) -> str:
    return text(code, "CodeValue") or text(code, "LongCodeValue") or text(code, "URNCodeValue")


def is_code(item: Attributes) -> bool:
    return "00080104" in item and ("00080100" in item or "00080119" in item or "00080120" in item)


def coded(code: Attributes) -> list[Value]:
    meaning = code_meaning(code)
    where = ", ".join(filter(None, (code_value(code), text(code, "CodingSchemeDesignator"))))
    return [Value(meaning, title=where)] if meaning else []


# Units that read better than their code in UCUM.
_UNITS: Final[Mapping[str, str]] = {
    "1": "",
    "Cel": "°C",
    "deg": "°",
    "um": "µm",
    "ug": "µg",
    "uV": "µV",
    "cm2": "cm²",
    "cm3": "cm³",
    "mm2": "mm²",
    "mm3": "mm³",
    "m2": "m²",
    "um2": "µm²",
    "mm[Hg]": "mmHg",
    "[hnsf'U]": "HU",
    "{H.B.}/min": "/min",
    "{ratio}": "",
}


def unit_symbol(code: Attributes) -> str:
    """What is written behind a number: the unit's symbol; its meaning where the code is no symbol."""
    value, meaning = code_value(code), text(code, "CodeMeaning")
    if text(code, "CodingSchemeDesignator") == "UCUM" and value in _UNITS:
        return _UNITS[value]
    return value if re.fullmatch(r"[A-Za-zµ°%][A-Za-z0-9µ°%/.*^-]{0,11}", value) else meaning or value


def measurement(item: Attributes) -> list[Value]:
    """A NUM item (PS3.3 C.18.1): number and unit, or why there is no number."""
    values = []
    for measured in items_of(item, "MeasuredValueSequence"):
        unit = first_item(measured, "MeasurementUnitsCodeSequence")
        values += [
            Value(number, "number", unit_symbol(unit), title=text(unit, "CodeMeaning"))
            for number in all_texts(measured, "NumericValue")
        ]
    return values + coded(first_item(item, "NumericValueQualifierCodeSequence"))


def region(item: Attributes, dimensions: int) -> Value:
    """Spatial coordinates (PS3.3 C.18.6, C.18.9): the kind of graphic, and its points while they are few."""
    numbers = [value for value in raw_values(item, "GraphicData") if isinstance(value, int | float)]
    count = len(numbers) // dimensions
    kind = text(item, "GraphicType").lower() or "graphic"
    if "BulkDataURI" in item.get("00700022", {}):
        return Value(f"{kind} with many points".capitalize())
    points = [numbers[start : start + dimensions] for start in range(0, min(count, 4) * dimensions, dimensions)]
    shown = " ".join(f"({', '.join(number_text(round(float(number), 2)) for number in point)})" for point in points)
    if kind == "point" and count == 1:
        return Value("Point", detail=shown)
    return Value(f"{kind.capitalize()}, {count} points", detail=shown if count <= 4 else "")


def points_in_time(item: Attributes) -> Value:
    """Temporal coordinates (PS3.3 C.18.7)."""
    kind = text(item, "TemporalRangeType").lower() or "range"
    if samples := all_texts(item, "ReferencedSamplePositions"):
        return Value(kind.capitalize(), detail=f"at sample {listing(samples)}")
    if offsets := all_texts(item, "ReferencedTimeOffsets"):
        return Value(kind.capitalize(), detail=f"at {listing(offsets)} s")
    moments = [moment(value) for value in all_texts(item, "ReferencedDateTime")]
    return Value(kind.capitalize(), detail=listing(moments))


def uid_value(uid: str) -> Value:
    name = uid_name(uid)
    return Value(name, detail=uid) if name else Value(uid, "uid")


@cache
def _uid_names() -> Mapping[str, Sequence[str]]:
    """The UIDs of PS3.6 Annex A: pydicom's table loaded as a file of its own, since the package costs 0.3 s."""
    package = importlib.util.find_spec("pydicom")
    if package is None or package.origin is None:
        return {}
    spec = importlib.util.spec_from_file_location(
        "dicomcloud.dicom._uid_names", Path(package.origin).with_name("_uid_dict.py")
    )
    if spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: Mapping[str, Sequence[str]] = module.UID_dictionary
    return names


def uid_name(uid: str) -> str:
    """The name of a UID of the Standard, of a SOP class without the word Storage; "" for others."""
    entry = _uid_names().get(uid)
    return re.sub(r" Storage\b| \(Retired\)", "", entry[0]) if entry else ""


@lru_cache(maxsize=4096)
def attribute_name(tag: int) -> str:
    """The name of an attribute in PS3.6, of a sequence without that word; of private and unknown ones the tag."""
    entry = _DICTIONARY.DicomDictionary.get(tag)
    name = str(entry[2]) if entry and entry[2] else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", keyword_of(tag))
    return name.removesuffix(" Sequence") or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def person_name(name: str) -> str:
    """Family^Given^Middle^Prefix^Suffix as it is read: family name first, a comma unless it is in Han, Kana, Hangul."""
    family, given, middle, prefix, suffix = (*name.split("^", 4), "", "", "", "", "")[:5]
    names = " ".join(part for part in (given.strip(), middle.strip()) if part)
    comma = " " if re.search("[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff66-\uff9f]", family) else ", "
    head = comma.join(part for part in (family.strip(), names) if part)
    return ", ".join(part.replace("^", " ") for part in (head, prefix.strip(), suffix.strip()) if part)


def script_of(attributes: Attributes) -> str:
    """The language that a character set stands for (PS3.3 C.12.1.1.2), to choose among forms of Han characters."""
    terms = " ".join(all_texts(attributes, "SpecificCharacterSet")).upper()
    for pattern, language in (
        (r"IR (13|87|159)\b|IR_13\b", "ja"),
        (r"IR[ _]149\b", "ko"),
        (r"IR[ _]58\b|GB18030|GBK|GB2312", "zh"),
    ):
        if re.search(pattern, terms):
            return language
    return ""


def language_of(name: str, declared: str) -> str:
    if re.search("[\u3040-\u30ff\uff66-\uff9f]", name):
        return "ja"
    if re.search("[\u1100-\u11ff\uac00-\ud7af]", name):
        return "ko"
    return declared if re.search("[\u3400-\u9fff]", name) else ""


def language_of_item(item: Attributes) -> str | None:
    """The language of a content item and what is below it (PS3.16 TID 1204), as BCP 47; None if it is not said."""
    for child in items_of(item, "ContentSequence")[:32]:
        if code_value(first_item(child, "ConceptNameCodeSequence")) == "121049":
            value = code_value(first_item(child, "ConceptCodeSequence"))
            if LANGUAGE.fullmatch(value):
                return value
    return None


def age(value: str) -> str:
    match = re.fullmatch(r"([0-9]{3})([DWMY])", value)
    if not match:
        return value
    count, unit = int(match[1]), {"D": "day", "W": "week", "M": "month", "Y": "year"}[match[2]]
    return f"{count} {unit}{'' if count == 1 else 's'}"


_DATE: Final = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_TIME: Final = re.compile(r"(\d\d):?(\d\d)(?::?(\d\d)(?:\.\d{1,6})?)?")
_DATE_TIME: Final = re.compile(r"(\d{8})(\d{4}(?:\d\d)?)?(?:\.\d{1,6})?([+-]\d{4})?")


def moment(value: str) -> str:
    """A DA, TM or DT as ISO 8601 without fractions; what is none of these as it is."""
    value = value.strip()
    if match := _DATE.fullmatch(value):
        return "-".join(match.groups())
    if match := _TIME.fullmatch(value):
        return ":".join(part for part in match.groups() if part)
    if match := _DATE_TIME.fullmatch(value):
        zone = match[3] or ""
        return " ".join(filter(None, (moment(match[1]), moment(match[2] or ""), zone and f"{zone[:3]}:{zone[3:]}")))
    return value


def date_and_time(attributes: Attributes, date: str, time: str) -> list[Value]:
    shown = " ".join(moment(value) for value in (text(attributes, date), text(attributes, time)) if value)
    return [Value(shown, "time")] if shown else []
