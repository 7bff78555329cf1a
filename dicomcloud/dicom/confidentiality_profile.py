"""The Basic Application Level Confidentiality Profile and its options, as the Standard's tables give them.

confidentiality_profile.tsv (PS3.15 Table E.1-1), structured_content.tsv (Table E.3.4-1) and safe_private.tsv (Table
E.3.10-1) are written by tools/confidentiality_profile.py and read once. Their first lines name the edition.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple


class Option(Enum):
    """The options under the names of the original, with their code of CID 7050 (PS3.16) and its meaning."""

    BasicProfile = ("113100", "Basic Application Confidentiality Profile")
    CleanPixelData = ("113101", "Clean Pixel Data Option")
    CleanGraph = ("113103", "Clean Graphics Option")
    CleanStructdCont = ("113104", "Clean Structured Content Option")
    CleanDesc = ("113105", "Clean Descriptors Option")
    RetainLongFullDates = ("113106", "Retain Longitudinal Temporal Information Full Dates Option")
    RetainLongModifDates = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
    RetainPatientChars = ("113108", "Retain Patient Characteristics Option")
    RetainDeviceIdent = ("113109", "Retain Device Identity Option")
    RetainUIDs = ("113110", "Retain UIDs Option")
    RetainSafePrivate = ("113111", "Retain Safe Private Option")
    RetainInstitutionIdent = ("113112", "Retain Institution Identity Option")


def parse_options(names: Iterable[str]) -> frozenset[Option]:
    """The options of these names, whatever their case. Raises ValueError for an unknown name."""
    known = {option.name.lower(): option for option in Option}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option; there are {', '.join(option.name for option in Option)}")
    return frozenset(known[name.lower()] for name in names)


class Action(Enum):
    """What is done with an attribute. The compound codes of the Standard are resolved by `_basic_action`."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    KEEP = "K"
    CLEAN_TEXT = "text"
    SHIFT_DATE = "date"
    CLEAN_DEVICE = "device"
    CLEAN_CONTENT = "content"
    CLEAN_GRAPHIC = "graphic"


class Row(NamedTuple):
    basic: Action
    options: Mapping[Option, str]


_CLEANING: Final = {
    Option.RetainLongModifDates: Action.SHIFT_DATE,
    Option.RetainDeviceIdent: Action.CLEAN_DEVICE,
    Option.RetainPatientChars: Action.CLEAN_TEXT,
    Option.CleanDesc: Action.CLEAN_TEXT,
    Option.CleanStructdCont: Action.CLEAN_CONTENT,
    Option.CleanGraph: Action.CLEAN_GRAPHIC,
}


def _basic_action(code: str) -> Action:
    """The last of several actions: the one that suits every IOD, since the IOD's types are not known here.

    X/Z becomes Z, X/D and Z/D and X/Z/D become D, X/Z/U* keeps the sequence with new UIDs (PS3.15 Table E.1-1a).
    """
    return Action(code.rstrip("*").split("/")[-1])


def _lines(name: str) -> Iterator[dict[str, str]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    columns, *rows = (line.split("\t") for line in lines if not line.startswith("#"))
    for row in rows:
        yield dict(zip(columns, row, strict=True))


def _row(line: Mapping[str, str]) -> Row:
    given = {option: line.get(option.name, "-") for option in Option}
    return Row(_basic_action(line["BasicProfile"]), {option: code for option, code in given.items() if code in "CK"})


# Removed by the Basic Profile, but Type 1 in presentation states and Type 2C in images of animals (PS3.15 E.1.1: the
# de-identifier sees to it that the IOD stays intact).
_NEEDED: Final = {
    0x00700082: Action.DUMMY,  # Presentation Creation Date, Time
    0x00700083: Action.DUMMY,
    0x00102297: Action.EMPTY,  # Responsible Person, Responsible Organization
    0x00102299: Action.EMPTY,
}


@functools.cache
def profile() -> dict[int, Row]:
    """Table E.1-1 by tag. The rows for private attributes and repeating groups have no tag; the walk knows them."""
    lines = _lines("confidentiality_profile.tsv")
    rows = {int(line["tag"], 16): _row(line) for line in lines if re.fullmatch("[0-9A-F]{8}", line["tag"])}
    return rows | {tag: rows[tag]._replace(basic=action) for tag, action in _NEEDED.items()}


@functools.cache
def structured_content() -> dict[tuple[str, str, str], Row]:
    """Table E.3.4-1 by coding scheme, code and value type; without value type, the first row of the code."""
    rows: dict[tuple[str, str, str], Row] = {}
    for line in _lines("structured_content.tsv"):
        rows[line["scheme"], line["code"], line["value_type"]] = _row(line)
        rows.setdefault((line["scheme"], line["code"], ""), _row(line))
    return rows


@functools.cache
def safe_private() -> dict[tuple[str, int, int], str]:
    """Table E.3.10-1: private creator, group, last byte of the element → VR."""
    return {
        (line["creator"], int(line["group"], 16), int(line["element"], 16)): line["vr"][:2]
        for line in _lines("safe_private.tsv")
    }


@functools.cache
def edition() -> str:
    """The edition of the Standard that the tables are from, e.g. 2026c."""
    first = Path(__file__).with_name("confidentiality_profile.tsv").read_text(encoding="utf-8").split("\n", 1)[0]
    return first.split("PS3.15 ")[1][:5]


def resolved(row: Row, options: frozenset[Option]) -> Action:
    """The action under these options; cleaning goes before keeping where options differ."""
    chosen = {option: code for option, code in row.options.items() if option in options}
    for option, code in chosen.items():
        if code == "C":
            return _CLEANING[option]
    return Action.KEEP if chosen else row.basic
