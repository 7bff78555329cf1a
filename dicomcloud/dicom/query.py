"""QIDO-RS queries: parameters of a search → Query, and matching of stored attributes in plain Python.

PS3.18 8.3.4 gives the grammar, PS3.4 C.2.2.2 the types of matching. What the Standard leaves open is decided so:

- Person names and text (LO SH ST LT UC UT) match without regard to case and accents; identifiers (keywords that end in
  ID, Number, CodeValue or Designator, and issuers), AE, AS, CS, UI and UR match exactly. Blanks around a value do not
  count.
- Numbers match by their value: `007`, `7` and `7.0` are one.
- A date or time matches at the precision it is given in: `StudyTime=10` is the whole hour, `-1200` ends with
  12:00:59.999999.
- An attribute stored empty matches an empty key only, never a value (PS3.4 C.2.2.1.2 would let it).
- Private attributes match exactly, as text, with wildcards.
- `,` and `\\` separate alternatives of UIDs and code strings; elsewhere a key has one value.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, cast

import jellyfish

from dicomcloud.dicom.attributes import (
    EVERY_LEVEL,
    Level,
    is_multi_valued,
    is_uid,
    json_key,
    keyword_of,
    level_of,
    tag_of,
    vr_of,
)
from dicomcloud.errors import BadRequest

MAX_VALUE_LENGTH: Final = 4096  # characters of one matching value that is no list of UIDs
MAX_UIDS: Final = 1000
MAX_KEYS: Final = 256

TIMEZONE: Final = 0x00080201
MODALITIES_IN_STUDY: Final = 0x00080061
REFERRING_PHYSICIAN: Final = 0x00080090
PATIENT_NAME: Final = 0x00100010

# PS3.4 C.2.2.2.4; UN stands for private attributes, whose own VR is known only where they are stored.
_WILDCARD_VRS: Final = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT"))
_LIST_VRS: Final = frozenset(("CS", "UI"))
_MULTIPLE_VRS: Final = frozenset(("AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"))  # PS3.4 C.2.2.2.8
_FOLDED_VRS: Final = frozenset(("LO", "SH", "ST", "LT", "UC", "UT"))
_INTEGER_VRS: Final = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
_NUMBER_VRS: Final = _INTEGER_VRS | {"DS", "FD", "FL"}
_BINARY_VRS: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW"))

# Answered by this server, not stored: counts, availability, where to retrieve from; and what is no key (PS3.4 C.2.2.2).
_NEVER_MATCHED: Final = frozenset(
    (0x00080005, 0x00080052, 0x00080054, 0x00080056, 0x00080062, 0x00081190)
    + (0x00201200, 0x00201202, 0x00201204, 0x00201206, 0x00201208, 0x00201209, 0x0040E010)
)
# Parameters of the server (negotiation, PS3.18 8.3.3) that are no business of a query.
_OTHER_PARAMETERS: Final = frozenset(("accept", "charset"))


class Kind(StrEnum):
    """How a key matches (PS3.4 C.2.2.2)."""

    EQUAL = "equal"  # one of `values`
    ALL = "all"  # each of `values` is among the stored ones (Multiple Value Matching)
    NUMBER = "number"  # one of `values`, by its numerical value
    WILDCARD = "wildcard"
    RANGE = "range"
    NAME = "name"
    FUZZY = "fuzzy"
    EMPTY = "empty"
    SEQUENCE = "sequence"  # one item matches all of `items`


@dataclass(frozen=True, slots=True)
class Match:
    """One matching key. Values are normalised as `normalise` does.

    RANGE: `low` ≤ stored ≤ `high`, digits of DA and DT YYYYMMDDHHMMSSFFFFFF, of TM HHMMSSFFFFFF ('' if open). A date
    has the tag of its time in `time_tag`; date and time of one event given together are one interval. `offset`: minutes
    from UTC in which the bounds are meant, None when the query does not say.
    """

    tag: int
    vr: str
    level: Level
    kind: Kind
    values: tuple[str, ...] = ()
    low: str = ""
    high: str = ""
    time_tag: int = 0
    offset: int | None = None
    items: tuple[Match, ...] = ()

    def encode(self) -> str:
        """As text that `decode_match` takes back: the form in which a match is handed to the database."""
        return json.dumps(_plain(self), ensure_ascii=False, separators=(",", ":"))


def _plain(match: Match) -> list[Any]:
    row = [match.tag, match.vr, match.level, match.kind, match.values, match.low, match.high, match.time_tag]
    return [*row, match.offset, [_plain(item) for item in match.items]]


def _match_of(row: list[Any]) -> Match:
    tag, vr, level, kind, values, low, high, time_tag, offset, items = row
    nested = tuple(_match_of(item) for item in items)
    return Match(tag, vr, Level(level), Kind(kind), tuple(values), low, high, time_tag, offset, nested)


@lru_cache(maxsize=64)
def decode_match(text: str) -> Match:
    return _match_of(json.loads(text))


@dataclass(frozen=True, slots=True)
class Query:
    """A search of one level. `study_uid` and `series_uid` come from the path.

    `matches` are all to be fulfilled; each names the level whose attributes it is about, never below `level`.
    `include`: tags to return beside the required ones; `limit` is already capped. `warnings`: texts for `Warning: 299`.
    """

    level: Level
    study_uid: str | None = None
    series_uid: str | None = None
    matches: tuple[Match, ...] = ()
    include: frozenset[int] = frozenset()
    include_all: bool = False
    limit: int = 100
    offset: int = 0
    warnings: tuple[str, ...] = field(default=())


# ---------------------------------------------------------------------------------------------------------------------
# Normalised text

_NO_DECOMPOSITION = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
)


def fold(text: str) -> str:
    """Text without case, accents and width: NFKD without marks, casefolded. 'Müller' and 'MULLER' become one."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).translate(_NO_DECOMPOSITION)


def fold_name(group: str) -> str:
    """One component group of a name, folded, without blanks around components and empty components at the end."""
    return "^".join(component.strip() for component in fold(group).split("^")).rstrip("^")


def name_groups(value: Any) -> tuple[str, str, str]:
    """Alphabetic, ideographic and phonetic group of a PN of the DICOM JSON Model, folded; '' where there is none."""
    if isinstance(value, Mapping):
        return (
            fold_name(str(value.get("Alphabetic") or "")),
            fold_name(str(value.get("Ideographic") or "")),
            fold_name(str(value.get("Phonetic") or "")),
        )
    groups = [fold_name(group) for group in str(value or "").split("=")[:3]]
    return cast("tuple[str, str, str]", tuple(groups + [""] * (3 - len(groups))))


_TOKEN_BREAK = re.compile(r"[\s^=,.;/_'’()-]+")


def name_tokens(text: str) -> list[str]:
    """The words of a folded name, each once."""
    return list(dict.fromkeys(token for token in _TOKEN_BREAK.split(text) if token))


@lru_cache(maxsize=8192)
def phonetic_code(token: str) -> str:
    """Metaphone code of a folded token; '' when it has letters that Metaphone does not know."""
    return jellyfish.metaphone(token) if len(token) <= 64 and token.isascii() and token.isalpha() else ""


_IDENTIFIER = re.compile(r"(?:ID|IDs|Number|Numbers|CodeValue|Designator)\Z|\AIssuerOf")


@lru_cache(maxsize=4096)
def is_folded(tag: int, vr: str) -> bool:
    """Whether text of this attribute matches without regard to case and accents."""
    return vr in _FOLDED_VRS and not _IDENTIFIER.search(keyword_of(tag))


def normalise(tag: int, vr: str, text: str) -> str:
    """A value in the form in which it is compared: no blanks around it, folded if `is_folded`."""
    text = text.strip()
    return fold(text) if is_folded(tag, vr) else text


# ---------------------------------------------------------------------------------------------------------------------
# Dates and times as digits

_EARLIEST: Final = "0"
_LATEST: Final = "9" * 20
_DAY_END: Final = "235959999999"
_DAY_START: Final = "000000000000"
_TIME = re.compile(r"([01]\d|2[0-3])(?:([0-5]\d)(?:([0-5]\d|60)(?:\.(\d{1,6}))?)?)?", re.ASCII)
_DATETIME = re.compile(r"(\d{4,14})(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)", re.ASCII)


def date_digits(text: str) -> str:
    """A stored DA as YYYYMMDD (also from YYYY.MM.DD of ACR-NEMA); '' if it is no date."""
    digits = text.strip()
    if len(digits) == 10:
        digits = digits.replace(".", "")
    if len(digits) != 8 or not (digits.isascii() and digits.isdigit()):
        return ""
    return digits if "01" <= digits[4:6] <= "12" and "01" <= digits[6:8] <= "31" else ""


def time_digits(text: str) -> str:
    """A stored TM as HHMMSSFFFFFF, missing parts 0 (also from HH:MM:SS of ACR-NEMA); '' if it is no time."""
    found = _TIME.fullmatch(text.strip().replace(":", ""))
    if found is None:
        return ""
    hour, minute, second, fraction = found.groups()
    return f"{hour}{minute or '00'}{second or '00'}{(fraction or '').ljust(6, '0')}"


def offset_minutes(text: str) -> int | None:
    """±HHMM of Timezone Offset From UTC as minutes; None if it is none (PS3.3 C.12.1.1.8: -1200 to +1400)."""
    found = _OFFSET.fullmatch(text.strip())
    if found is None:
        return None
    minutes = int(found[2]) * 60 + int(found[3])
    minutes = -minutes if found[1] == "-" else minutes
    return minutes if -720 <= minutes <= 840 else None


def shift(stamp: str, minutes: int) -> str:
    """YYYYMMDDHHMMSSFFFFFF moved by minutes; open bounds and what is no date stay as they are."""
    if not minutes or len(stamp) != 20 or stamp == _LATEST:
        return stamp
    try:
        moment = datetime(
            int(stamp[:4]),
            int(stamp[4:6]),
            int(stamp[6:8]),
            int(stamp[8:10]),
            int(stamp[10:12]),
            min(int(stamp[12:14]), 59),
            int(stamp[14:]),
        ) + timedelta(minutes=minutes)
    except (ValueError, OverflowError):
        return stamp
    return f"{moment.year:04d}{moment:%m%d%H%M%S}{moment.microsecond:06d}"


def _shift_time(digits: str, minutes: int) -> str:
    total = (int(digits[:2]) * 60 + int(digits[2:4]) + minutes) % 1440
    return f"{total // 60:02d}{total % 60:02d}{digits[4:]}"


def _fill(digits: str, fraction: str, *, last: bool) -> str:
    """YYYY… of any precision filled up to 20 digits: with the first or the last moment it stands for."""
    if len(digits) == 14:
        return digits + fraction.ljust(6, "9" if last else "0")
    if not last:
        return (digits + "00000101000000"[len(digits) :] if len(digits) < 8 else digits.ljust(14, "0")) + "000000"
    if len(digits) == 4:
        digits += "12"
    if len(digits) == 6:
        year, month = int(digits[:4]), int(digits[4:])
        following = date(year + month // 12, month % 12 + 1, 1) if (year, month) < (9999, 12) else None
        digits += f"{(following - timedelta(days=1)).day:02d}" if following else "31"
    return digits + "235959"[len(digits) - 8 :] + "999999"


def datetime_digits(text: str) -> tuple[str, int | None]:
    """A stored DT as 20 digits (missing parts at their start) and its own offset in minutes; ('', None) if no DT."""
    found = _DATETIME.fullmatch(text.strip())
    if found is None or len(found[1]) % 2:
        return "", None
    return _fill(found[1], found[2] or "", last=False), offset_minutes(found[3] or "")


@lru_cache(maxsize=256)
def _time_of_date(tag: int) -> int:
    """The tag of the time that belongs to a date: StudyDate → StudyTime. 0 if there is none."""
    keyword = keyword_of(tag)
    time = tag_of(keyword[:-4] + "Time") if keyword.endswith("Date") else None
    return time if time is not None and vr_of(time) == "TM" else 0


# ---------------------------------------------------------------------------------------------------------------------
# Parsing


@dataclass(slots=True)
class _Key:
    """One matching key as it was sent."""

    name: str
    path: tuple[int, ...]
    value: str


@dataclass(frozen=True, slots=True)
class _Options:
    fuzzy: bool
    empty: bool
    multiple: bool
    offset: int | None


class _Unmatched(Exception):
    """The attribute cannot be matched; the key is ignored with a warning."""


def parse_query(
    level: Level,
    pairs: Iterable[tuple[str, str]],
    *,
    study_uid: str | None = None,
    series_uid: str | None = None,
    max_results: int,
) -> Query:
    """The query of a search at `level` from the decoded (name, value) pairs of the URL.

    `study_uid` and `series_uid` come from the path. Parameter names are taken in any case, keywords are case sensitive
    (PS3.18 8.3.4.1), names that start with `_` are left alone. Raises BadRequest naming the fault.
    """
    parameters: dict[str, str] = {}
    keys: dict[tuple[int, ...], _Key] = {}
    fields: list[str] = []
    for name, value in pairs:
        name = name.strip()
        if name.startswith("_") or (not name and not value):
            continue
        _check_text(name, value)
        lowered = name.lower()
        if lowered in _OTHER_PARAMETERS:
            continue
        if lowered == "includefield":
            fields.extend(part.strip() for part in value.split(","))
        elif lowered in ("limit", "offset", "fuzzymatching", "emptyvaluematching", "multiplevaluematching"):
            if lowered in parameters:
                raise BadRequest(f"The parameter {lowered} is given more than once.")
            parameters[lowered] = value.strip()
        else:
            path = _path(name, "is neither a parameter of this service nor an attribute of DICOM")
            if path in keys:
                raise BadRequest(f"The attribute {_shown(name)} is given more than once.")
            keys[path] = _Key(name, path, value)
    if len(keys) > MAX_KEYS or len(fields) > 4 * MAX_KEYS:
        raise BadRequest(f"There are more than {MAX_KEYS} matching keys.")
    for uid in (study_uid, series_uid):
        if uid is not None and not is_uid(uid):
            raise BadRequest(f"{_shown(uid)} is not a UID.")

    options = _Options(
        fuzzy=_boolean(parameters, "fuzzymatching"),
        empty=_boolean(parameters, "emptyvaluematching"),
        multiple=_boolean(parameters, "multiplevaluematching"),
        offset=_timezone(keys),
    )
    matches, include, ignored = _matches(level, keys, options)
    included, include_all = _include_fields(fields)
    include |= included
    warnings = []
    if ignored:
        names = ", ".join(ignored[:40]) + (", …" if len(ignored) > 40 else "")
        warnings.append(f"The following attributes cannot be matched at this level and have been ignored: {names}")
    limit = _unsigned(parameters, "limit")
    return Query(
        level,
        study_uid,
        series_uid,
        matches,
        frozenset(tag for tag in include if tag in EVERY_LEVEL or (level_of(tag) or 9) <= level),
        include_all,
        max_results if limit is None else min(limit, max_results),
        _unsigned(parameters, "offset") or 0,
        tuple(warnings),
    )


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _check_text(name: str, value: str) -> None:
    for text in (name, value):
        if "\0" in text:
            raise BadRequest(f"The parameter {_shown(name.replace(chr(0), ''))} contains a NUL character.")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise BadRequest("A parameter is not valid UTF-8.")


def _path(name: str, fault: str) -> tuple[int, ...]:
    tags = [tag_of(part) for part in name.split(".")]
    path = tuple(tag for tag in tags if tag is not None)
    if len(path) != len(tags):
        raise BadRequest(f"{_shown(name) or 'A parameter without a name'} {fault}.")
    for tag, part in zip(path[:-1], name.split("."), strict=False):
        if vr_of(tag) not in ("SQ", "UN"):
            raise BadRequest(f"{_shown(part)} in {_shown(name)} is not a sequence.")
    return path


def _boolean(parameters: Mapping[str, str], name: str) -> bool:
    value = parameters.get(name, "false").lower()
    if value not in ("true", "false"):
        raise BadRequest(f"{name} must be true or false, not {_shown(value)!r}.")
    return value == "true"


def _unsigned(parameters: Mapping[str, str], name: str) -> int | None:
    value = parameters.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise BadRequest(f"{name} must be an unsigned integer, not {_shown(value)!r}.")
    return int(value)


def _timezone(keys: Mapping[tuple[int, ...], _Key]) -> int | None:
    """Timezone Query Adjustment: the offset in which the dates and times of the query are meant (PS3.4 C.4.1.1.3)."""
    key = keys.get((TIMEZONE,))
    if key is None or not key.value.strip():
        return None
    text = "+" + key.value.strip() if key.value.startswith(" ") else key.value  # an unescaped + arrives as a blank
    offset = offset_minutes(text)
    if offset is None:
        raise BadRequest(f"{_shown(key.value)!r} of {key.name} is not an offset from UTC such as +0100.")
    return offset


def _include_fields(fields: Iterable[str]) -> tuple[set[int], bool]:
    tags: set[int] = set()
    include_all = False
    for name in fields:
        if name.lower() == "all":
            include_all = True
        elif name:
            tags.add(_path(name, "in includefield is not an attribute of DICOM")[0])
    return tags, include_all


def _matches(
    level: Level, keys: Mapping[tuple[int, ...], _Key], options: _Options
) -> tuple[tuple[Match, ...], set[int], list[str]]:
    """The matches, the tags of all keys (they are to be returned), the names of the ignored ones."""
    found: dict[tuple[int, ...], Match] = {}
    include: set[int] = set()
    ignored: list[str] = []
    for path, key in keys.items():
        if path == (TIMEZONE,):
            include.add(TIMEZONE)
            continue
        own_level = level if path[0] in EVERY_LEVEL else level_of(path[0])
        try:
            if own_level is None or own_level > level or path[0] in _NEVER_MATCHED:
                if key.value:
                    raise _Unmatched
                continue
            include.add(path[0])
            match = _parse_match(key, path[-1], own_level, options)
        except _Unmatched:
            ignored.append(_shown(key.name))
            continue
        if match is not None:
            found[path] = match
    _combine_dates_and_times(found, keys)
    return tuple(_nest(found, 0)), include, ignored


def _nest(found: Mapping[tuple[int, ...], Match], depth: int) -> list[Match]:
    """Keys that share a sequence become one match of that sequence: the same item has to match them all."""
    matches: list[Match] = []
    sequences: dict[int, dict[tuple[int, ...], Match]] = {}
    for path, match in found.items():
        if len(path) == depth + 1:
            matches.append(match)
        else:
            sequences.setdefault(path[depth], {})[path] = match
    for tag, inner in sequences.items():
        items = tuple(_nest(inner, depth + 1))
        matches.append(Match(tag, "SQ", items[0].level, Kind.SEQUENCE, items=items))
    return matches


def _combine_dates_and_times(found: dict[tuple[int, ...], Match], keys: Mapping[tuple[int, ...], _Key]) -> None:
    """Ranges of a date and its time are one interval (PS3.18 8.3.4.1.1, PS3.4 C.2.2.2.5.1)."""
    for path, dates in list(found.items()):
        times = found.get((*path[:-1], dates.time_tag)) if dates.time_tag else None
        if times is None or dates.kind is not Kind.RANGE or times.kind is not Kind.RANGE:
            continue
        key = keys[(*path[:-1], dates.time_tag)]
        if "-" not in key.value:
            continue  # one time of day on each of the days
        low = dates.low if dates.low == _EARLIEST else dates.low[:8] + (times.low or _DAY_START)
        high = dates.high if dates.high == _LATEST else dates.high[:8] + (times.high or _DAY_END)
        if low > high:
            raise BadRequest(f"The range of {keys[path].name} and {key.name} ends before it begins.")
        found[path] = replace(dates, low=low, high=high)
        del found[(*path[:-1], dates.time_tag)]
    for path, match in found.items():
        if match.vr == "TM" and match.kind is Kind.RANGE and match.low and match.high and match.low > match.high:
            raise BadRequest(f"The range {_shown(keys[path].value)!r} of {keys[path].name} ends before it begins.")


def _parse_match(key: _Key, tag: int, level: Level, options: _Options) -> Match | None:
    """The match of one key; None for universal matching."""
    vr, value = vr_of(tag), key.value.strip()
    if not value or value == "*":
        return None
    if value == '""' and options.empty:  # PS3.4 C.2.2.2.7
        return Match(tag, vr, level, Kind.EMPTY)
    if vr == "UI":
        return Match(tag, vr, level, Kind.EQUAL, _uids(key, value))
    if len(value) > MAX_VALUE_LENGTH:
        raise BadRequest(f"The value of {key.name} is longer than {MAX_VALUE_LENGTH} characters.")
    if vr == "SQ" or vr in _BINARY_VRS:
        raise _Unmatched
    if vr in ("DA", "TM", "DT"):
        return _RANGES[vr](key, value, tag, level, options)
    if options.multiple and vr in _MULTIPLE_VRS and is_multi_valued(tag):
        parts = [part.strip() for part in re.split(r"[,\\]" if vr == "CS" else r"\\", value)]
        parts = [part for part in parts if part]
        if len(parts) > 1:
            if any("*" in part or "?" in part for part in parts):
                raise BadRequest(f"The values of {key.name} must not have wildcards in Multiple Value Matching.")
            if vr == "PN":
                return Match(tag, vr, level, Kind.ALL, tuple(fold_name(part) for part in parts))
            return Match(tag, vr, level, Kind.ALL, tuple(normalise(tag, vr, part) for part in parts))
    if vr in _NUMBER_VRS:
        return Match(tag, vr, level, Kind.NUMBER, (_number_text(key, value, vr),))
    if vr == "PN":
        return _parse_name(key, value, tag, level, options)
    if vr == "AS" and not re.fullmatch(r"\d{3}[DWMY]", value, re.ASCII):
        raise BadRequest(f"{_shown(value)!r} of {key.name} is not an age such as 045Y.")
    if vr == "AT":
        if tag_of(value) is None:
            raise BadRequest(f"{_shown(value)!r} of {key.name} is not a tag.")
        value = json_key(cast("int", tag_of(value)))
    return _text_match(key, value, tag, vr, level)


def _text_match(key: _Key, value: str, tag: int, vr: str, level: Level) -> Match | None:
    parts = re.split(r"[,\\]", value) if vr in _LIST_VRS else [value]
    values = tuple(dict.fromkeys(normalise(tag, vr, part) for part in parts if part.strip()))
    if len(values) > MAX_UIDS:
        raise BadRequest(f"{key.name} has more than {MAX_UIDS} values.")
    wild = vr in _WILDCARD_VRS and any("*" in part or "?" in part for part in values)
    if not values or (wild and any(not part.strip("*") for part in values)):
        return None  # "**" and a list with "*" in it match everything
    return Match(tag, vr, level, Kind.WILDCARD if wild else Kind.EQUAL, values)


def _parse_name(key: _Key, value: str, tag: int, level: Level, options: _Options) -> Match | None:
    if not value.strip("*^= "):
        return None
    groups = value.split("=")
    if len(groups) > 3:
        raise BadRequest(f"The value of {key.name} has more than three component groups.")
    # Empty components at the end stay: `*oe^` is about the family name alone.
    patterns = tuple("^".join(component.strip() for component in fold(group).split("^")) for group in groups)
    return Match(tag, "PN", level, Kind.FUZZY if options.fuzzy else Kind.NAME, patterns)


def _uids(key: _Key, value: str) -> tuple[str, ...]:
    uids = tuple(dict.fromkeys(part.strip() for part in re.split(r"[,\\]", value) if part.strip()))
    if len(uids) > MAX_UIDS:
        raise BadRequest(f"{key.name} has more than {MAX_UIDS} UIDs.")
    for uid in uids:
        if not is_uid(uid):
            raise BadRequest(f"{_shown(uid)!r} of {key.name} is not a UID.")
    if not uids:
        raise BadRequest(f"{_shown(value)!r} of {key.name} is not a UID.")
    return uids


def _number_text(key: _Key, value: str, vr: str) -> str:
    if _number(value) is None or (vr in _INTEGER_VRS and not re.fullmatch(r"[+-]?\d{1,20}", value, re.ASCII)):
        raise BadRequest(f"{_shown(value)!r} of {key.name} is not a number as VR {vr} takes it.")
    return value


def _number(value: Any) -> int | float | None:
    """The number that a value of the DICOM JSON Model is, whole ones as int; None if it is none."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        value = value.strip()
        if not value.isascii() or "_" in value or len(value) > 64:
            return None
    try:
        number = float(value)
        if isinstance(value, str) and abs(number) >= 2**53 and value.lstrip("+-").isdigit():
            return int(value)
    except (TypeError, ValueError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    return int(number) if number.is_integer() else number


def _bounds(key: _Key, value: str) -> tuple[str, str]:
    low, dash, high = value.partition("-")
    if not dash:
        return low, low
    if "-" in high or not (low.strip() or high.strip()):
        raise BadRequest(f"{_shown(value)!r} of {key.name} is not a range.")
    return low.strip(), high.strip()


def _date_match(key: _Key, value: str, tag: int, level: Level, options: _Options) -> Match:
    def parse(text: str) -> str:
        try:
            if not re.fullmatch(r"\d{8}", text, re.ASCII):
                raise ValueError
            date(int(text[:4]), int(text[4:6]), int(text[6:]))
        except ValueError:
            raise BadRequest(f"{_shown(text)!r} of {key.name} is not a date of the form YYYYMMDD.") from None
        return text

    first, last = _bounds(key, value)
    low = parse(first) + _DAY_START if first else _EARLIEST
    high = parse(last) + _DAY_END if last else _LATEST
    if low > high:
        raise BadRequest(f"The range {_shown(value)!r} of {key.name} ends before it begins.")
    time_tag = _time_of_date(tag)
    return Match(tag, "DA", level, Kind.RANGE, (), low, high, time_tag, options.offset if time_tag else None)


def _time_match(key: _Key, value: str, tag: int, level: Level, options: _Options) -> Match:
    def parse(text: str, *, last: bool) -> str:
        found = _TIME.fullmatch(text)
        if found is None:
            raise BadRequest(f"{_shown(text)!r} of {key.name} is not a time of the form HHMMSS.FFFFFF.")
        filler = "59" if last else "00"
        hour, minute, second, fraction = found.groups()
        return f"{hour}{minute or filler}{second or filler}{(fraction or '').ljust(6, '9' if last else '0')}"

    first, last = _bounds(key, value)
    low = parse(first, last=False) if first else ""
    high = parse(last, last=True) if last else ""
    return Match(tag, "TM", level, Kind.RANGE, (), low, high, 0, options.offset)


def _datetime_match(key: _Key, value: str, tag: int, level: Level, options: _Options) -> Match:
    value = value.replace(" ", "+")  # an unescaped + arrives as a blank

    def parse(text: str, *, last: bool) -> tuple[str, int | None]:
        found = _DATETIME.fullmatch(text)
        offset = offset_minutes(found[3]) if found and found[3] else None
        try:
            if found is None or len(found[1]) % 2 or (found[3] and offset is None) or (found[2] and len(found[1]) < 14):
                raise ValueError
            digits = _fill(found[1], found[2] or "", last=last)
            datetime(*(int(digits[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12))))  # type: ignore[arg-type]
            if digits[12:14] > "60":
                raise ValueError
        except ValueError:
            raise BadRequest(f"{_shown(text)!r} of {key.name} is not a date and time.") from None
        return digits, offset

    single = _DATETIME.fullmatch(value)
    if single and (single[3] is None or offset_minutes(single[3]) is not None):
        first = last = value  # PS3.4 C.2.2.2.5.2: what can be an offset is one
    else:
        split = re.fullmatch(
            r"(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4}(?=-))?)?-(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?)?", value
        )
        if split is None or value == "-":
            raise BadRequest(f"{_shown(value)!r} of {key.name} is not a date and time or a range of them.")
        first, last = split[1] or "", split[2] or ""
    low, low_offset = parse(first, last=False) if first else (_EARLIEST, None)
    high, high_offset = parse(last, last=True) if last else (_LATEST, None)
    offset = next((o for o in (low_offset, high_offset, options.offset) if o is not None), None)
    if offset is not None and high_offset is not None:
        high = shift(high, offset - high_offset)
    if low > high:
        raise BadRequest(f"The range {_shown(value)!r} of {key.name} ends before it begins.")
    return Match(tag, "DT", level, Kind.RANGE, (), low, high, 0, offset)


_RANGES: Final[dict[str, Callable[[_Key, str, int, Level, _Options], Match]]] = {
    "DA": _date_match,
    "TM": _time_match,
    "DT": _datetime_match,
}


# ---------------------------------------------------------------------------------------------------------------------
# Matching in Python: attributes of the DICOM JSON Model, and the offset from UTC of the data set they are part of

_Test = Callable[[Mapping[str, Any], "int | None"], bool]


def matches(match: Match, attributes: Mapping[str, Any]) -> bool:
    """Whether attributes of the DICOM JSON Model fulfil the match, for every VR and for sequences at any depth."""
    zone = attributes.get("00080201")
    texts = _values(zone) if zone else ()
    return _test(match)(attributes, offset_minutes(str(texts[0])) if texts else None)


def _values(element: Any) -> list[Any]:
    """The values of an element that are not empty."""
    if not isinstance(element, Mapping):
        return []
    values = element.get("Value")
    if not isinstance(values, list):
        return []
    return [value for value in values if value not in (None, {}) and not (isinstance(value, str) and not value.strip())]


@lru_cache(maxsize=128)
def _test(match: Match) -> _Test:
    return _TESTS[match.kind](match, json_key(match.tag))


def _any_text(key: str, normalised: Callable[[str], str], accepts: Callable[[str], bool]) -> _Test:
    def test(attributes: Mapping[str, Any], offset: int | None) -> bool:
        element = attributes.get(key) or {}
        values = _values(element)
        if values and element["vr"] == "PN":  # a private name; those of the dictionary have a test of their own
            values = [group for value in values for group in value.values()]
        texts = [normalised(str(value)) for value in values]
        return any(map(accepts, texts)) or (len(texts) > 1 and accepts("\\".join(texts)))

    return test


def _normaliser(match: Match) -> Callable[[str], str]:
    return lambda text: normalise(match.tag, match.vr, text)


def _test_equal(match: Match, key: str) -> _Test:
    return _any_text(key, _normaliser(match), frozenset(match.values).__contains__)


def _test_wildcard(match: Match, key: str) -> _Test:
    accepts = [wildcard_test(pattern) for pattern in match.values]
    return _any_text(key, _normaliser(match), lambda text: any(accept(text) for accept in accepts))


def _test_all(match: Match, key: str) -> _Test:
    wanted = frozenset(match.values)

    def test(attributes: Mapping[str, Any], offset: int | None) -> bool:
        values = _values(attributes.get(key))
        if match.vr == "PN":
            return wanted <= {group for value in values for group in name_groups(value)}
        return wanted <= {normalise(match.tag, match.vr, str(value)) for value in values}

    return test


def _test_number(match: Match, key: str) -> _Test:
    def narrow(number: int | float | None) -> int | float | None:
        if match.vr == "FL" and number is not None:
            try:
                return cast("float", struct.unpack("<f", struct.pack("<f", number))[0])
            except OverflowError:
                return number
        return number

    wanted = {narrow(_number(value)) for value in match.values}
    return lambda attributes, offset: any(narrow(_number(value)) in wanted for value in _values(attributes.get(key)))


def _test_empty(match: Match, key: str) -> _Test:
    def test(attributes: Mapping[str, Any], offset: int | None) -> bool:
        element = attributes.get(key)
        return not _values(element) and not (element and ("InlineBinary" in element or "BulkDataURI" in element))

    return test


def _test_sequence(match: Match, key: str) -> _Test:
    tests = [_test(item) for item in match.items]

    def test(attributes: Mapping[str, Any], offset: int | None) -> bool:
        items = (item for item in _values(attributes.get(key)) if isinstance(item, Mapping))
        return any(all(inner(item, offset) for inner in tests) for item in items)

    return test


def matching_items(match: Match, element: Mapping[str, Any]) -> dict[str, Any]:
    """The sequence element with only the items that match: what a result carries (PS3.4 C.2.2.2.6)."""
    tests = [_test(item) for item in match.items]
    items = [item for item in _values(element) if all(inner(item, None) for inner in tests)]
    return {"vr": "SQ", "Value": items} if items else dict(element)


def _test_range(match: Match, key: str) -> _Test:
    low, high, wanted_offset = match.low, match.high, match.offset
    time_key = json_key(match.time_tag)

    def of_date(attributes: Mapping[str, Any], offset: int | None) -> bool:
        for value in _values(attributes.get(key)):
            digits = date_digits(str(value))
            times = _values(attributes.get(time_key)) if match.time_tag else ()
            time = time_digits(str(times[0])) if times else ""
            stamp = digits + (time or _DAY_START)
            if wanted_offset is not None and offset is not None and time:
                stamp = shift(stamp, wanted_offset - offset)
            if digits and low <= stamp <= high:
                return True
        return False

    def of_time(attributes: Mapping[str, Any], offset: int | None) -> bool:
        for value in _values(attributes.get(key)):
            digits = time_digits(str(value))
            if digits and wanted_offset is not None and offset is not None:
                digits = _shift_time(digits, wanted_offset - offset)
            if digits and low <= digits and (not high or digits <= high):
                return True
        return False

    def of_datetime(attributes: Mapping[str, Any], offset: int | None) -> bool:
        for value in _values(attributes.get(key)):
            digits, own_offset = datetime_digits(str(value))
            own_offset = offset if own_offset is None else own_offset
            if wanted_offset is not None and own_offset is not None:
                digits = shift(digits, wanted_offset - own_offset)
            if digits and low <= digits <= high:
                return True
        return False

    return {"DA": of_date, "TM": of_time}.get(match.vr, of_datetime)


def _test_name(match: Match, key: str) -> _Test:
    accepts = name_test(match)
    return lambda attributes, offset: any(accepts(name_groups(value)) for value in _values(attributes.get(key)))


def name_test(match: Match) -> Callable[[tuple[str, str, str]], bool]:
    """The test of a NAME or FUZZY match on the folded component groups of a name.

    Without `=` in the query any group may match, else group by group, an empty one matching everything.
    """
    literal = [_group_test(group) if group.strip("*^") else None for group in match.values]

    def by_group(groups: tuple[str, str, str]) -> bool:
        if len(literal) == 1:
            return any(bool(group) and cast("Callable[[str], bool]", literal[0])(group) for group in groups)
        return all(accept is None or accept(group) for accept, group in zip(literal, groups, strict=False))

    if match.kind is Kind.NAME:
        return by_group
    words = [_word_test(word) for word in name_tokens(" ".join(match.values)) if word.strip("*")]

    def by_words(groups: tuple[str, str, str]) -> bool:
        tokens = name_tokens(" ".join(groups))
        return by_group(groups) or (bool(words) and all(any(map(word, tokens)) for word in words))

    return by_words


def _group_test(pattern: str) -> Callable[[str], bool]:
    """One component group of a name. With `^` component by component; else the whole group or the family name."""
    if "^" in pattern:
        tests = [wildcard_test(component) if component.strip("*") else None for component in pattern.split("^")]

        def by_component(group: str) -> bool:
            components = group.split("^")
            components += [""] * (len(tests) - len(components))
            return all(accept is None or accept(part) for accept, part in zip(tests, components, strict=False))

        return by_component
    if "*" in pattern or "?" in pattern:
        return wildcard_test(pattern)
    return lambda group: group == pattern or group.startswith(pattern + "^")


def _word_test(word: str) -> Callable[[str], bool]:
    if "*" in word or "?" in word:
        return wildcard_test(word)
    code = phonetic_code(word)
    return lambda token: token.startswith(word) or (code != "" and phonetic_code(token) == code)


@lru_cache(maxsize=256)
def wildcard_test(pattern: str) -> Callable[[str], bool]:
    """Matching with `*` (any characters, none too) and `?` (any one), in linear time whatever the pattern."""
    first, *middle = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", pattern))
    if not middle:
        expression = first
    else:
        *middle, last = middle
        expression = first + "".join(f"(?>.*?{part})" for part in middle) + (f".*{last}" if last else ".*")
    compiled = re.compile(expression, re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


_TESTS: Final[dict[Kind, Callable[[Match, str], _Test]]] = {
    Kind.EQUAL: _test_equal,
    Kind.ALL: _test_all,
    Kind.NUMBER: _test_number,
    Kind.WILDCARD: _test_wildcard,
    Kind.RANGE: _test_range,
    Kind.NAME: _test_name,
    Kind.FUZZY: _test_name,
    Kind.EMPTY: _test_empty,
    Kind.SEQUENCE: _test_sequence,
}
