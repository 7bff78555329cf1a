"""Storing: the instances of one request are spooled and scanned one by one, then made durable together."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from mmap import mmap
from tempfile import SpooledTemporaryFile
from traceback import clear_frames
from typing import Any, BinaryIO, Literal, cast

import orjson

from ..audit import AuditTrail
from ..audit.trail import by_study
from ..dicom import coercion, metadata
from ..dicom import header as dicom_header
from ..dicom.attributes import keyword_of
from ..dicom.deidentification import CannotDeidentify, Deidentifier
from ..dicom.matching import Match, matches
from ..dicom.processing import Processor, processed
from ..errors import FailureReason, InvalidInstance, Unavailable, WarningReason
from ..index.events import new_event
from ..index.repository import Index
from ..index.writing import NewInstance, Outcome
from ..quarantine import Quarantine
from ..storage import CannotStore, Incoming, Storage

log = logging.getLogger(__name__)

DuplicatePolicy = Literal["reject", "keep", "replace"]
Rules = Sequence[Sequence[Match]]  # about studies: one has to hold, of it all matches

_PIECE = 1 << 20  # bytes copied at a time
_IN_MEMORY = 4 << 20  # bytes of an instance that need no temporary file on disk
_SYSTEM = "DICOMcloud"  # Modifying System (0400,0563)


@dataclass(frozen=True, slots=True)
class StoreItem:
    """What became of one instance of a store request."""

    study_uid: str | None = None
    series_uid: str | None = None
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    failure: FailureReason | None = None
    warning: WarningReason | None = None
    message: str = ""
    outcome: Outcome | None = None  # None where it failed before the index was asked
    original_attributes: Mapping[str, Any] | None = None  # the item of (0400,0561) that records what was coerced


@dataclass(frozen=True, slots=True)
class StoreReport:
    items: tuple[StoreItem, ...]  # in the order of the request


@dataclass(frozen=True, slots=True)
class _Spooled:
    """An instance that came in complete and was understood."""

    incoming: Incoming
    new: NewInstance
    warnings: tuple[tuple[WarningReason, str], ...] = ()
    original_attributes: Mapping[str, Any] | None = None


class Spool:
    """Bytes of a request that are not an instance yet, on the storage volume and not in memory."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    @property
    def size(self) -> int:
        return self._incoming.size

    def write(self, chunk: bytes | memoryview) -> None:
        """Raises Unavailable when there is no space left."""
        try:
            self._incoming.write(chunk)
        except OSError as error:
            raise _no_space(error) from None

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """All that was written, mapped."""
        with _mapped(self._incoming) as buffer:
            yield memoryview(buffer)

    def discard(self) -> None:
        self._incoming.discard()


@contextmanager
def _mapped(incoming: Incoming) -> Iterator[bytes | mmap]:
    """Its buffer, for those who make views of it: one that a traceback still holds keeps the map open until it goes."""
    manager = incoming.buffer()
    buffer = manager.__enter__()
    try:
        yield buffer
    finally:
        with suppress(BufferError):
            manager.__exit__(None, None, None)


class StoreBatch:
    """Instances of one request: spooled and scanned one by one, stored together by `commit`.

    A context manager; leaving it without a commit removes everything that was spooled. With `correcting`, its changes
    correct what is stored, now.
    """

    def __init__(
        self,
        index: Index,
        storage: Storage,
        *,
        duplicates: DuplicatePolicy,
        max_inflated_bytes: int,
        deidentify: Callable[[], Deidentifier] | None,
        processors: Sequence[Processor],
        study_uid: str | None,
        changes: Mapping[str, Any],
        quarantine: Quarantine | None,
        visible: Rules | None = None,
        audit: AuditTrail | None = None,
        correcting: bool = False,
        later: Callable[[Sequence[str], bool], None] = lambda keys, perhaps_stored: None,
    ) -> None:
        self._index = index
        self._storage = storage
        self._duplicates = duplicates
        self._max_inflated_bytes = max_inflated_bytes
        self._deidentify = deidentify
        self._processors = processors
        self._study_uid = study_uid
        self._changes = changes
        self._correcting = correcting
        self._later = later  # sees to files when the index can be asked again
        self._quarantine = quarantine
        self._visible = visible
        self._audit = audit
        self._items: list[StoreItem | _Spooled] = []
        self._arriving: Incoming  # the instance that comes in, as it is after the last step
        self._spools: list[Spool] = []

    def __enter__(self) -> StoreBatch:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        while error is not None:  # whose traceback has views of what is spooled; Windows removes no mapped file
            clear_frames(error.__traceback__)
            error = error.__context__
        for item in self._items:
            if not isinstance(item, StoreItem):
                item.incoming.discard()
        for spool in self._spools:
            spool.discard()
        self._items, self._spools = [], []

    def spool(self) -> Spool:
        """Room for what is not an instance yet; it goes with the batch. Raises Unavailable."""
        try:
            self._spools.append(Spool(self._storage.receive()))
        except OSError as error:
            raise _no_space(error) from None
        return self._spools[-1]

    def add(self, chunks: Iterable[bytes | memoryview], warnings: Sequence[tuple[WarningReason, str]] = ()) -> None:
        """Spool one instance and scan it. A fault of the instance is kept as its item of the report.

        `warnings` are what is to be said of it if it is stored.
        """
        for item in self._items[-1:]:
            if not isinstance(item, StoreItem):
                item.incoming.sync_soon()  # while this one comes in, if it was changed
        iterator = iter(chunks)
        try:
            self._arriving = self._storage.receive()
        except OSError as error:
            self._items.append(_out_of_resources(error))
            _drain(iterator)
            return
        try:
            self._items.append(self._receive(self._arriving, iterator, tuple(warnings)))
        except InvalidInstance as error:
            self._keep_aside(self._arriving, error)
            self._arriving.discard()
            self._items.append(_failed(error))
        except CannotStore as error:
            self._arriving.discard()
            self._items.append(_out_of_resources(error))
            _drain(iterator)
        except BaseException:
            self._arriving.discard()
            raise

    def reject(self, error: InvalidInstance, chunks: Iterable[bytes | memoryview], suffix: str) -> None:
        """An instance that failed before it was one: an item of the report, and `chunks` for the quarantine."""
        self._items.append(_failed(error))
        if self._quarantine is not None:
            self._quarantine.keep(
                chunks,
                error.reason,
                error.message,
                sop_class_uid=error.sop_class_uid,
                sop_instance_uid=error.sop_instance_uid,
                suffix=suffix,
            )

    def _keep_aside(self, incoming: Incoming, error: InvalidInstance) -> None:
        if self._quarantine is None or not incoming.size:
            return
        with incoming.buffer() as buffer:
            self._quarantine.keep(
                (buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)),
                error.reason,
                error.message,
                sop_class_uid=error.sop_class_uid,
                sop_instance_uid=error.sop_instance_uid,
            )

    def _receive(
        self,
        incoming: Incoming,
        chunks: Iterator[bytes | memoryview],
        warnings: tuple[tuple[WarningReason, str], ...],
    ) -> _Spooled:
        digest = hashlib.sha256()
        for chunk in chunks:
            incoming.write(chunk)
            digest.update(chunk)
        if self._deidentify is None and not self._changes:
            incoming.sync_soon()  # the disk has its work while the header is scanned
        with incoming.buffer() as buffer:
            header = dicom_header.scan(buffer, max_inflated=self._max_inflated_bytes)
            self._check_study(header)
            self._check_visible(header)
            completed = self._completed(buffer, header) if header.prefix else None
        if completed is not None:
            incoming.discard()  # now that it is not mapped any more: Windows removes no open file
            incoming, digest, header = completed
        self._arriving = incoming
        if self._deidentify is not None:
            self._arriving, digest, header = self._deidentified(self._arriving, header)
        original: Mapping[str, Any] | None = None
        changes = self._changes
        if self._processors:
            changes = {**processed(self._processors, {**header.attributes, **changes}), **changes}
        if changes:
            self._arriving, digest, header, changed = self._coerced(self._arriving, digest, header, changes)
            if changed is not None:
                original = changed.original
                warnings = ((WarningReason.COERCED, f"Coerced: {', '.join(changed.names)}"), *warnings)
        new = new_instance(header, digest.digest(), self._arriving.size, "")
        return _Spooled(self._arriving, new, warnings, original)

    def _deidentified(
        self, incoming: Incoming, header: dicom_header.Header
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header]:
        """The instance de-identified (PS3.15 Annex E); what came is not kept. Raises InvalidInstance."""
        assert self._deidentify is not None
        with SpooledTemporaryFile(_IN_MEMORY) as source, SpooledTemporaryFile(_IN_MEMORY) as copy:
            with incoming.buffer() as buffer:
                for at in range(0, len(buffer), _PIECE):
                    source.write(buffer[at : at + _PIECE])
            source.seek(0)
            try:
                self._deidentify().deidentify(cast(BinaryIO, source), cast(BinaryIO, copy))
            except CannotDeidentify as error:
                raise InvalidInstance(
                    FailureReason.PROCESSING_FAILURE,
                    f"Not stored, since it cannot be de-identified: {error}",
                    sop_class_uid=metadata.text(header.attributes, "SOPClassUID") or None,
                ) from None
            copy.seek(0)
            target, digest = self._copied(iter(partial(copy.read, _PIECE), b""))
        incoming.discard()
        try:
            with target.buffer() as buffer:
                return target, digest, dicom_header.scan(buffer, max_inflated=self._max_inflated_bytes)
        except BaseException:
            target.discard()
            raise

    def _coerced(
        self, incoming: Incoming, digest: hashlib._Hash, header: dicom_header.Header, changes: Mapping[str, Any]
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header, coercion.Coerced | None]:
        """The instance with the attributes that request and processors set, and the record of what they were."""
        with _mapped(incoming) as buffer:
            changed = coercion.coerce(
                buffer,
                header,
                changes,
                moment=self._moment(header),
                system=_SYSTEM,
                reason="CORRECT" if self._correcting else "COERCE",
            )
            if changed is None:
                return incoming, digest, header, None
            target, digest = self._copied(changed.chunks())
            for piece in changed.pieces:
                if isinstance(piece, memoryview):
                    piece.release()
        incoming.discard()
        try:
            with target.buffer() as buffer:
                header = dicom_header.scan(buffer, max_inflated=self._max_inflated_bytes)
        except BaseException:
            target.discard()
            raise
        return target, digest, header, changed

    def _moment(self, header: dicom_header.Header) -> str:
        """The time of a change: now, or that of the same change in the stored instance, should it come again."""
        uids = [metadata.text(header.attributes, key) for key in ("0020000D", "0020000E", "00080018")]
        with suppress(StopIteration):
            if self._correcting:
                raise StopIteration
            stored = next(self._index.documents(*uids))
            if moment := coercion.moment_of_last(orjson.loads(stored), _SYSTEM):
                return moment
        return datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")

    def _copied(self, chunks: Iterable[bytes | memoryview]) -> tuple[Incoming, hashlib._Hash]:
        target = self._storage.receive()
        digest = hashlib.sha256()
        try:
            for chunk in chunks:
                target.write(chunk)
                digest.update(chunk)
        except BaseException:
            target.discard()
            raise
        return target, digest

    def _check_study(self, header: dicom_header.Header) -> None:
        study = metadata.text(header.attributes, "StudyInstanceUID")
        if self._study_uid is not None and study != self._study_uid:
            raise InvalidInstance(
                FailureReason.DATA_SET_DOES_NOT_MATCH,
                f"The instance belongs to the study {study}, not to the study of the request",
                sop_class_uid=metadata.text(header.attributes, "SOPClassUID") or None,
                sop_instance_uid=metadata.text(header.attributes, "SOPInstanceUID") or None,
            )

    def _check_visible(self, header: dicom_header.Header) -> None:
        """Whoever sees some studies only stores only into these, also where they change an instance of another."""
        if self._visible is None:
            return
        attributes = header.attributes
        study, instance = (metadata.text(attributes, keyword) for keyword in ("StudyInstanceUID", "SOPInstanceUID"))
        new = any(all(matches(match, attributes) for match in rule) for rule in self._visible)
        if not new or not self._index.may_store(study, instance, self._visible):
            raise InvalidInstance(
                FailureReason.NOT_AUTHORIZED,
                "The sender may not store this: it belongs to a study that they do not see",
                sop_class_uid=metadata.text(attributes, "SOPClassUID") or None,
                sop_instance_uid=instance or None,
            )

    def _completed(
        self, buffer: bytes | mmap, header: dicom_header.Header
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header]:
        """The same data set behind a preamble and File Meta Information (PS3.10 7.1), which the sender left out."""
        data_set = (buffer[at : at + _PIECE] for at in range(header.dataset_offset, len(buffer), _PIECE))
        complete, digest = self._copied(chain([header.prefix], data_set))
        return complete, digest, header.behind_prefix()

    @property
    def failures(self) -> list[StoreItem]:
        """What cannot be stored, before anything is."""
        return [item for item in self._items if isinstance(item, StoreItem)]

    @property
    def changed(self) -> int:
        """How many instances got other attributes."""
        return sum(isinstance(item, _Spooled) and item.original_attributes is not None for item in self._items)

    def commit(self) -> StoreReport:
        """Store everything spooled: files synced, rows committed when it returns."""
        items, self._items = self._items, []
        spooled = [item for item in items if not isinstance(item, StoreItem)]
        stored = iter(self._store(spooled))
        report = StoreReport(tuple(item if isinstance(item, StoreItem) else next(stored) for item in items))
        self._tell_failures(report)
        return report

    def _tell_failures(self, report: StoreReport) -> None:
        """Events of what was not stored. That they cannot be written takes nothing back of what was."""
        events = self._index.events
        if not events.wants("failed") or all(item.failure is None for item in report.items):
            return
        try:
            events.publish(
                new_event("failed", item.study_uid or "", _failure(item)) for item in report.items if item.failure
            )
        except Exception:
            log.exception("the failures of a store request could not be announced")

    def _store(self, spooled: Sequence[_Spooled]) -> list[StoreItem]:
        if not spooled:
            return []
        try:
            keys = self._storage.commit([each.incoming for each in spooled])
        except OSError as error:
            for each in spooled:
                each.incoming.discard()
            return [_out_of_resources(error, _identity(each.new)) for each in spooled]
        except BaseException:
            for each in spooled:
                each.incoming.discard()
            raise
        instances = [replace(each.new, file_key=key) for each, key in zip(spooled, keys, strict=True)]
        try:
            outcomes = self._index.add(instances, self._duplicates, alongside=partial(self._record, instances))
        except BaseException as error:
            if getattr(error, "outcome_unknown", False):  # a row may yet appear
                self._later(keys, True)
            else:
                self._take_back(keys)
            raise
        try:
            self._remove_needless(instances, outcomes)
        except (OSError, Unavailable) as error:  # what is to be kept is stored
            log.warning("files that are not needed are removed at the next start: %s", error)
        else:
            self._storage.confirm(keys)
        return [_stored(each, outcome) for each, outcome in zip(spooled, outcomes, strict=True)]

    def _remove_needless(self, instances: Sequence[NewInstance], outcomes: Sequence[Outcome]) -> None:
        """Remove the files of instances that the index has not taken."""
        for new, outcome in zip(instances, outcomes, strict=True):
            # `recover` of another process may have given this very file its row: then it stays.
            if outcome not in (Outcome.ADDED, Outcome.REPLACED) and not self._index.has_file(new.file_key):
                if outcome is Outcome.REJECTED and self._quarantine is not None:
                    self._keep_rejected(new.file_key, new)
                self._storage.delete(new.file_key)

    def _record(self, instances: Sequence[NewInstance], outcomes: Sequence[Outcome]) -> None:
        """Tell the audit trail, in the transaction of the store."""
        if self._audit is None:
            return
        uids: dict[Outcome, list[tuple[str, str, str]]] = {}
        for new, outcome in zip(instances, outcomes, strict=True):
            study, series, instance = (
                metadata.text(new.attributes, keyword)
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            )
            uids.setdefault(outcome, []).append((study, series, instance))
        changed = {"changed": [keyword_of(int(key, 16)) for key in self._changes]} if self._correcting else {}
        self._audit.write_within(
            "correct" if self._correcting else "store",
            [
                (*entry, changed if outcome is Outcome.ADDED else {"outcome": outcome.value, **changed})
                for outcome, some in uids.items()
                if outcome is not Outcome.REJECTED
                for entry in by_study(some)
            ],
        )

    def _keep_rejected(self, key: str, new: NewInstance) -> None:
        assert self._quarantine is not None
        with self._storage.open(key) as file:
            self._quarantine.keep(
                iter(lambda: file.read(_PIECE), b""),
                FailureReason.DUPLICATE_SOP_INSTANCE,
                _DUPLICATE,
                sop_class_uid=metadata.text(new.attributes, "SOPClassUID") or None,
                sop_instance_uid=metadata.text(new.attributes, "SOPInstanceUID") or None,
            )

    def _take_back(self, keys: Sequence[str]) -> None:
        """Remove files whose rows could not be written. Where the index cannot tell, that is done later."""
        try:
            for key in keys:
                if not self._index.has_file(key):
                    self._storage.delete(key)
            self._storage.confirm(keys)
        except Exception:
            self._later(keys, False)


def _identity(new: NewInstance) -> StoreItem:
    return StoreItem(
        study_uid=metadata.text(new.attributes, "StudyInstanceUID"),
        series_uid=metadata.text(new.attributes, "SeriesInstanceUID"),
        sop_class_uid=metadata.text(new.attributes, "SOPClassUID"),
        sop_instance_uid=metadata.text(new.attributes, "SOPInstanceUID"),
    )


_DUPLICATE = "Another instance with other content is stored under this SOP Instance UID"
# Attributes without which pixel data cannot be shown (Type 1 of PS3.3 Table C.7-11b).
_IMAGE_PIXEL = ("00280002", "00280004", "00280010", "00280011", "00280100")


def _stored(each: _Spooled, outcome: Outcome) -> StoreItem:
    item = replace(_identity(each.new), outcome=outcome)
    if outcome is Outcome.REJECTED:
        return replace(item, failure=FailureReason.DUPLICATE_SOP_INSTANCE, message=_DUPLICATE)
    if outcome is Outcome.KEPT:
        return replace(
            item, message="An instance with other content is stored under this SOP Instance UID; it was kept"
        )
    warnings = [*each.warnings, *_mismatches(each.new.attributes)]
    if not warnings:
        return item
    return replace(
        item,
        warning=min(reason for reason, _ in warnings),  # the gravest for the data: coerced, discarded, mismatch
        message="; ".join(message for _, message in warnings),
        original_attributes=each.original_attributes,
    )


def _mismatches(attributes: Mapping[str, Any]) -> Iterator[tuple[WarningReason, str]]:
    """What the SOP class demands and the data set lacks, as far as nobody can read it without."""
    if not metadata.text(attributes, "SOPClassUID"):
        yield WarningReason.DATA_SET_DOES_NOT_MATCH, "Stored, although it has no SOP Class UID"
    if "BulkDataURI" in attributes.get("7FE00010", ()):
        missing = [key for key in _IMAGE_PIXEL if not attributes.get(key, {}).get("Value")]
        if missing:
            names = ", ".join(f"{keyword_of(int(key, 16))} ({key[:4]},{key[4:]})" for key in missing)
            yield WarningReason.DATA_SET_DOES_NOT_MATCH, f"Stored, although it has pixel data without {names}"


def _failure(item: StoreItem) -> dict[str, Any]:
    known = {"series": item.series_uid, "instance": item.sop_instance_uid, "sop_class": item.sop_class_uid}
    assert item.failure is not None
    return {
        "reason": f"{item.failure:04X}",
        "message": item.message,
        **{name: value for name, value in known.items() if value},
    }


def _failed(error: InvalidInstance) -> StoreItem:
    return StoreItem(
        sop_class_uid=error.sop_class_uid,
        sop_instance_uid=error.sop_instance_uid,
        failure=error.reason,
        message=error.message,
    )


def _out_of_resources(error: OSError, item: StoreItem | None = None) -> StoreItem:
    log.error("an instance could not be stored: %s", error)
    return replace(
        item or StoreItem(), failure=FailureReason.OUT_OF_RESOURCES, message="The storage cannot take it at the moment"
    )


def _no_space(error: OSError) -> Unavailable:
    log.error("a request could not be spooled: %s", error)
    return Unavailable("The storage cannot take it at the moment")


def _drain(chunks: Iterator[bytes | memoryview]) -> None:
    for _ in chunks:
        pass


def new_instance(header: dicom_header.Header, checksum: bytes, size: int, key: str) -> NewInstance:
    attributes = header.attributes
    study, series, instance = (
        metadata.text(attributes, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    return NewInstance(
        attributes=attributes,
        document=orjson.dumps(attributes).replace(*_bulk_data_uris(study, series, instance)),
        transfer_syntax=header.transfer_syntax,
        file_key=key,
        size=size,
        checksum=checksum,
        dataset_offset=header.dataset_offset,
        frames=header.frames.pack() if header.frames else None,
        bulk_data=dicom_header.pack_bulk_data(header.bulk_data),
    )


def _bulk_data_uris(study: str, series: str, instance: str) -> tuple[bytes, bytes]:
    """How every BulkDataURI begins where the scanner put it, and in the DICOM JSON text of the index.

    No quote inside a JSON string is unescaped, so these texts occur nowhere else.
    """
    resource = f"/studies/{study}/series/{series}/instances/{instance}"
    return b'"BulkDataURI":"/', f'"BulkDataURI":"{resource}/bulkdata/'.encode("ascii")
