"""Every SQL statement of the index: store, find, search, remove.

What a study and a series say of themselves (patient, description, dates …) comes from the instance stored first among
those that are there. A SOP Instance UID is unique in the whole archive, a Series Instance UID in its study.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import pairwise
from time import time_ns
from typing import Any, Final, Literal, NamedTuple

import orjson

from dicomcloud.dicom.attributes import (
    EVERY_LEVEL,
    Level,
    is_uid,
    json_key,
    level_of,
)
from dicomcloud.dicom.comparison import date_digits, name_groups, name_tokens, normalise, phonetic_code, time_digits
from dicomcloud.dicom.matching import Match
from dicomcloud.dicom.query import PATIENT_NAME, REFERRING_PHYSICIAN, Query
from dicomcloud.index.database import Database, unit_of_work
from dicomcloud.index.events import Change, EventLog
from dicomcloud.index.models import NO_NUMBER
from dicomcloud.index.search import INSTANCE_KEYS, STUDY_DESCRIPTION, Search, SearchResult, study_condition

_BATCH: Final = 64  # documents read with one statement
_FILES_BATCH: Final = 1000
_WORDS: Final = 100  # put into the vocabulary with one statement


class Outcome(Enum):
    """What became of an instance given to Index.add."""

    ADDED = "added"
    SAME = "same"  # the same bytes are there already
    KEPT = "kept"  # other bytes are there, and stay
    REJECTED = "rejected"  # other bytes are there
    REPLACED = "replaced"  # the other bytes have been put aside


@dataclass(frozen=True, slots=True)
class NewInstance:
    """An instance whose file is in storage. `attributes` is its DICOM JSON, `document` the JSON text for retrieve."""

    attributes: Mapping[str, Any]
    document: bytes
    transfer_syntax: str
    file_key: str
    size: int
    checksum: bytes
    dataset_offset: int
    frames: bytes | None
    bulk_data: bytes


class InstanceRow(NamedTuple):
    id: int
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax: str
    file_key: str
    size: int
    checksum: bytes
    dataset_offset: int
    number_of_frames: int
    stored_at: datetime


# ---------------------------------------------------------------------------------------------------------------------
# DICOM JSON → columns

_Element = Mapping[str, Any]

_EVERY_LEVEL_KEYS: Final = frozenset(map(json_key, EVERY_LEVEL))


def _text(attributes: Mapping[str, Any], key: str, length: int = 200) -> str:
    """The value of an attribute as it is compared in its column; several values are joined by backslashes."""
    element = attributes.get(key) or {}
    values = element.get("Value")
    if not values:
        return ""
    text = str(values[0]) if len(values) == 1 else "\\".join("" if v is None else str(v) for v in values)
    return normalise(int(key, 16), element["vr"], text)[:length] if values[0] is not None else ""


def _names(attributes: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Alphabetic group, and the others as `ideographic=phonetic`, of a person name."""
    element = attributes.get(key)
    values = element.get("Value") if element else None
    if not values:
        return "", ""
    alphabetic, ideographic, phonetic = name_groups(values[0])
    return alphabetic[:200], f"{ideographic}={phonetic}".rstrip("=")[:400]


def _number(attributes: Mapping[str, Any], key: str) -> int:
    element = attributes.get(key)
    values = element.get("Value") if element else None
    try:
        return int(values[0]) if values and abs(int(values[0])) < NO_NUMBER else NO_NUMBER
    except (TypeError, ValueError):
        return NO_NUMBER


def _moment(attributes: Mapping[str, Any], date_key: str, time_key: str) -> str:
    day = date_digits(_text(attributes, date_key))
    return day + (time_digits(_text(attributes, time_key)) or "000000000000") if day else ""


_level_cache: dict[str, Level | None] = {}


def _split(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _json(attributes: Mapping[str, Any]) -> str:
    text = orjson.dumps(attributes).decode()
    if '"BulkDataURI"' in text:  # inside a sequence
        text = orjson.dumps({key: _without_bulk_data(element) for key, element in attributes.items()}).decode()
    return text


def _without_bulk_data(element: _Element) -> dict[str, Any]:
    if element["vr"] != "SQ":
        return {key: value for key, value in element.items() if key != "BulkDataURI"}
    items = ({key: _without_bulk_data(inner) for key, inner in item.items()} for item in element.get("Value", ()))
    return {**element, "Value": list(items)} if "Value" in element else dict(element)


def _uid(attributes: Mapping[str, Any], key: str) -> str:
    uid = _text(attributes, key, 65)
    if not is_uid(uid):
        raise ValueError(f"attribute {key} is not a UID")
    return uid


def _fixed_length(text: str) -> str:
    """Text that fits a key column and stays unique."""
    return text if len(text) <= 200 else text[:130] + ":" + hashlib.sha256(text.encode()).hexdigest()


def _now() -> int:
    return time_ns() // 1000


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _datetime(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


# ---------------------------------------------------------------------------------------------------------------------
# Writing

_STUDY_COLUMNS: Final = (
    "patient_key",
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "patient_name_other",
    "patient_birth_date",
    "patient_sex",
    "study_datetime",
    "study_time",
    "accession_number",
    "study_id",
    "study_description",
    "referring_physician_name",
    "referring_physician_name_other",
    "attributes",
)
_SERIES_COLUMNS: Final = ("number", "modality", "study_datetime", "performed_start", "attributes")

_INSERT_STUDY: Final = (
    f"INSERT INTO study (uid, {', '.join(_STUDY_COLUMNS)}, modalities, number_of_series, number_of_instances,"
    f" revision, changed_at) VALUES (?{', ?' * len(_STUDY_COLUMNS)}, '', 0, 0, ?, ?)"
)
_UPDATE_STUDY: Final = f"UPDATE study SET {', '.join(f'{column} = ?' for column in _STUDY_COLUMNS)} WHERE id = ?"
_INSERT_SERIES: Final = (
    f"INSERT INTO series (study_key, uid, {', '.join(_SERIES_COLUMNS)}, number_of_instances, revision, changed_at)"
    f" VALUES (?, ?{', ?' * len(_SERIES_COLUMNS)}, 0, ?, ?)"
)
_UPDATE_SERIES: Final = f"UPDATE series SET {', '.join(f'{column} = ?' for column in _SERIES_COLUMNS)} WHERE id = ?"
_FIND_INSTANCE: Final = (
    "SELECT i.id, i.series_key, r.study_key, i.file_key, i.size, i.checksum, i.transfer_syntax, i.stored_at, s.uid,"
    " r.uid FROM instance i JOIN series r ON r.id = i.series_key JOIN study s ON s.id = r.study_key WHERE i.uid = ?"
)
_FIND_INSTANCES: Final = f"SELECT uid FROM instance WHERE uid IN ({', '.join('?' * _BATCH)})"
_FIND_STUDY: Final = (  # and whether something of it was deleted, and the revision
    "SELECT a.revision, CASE WHEN EXISTS (SELECT 1 FROM deletion WHERE study_uid = ?) THEN 1 ELSE 0 END,"
    " s.id, s.study_datetime FROM archive_state a LEFT JOIN study s ON s.uid = ? WHERE a.id = 1"
)
_INSERT_INSTANCE: Final = (
    "INSERT INTO instance (series_key, uid, sop_class_uid, number, transfer_syntax, number_of_frames, file_key, size,"
    " checksum, dataset_offset, stored_at, attributes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_METADATA: Final = (
    "INSERT INTO instance_metadata (instance_key, document, frames, bulk_data) VALUES (?, ?, ?, ?)"
)


@dataclass(slots=True)
class _StudyState:
    id: int
    datetime: str
    tombstones: bool
    is_new: bool  # then all that it has is what this transaction has stored
    series: dict[str, _SeriesState] = field(default_factory=dict)
    new_series: int = 0
    new_instances: int = 0
    modalities: set[str] = field(default_factory=set)  # of a new study all; else those that were not there
    institutions: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _SeriesState:
    id: int
    new_instances: int = 0


class _Writer:
    """One write transaction: keeps counters, revisions, modalities and tombstones right."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._run = database.run  # for an answer
        self._do = database.later  # without one
        self._now = _now()
        self._studies: dict[str, _StudyState] = {}
        self._absent: set[str] = set()  # SOP Instance UIDs that were looked for in vain
        self._revision = 0
        self._totals = {"studies": 0, "series": 0, "instances": 0, "bytes": 0}

    @property
    def revision(self) -> int:
        """The revision of what this transaction changes."""
        if not self._revision:
            self._revision = self._run("SELECT revision FROM archive_state WHERE id = 1").fetchone()[0] + 1
        return self._revision

    # Store

    def look_for(self, new: Sequence[NewInstance]) -> None:
        """See which of many instances are not there, with one statement for many, before `add` is called for each."""
        uids = list(dict.fromkeys(_uid(instance.attributes, "00080018") for instance in new))
        if len(uids) == 1:
            return
        for start in range(0, len(uids), _BATCH):
            batch = uids[start : start + _BATCH]
            found = self._run(_FIND_INSTANCES, batch + batch[-1:] * (_BATCH - len(batch))).fetchall()
            self._absent.update(set(batch).difference(uid for (uid,) in found))

    def add(self, new: NewInstance, document: bytes, duplicates: str) -> Outcome:
        sop_uid = _uid(new.attributes, "00080018")
        found = None if sop_uid in self._absent else self._run(_FIND_INSTANCE, (sop_uid,)).fetchone()
        if found is None:
            self._insert(new, document, sop_uid)
            self._absent.discard(sop_uid)
            return Outcome.ADDED
        if found[4] == new.size and found[5] == new.checksum:
            return Outcome.SAME
        if duplicates != "replace":
            return Outcome.KEPT if duplicates == "keep" else Outcome.REJECTED
        self._supersede(sop_uid, found)
        self._insert(new, document, sop_uid)
        return Outcome.REPLACED

    def _insert(self, new: NewInstance, document: bytes, sop_uid: str) -> None:
        attributes = new.attributes
        study_uid, series_uid = _uid(attributes, "0020000D"), _uid(attributes, "0020000E")
        study = self._studies.get(study_uid) or self._study(study_uid, attributes)
        series = study.series.get(series_uid) or self._series(study, study_uid, series_uid, attributes)
        frames = _number(attributes, "00280008")
        instance = self._database.insert(
            _INSERT_INSTANCE,
            (
                series.id,
                sop_uid,
                _text(attributes, "00080016", 64),
                _number(attributes, "00200013"),
                new.transfer_syntax,
                frames if 0 < frames < 2**31 else int(new.frames is not None),
                new.file_key,
                new.size,
                new.checksum,
                new.dataset_offset,
                self._now,
                _json({key: attributes[key] for key in INSTANCE_KEYS if key in attributes}),
            ),
        )
        self._do(_INSERT_METADATA, (instance, document, new.frames, new.bulk_data))
        if study.tombstones:
            self._forget_deletion(study_uid, series_uid, sop_uid)
        study.new_instances += 1
        series.new_instances += 1
        self._totals["instances"] += 1
        self._totals["bytes"] += new.size

    def _study(self, uid: str, attributes: Mapping[str, Any]) -> _StudyState:
        revision, tombstones, key, moment = self._run(_FIND_STUDY, (uid, uid)).fetchone()
        self._revision = self._revision or revision + 1
        is_new = key is None
        if is_new:
            values = self._study_values(uid, _split(attributes)[0])
            key = self._database.insert(_INSERT_STUDY, (uid, *values, self.revision, self._now))
            moment = values[_STUDY_COLUMNS.index("study_datetime")]
            self._insert_words(key, moment, attributes)
            self._totals["studies"] += 1
            if tombstones:
                self._forget_deletion(uid, "", "")
        study = self._studies[uid] = _StudyState(key, moment, bool(tombstones), is_new)
        return study

    def _series(self, study: _StudyState, study_uid: str, uid: str, attributes: Mapping[str, Any]) -> _SeriesState:
        row = None
        if not study.is_new:
            row = self._run("SELECT id FROM series WHERE study_key = ? AND uid = ?", (study.id, uid)).fetchone()
        if row is None:
            values = _series_values(_split(attributes)[1], study.datetime)
            row = (self._database.insert(_INSERT_SERIES, (study.id, uid, *values, self.revision, self._now)),)
            self._insert_requests(row[0], attributes)
            study.new_series += 1
            self._insert_modality(study, values[1])
            self._insert_institution(study, attributes)
            self._totals["series"] += 1
            if study.tombstones:
                self._forget_deletion(study_uid, uid, "")
        series = study.series[uid] = _SeriesState(row[0])
        return series

    def _study_values(self, uid: str, attributes: Mapping[str, Any]) -> tuple[Any, ...]:
        name, name_other = _names(attributes, "00100010")
        referring, referring_other = _names(attributes, "00080090")
        patient_id, issuer = _text(attributes, "00100020", 1 << 20), _text(attributes, "00100021", 1 << 20)
        return (
            self._patient(patient_id, issuer, uid),
            patient_id[:200],
            issuer[:200],
            name,
            name_other,
            date_digits(_text(attributes, "00100030")),
            _text(attributes, "00100040", 16),
            _moment(attributes, "00080020", "00080030"),
            time_digits(_text(attributes, "00080030")),
            _text(attributes, "00080050"),
            _text(attributes, "00200010"),
            _text(attributes, "00081030"),
            referring,
            referring_other,
            _json(attributes),
        )

    def _patient(self, patient_id: str, issuer: str, study_uid: str) -> int:
        identity = (_fixed_length(patient_id), _fixed_length(issuer), "" if patient_id else study_uid)
        row = self._run(
            "SELECT id FROM patient WHERE patient_id = ? AND issuer_of_patient_id = ? AND only_study = ?", identity
        ).fetchone()
        if row is not None:
            return int(row[0])
        return self._database.insert(
            "INSERT INTO patient (patient_id, issuer_of_patient_id, only_study) VALUES (?, ?, ?)", identity
        )

    def _insert_words(self, study_key: int, study_datetime: str, attributes: Mapping[str, Any]) -> None:
        rows, learned = [], []
        for tag in (PATIENT_NAME, REFERRING_PHYSICIAN):
            alphabetic, others = _names(attributes, json_key(tag))
            learned += [(-tag, word[:200]) for word in name_tokens(others)]
            for word in dict.fromkeys(word[:200] for word in name_tokens(f"{alphabetic} {others}")):
                rows.append((study_key, tag, word, phonetic_code(word), study_datetime))
                learned.append((tag, word))
        self._database.insert_rows("name_word", ("study_key", "attribute", "word", "code", "study_datetime"), rows)
        if description := _text(attributes, "00081030"):
            learned.append((STUDY_DESCRIPTION, description))
        self._learn(list(dict.fromkeys(learned)))

    def _learn(self, words: Sequence[tuple[int, str]]) -> None:
        """Put words into the vocabulary, those that are not there."""
        for start in range(0, len(words), _WORDS):
            some = words[start : start + _WORDS]
            first, *others = ["SELECT ? AS attribute, ? AS word", *["SELECT ?, ?"] * (len(some) - 1)]
            self._do(
                "INSERT INTO vocabulary (attribute, word) SELECT n.attribute, n.word FROM"
                f" ({' UNION ALL '.join([first, *others])}) n WHERE NOT EXISTS"
                " (SELECT 1 FROM vocabulary v WHERE v.attribute = n.attribute AND v.word = n.word)",
                [value for pair in some for value in pair],
            )

    def _insert_requests(self, series_key: int, attributes: Mapping[str, Any]) -> None:
        """The items of Request Attributes Sequence that have an ID."""
        for item in (attributes.get("00400275") or {}).get("Value") or ():
            ids = [_text(item, key) for key in ("00400009", "00401001")]
            if any(ids):
                self._do(
                    "INSERT INTO series_request (series_key, scheduled_procedure_step_id, requested_procedure_id)"
                    " VALUES (?, ?, ?)",
                    (series_key, *ids),
                )

    def _insert_modality(self, study: _StudyState, modality: str) -> None:
        key = (study.id, modality)
        known = "SELECT 1 FROM study_modality WHERE study_key = ? AND modality = ?"
        if not modality or modality in study.modalities or not study.is_new and self._run(known, key).fetchone():
            return
        study.modalities.add(modality)
        self._do(
            "INSERT INTO study_modality (study_key, modality, study_datetime) VALUES (?, ?, ?)",
            (*key, study.datetime),
        )

    def _insert_institution(self, study: _StudyState, attributes: Mapping[str, Any]) -> None:
        institution = _text(attributes, "00080080")
        key = (study.id, institution)
        known = "SELECT 1 FROM study_institution WHERE study_key = ? AND institution = ?"
        if (
            not institution
            or institution in study.institutions
            or not study.is_new
            and self._run(known, key).fetchone()
        ):
            return
        study.institutions.add(institution)
        self._do("INSERT INTO study_institution (study_key, institution) VALUES (?, ?)", key)

    def _forget_deletion(self, *uids: str) -> None:
        self._do("DELETE FROM deletion WHERE study_uid = ? AND series_uid = ? AND sop_uid = ?", uids)

    def _supersede(self, sop_uid: str, found: Sequence[Any]) -> None:
        instance, series_key, study_key, file_key, size, checksum, syntax, stored_at, study_uid, series_uid = found
        self._do(
            "INSERT INTO superseded (study_uid, series_uid, sop_uid, transfer_syntax, file_key, size, checksum,"
            " stored_at, superseded_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (study_uid, series_uid, sop_uid, syntax, file_key, size, checksum, stored_at, self._now),
        )
        self.delete([(instance, series_key, study_key, size)])

    def finish(self) -> None:
        """Write the counters and revisions of what has been added since the last time."""
        for study in self._studies.values():
            if not study.new_instances:
                continue
            for series in study.series.values():
                if series.new_instances:
                    self._do(
                        "UPDATE series SET number_of_instances = number_of_instances + ?, revision = ?, changed_at = ?"
                        " WHERE id = ?",
                        (series.new_instances, self.revision, self._now, series.id),
                    )
            modalities = study.modalities
            if modalities and not study.is_new:
                modalities = self._modalities(study.id)
            self._do(
                f"UPDATE study SET {'modalities = ?, ' if modalities else ''}number_of_series = number_of_series + ?,"
                " number_of_instances = number_of_instances + ?, revision = ?, changed_at = ? WHERE id = ?",
                (
                    *([_joined(modalities)] if modalities else []),
                    *(study.new_series, study.new_instances, self.revision, self._now, study.id),
                ),
            )
        self._studies.clear()
        if any(self._totals.values()):
            self._do(
                "UPDATE archive_state SET revision = ?, studies = studies + ?, series = series + ?,"
                " instances = instances + ?, bytes = bytes + ? WHERE id = 1",
                (self.revision, *self._totals.values()),
            )
            self._totals = dict.fromkeys(self._totals, 0)

    def _modalities(self, study_key: int) -> set[str]:
        rows = self._run("SELECT modality FROM study_modality WHERE study_key = ?", (study_key,)).fetchall()
        return {modality for (modality,) in rows}

    # Remove

    def delete(self, instances: Iterable[tuple[int, int, int, int]]) -> None:
        """Delete instances, given as (id, series key, study key, size), and what is empty without them."""
        self.finish()
        series_keys: dict[int, int] = {}
        for instance, series_key, study_key, size in instances:
            self._do("DELETE FROM instance_metadata WHERE instance_key = ?", (instance,))
            self._do("DELETE FROM instance WHERE id = ?", (instance,))
            series_keys[series_key] = study_key
            self._totals["instances"] -= 1
            self._totals["bytes"] -= size
        for series_key in series_keys:
            self._tidy_series(series_key)
        for study_key in set(series_keys.values()):
            self._tidy_study(study_key)
        self.finish()

    def _tidy_series(self, key: int) -> None:
        count, first = self._run("SELECT count(*), min(id) FROM instance WHERE series_key = ?", (key,)).fetchone()
        self._do("DELETE FROM series_request WHERE series_key = ?", (key,))
        if not count:
            self._do("DELETE FROM series WHERE id = ?", (key,))
            self._totals["series"] -= 1
            return
        attributes = _split(self._document(first))[1]
        study_datetime = self._run("SELECT study_datetime FROM series WHERE id = ?", (key,)).fetchone()[0]
        self._do(_UPDATE_SERIES, (*_series_values(attributes, study_datetime), key))
        self._insert_requests(key, attributes)
        self._do(
            "UPDATE series SET number_of_instances = ?, revision = ?, changed_at = ? WHERE id = ?",
            (count, self.revision, self._now, key),
        )

    def _tidy_study(self, key: int) -> None:
        patient, uid = self._run("SELECT patient_key, uid FROM study WHERE id = ?", (key,)).fetchone()
        series, instances, first = self._run(
            "SELECT count(DISTINCT r.id), count(*), min(i.id) FROM series r JOIN instance i ON i.series_key = r.id"
            " WHERE r.study_key = ?",
            (key,),
        ).fetchone()
        self._do("DELETE FROM name_word WHERE study_key = ?", (key,))
        self._do("DELETE FROM study_modality WHERE study_key = ?", (key,))
        self._do("DELETE FROM study_institution WHERE study_key = ?", (key,))
        if instances:
            attributes = _split(self._document(first))[0]
            values = self._study_values(uid, attributes)
            study_datetime = values[_STUDY_COLUMNS.index("study_datetime")]
            self._do(_UPDATE_STUDY, (*values, key))
            self._do("UPDATE series SET study_datetime = ? WHERE study_key = ?", (study_datetime, key))
            self._insert_words(key, study_datetime, attributes)
            study = _StudyState(key, study_datetime, tombstones=False, is_new=True)  # its lists are empty again
            rows = self._run("SELECT modality, attributes FROM series WHERE study_key = ?", (key,)).fetchall()
            for modality, text in rows:
                self._insert_modality(study, modality)
                self._insert_institution(study, orjson.loads(text))
            self._do(
                "UPDATE study SET modalities = ?, number_of_series = ?, number_of_instances = ?, revision = ?,"
                " changed_at = ? WHERE id = ?",
                (_joined(study.modalities), series, instances, self.revision, self._now, key),
            )
        else:
            self._do("DELETE FROM study WHERE id = ?", (key,))
            self._totals["studies"] -= 1
        if not self._run("SELECT 1 FROM study WHERE patient_key = ?", (patient,)).fetchone():
            self._do("DELETE FROM patient WHERE id = ?", (patient,))

    def _document(self, instance: int) -> dict[str, Any]:
        (document,) = self._run("SELECT document FROM instance_metadata WHERE instance_key = ?", (instance,)).fetchone()
        attributes: dict[str, Any] = orjson.loads(zlib.decompress(document))
        return attributes

    def bury(self, uids: Iterable[tuple[str, str, str]]) -> None:
        """Set tombstones."""
        for key in uids:
            self._forget_deletion(*key)
            self._do(
                "INSERT INTO deletion (study_uid, series_uid, sop_uid, deleted_at) VALUES (?, ?, ?, ?)",
                (*key, self._now),
            )

    def record_removed_files(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._do("DELETE FROM removed_file WHERE file_key = ?", (key,))
            self._do("INSERT INTO removed_file (file_key, removed_at) VALUES (?, ?)", (key, self._now))


def _joined(modalities: Iterable[str]) -> str:
    return "\\".join(sorted(modalities))[:400]


def _series_values(attributes: Mapping[str, Any], study_datetime: str) -> tuple[Any, ...]:
    return (
        _number(attributes, "00200011"),
        _text(attributes, "00080060", 64),
        study_datetime,
        _moment(attributes, "00400244", "00400245"),
        _json(attributes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The index

_ROW: Final = (
    "SELECT i.id, s.uid, r.uid, i.uid, i.sop_class_uid, i.transfer_syntax, i.file_key, i.size, i.checksum,"
    " i.dataset_offset, i.number_of_frames, i.stored_at"
)
_FROM: Final = " FROM instance i JOIN series r ON r.id = i.series_key JOIN study s ON s.id = r.study_key"
_ONE: Final = " WHERE i.uid = ? AND r.uid = ? AND s.uid = ?"
_WITH_METADATA: Final = " JOIN instance_metadata d ON d.instance_key = i.id"
_IN_ORDER: Final = " ORDER BY r.number, r.uid, i.number, i.uid"

_FRAMES: Final = f"{_ROW}, d.frames{_FROM}{_WITH_METADATA}{_ONE}"
_BULK_DATA: Final = f"{_ROW}, d.bulk_data{_FROM}{_WITH_METADATA}{_ONE}"
_DOCUMENT: Final = f"{_ROW}, d.document{_FROM}{_WITH_METADATA}{_ONE}"
_DESCRIPTION: Final = f"{_ROW}, d.document, d.frames, d.bulk_data{_FROM}{_WITH_METADATA}{_ONE}"
_DOCUMENTS: Final = (
    "SELECT i.id, i.uid, d.document FROM instance i JOIN instance_metadata d ON d.instance_key = i.id"
    f" WHERE i.id IN ({', '.join('?' * _BATCH)})"
)


def _change(attributes: Mapping[str, Any], outcome: Outcome) -> Change:
    study, series, instance = (_uid(attributes, key) for key in ("0020000D", "0020000E", "00080018"))
    action: Literal["stored", "replaced"] = "stored" if outcome is Outcome.ADDED else "replaced"
    return Change(action, study, series, instance, _text(attributes, "00080016", 64))


@dataclass(frozen=True, slots=True)
class StudySummary:
    """A study, for whoever decides whether it stays."""

    uid: str
    patient_id: str
    issuer: str
    studied_at: datetime | None  # day of the study; None where it is not told
    modalities: tuple[str, ...]
    instances: int
    bytes: int
    stored_at: datetime  # when an instance of it was stored last


def _day(digits: str) -> datetime | None:
    try:
        return datetime.strptime(digits[:8], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None


def _instance_row(row: Sequence[Any]) -> InstanceRow:
    return InstanceRow._make((*row[:11], _datetime(row[11])))


def _scope(study_uid: str, series_uid: str | None, sop_uid: str | None) -> tuple[str, list[str]]:
    """WHERE of what lies under a study, a series or an instance; the whole hierarchy has to match."""
    condition, values = " WHERE s.uid = ?", [study_uid]
    for column, uid in (("r.uid", series_uid), ("i.uid", sop_uid)):
        if uid is not None:
            condition += f" AND {column} = ?"
            values.append(uid)
    return condition, values


class Index:
    """What is stored, and where. Safe to use from several threads and processes."""

    def __init__(self, database: Database, events: EventLog | None = None) -> None:
        self._database = database
        self._run = database.run
        self.events = events or EventLog(database)

    @unit_of_work
    def add(
        self,
        new: Sequence[NewInstance],
        duplicates: Literal["reject", "keep", "replace"],
        *,
        announce: bool = True,
        has_file: Callable[[str], bool] | None = None,
        alongside: Callable[[Sequence[Outcome]], None] | None = None,
    ) -> list[Outcome]:
        """Record instances whose files are in storage, in one transaction that is durable when this returns.

        One Outcome for each; the file of anything but ADDED and REPLACED is the caller's to remove. Other bytes under a
        known SOP Instance UID follow `duplicates`. With `has_file`, which is asked inside the transaction, those whose
        file is gone are left out: of files that were found, not just stored, another process may have stored the row
        and deleted it again meanwhile. `alongside` is called inside the transaction, in which the change feed gets them
        too, and the outbox unless `announce` is False. ValueError when an instance lacks a UID: nothing is recorded
        then. Raises Unavailable when the database is busy or full.
        """
        documents = {instance.file_key: zlib.compress(instance.document, 3) for instance in new}
        with self._database.write():
            if has_file is not None:
                removed = set(self.files_to_remove())
                new = [each for each in new if each.file_key not in removed and has_file(each.file_key)]
            writer = _Writer(self._database)
            writer.look_for(new)
            outcomes = [writer.add(instance, documents[instance.file_key], duplicates) for instance in new]
            writer.finish()
            if alongside is not None:
                alongside(outcomes)
            changes = [
                _change(instance.attributes, outcome)
                for instance, outcome in zip(new, outcomes, strict=True)
                if outcome in (Outcome.ADDED, Outcome.REPLACED)
            ]
            waiting = self.events.record(changes, announce=announce)
        if waiting:
            self.events.committed()
        return outcomes

    def search(self, query: Query) -> SearchResult:
        """The page of the query. One statement, and a count where the page does not tell the total."""
        return Search(self._database, query).result()

    def has_study(self, study_uid: str, rules: Sequence[Sequence[Match]] | None = None) -> bool:
        """Whether there is this study; with `rules`, whether it fulfils one of them, of which all matches."""
        condition, values = "s.uid = ?", [study_uid]
        if rules is not None:
            more, others = study_condition(rules, self._database)
            condition, values = f"{condition} AND {more}", values + others
        return self._run(f"SELECT 1 FROM study s WHERE {condition}", values).fetchone() is not None

    def may_store(self, study_uid: str, sop_uid: str, rules: Sequence[Sequence[Match]]) -> bool:
        """Whether the study, and the one in which the instance is now, fulfil one of the rules, if they are there."""
        condition, values = study_condition(rules, self._database)
        other = "SELECT r.study_key FROM instance i JOIN series r ON r.id = i.series_key WHERE i.uid = ?"  # one at most
        statement = f"SELECT 1 FROM study s WHERE (s.uid = ? OR s.id IN ({other})) AND NOT ({condition})"
        return self._run(statement, (study_uid, sop_uid, *values)).fetchone() is None

    def instances(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> list[InstanceRow]:
        """The instances under the UIDs, by series number, series UID, instance number, SOP Instance UID."""
        condition, values = _scope(study_uid, series_uid, sop_uid)
        return [_instance_row(row) for row in self._run(_ROW + _FROM + condition + _IN_ORDER, values).fetchall()]

    def frames(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[InstanceRow, bytes | None] | None:
        """An instance and its packed frame table (dicom.header.Frames), None without pixel data."""
        row = self._run(_FRAMES, (sop_uid, series_uid, study_uid)).fetchone()
        return None if row is None else (_instance_row(row), row[12])

    def bulk_data(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[InstanceRow, bytes] | None:
        """An instance and its packed table of bulk values (dicom.header.unpack_bulk_data)."""
        row = self._run(_BULK_DATA, (sop_uid, series_uid, study_uid)).fetchone()
        return None if row is None else (_instance_row(row), row[12])

    def document(self, study_uid: str, series_uid: str, sop_uid: str) -> tuple[InstanceRow, bytes] | None:
        """An instance and its DICOM JSON text."""
        row = self._run(_DOCUMENT, (sop_uid, series_uid, study_uid)).fetchone()
        return None if row is None else (_instance_row(row), zlib.decompress(row[12]))

    def description(
        self, study_uid: str, series_uid: str, sop_uid: str
    ) -> tuple[InstanceRow, bytes, bytes | None, bytes] | None:
        """An instance, its DICOM JSON text as zlib compressed it, and its packed tables of frames and bulk values."""
        row = self._run(_DESCRIPTION, (sop_uid, series_uid, study_uid)).fetchone()
        return None if row is None else (_instance_row(row), row[12], row[13], row[14])

    def documents(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Iterator[bytes]:
        """The DICOM JSON text of each instance in the order of `instances`; no cursor stays open between two."""
        condition, values = _scope(study_uid, series_uid, sop_uid)
        order = self._run(f"SELECT i.id, i.uid{_FROM}{condition}{_IN_ORDER}", values).fetchall()
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids = [row[0] for row in batch]
            found = self._run(_DOCUMENTS, ids + ids[-1:] * (_BATCH - len(ids))).fetchall()
            documents = {(row[0], row[1]): row[2] for row in found}
            for key in batch:
                document = documents.get(key)
                if document is not None:  # else deleted meanwhile
                    yield zlib.decompress(document)

    def revision(self, study_uid: str, series_uid: str | None = None) -> tuple[int, datetime] | None:
        """A number that is another after every change below the study or series, never seen before; and when it was."""
        if series_uid is None:
            row = self._run("SELECT revision, changed_at FROM study WHERE uid = ?", (study_uid,)).fetchone()
        else:
            row = self._run(
                "SELECT r.revision, r.changed_at FROM series r JOIN study s ON s.id = r.study_key"
                " WHERE s.uid = ? AND r.uid = ?",
                (study_uid, series_uid),
            ).fetchone()
        return None if row is None else (row[0], _datetime(row[1]))

    def series_revisions(self, study_uid: str, series_uid: str | None = None) -> list[tuple[str, int, datetime]]:
        """(UID, revision, when it was) of the series of a study, or of one, in the order of `instances`."""
        condition, values = _scope(study_uid, series_uid, None)
        rows = self._run(
            "SELECT r.uid, r.revision, r.changed_at FROM series r JOIN study s ON s.id = r.study_key"
            f"{condition} ORDER BY r.number, r.uid",
            values,
        ).fetchall()
        return [(row[0], row[1], _datetime(row[2])) for row in rows]

    def was_deleted(self, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> bool:
        """Whether the object has been removed and not been stored again."""
        return (
            self._run(
                "SELECT 1 FROM deletion WHERE study_uid = ? AND series_uid = ? AND sop_uid = ?",
                (study_uid, series_uid or "", sop_uid or ""),
            ).fetchone()
            is not None
        )

    @unit_of_work
    def remove(
        self,
        study_uid: str,
        series_uid: str | None = None,
        sop_uid: str | None = None,
        alongside: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Remove what lies under the UIDs, and the series, study and patient left empty. [] if there is nothing.

        Returns the keys of the files to remove, those of superseded versions too; `files_to_remove` has them as well
        until `files_removed` is told. `alongside` is called within the transaction with the number of instances.
        """
        condition, values = _scope(study_uid, series_uid, sop_uid)
        with self._database.write():
            rows = self._run(
                f"SELECT i.id, r.id, s.id, i.size, s.uid, r.uid, i.uid, i.file_key, i.sop_class_uid{_FROM}{condition}",
                values,
            ).fetchall()
            if not rows:
                return []
            keys = [row[7] for row in rows]
            for row in rows:
                old = self._run("SELECT file_key FROM superseded WHERE sop_uid = ?", (row[6],)).fetchall()
                if old:
                    keys.extend(key for (key,) in old)
                    self._database.later("DELETE FROM superseded WHERE sop_uid = ?", (row[6],))
            writer = _Writer(self._database)
            writer.delete(row[:4] for row in rows)
            buried = [(row[4], row[5], row[6]) for row in rows]
            for series_key, series in {row[1]: row[5] for row in rows}.items():
                if not self._run("SELECT 1 FROM series WHERE id = ?", (series_key,)).fetchone():
                    buried.append((study_uid, series, ""))
            if not self._run("SELECT 1 FROM study WHERE uid = ?", (study_uid,)).fetchone():
                buried.append((study_uid, "", ""))
            writer.bury(buried)
            writer.record_removed_files(keys)
            if alongside is not None:
                alongside(len(rows))
            waiting = self.events.record([Change("deleted", row[4], row[5], row[6], row[8]) for row in rows])
        if waiting:
            self.events.committed()
        return keys

    def files_to_remove(self) -> list[str]:
        """The keys of files that no row names any more."""
        return [key for (key,) in self._run("SELECT file_key FROM removed_file ORDER BY id").fetchall()]

    @unit_of_work
    def files_removed(self, keys: Collection[str]) -> None:
        """The files are gone from storage."""
        with self._database.write():
            for key in keys:
                self._database.later("DELETE FROM removed_file WHERE file_key = ?", (key,))

    def files(self, after: str = "") -> Iterator[tuple[str, int, bytes]]:
        """(key, size, checksum) of every current and superseded file by key, those behind the key `after`.

        No cursor stays open between batches.
        """
        statement = (
            "SELECT file_key, size, checksum FROM instance WHERE file_key > ? UNION ALL"
            " SELECT file_key, size, checksum FROM superseded WHERE file_key > ? ORDER BY file_key "
        )
        last = after
        while True:
            page, values = self._database.page(_FILES_BATCH, 0)
            rows = self._run(statement + page, [last, last, *values]).fetchall()
            yield from rows
            if len(rows) < _FILES_BATCH:
                return
            last = rows[-1][0]

    def studies_of_patient(self, patient_id: str, issuer: str = "") -> list[str]:
        """The UIDs of a patient's studies, oldest first. A patient is the same by issuer and ID (models.Patient)."""
        identity = (
            _fixed_length(normalise(0x00100020, "LO", patient_id)),
            _fixed_length(normalise(0x00100021, "LO", issuer)),
        )
        rows = self._run(
            "SELECT s.uid FROM study s JOIN patient p ON p.id = s.patient_key WHERE p.patient_id = ?"
            " AND p.issuer_of_patient_id = ? AND p.only_study = '' ORDER BY s.study_datetime, s.id",
            identity,
        ).fetchall()
        return [uid for (uid,) in rows]

    def study_summaries(self) -> list[StudySummary]:
        """What there is to know of each study for deciding whether it stays."""
        rows = self._run(
            "SELECT s.uid, s.patient_id, s.issuer_of_patient_id, s.study_datetime, s.modalities, s.number_of_instances,"
            " sum(i.size), max(i.stored_at) FROM study s JOIN series r ON r.study_key = s.id"
            " JOIN instance i ON i.series_key = r.id GROUP BY s.id, s.uid, s.patient_id, s.issuer_of_patient_id,"
            " s.study_datetime, s.modalities, s.number_of_instances ORDER BY s.id"
        ).fetchall()
        return [
            StudySummary(
                uid=row[0],
                patient_id=row[1],
                issuer=row[2],
                studied_at=_day(row[3]),
                modalities=tuple(filter(None, row[4].split("\\"))),
                instances=row[5],
                bytes=int(row[6]),
                stored_at=_datetime(row[7]),
            )
            for row in rows
        ]

    def superseded_files(self, before: datetime) -> list[str]:
        """The keys of the files of versions that were replaced before this moment."""
        moment = int(before.timestamp() * 1e6)
        rows = self._run("SELECT file_key FROM superseded WHERE superseded_at < ? ORDER BY file_key", (moment,))
        return [key for (key,) in rows.fetchall()]

    @unit_of_work
    def forget_superseded(self, keys: Sequence[str]) -> None:
        """Forget versions that were replaced; their files are in `files_to_remove` until `files_removed` is told."""
        with self._database.write():
            for key in keys:
                self._database.later("DELETE FROM superseded WHERE file_key = ?", (key,))
            _Writer(self._database).record_removed_files(keys)

    def newest_file(self) -> str | None:
        """The key of the file that was stored last, None in an empty archive."""
        row = self._run("SELECT file_key FROM instance WHERE id = (SELECT max(id) FROM instance)").fetchone()
        return None if row is None else str(row[0])

    def first_and_last_file(self) -> list[str]:
        """The keys of the files that were stored first and last; none in an empty archive."""
        rows = self._run(
            "SELECT file_key FROM instance"
            " WHERE id IN (SELECT min(id) FROM instance UNION SELECT max(id) FROM instance)"
        ).fetchall()
        return [str(key) for (key,) in rows]

    def has_file(self, key: str) -> bool:
        """Whether a current or a superseded instance has this file."""
        statement = "SELECT 1 FROM instance WHERE file_key = ? UNION ALL SELECT 1 FROM superseded WHERE file_key = ?"
        return self._run(statement, (key, key)).fetchone() is not None

    @unit_of_work
    def drop_instance_of_file(self, key: str) -> None:
        """Forget the instance or superseded version whose file is lost; it leaves no tombstone."""
        with self._database.write():
            self._database.later("DELETE FROM superseded WHERE file_key = ?", (key,))
            row = self._run(
                f"SELECT i.id, r.id, s.id, i.size, s.uid, r.uid, i.uid, i.sop_class_uid{_FROM} WHERE i.file_key = ?",
                (key,),
            ).fetchone()
            if row is not None:
                _Writer(self._database).delete([row[:4]])
                self.events.record([Change("deleted", row[4], row[5], row[6], row[7])])

    @unit_of_work
    def clear(self) -> None:
        """Forget every instance, for a rebuild from the files.

        Stay: tombstones, superseded versions and the list of files to remove, so that a rebuild brings back neither
        what has been replaced nor what has been deleted; and the revision, so that none is used twice.
        """
        with self._database.write():
            for table in (
                "instance_metadata",
                "instance",
                "series_request",
                "series",
                "study_modality",
                "study_institution",
                "name_word",
                "vocabulary",
                "study",
                "patient",
            ):
                self._run(f"DELETE FROM {table}")
            self._run(
                "UPDATE archive_state SET revision = revision + 1, studies = 0, series = 0, instances = 0, bytes = 0"
            )

    def counts(self) -> dict[str, int]:
        """How many patients, studies, series, instances, and bytes of files, superseded ones not among them."""
        row = self._run("SELECT studies, series, instances, bytes FROM archive_state WHERE id = 1").fetchone()
        patients = self._run("SELECT count(*) FROM patient").fetchone()[0]
        return {"patients": patients, "studies": row[0], "series": row[1], "instances": row[2], "bytes": row[3]}

    def received(self, moments: Sequence[datetime]) -> list[int]:
        """How many instances came from each moment to the next, the last until now; `moments` ascend, with time zone.

        Told from the row ids, which are given out in the order in which instances come: a few look-ups and no scan of
        the table. What was deleted since counts as well, unless nothing came after it.
        """
        newest = int(self._run("SELECT coalesce(max(id), 0) FROM instance").fetchone()[0])
        starts = [self._first_stored(int((moment - _EPOCH) / timedelta(microseconds=1)), newest) for moment in moments]
        return [end - start for start, end in pairwise([*starts, newest + 1])]

    def _first_stored(self, microseconds: int, newest: int) -> int:
        """The first id of an instance that was stored then or later; the one after `newest` if there is none."""
        low, high = 1, newest + 1
        while low < high:
            middle = (low + high) // 2
            page, values = self._database.page(1, 0)
            statement = f"SELECT stored_at FROM instance WHERE id >= ? ORDER BY id {page}"
            row = self._run(statement, [middle, *values]).fetchone()
            if row is None or row[0] >= microseconds:
                high = middle
            else:
                low = middle + 1
        return low
