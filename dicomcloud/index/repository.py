"""The index: what is stored, and where."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

from dicomcloud.dicom.comparison import normalise
from dicomcloud.dicom.matching import Match
from dicomcloud.dicom.query import Query
from dicomcloud.index import columns
from dicomcloud.index.database import Database, unit_of_work
from dicomcloud.index.events import Change, EventLog
from dicomcloud.index.search import Search, SearchResult, study_condition
from dicomcloud.index.writing import NewInstance, Outcome, Writer

_BATCH: Final = 64  # documents read with one statement
_FILES_BATCH: Final = 1000


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


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _datetime(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


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
    study, series, instance = (columns.uid(attributes, key) for key in ("0020000D", "0020000E", "00080018"))
    action: Literal["stored", "replaced"] = "stored" if outcome is Outcome.ADDED else "replaced"
    return Change(action, study, series, instance, columns.text(attributes, "00080016", 64))


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
            writer = Writer(self._database)
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
            writer = Writer(self._database)
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
            columns.key_text(normalise(0x00100020, "LO", patient_id)),
            columns.key_text(normalise(0x00100021, "LO", issuer)),
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
            Writer(self._database).record_removed_files(keys)

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
                Writer(self._database).delete([row[:4]])
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
