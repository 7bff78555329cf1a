"""A QIDO-RS query as SQL, and its rows as DICOM JSON."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, repeat
from typing import Any, Final

import orjson

from dicomcloud.dicom.attributes import EVERY_LEVEL, INDEXED_ATTRIBUTES, Level, json_key, level_of
from dicomcloud.dicom.comparison import name_tokens, phonetic_code, shift
from dicomcloud.dicom.matching import Kind, Match, matches, matching_items, name_test
from dicomcloud.dicom.query import MODALITIES_IN_STUDY, PATIENT_NAME, REFERRING_PHYSICIAN, Query
from dicomcloud.index.database import Database, groups_of_columns
from dicomcloud.index.models import NO_NUMBER

_Condition = tuple[str, list[Any]]
_Text = tuple[bytes, bytes]

_LISTED: Final = 2000  # ids that are listed in a statement
# A condition that few rows fulfil finds them by its index; one that many fulfil is tried on the rows in their order,
# where the page is soon full. Which it is, is asked first: counting stops at _FEW.
_FEW: Final = 2000
_FEW_WITH_WORD: Final = 2000  # the same, of the rows of words
_VERY_FEW_WITH_WORD: Final = 200
_MANY_WITH_WORD: Final = 5_000  # of the rows of words, up to which they are compared
_WORDS: Final = 500  # words that a wildcard may stand for
_MERGED: Final = 24  # words whose studies are merged in the order of the answer
_FAR: Final = 1000  # rows before a page, from which on it may be reached from the other end
_COUNTED: Final = 10_000  # matches after the page that are counted
_COUNTED_BY_TRYING: Final = 200  # the same where each row is tried
_DAY: Final = 26 * 60  # minutes: the widest difference of two offsets from UTC
#: The attributes in the row of an instance; the others are in its document.
INSTANCE_KEYS: Final = tuple(json_key(row.tag) for row in INDEXED_ATTRIBUTES if row.level is Level.INSTANCE)
_WITH_METADATA: Final = " JOIN instance_metadata d ON d.instance_key = i.id"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`texts`: DICOM JSON data sets, keys ascending, each in two pieces: between them belongs, as a JSON string, the
    value of RetrieveURL. `uids`: of each its study, series and SOP Instance UID, '' below the level of the search.
    `total`: matches in all, `remaining`: those after this page; both are at least as many when they are not `exact`,
    since counting them would have taken too long."""

    texts: list[_Text]
    uids: list[tuple[str, str, str]]
    total: int
    remaining: int
    exact: bool = True

    def document(self, root: str) -> bytes:
        """The data sets as one text, with the Retrieve URL (0008,1190) of each, below the URL of the services."""
        return b"[" + b",".join(map(_with_url, self.texts, self.uids, repeat(root))) + b"]"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The data sets without RetrieveURL."""
        rows = [orjson.loads(before + b'""' + after) for before, after in self.texts]
        for row in rows:
            del row[_RETRIEVE_URL]
        return rows


# Columns that hold the whole value, by level: tag → (column, its length).
_TEXT_COLUMNS: Final[dict[Level, dict[int, tuple[str, int]]]] = {
    Level.STUDY: {
        0x0020000D: ("s.uid", 64),
        0x00100020: ("s.patient_id", 200),
        0x00100021: ("s.issuer_of_patient_id", 200),
        0x00100040: ("s.patient_sex", 16),
        0x00080050: ("s.accession_number", 200),
        0x00200010: ("s.study_id", 200),
        0x00081030: ("s.study_description", 200),
    },
    Level.SERIES: {0x0020000E: ("r.uid", 64), 0x00080060: ("r.modality", 64)},
    Level.INSTANCE: {0x00080018: ("i.uid", 64), 0x00080016: ("i.sop_class_uid", 64)},
}
_NAME_COLUMNS: Final = {PATIENT_NAME: "s.patient_name", REFERRING_PHYSICIAN: "s.referring_physician_name"}
REQUEST_ATTRIBUTES: Final = 0x00400275
_REQUEST_COLUMNS: Final = {0x00400009: "scheduled_procedure_step_id", 0x00401001: "requested_procedure_id"}
STUDY_ID: Final = 0x00200010
STUDY_DESCRIPTION: Final = 0x00081030
#: Columns of `s` that lead an index.
_INDEXED: Final = frozenset(
    (
        "s.patient_id",
        "s.patient_name",
        "s.referring_physician_name",
        "s.accession_number",
        "s.study_id",
        "s.study_description",
    )
)
_NUMBER_COLUMNS: Final = {0x00200011: "r.number", 0x00200013: "i.number"}
# Exact keys of few studies: such a search is driven by them and not by its modality.
_SELECTIVE: Final = frozenset((0x0020000D, 0x00100020, 0x00080050, 0x00200010))

_ORDER: Final = {
    Level.STUDY: "s.study_datetime DESC, s.id DESC",
    Level.SERIES: "r.study_datetime DESC, r.study_key DESC, r.number, r.id",
    Level.INSTANCE: "r.study_datetime DESC, r.study_key DESC, r.number, r.id, i.number, i.id",
}
#: The columns of query.SORTABLE.
_SORT_COLUMNS: Final = {
    0x00080020: "s.study_datetime",
    0x00100010: "s.patient_name",
    0x00100020: "s.patient_id",
    0x00100030: "s.patient_birth_date",
    0x00080050: "s.accession_number",
    0x00081030: "s.study_description",
}
_SEARCH_FROM: Final = {
    Level.STUDY: "study s",
    Level.SERIES: "series r",
    Level.INSTANCE: "series r JOIN instance i ON i.series_key = r.id",
}
_JOIN_STUDY: Final = {
    Level.STUDY: "",
    Level.SERIES: " JOIN study s ON s.id = r.study_key",
    Level.INSTANCE: " JOIN study s ON s.id = r.study_key",
}
_USES_STUDY: Final = re.compile(r"\bs\.")
#: Columns of study that name_word has as well.
_OF_WORDS: Final = {"s.study_datetime": "w.study_datetime", "s.id": "w.study_key"}
_IN_WORDS: Final = re.compile(r"\bs\.(?:study_datetime|id)\b")
_ID: Final = {Level.STUDY: "s.id", Level.SERIES: "r.id", Level.INSTANCE: "i.id"}
_STUDY_RESULT: Final = "s.uid, s.attributes, s.modalities, s.number_of_series, s.number_of_instances"
_SERIES_RESULT: Final = "r.uid, r.attributes, r.number_of_instances"
_TOTAL_COLUMN: Final = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}

_ONLINE: Final = {"vr": "CS", "Value": ["ONLINE"]}
_RETRIEVE_URL: Final = "00081190"


@dataclass(frozen=True, slots=True)
class _Words:
    """Studies by words of a name, in the order of study searches: `ways` are conditions on name_word `w`.

    All that fulfil the condition `replaced` are among them, and those that are have only to fulfil `instead`.
    """

    ways: list[_Condition]
    rows: int
    replaced: _Condition
    instead: _Condition


def _count_element(count: int) -> dict[str, Any]:
    return {"vr": "IS", "Value": [count]}


def _uid_element(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}


def _prefix(pattern: str) -> str:
    """What every match of a wildcard pattern begins with."""
    return pattern.replace("?", "*").partition("*")[0]


def _after(prefix: str) -> str:
    """The least text that sorts behind all that begins with `prefix`."""
    last = ord(prefix[-1]) + 1
    return prefix[:-1] + (chr(0xE000) if 0xD800 <= last < 0xE000 else chr(min(last, 0x10FFFF)))


class Search:
    """One query as SQL: a statement that finds the page by narrow indexes first and then reads its rows."""

    def __init__(self, database: Database, query: Query) -> None:
        self._database = database
        self._query = query
        self._level = query.level
        self._conditions: list[_Condition] = []
        self._stored: list[_Condition] = []  # dear ones, tried last
        self._counted = _COUNTED
        self._by_index: dict[str, str] = {}  # conditions that are tried row by row → as an index serves them
        self._words_to_merge: list[_Words] = []
        self._found_few = False  # a condition that few studies fulfil, which are found by an index
        self._unsure: list[Match] = []  # of which the conditions let too many pass: looked at here, row by row
        self._from = _SEARCH_FROM[self._level]
        self._join_study = _JOIN_STUDY[self._level]
        self._id = _ID[self._level]
        self._order = self._outer_order = _ORDER[self._level]
        if query.order:
            column, direction = _SORT_COLUMNS[query.order[0]], " DESC" if query.order[1] else ""
            self._order = self._outer_order = f"{column}{direction}, s.id{direction}"
        self._datetime = "s.study_datetime" if self._level is Level.STUDY else "r.study_datetime"
        if query.study_uid is not None:
            self._conditions.append(("s.uid = ?", [query.study_uid]))
        if query.series_uid is not None:
            self._conditions.append(("r.uid = ?", [query.series_uid]))
        self._choose_driver()
        for match in query.matches:
            self._add(match)
        if query.visible is not None:
            self._conditions.append(study_condition(query.visible, database))

    def _choose_driver(self) -> None:
        """Studies of one modality, and nothing more selective: in the order of study_modality."""
        if self._level is not Level.STUDY or self._query.order:
            return
        selective = self._is_selective() or any(
            match.kind is Kind.NAME and match.tag == PATIENT_NAME and _prefix(match.values[0])
            for match in self._query.matches
        )
        modality = next((m for m in self._query.matches if m.tag == MODALITIES_IN_STUDY), None)
        if selective or modality is None or modality.kind is not Kind.EQUAL or len(modality.values) != 1:
            return
        self._from, self._join_study = "study_modality m", " JOIN study s ON s.id = m.study_key"
        self._id = "m.study_key"
        self._order = "m.study_datetime DESC, m.study_key DESC"
        self._datetime = "m.study_datetime"
        self._conditions.append(("m.modality = ?", list(modality.values)))

    def _is_selective(self) -> bool:
        return any(match.kind is Kind.EQUAL and match.tag in _SELECTIVE for match in self._query.matches)

    # Conditions: one method per kind of column

    def _add(self, match: Match) -> None:
        columns = _TEXT_COLUMNS[match.level]
        if match.tag in columns:
            condition = self._text_condition(match, *columns[match.tag])
        elif match.tag in _NAME_COLUMNS:
            condition = self._name_condition(match, _NAME_COLUMNS[match.tag])
        elif match.tag == MODALITIES_IN_STUDY:
            condition = self._modality_condition(match)
        elif match.tag in _NUMBER_COLUMNS:
            condition = self._number_condition(match, _NUMBER_COLUMNS[match.tag])
        elif match.kind is Kind.RANGE:
            condition = self._range_condition(match)
        elif match.tag == REQUEST_ATTRIBUTES and match.kind is Kind.SEQUENCE:
            condition = _request_condition(match)
        else:
            condition = None
        if condition is None:
            self._require(match)
        elif condition[0]:
            self._conditions.append(condition)

    def _require(self, match: Match) -> None:
        """Have the stored DICOM JSON fulfil the match: the database sees to it, or, where it cannot, `_match_here`."""
        condition = self._stored_condition(match)
        if condition is not None:
            self._stored.append(condition)
            return
        self._unsure.append(match)
        column = self._stored_column(match)
        if match.kind is not Kind.EMPTY and not column.startswith("d."):
            self._stored.append(self._database.mentions(column, f'"{json_key(match.tag)}"'))

    def _stored_column(self, match: Match) -> str:
        """The column with the DICOM JSON that has the attribute."""
        if match.level is Level.INSTANCE and json_key(match.tag) not in INSTANCE_KEYS:
            if _WITH_METADATA not in self._from:
                self._from += _WITH_METADATA
            return "d.document"
        return {Level.STUDY: "s", Level.SERIES: "r", Level.INSTANCE: "i"}[match.level] + ".attributes"

    def _stored_condition(self, match: Match) -> _Condition | None:
        column = self._stored_column(match)
        return self._database.stored_matches(column, match, compressed=column == "d.document")

    def _only(self, condition: _Condition, match: Match, whole: Match) -> _Condition:
        """What of `condition` fulfils `match` too; `whole` is the key of the search that `match` is a part of."""
        stored = self._stored_condition(match)
        if stored is None:
            self._unsure.append(whole)
            return condition
        return f"({condition[0]} AND {stored[0]})", condition[1] + stored[1]

    def _text_condition(self, match: Match, column: str, length: int) -> _Condition | None:
        if any(len(value) >= length for value in match.values) and match.vr != "UI":
            return None  # the column has only the beginning of so long a value
        if match.kind is Kind.EQUAL:
            condition = f"{column} IN ({', '.join('?' * len(match.values))})", list(match.values)
            return self._by_index_if_few(column, condition) if match.tag == STUDY_ID else condition
        if match.kind is Kind.EMPTY:
            return self._by_index_if_few(column, (f"{column} = ''", []))
        if match.kind is Kind.WILDCARD:
            return _any([self._wildcard_condition(match.tag, column, pattern) for pattern in match.values])
        return None

    def _wildcard_condition(self, tag: int, column: str, pattern: str) -> _Condition:
        if tag == STUDY_DESCRIPTION and not _prefix(pattern):
            descriptions = self._words(tag, pattern)
            if descriptions is not None:
                values = ", ".join("?" * len(descriptions)) or "NULL"
                return self._by_index_if_few(column, (f"{column} IN ({values})", descriptions))
        return self._by_index_if_few(column, self._like(column, pattern))

    def _by_index_if_few(self, column: str, condition: _Condition) -> _Condition:
        """The condition on a column of `s`, made so that the index of the column is not used where many fulfil it."""
        text, values = condition
        if column not in _INDEXED or self._query.study_uid is not None:
            if column.startswith("s."):
                self._counted = min(self._counted, _COUNTED_BY_TRYING)
            return condition
        if "LIKE" in text and ">=" not in text or not self._few(f"FROM study s WHERE {text}", values, _FEW):
            self._counted = min(self._counted, _COUNTED_BY_TRYING)
            tried = text.replace(column, self._database.without_index(column))
            self._by_index[tried] = text
            return tried, values
        self._found_few = True
        return condition

    def _few(self, rows: str, values: list[Any], few: int) -> bool:
        """Whether the statement `rows`, from its FROM on, has at most `few` rows."""
        return self._rows_up_to(few + 1, rows, values) <= few

    def _rows_up_to(self, most: int, rows: str, values: list[Any]) -> int:
        limited = self._database.first(most, "1 AS one", rows)
        return int(self._database.run(f"SELECT count(*) FROM ({limited}) c", values).fetchone()[0])

    def _words(self, tag: int, pattern: str, most: int = _WORDS) -> list[str] | None:
        """What the pattern may stand for, of the words that this attribute has anywhere; None where they are many."""
        condition, values = self._like("v.word", pattern)
        statement = self._database.first(most + 1, "v.word", f"FROM vocabulary v WHERE v.attribute = ? AND {condition}")
        words = [row[0] for row in self._database.run(statement, [tag, *values]).fetchall()]
        return words if len(words) <= most else None

    def _like(self, column: str, pattern: str) -> _Condition:
        return _like(self._database, column, pattern)

    def _modality_condition(self, match: Match) -> _Condition | None:
        if self._datetime == "m.study_datetime" and match.kind is Kind.EQUAL:
            return "", []  # the driver is it
        exists = "EXISTS (SELECT 1 FROM study_modality x WHERE x.study_key = s.id AND {})"
        if match.kind is Kind.EQUAL:
            return exists.format(f"x.modality IN ({', '.join('?' * len(match.values))})"), list(match.values)
        if match.kind is Kind.ALL:
            each = [exists.format("x.modality = ?")] * len(match.values)
            return " AND ".join(each), list(match.values)
        if match.kind is Kind.WILDCARD:
            condition, values = _any([self._like("x.modality", pattern) for pattern in match.values])
            return exists.format(condition), values
        return "s.modalities = ''", []

    def _number_condition(self, match: Match, column: str) -> _Condition | None:
        if match.kind is not Kind.NUMBER or not match.values[0].lstrip("+-").isdigit():
            return None
        number = int(match.values[0])
        return (f"{column} = ?", [number]) if abs(number) < NO_NUMBER else None

    def _range_condition(self, match: Match) -> _Condition | None:
        column = {
            0x00080020: self._datetime,
            0x00100030: "s.patient_birth_date",
            0x00080030: "s.study_time",
            0x00400244: "r.performed_start",
        }.get(match.tag)
        if column is None:
            return None
        if match.tag == 0x00080030:
            if match.offset is not None:
                return None
            return f"{column} >= ? AND {column} <= ?", [match.low or "0", match.high or "9"]
        low, high = match.low, match.high
        if match.tag == 0x00100030:
            low, high = low[:8], high[:8]
        elif match.offset is not None:
            # The columns have the local time of each study: a wide range first, then the offsets exactly.
            self._require(match)
            low, high = shift(low, -_DAY), shift(high, _DAY)
        return f"{column} >= ? AND {column} <= ?", [low, high]

    def _name_condition(self, match: Match, column: str, whole: Match | None = None) -> _Condition | None:
        whole = whole or match
        if match.kind is Kind.FUZZY:
            return self._fuzzy_condition(match, column)
        if match.kind is not Kind.NAME:
            return None
        pattern = match.values[0]
        if len(match.values) > 1 or len(pattern) >= 200:
            if len(match.values) == 1 or not pattern.strip("*^"):
                return None
            return self._only(self._alphabetic_condition(pattern, column)[:2], match, whole)
        condition, values, exact = self._alphabetic_condition(pattern, column)
        driver = self._studies_with_words(match.tag, pattern) if not _prefix(pattern.lstrip("^")) else None
        found_few = self._found_few
        if driver is None:
            condition, values = self._by_index_if_few(column, (condition, values))
        if not exact:
            condition, values = self._only((condition, values), match, whole)
        # Names with other groups are apart, in a partial index, so that they do not slow down the rest.
        other, other_values = self._other_groups(match, column, pattern) if self._has_other_names(column) else ("", [])
        if not other:
            return (f"({driver[0]} AND {condition})", [*driver[1], *values]) if driver else (condition, values)
        self._found_few = found_few  # the alphabetic group is not all
        by_column = self._database.name_matches(column, match.encode())
        if by_column is not None:
            other, other_values = f"{other} AND {by_column[0]}", [*other_values, *by_column[1]]
        if driver is not None:
            if by_column is None:
                self._unsure.append(whole)
            both, both_values = _any([(condition, values), (other, other_values)])
            return f"({driver[0]} AND {both})", [*driver[1], *both_values]
        if by_column is None and exact:
            ids = self._ids_of_names(column, other, other_values, match)
            if ids is not None:
                return (f"({condition} OR s.id IN ({','.join(map(str, ids))}))" if ids else condition), values
            self._unsure.append(whole)
        by_studies = f"(({condition}) OR s.id IN (SELECT s.id FROM study s WHERE {other}))", [*values, *other_values]
        if match is whole:
            self._merge_words(match.tag, pattern, by_studies, _any([(condition, values), (other, other_values)]))
        return by_studies

    def _merge_words(self, tag: int, pattern: str, replaced: _Condition, instead: _Condition) -> None:
        """Have studies found by the words that a name has which matches the pattern, if those are not too many."""
        first, longest = name_tokens(_prefix(pattern))[:1], _longest_word(pattern)
        words = self._words(tag, f"{first[0]}*" if first else f"*{longest}*", _MERGED) if longest else None
        if words:
            ways = [("w.attribute = ? AND w.word = ?", [tag, word]) for word in words]
            self._words_to_merge.append(_Words(ways, _MANY_WITH_WORD, replaced, instead))
            self._counted = min(self._counted, _COUNTED_BY_TRYING)

    def _other_groups(self, match: Match, column: str, pattern: str) -> _Condition:
        """A condition that studies fulfil whose name may match in the ideographic or phonetic group; '' if none may."""
        condition, values = self._like(f"{column}_other", "*" + pattern.replace("^", "*") + "*")
        condition = f"{column}_other > '' AND {condition}"
        longest = _longest_word(pattern)
        words = self._words(-match.tag, f"*{longest}*") if longest else None
        if words is None:
            return condition, values
        rows = f"FROM name_word t WHERE t.attribute = ? AND t.word IN ({', '.join('?' * len(words))})"
        if words and self._few(rows, [match.tag, *words], _FEW_WITH_WORD):
            return f"s.id IN (SELECT t.study_key {rows}) AND {condition}", [match.tag, *words, *values]
        return (condition, values) if words else ("", [])

    def _studies_with_words(self, tag: int, pattern: str) -> _Condition | None:
        """A condition that few studies fulfil, but all whose name matches the pattern; None if there is none.

        Told from the longest word in the pattern: what matches has it in one of its own.
        """
        longest = _longest_word(pattern)
        if not longest:
            return None
        words = self._words(tag, f"*{longest}*")
        if words is None:
            return None
        if not words:
            return "1 = 0", []
        rows = f"FROM name_word t WHERE t.attribute = ? AND t.word IN ({', '.join('?' * len(words))})"
        if not self._few(rows, [tag, *words], _FEW):
            return None
        return f"s.id IN (SELECT t.study_key {rows})", [tag, *words]

    def _ids_of_names(self, column: str, condition: str, values: list[Any], match: Match) -> list[int] | None:
        """The studies that the condition lets pass and whose name matches; None where there are too many to list."""
        statement = f"SELECT s.id, {column}, {column}_other FROM study s WHERE {condition}"
        rows, accepts = self._database.stream(statement, values), name_test(match)
        ids = [key for key, *name in islice(rows, _LISTED) if accepts(groups_of_columns(*name))]
        return ids if next(iter(rows), None) is None else None

    def _has_other_names(self, column: str) -> bool:
        """Whether any name has an ideographic or phonetic group. Most archives have none, and look for none then."""
        page, values = self._database.page(1, 0)
        statement = f"SELECT s.id FROM study s WHERE {column}_other > '' ORDER BY {column}_other {page}"
        return self._database.run(statement, values).fetchone() is not None

    def _alphabetic_condition(self, pattern: str, column: str) -> tuple[str, list[Any], bool]:
        """A condition on the alphabetic group, and whether it is exact or only lets too many pass."""
        components = [component if component.strip("*") else "" for component in pattern.split("^")]
        trimmed = "^".join(components).rstrip("^") if "^" in pattern else pattern
        components = trimmed.split("^")
        wild = "*" in trimmed or "?" in trimmed
        if not wild and all(components):
            values = [trimmed, trimmed + "_", trimmed, trimmed + "^"]  # "_" is the character after "^"
            return f"{column} >= ? AND {column} < ? AND ({column} = ? OR {column} >= ?)", values, True
        if "^" not in pattern:
            condition, values = self._like(column, trimmed)
            return condition, values, True
        coarse = "^".join(component or "*" for component in components)
        condition, values = self._like(column, coarse.rstrip("*") + "*")
        last = components[-1]
        only_last = all(components) and "*" not in trimmed[:-1] and "?" not in trimmed and last.endswith("*")
        return condition, values, only_last and len(last) > 1 and not pattern.endswith("^")

    def _fuzzy_condition(self, match: Match, column: str) -> _Condition:
        """Every word of the query begins a word of the name, or sounds like one; or the name matches literally."""
        asked = [word for word in name_tokens(" ".join(match.values)) if word.strip("*")]
        words = [self._word_condition(match.tag, word, alone=len(asked) == 1) for word in asked]
        together = _all([condition for condition, _ in words])
        if words and all(map(_is_fuzzy_whole, match.values)):
            for number, (_, found) in enumerate(words):
                if found is not None:
                    others = [condition for condition, _ in words[:number] + words[number + 1 :]]
                    self._words_to_merge.append(replace(found, replaced=together, instead=_all(others)))
            return together
        name = replace(match, kind=Kind.NAME)
        literal = self._name_condition(name, column, match) or self._stored_condition(name)
        if literal is None:
            self._unsure.append(match)
            return "1 = 1", []
        return _any([together, literal]) if words else literal

    def _word_condition(self, tag: int, word: str, *, alone: bool) -> tuple[_Condition, _Words | None]:
        """Studies in whose name a word begins with this one, matches it as a wildcard, or sounds like it.

        And, where those are many, the words by which they can be found in the order of the answer.
        """
        ways: list[_Condition] = []
        wild = "*" in word or "?" in word
        code = "" if wild else phonetic_code(word)
        if not _prefix(word) and (words := self._words(tag, word)) is not None:
            ways.append((f"t.word IN ({', '.join('?' * len(words)) or 'NULL'})", list(words)))
        elif wild:
            ways.append(self._like("t.word", word))
        else:
            ways.append(("t.word >= ? AND t.word < ?", [word[:200], _after(word[:200])]))
        if code:
            ways.append(("t.code = ?", [code]))
        # a UNION: each way has an index of its own
        rows = " UNION ALL ".join(
            f"SELECT t.study_key FROM name_word t WHERE t.attribute = ? AND {way}" for way, _ in ways
        )
        values = [value for _, given in ways for value in (tag, *given)]
        most = _FEW_WITH_WORD + 1 if alone else _MANY_WITH_WORD
        found = self._rows_up_to(most, f"FROM ({rows}) u", values)
        if found <= _FEW_WITH_WORD:
            condition = f"s.id IN ({rows})", values
        else:
            self._counted = 0
            either, values = _any(ways)
            exists = f"EXISTS (SELECT 1 FROM name_word t WHERE t.study_key = s.id AND t.attribute = ? AND {either})"
            condition = exists, [tag, *values]
        merged = None
        if found > _VERY_FEW_WITH_WORD:
            merged = self._words(tag, word if wild else f"{word[:200]}*", _MERGED)
        if merged is None:
            self._found_few |= found <= _FEW_WITH_WORD
            return condition, None
        each = [("w.attribute = ? AND w.word = ?", [tag, text]) for text in merged]
        if code:
            each.append(("w.attribute = ? AND w.code = ?", [tag, code]))
        return condition, _Words(each, found, condition, ("", []))

    # Result

    def result(self) -> SearchResult:
        query = self._query
        where, values = _all(self._conditions + self._stored)
        columns = list(dict.fromkeys(map(self._stored_column, self._unsure)))
        if self._join_study and _USES_STUDY.search(" ".join([where, *columns])):
            self._from += self._join_study
        where = f" WHERE {where}" if where else ""
        found: Sequence[Sequence[Any]] = []
        exact = True
        if self._unsure:
            found, total, exact = self._match_here(where, values, columns)
        else:
            if query.limit:
                found = self._fetch(where, values)
            if found and len(found) <= query.limit or not found and not query.offset and query.limit:
                total = query.offset + len(found)
            else:
                total, exact = self._count(where, values, query.offset + len(found))
        page = found[: query.limit]
        build = self._row_builder()
        texts, uids = [], []
        for row in page:
            text, key = build(row)
            texts.append(text)
            uids.append(key)
        return SearchResult(texts, uids, total, max(0, total - query.offset - len(page)), exact)

    def _fetch(self, where: str, values: list[Any]) -> list[Sequence[Any]]:
        limit, offset = self._query.limit + 1, self._query.offset
        words = self._words_of_choice()
        if words is not None:
            return self._rows(*self._merged(words, limit, offset))
        order = self._order
        if not where and offset > _FAR and offset > (total := self._total()) // 2:  # from the other end
            limit = min(limit, total - offset)
            order, offset = _reversed(order), total - offset - limit
        if limit <= 0:
            return []
        page, page_values = self._database.page(limit, offset)
        return self._rows(
            f"SELECT {self._id} AS id FROM {self._from}{where} ORDER BY {order} {page}", values + page_values
        )

    def _words_of_choice(self) -> _Words | None:
        """By which words studies are found best; None where there is something better."""
        if self._from != _SEARCH_FROM[Level.STUDY] or self._query.order or self._unsure:
            return None
        if self._found_few or self._is_selective():
            return None
        return min(self._words_to_merge, key=lambda words: words.rows, default=None)

    def _merged(self, words: _Words, limit: int, offset: int) -> _Condition:
        """A page of ids. For each word a statement that stops as soon as it has enough, in the order of its index."""
        rest = [words.instead if each is words.replaced else each for each in self._conditions] + self._stored
        condition, values = _all([each for each in rest if each[0]])
        condition = _IN_WORDS.sub(lambda column: _OF_WORDS[column[0]], condition)
        join = " JOIN study s ON s.id = w.study_key" if _USES_STUDY.search(condition) else ""
        page, page_values = self._database.page(limit + offset, 0)
        statements, given = [], []
        for number, (way, way_values) in enumerate(words.ways):
            both = f"{way} AND {condition}" if condition else way
            statements.append(
                "SELECT id, moment FROM (SELECT DISTINCT w.study_key AS id, w.study_datetime AS moment"
                f" FROM name_word w{join} WHERE {both}"
                f" ORDER BY w.study_datetime DESC, w.study_key DESC {page}) w{number}"
            )
            given += [*way_values, *values, *page_values]
        page, page_values = self._database.page(limit, offset)
        union = " UNION ".join(statements)  # a study can be found by several words
        return f"SELECT id FROM ({union}) u ORDER BY moment DESC, id DESC {page}", [*given, *page_values]

    def _match_here(self, where: str, values: list[Any], columns: list[str]) -> tuple[list[Sequence[Any]], int, bool]:
        """The page and the total, for a database that cannot match in DICOM JSON: every candidate is looked at."""
        tests = [(columns.index(self._stored_column(match)) + 1, match) for match in self._unsure]
        statement = f"SELECT {', '.join([self._id, *columns])} FROM {self._from}{where} ORDER BY {self._order}"
        first, last = self._query.offset, self._query.offset + self._query.limit
        ids, total, exact = [], 0, True
        for row in self._database.stream(statement, values):
            documents = [orjson.loads(zlib.decompress(text) if isinstance(text, bytes) else text) for text in row[1:]]
            if all(matches(match, documents[column - 1]) for column, match in tests):
                if first <= total < last:
                    ids.append(row[0])
                total += 1
                if total > last + _COUNTED_BY_TRYING:
                    exact = False
                    break
        if not ids:
            return [], total, exact
        table = {Level.STUDY: "study", Level.SERIES: "series", Level.INSTANCE: "instance"}[self._level]
        return self._rows(f"SELECT id FROM {table} WHERE id IN ({','.join(map(str, ids))})", []), total, exact

    def _rows(self, inner: str, values: list[Any]) -> list[Sequence[Any]]:
        """What results are built from, of the ids that the statement `inner` finds."""
        if self._level is Level.STUDY:
            columns, joins = _STUDY_RESULT, "JOIN study s ON s.id = p.id"
        elif self._level is Level.SERIES:
            columns = f"{_STUDY_RESULT}, {_SERIES_RESULT}"
            joins = "JOIN series r ON r.id = p.id JOIN study s ON s.id = r.study_key"
        else:
            columns = f"{_STUDY_RESULT}, {_SERIES_RESULT}, i.uid, i.attributes"
            joins = (
                "JOIN instance i ON i.id = p.id JOIN series r ON r.id = i.series_key JOIN study s ON s.id = r.study_key"
            )
            if self._needs_document():
                columns += ", d.document"
                joins += _WITH_METADATA
        statement = f"SELECT {columns} FROM ({inner}) p {joins} ORDER BY {self._outer_order}"
        return self._database.run(statement, values).fetchall()

    def _count(self, where: str, values: list[Any], known: int) -> tuple[int, bool]:
        """How many match, of whom `known` are known already; and whether it is exact."""
        if not where:
            return self._total(), True
        if not self._counted and known > self._query.offset:
            return known, False
        most = self._query.offset + self._query.limit + max(self._counted, 1)
        words = self._words_of_choice()
        if words is not None:
            limited, values = self._merged(words, most, 0)
            total = int(self._database.run(f"SELECT count(*) FROM ({limited}) c", values).fetchone()[0])
            return total, total < most
        for tried, text in self._by_index.items():  # in no order: counting stops when it has enough
            where = where.replace(tried, text)
        limited = self._database.first(most, "1 AS one", f"FROM {self._from}{where}")
        total = int(self._database.run(f"SELECT count(*) FROM ({limited}) c", values).fetchone()[0])
        return total, total < most

    def _total(self) -> int:
        """How many there are in the archive."""
        statement = f"SELECT {_TOTAL_COLUMN[self._level]} FROM archive_state WHERE id = 1"
        return int(self._database.run(statement).fetchone()[0])

    def _needs_document(self) -> bool:
        return self._query.include_all or any(
            level_of(tag) is Level.INSTANCE and json_key(tag) not in INSTANCE_KEYS for tag in self._query.include
        )

    def _row_builder(self) -> Callable[[Sequence[Any]], tuple[_Text, tuple[str, str, str]]]:
        """A function that makes the data set of one row, and its UIDs."""
        level, query = self._level, self._query
        everything, include = query.include_all, query.include
        sequences = [match for match in query.matches if match.kind is Kind.SEQUENCE]
        if level is Level.STUDY and not everything and not sequences:
            return lambda row: (_study_text(tuple(row), include), (row[0], "", ""))
        whole = (level is Level.STUDY or query.study_uid is None, level is Level.SERIES or query.series_uid is None)
        plan, needs_study, needs_series = _plan(level, *whole, include)
        needs_study, needs_series = needs_study or everything, needs_series or everything
        needs_document = level is Level.INSTANCE and self._needs_document()

        def build(row: Sequence[Any]) -> tuple[_Text, tuple[str, str, str]]:
            study = _study_attributes(row, needs_study)
            series: dict[str, Any] = {}
            instance: dict[str, Any] = {}
            uids = (row[0], "", "")
            if level is not Level.STUDY:
                series = orjson.loads(row[6]) if needs_series else {}
                series["0020000E"] = _uid_element(row[5])
                series["00201209"] = _count_element(row[7])
                uids = (row[0], row[5], "")
            if level is Level.INSTANCE:
                instance = orjson.loads(zlib.decompress(row[10]) if needs_document else row[9])
                instance["00080056"] = _ONLINE
                uids = (row[0], row[5], row[8])
            sources = study, series, instance
            out = {key: value for key, place, empty in plan if (value := sources[place].get(key, empty)) is not None}
            if everything:
                out = dict(sorted({**instance, **series, **study, **out}.items()))
            for match in sequences:
                key = json_key(match.tag)
                if key in out:
                    out[key] = matching_items(match, out[key])
            return _text(out), uids

        return build


def _study_attributes(row: Sequence[Any], stored: bool) -> dict[str, Any]:
    study: dict[str, Any] = orjson.loads(row[1]) if stored else {}
    study["0020000D"] = _uid_element(row[0])
    study["00080056"] = _ONLINE
    study["00201206"] = _count_element(row[3])
    study["00201208"] = _count_element(row[4])
    if row[2]:
        study["00080061"] = {"vr": "CS", "Value": row[2].split("\\")}
    else:
        study.pop("00080061", None)  # without a modality it is left out: OHIF fails on an empty one
    return study


@lru_cache(maxsize=4096)
def _study_text(row: tuple[Any, ...], include: frozenset[int]) -> _Text:
    """The data set of a study; lists of work are asked for again and again."""
    plan, needs_study, _ = _plan(Level.STUDY, True, False, include)
    study = _study_attributes(row, needs_study)
    return _text({key: value for key, _, empty in plan if (value := study.get(key, empty)) is not None})


def _with_url(text: _Text, uids: tuple[str, str, str], root: str) -> bytes:
    study, series, instance = uids
    url = f"{root}/studies/{study}"
    if series:
        url += f"/series/{series}"
    if instance:
        url += f"/instances/{instance}"
    return orjson.dumps(url).join(text)


def _text(data_set: dict[str, Any]) -> _Text:
    first = {key: value for key, value in data_set.items() if key < _RETRIEVE_URL}
    rest = {key: value for key, value in data_set.items() if key > _RETRIEVE_URL}
    before, after = (orjson.dumps(piece, option=orjson.OPT_SORT_KEYS)[1:-1] for piece in (first, rest))
    url = b'"00081190":{"Value":['
    return b"{" + (before + b"," if before else b"") + url, b'],"vr":"UR"}' + (b"," + after if after else b"") + b"}"


def _reversed(order: str) -> str:
    """ORDER BY the other way round."""
    terms = order.split(", ")
    return ", ".join(term.removesuffix(" DESC") if term.endswith(" DESC") else f"{term} DESC" for term in terms)


def _is_fuzzy_whole(pattern: str) -> bool:
    """Whether a name that matches the pattern literally has words that match each of its words."""
    return not any("?" in word or "*" in word.strip("*") for word in name_tokens(pattern))


def _longest_word(pattern: str) -> str:
    """The longest piece of a word that what matches the pattern must have."""
    pieces = [token for part in re.split(r"[*?]", pattern) for token in name_tokens(part)]
    longest = max(pieces, key=len, default="")
    return longest if len(longest) <= 200 else ""


def _request_condition(match: Match) -> _Condition | None:
    """Request Attributes Sequence by the IDs that have a table; None for other attributes in it."""
    conditions = []
    for item in match.items:
        column = _REQUEST_COLUMNS.get(item.tag)
        if column is None or item.kind is not Kind.EQUAL or any(len(value) >= 200 for value in item.values):
            return None
        conditions.append((f"q.{column} IN ({', '.join('?' * len(item.values))})", list(item.values)))
    condition, values = _all(conditions)
    return (f"r.id IN (SELECT q.series_key FROM series_request q WHERE {condition})", values) if conditions else None


#: What a rule about studies can be about, of the study `s`.
_RULE_CONDITIONS: Final = {
    0x0020000D: "{}",
    0x00100020: "{}",
    0x00100021: "{}",
    0x00080080: "EXISTS (SELECT 1 FROM study_institution x WHERE x.study_key = s.id AND {})",
}
_RULE_COLUMNS: Final = {
    0x0020000D: "s.uid",
    0x00100020: "s.patient_id",
    0x00100021: "s.issuer_of_patient_id",
    0x00080080: "x.institution",
}


def study_condition(rules: Sequence[Sequence[Match]], database: Database) -> _Condition:
    """A condition that the study `s` fulfils one of the rules, of which all matches."""
    conditions = [_all([_rule_condition(match, database) for match in rule]) for rule in rules]
    return _any(conditions) if conditions else ("1 = 0", [])


def _rule_condition(match: Match, database: Database) -> _Condition:
    column = _RULE_COLUMNS[match.tag]
    if match.kind is Kind.WILDCARD:
        condition, values = _any([_like(database, column, pattern) for pattern in match.values])
    else:
        condition, values = f"{column} IN ({', '.join('?' * len(match.values))})", list(match.values)
    return _RULE_CONDITIONS[match.tag].format(condition), values


def _like(database: Database, column: str, pattern: str) -> _Condition:
    condition, values = database.like(column), [database.like_pattern(pattern)]
    prefix = _prefix(pattern)
    exact = pattern.rstrip("*") == prefix != pattern and not prefix.endswith(" ")  # SQL Server: 'a' = 'a '
    if prefix and exact:
        return f"{column} >= ? AND {column} < ?", [prefix, _after(prefix)]
    if prefix:
        return f"{column} >= ? AND {column} < ? AND {condition}", [prefix, _after(prefix), *values]
    return condition, values


def _all(conditions: Sequence[_Condition]) -> _Condition:
    return " AND ".join(text for text, _ in conditions), [value for _, values in conditions for value in values]


def _any(conditions: Sequence[_Condition]) -> _Condition:
    if len(conditions) == 1:
        return conditions[0]
    text = " OR ".join(f"({text})" for text, _ in conditions)
    return f"({text})", [value for _, values in conditions for value in values]


@lru_cache(maxsize=512)
def _plan(
    level: Level, whole_study: bool, whole_series: bool, include: frozenset[int]
) -> tuple[tuple[tuple[str, int, dict[str, Any] | None], ...], bool, bool]:
    """The attributes of a result, keys ascending: key, which of study, series, instance it is taken from, and what
    stands for it if not stored. And whether the attributes of the study and of the series are needed for it.

    `whole_study`, `whole_series`: the attributes of a level above come too, since the path does not name it.
    """
    full = {Level.STUDY: whole_study, Level.SERIES: whole_series, Level.INSTANCE: True}
    plan: dict[str, tuple[Level, dict[str, Any] | None]] = {}
    for tag in include:
        plan[json_key(tag)] = (level if tag in EVERY_LEVEL else level_of(tag) or level, None)
    for row in INDEXED_ATTRIBUTES:
        if row.level <= level and row.returned and full[row.level]:  # of an attribute of every level the lowest
            plan[json_key(row.tag)] = (row.level, None if row.conditional else {"vr": row.vr})
    plan["0020000D"] = (Level.STUDY, None)
    if level is not Level.STUDY:
        plan["0020000E"] = (Level.SERIES, None)
    needs_study = any(own is Level.STUDY and key != "0020000D" for key, (own, _) in plan.items())
    needs_series = any(own is Level.SERIES and key != "0020000E" for key, (own, _) in plan.items())
    places = {Level.STUDY: 0, Level.SERIES: 1, Level.INSTANCE: 2}
    in_order = tuple((key, places[own], empty) for key, (own, empty) in sorted(plan.items()))
    return in_order, needs_study, needs_series
