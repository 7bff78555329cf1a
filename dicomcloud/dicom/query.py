"""QIDO-RS queries: the parameters of a search become a `Query`.

PS3.18 8.3.4 gives the grammar; `matching` says what matches. What the Standard leaves open is decided so:

- A date or time matches at the precision it is given in: `StudyTime=10` is the whole hour, `-1200` ends with
  12:00:59.999999.
- `,` and `\\` separate alternatives of UIDs and code strings; elsewhere a key has one value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import lru_cache
from typing import Final, cast

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
from dicomcloud.dicom.comparison import (
    DATETIME_FORM,
    DAY_END,
    DAY_START,
    EARLIEST,
    LATEST,
    TIME_FORM,
    fill_digits,
    fold,
    fold_name,
    normalise,
    number_of,
    offset_minutes,
    shift,
    time_of_date,
)
from dicomcloud.dicom.matching import BINARY_VRS, TIMEZONE, Kind, Match
from dicomcloud.errors import BadRequest

MAX_VALUE_LENGTH: Final = 4096  # characters of one matching value that is no list of UIDs
MAX_UIDS: Final = 1000
MAX_KEYS: Final = 256
MODALITIES_IN_STUDY: Final = 0x00080061
REFERRING_PHYSICIAN: Final = 0x00080090
PATIENT_NAME: Final = 0x00100010
#: What `orderby` can sort studies by: date, name, ID, birth date, accession number, description.
SORTABLE: Final = (0x00080020, PATIENT_NAME, 0x00100020, 0x00100030, 0x00080050, 0x00081030)

# PS3.4 C.2.2.2.4; UN stands for private attributes, whose own VR is known only where they are stored.
_WILDCARD_VRS: Final = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UN", "UR", "UT"))
_LIST_VRS: Final = frozenset(("CS", "UI"))
_MULTIPLE_VRS: Final = frozenset(("AE", "AS", "AT", "CS", "LO", "PN", "SH", "UC"))  # PS3.4 C.2.2.2.8
_INTEGER_VRS: Final = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
_NUMBER_VRS: Final = _INTEGER_VRS | {"DS", "FD", "FL"}

# Answered by this server, not stored: counts, availability, where to retrieve from; and what is no key (PS3.4 C.2.2.2).
_NEVER_MATCHED: Final = frozenset(
    (0x00080005, 0x00080052, 0x00080054, 0x00080056, 0x00080062, 0x00081190)
    + (0x00201200, 0x00201202, 0x00201204, 0x00201206, 0x00201208, 0x00201209, 0x0040E010)
)
_PARAMETERS: Final = frozenset(
    ("limit", "offset", "orderby", "fuzzymatching", "emptyvaluematching", "multiplevaluematching")
)
# Parameters of the server (negotiation, PS3.18 8.3.3) that are no business of a query.
_OTHER_PARAMETERS: Final = frozenset(("accept", "charset"))


@dataclass(frozen=True, slots=True)
class Query:
    """A search of one level. `study_uid` and `series_uid` come from the path.

    `matches` are all to be fulfilled; each names the level whose attributes it is about, never below `level`.
    `include`: tags to return beside the required ones; `limit` is already capped. `warnings`: texts for `Warning: 299`.
    `visible`: where there are any, each result is of a study that fulfils one of these rules, of which all matches.
    `order`: a tag of SORTABLE and whether it descends; None: newest study first.
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
    visible: tuple[tuple[Match, ...], ...] | None = None
    order: tuple[int, bool] | None = None


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


_PLAIN: Final = _Options(fuzzy=False, empty=False, multiple=False, offset=None)


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
        elif lowered in _PARAMETERS:
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

    options = _PLAIN
    if parameters or (TIMEZONE,) in keys:
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
        order=_order(level, parameters.get("orderby", "")),
    )


def _order(level: Level, asked: str) -> tuple[int, bool] | None:
    """The extension `orderby`: an attribute of SORTABLE, descending with a `-` in front."""
    if not asked:
        return None
    tag = tag_of(asked.lstrip("-"))
    if level is not Level.STUDY or tag not in SORTABLE or asked.startswith("--"):
        known = ", ".join(keyword_of(each) for each in SORTABLE)
        raise BadRequest(f"orderby sorts studies by one of {known}, with - in front descending; not {_shown(asked)!r}.")
    return tag, asked.startswith("-")


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _check_text(name: str, value: str) -> None:
    for text in (name, value):
        if "\0" in text:
            raise BadRequest(f"The parameter {_shown(name.replace(chr(0), ''))} contains a NUL character.")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise BadRequest("A parameter is not valid UTF-8.")


@lru_cache(maxsize=1024)
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
        low = dates.low if dates.low == EARLIEST else dates.low[:8] + (times.low or DAY_START)
        high = dates.high if dates.high == LATEST else dates.high[:8] + (times.high or DAY_END)
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
    if vr == "SQ" or vr in BINARY_VRS:
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
    if number_of(value) is None or (vr in _INTEGER_VRS and not re.fullmatch(r"[+-]?\d{1,20}", value, re.ASCII)):
        raise BadRequest(f"{_shown(value)!r} of {key.name} is not a number as VR {vr} takes it.")
    return value


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
    low = parse(first) + DAY_START if first else EARLIEST
    high = parse(last) + DAY_END if last else LATEST
    if low > high:
        raise BadRequest(f"The range {_shown(value)!r} of {key.name} ends before it begins.")
    time_tag = time_of_date(tag)
    return Match(tag, "DA", level, Kind.RANGE, (), low, high, time_tag, options.offset if time_tag else None)


def _time_match(key: _Key, value: str, tag: int, level: Level, options: _Options) -> Match:
    def parse(text: str, *, last: bool) -> str:
        found = TIME_FORM.fullmatch(text)
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
        found = DATETIME_FORM.fullmatch(text)
        offset = offset_minutes(found[3]) if found and found[3] else None
        try:
            if found is None or len(found[1]) % 2 or (found[3] and offset is None) or (found[2] and len(found[1]) < 14):
                raise ValueError
            digits = fill_digits(found[1], found[2] or "", last=last)
            datetime(*(int(digits[a:b]) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12))))  # type: ignore[arg-type]
            if digits[12:14] > "60":
                raise ValueError
        except ValueError:
            raise BadRequest(f"{_shown(text)!r} of {key.name} is not a date and time.") from None
        return digits, offset

    single = DATETIME_FORM.fullmatch(value)
    if single and (single[3] is None or offset_minutes(single[3]) is not None):
        first = last = value  # PS3.4 C.2.2.2.5.2: what can be an offset is one
    else:
        split = re.fullmatch(
            r"(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4}(?=-))?)?-(\d{4,14}(?:\.\d{1,6})?(?:[+-]\d{4})?)?", value
        )
        if split is None or value == "-":
            raise BadRequest(f"{_shown(value)!r} of {key.name} is not a date and time or a range of them.")
        first, last = split[1] or "", split[2] or ""
    low, low_offset = parse(first, last=False) if first else (EARLIEST, None)
    high, high_offset = parse(last, last=True) if last else (LATEST, None)
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
