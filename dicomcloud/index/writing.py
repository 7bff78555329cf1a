"""What a transaction that stores or deletes instances writes into the index.

What a study and a series say of themselves (patient, description, dates …) comes from the instance stored first among
those that are there. A SOP Instance UID is unique in the whole archive, a Series Instance UID in its study.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from time import time_ns
from typing import Any, Final

import orjson

from dicomcloud.dicom.attributes import json_key
from dicomcloud.dicom.comparison import date_digits, name_tokens, phonetic_code, time_digits
from dicomcloud.dicom.query import PATIENT_NAME, REFERRING_PHYSICIAN
from dicomcloud.index import columns
from dicomcloud.index.database import Database
from dicomcloud.index.search import INSTANCE_KEYS, STUDY_DESCRIPTION

_BATCH: Final = 64  # instances looked for with one statement
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


class Writer:
    """One write transaction: keeps counters, revisions, modalities and tombstones right."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._run = database.run  # for an answer
        self._do = database.later  # without one
        self._now = time_ns() // 1000
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
        uids = list(dict.fromkeys(columns.uid(instance.attributes, "00080018") for instance in new))
        if len(uids) == 1:
            return
        for start in range(0, len(uids), _BATCH):
            batch = uids[start : start + _BATCH]
            found = self._run(_FIND_INSTANCES, batch + batch[-1:] * (_BATCH - len(batch))).fetchall()
            self._absent.update(set(batch).difference(uid for (uid,) in found))

    def add(self, new: NewInstance, document: bytes, duplicates: str) -> Outcome:
        """Record an instance, or not, as `Index.add` says; `document` is its JSON text as zlib compressed it."""
        sop_uid = columns.uid(new.attributes, "00080018")
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
        study_uid, series_uid = columns.uid(attributes, "0020000D"), columns.uid(attributes, "0020000E")
        study = self._studies.get(study_uid) or self._study(study_uid, attributes)
        series = study.series.get(series_uid) or self._series(study, study_uid, series_uid, attributes)
        frames = columns.number(attributes, "00280008")
        instance = self._database.insert(
            _INSERT_INSTANCE,
            (
                series.id,
                sop_uid,
                columns.text(attributes, "00080016", 64),
                columns.number(attributes, "00200013"),
                new.transfer_syntax,
                frames if 0 < frames < 2**31 else int(new.frames is not None),
                new.file_key,
                new.size,
                new.checksum,
                new.dataset_offset,
                self._now,
                columns.json_text({key: attributes[key] for key in INSTANCE_KEYS if key in attributes}),
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
            values = self._study_values(uid, columns.split(attributes)[0])
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
            values = _series_values(columns.split(attributes)[1], study.datetime)
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
        name, name_other = columns.names(attributes, "00100010")
        referring, referring_other = columns.names(attributes, "00080090")
        patient_id, issuer = (
            columns.text(attributes, "00100020", 1 << 20),
            columns.text(attributes, "00100021", 1 << 20),
        )
        return (
            self._patient(patient_id, issuer, uid),
            patient_id[:200],
            issuer[:200],
            name,
            name_other,
            date_digits(columns.text(attributes, "00100030")),
            columns.text(attributes, "00100040", 16),
            columns.moment(attributes, "00080020", "00080030"),
            time_digits(columns.text(attributes, "00080030")),
            columns.text(attributes, "00080050"),
            columns.text(attributes, "00200010"),
            columns.text(attributes, "00081030"),
            referring,
            referring_other,
            columns.json_text(attributes),
        )

    def _patient(self, patient_id: str, issuer: str, study_uid: str) -> int:
        identity = (columns.key_text(patient_id), columns.key_text(issuer), "" if patient_id else study_uid)
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
            alphabetic, others = columns.names(attributes, json_key(tag))
            learned += [(-tag, word[:200]) for word in name_tokens(others)]
            for word in dict.fromkeys(word[:200] for word in name_tokens(f"{alphabetic} {others}")):
                rows.append((study_key, tag, word, phonetic_code(word), study_datetime))
                learned.append((tag, word))
        self._database.insert_rows("name_word", ("study_key", "attribute", "word", "code", "study_datetime"), rows)
        if description := columns.text(attributes, "00081030"):
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
            ids = [columns.text(item, key) for key in ("00400009", "00401001")]
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
        institution = columns.text(attributes, "00080080")
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
        attributes = columns.split(self._document(first))[1]
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
            attributes = columns.split(self._document(first))[0]
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
        """These files are to be removed after the commit."""
        for key in keys:
            self._do("DELETE FROM removed_file WHERE file_key = ?", (key,))
            self._do("INSERT INTO removed_file (file_key, removed_at) VALUES (?, ?)", (key, self._now))


def _joined(modalities: Iterable[str]) -> str:
    return "\\".join(sorted(modalities))[:400]


def _series_values(attributes: Mapping[str, Any], study_datetime: str) -> tuple[Any, ...]:
    return (
        columns.number(attributes, "00200011"),
        columns.text(attributes, "00080060", 64),
        study_datetime,
        columns.moment(attributes, "00400244", "00400245"),
        columns.json_text(attributes),
    )
