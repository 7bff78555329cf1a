"""Matching of attributes in the DICOM JSON Model: one key of a search, and whether a data set fulfils it.

PS3.4 C.2.2.2 gives the types of matching. What the Standard leaves open is decided so:

- Person names and text (LO SH ST LT UC UT) match without regard to case and accents; identifiers (keywords that end in
  ID, Number, CodeValue or Designator, and issuers), AE, AS, CS, UI and UR match exactly. Blanks around a value do not
  count.
- Numbers match by their value: `007`, `7` and `7.0` are one.
- An attribute stored empty matches an empty key only, never a value (PS3.4 C.2.2.1.2 would let it).
- Private attributes match exactly, as text, with wildcards.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, cast

from dicomcloud.dicom.attributes import (
    Level,
    json_key,
)
from dicomcloud.dicom.comparison import (
    DAY_START,
    date_digits,
    datetime_digits,
    name_groups,
    name_tokens,
    normalise,
    number_of,
    offset_minutes,
    phonetic_code,
    shift,
    shift_time,
    time_digits,
)

TIMEZONE: Final = 0x00080201
BINARY_VRS: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW"))


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

    wanted = {narrow(number_of(value)) for value in match.values}
    return lambda attributes, offset: any(narrow(number_of(value)) in wanted for value in _values(attributes.get(key)))


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
            stamp = digits + (time or DAY_START)
            if wanted_offset is not None and offset is not None and time:
                stamp = shift(stamp, wanted_offset - offset)
            if digits and low <= stamp <= high:
                return True
        return False

    def of_time(attributes: Mapping[str, Any], offset: int | None) -> bool:
        for value in _values(attributes.get(key)):
            digits = time_digits(str(value))
            if digits and wanted_offset is not None and offset is not None:
                digits = shift_time(digits, wanted_offset - offset)
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
