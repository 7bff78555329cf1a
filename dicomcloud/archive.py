"""The archive: stores, opens and deletes instances, and keeps the index and the files one.

Store:  file, sync, rename, then row. Delete: row first, file second. A crash between the two leaves at most a file
without a row, which `recover` (at start) and `verify` find again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any, BinaryIO, Generic, Literal, NamedTuple, NoReturn, TypeVar, cast

import orjson

from .dicom import coercion, metadata
from .dicom import header as dicom_header
from .dicom.attributes import keyword_of
from .dicom.codecs import ImagePixel, encoded
from .dicom.damaged import read_damaged_value
from .dicom.deidentification import CannotDeidentify, Deidentifier
from .dicom.pixel_data import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    CannotEncode,
    CannotTranscode,
    TransferSyntax,
    decode_frame,
    transcode,
    transcode_file,
    transcode_frame_of_file,
)
from .dicom.workers import CodecPool
from .errors import FailureReason, Gone, InvalidInstance, NotFound, Unavailable, WarningReason
from .index.database import Database, migrate, open_database, pending
from .index.repository import Index, InstanceRow, NewInstance, Outcome
from .quarantine import Quarantine
from .storage import FileMissing, Incoming, Storage, StoredFile, open_storage
from .storage.cache import DiskCache

__all__ = [
    "Archive",
    "Finding",
    "InstanceRow",
    "ReindexStep",
    "SeriesVersion",
    "StoreBatch",
    "StoreItem",
    "StoreReport",
    "open_archive",
]

log = logging.getLogger(__name__)

DuplicatePolicy = Literal["reject", "keep", "replace"]
Result = TypeVar("Result")
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

_PIECE = 1 << 20  # bytes copied at a time
_IN_MEMORY = 4 << 20  # bytes of a converted instance that need no temporary file on disk
_BATCH = 200  # files indexed in one transaction by reindex and repair
_ABANDONED = 24 * 3600.0  # seconds after which a spooled file belongs to a request that died
_SYSTEM = "DICOMcloud"  # Modifying System (0400,0563)
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


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
class Finding:
    """A difference between index and files."""

    kind: Literal["missing file", "wrong size", "wrong checksum", "unknown file", "unreadable file"]
    key: str
    message: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class ReindexStep:
    key: str
    message: str | None  # why the file could not be indexed


class SeriesVersion(NamedTuple):
    """A series at one time: another `version` after every change below it, never seen before."""

    series_uid: str
    version: str


class Archive:
    """One index and one store, kept one. Safe to use from many threads and processes."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        *,
        cache: DiskCache | None = None,
        codec_workers: int = 1,
        duplicates: DuplicatePolicy = "reject",
        max_inflated_bytes: int = 1 << 30,
        min_free_bytes: int = 0,
        quarantine: Quarantine | None = None,
        deidentify_on_store: Callable[[], Deidentifier] | None = None,
        deidentify_on_retrieve: Callable[[], Deidentifier] | None = None,
    ) -> None:
        self.index = Index(database)
        self.cache = cache or DiskCache(Path(gettempdir()) / "dicomcloud", 0)
        self._codecs = CodecPool(codec_workers)
        self.duplicates = duplicates
        self.max_inflated_bytes = max_inflated_bytes
        self.quarantine = quarantine
        self.deidentify_on_store = deidentify_on_store
        self._deidentify_on_retrieve = deidentify_on_retrieve
        self._min_free_bytes = min_free_bytes
        self._database = database
        self._storage = storage

    def close(self) -> None:
        """Let go of the database connection of this thread, and of the codec processes."""
        self._codecs.close()
        self._database.close()

    def check(self) -> None:
        """Ask index and storage for a sign of life. Raises Unavailable or OSError."""
        self.index.has_file("")
        self._storage.free_bytes()

    # Store

    def begin_store(
        self,
        study_uid: str | None = None,
        *,
        changes: Mapping[str, Any] | None = None,
        quarantine: bool = True,
    ) -> StoreBatch:
        """A unit of work that stores instances; with `study_uid`, those of any other study fail (PS3.18 10.5.1.1).

        `changes` are attributes that every instance gets (`coercion.read_change`). `quarantine` is False where what
        cannot be stored is not lost: its sender keeps the file. Raises Unavailable when the disk is about to be full.
        """
        if self._min_free_bytes and self._storage.free_bytes() < self._min_free_bytes:
            raise Unavailable("The storage is full; nothing can be stored at the moment", retry_after=600)
        return StoreBatch(self, self._storage, study_uid, changes or {}, self.quarantine if quarantine else None)

    # Retrieve

    def instances(self, study: str, series: str | None = None, instance: str | None = None) -> list[InstanceRow]:
        """The stored instances of a study, a series or one instance, in reading order. Raises NotFound, Gone."""
        return self.index.instances(study, series, instance) or self._missing(study, series, instance)

    def frames(self, study: str, series: str, instance: str) -> tuple[InstanceRow, dicom_header.Frames | None]:
        """One instance and where its frames lie (None without pixel data). Raises NotFound, Gone."""
        row, packed = self.index.frames(study, series, instance) or self._missing(study, series, instance)
        return row, dicom_header.Frames.unpack(packed) if packed else None

    def bulk_value(
        self, study: str, series: str, instance: str, path: str
    ) -> tuple[InstanceRow, dicom_header.BulkValue]:
        """One instance and where a bulk value of it lies. Raises NotFound, Gone."""
        row, packed = self.index.bulk_data(study, series, instance) or self._missing(study, series, instance)
        value = dicom_header.find_bulk_value(packed, f"/{path}")
        if value is None:
            raise NotFound(f"The instance has no bulk data at {path[:200]!r}")
        return row, value

    def document(self, study: str, series: str, instance: str) -> tuple[InstanceRow, bytes]:
        """One instance and its DICOM JSON text. Raises NotFound, Gone."""
        return self.index.document(study, series, instance) or self._missing(study, series, instance)

    def documents(self, study: str, series: str | None = None, instance: str | None = None) -> Iterator[bytes]:
        """The DICOM JSON text of each instance, in reading order. Raises NotFound, Gone."""
        documents = self.index.documents(study, series, instance)
        first = next(documents, None)
        return chain([first or self._missing(study, series, instance)], documents)

    def version(self, study: str, series: str | None = None) -> tuple[str, datetime]:
        """A text that changes with every change below the study or series; and when that was. Raises NotFound, Gone."""
        revision, changed_at = self.index.revision(study, series) or self._missing(study, series, None)
        return _version(revision, changed_at), changed_at

    def series_versions(self, study: str, series: str | None = None) -> list[SeriesVersion]:
        """The series of a study (or only one) in reading order. Raises NotFound, Gone."""
        found = self.index.series_revisions(study, series) or self._missing(study, series, None)
        return [SeriesVersion(uid, _version(revision, changed_at)) for uid, revision, changed_at in found]

    # Whole files

    def open_file(self, row: InstanceRow) -> BinaryIO:
        """The file as it was stored. Raises NotFound, Gone when it has been deleted since the index was asked."""
        try:
            return self._storage.open(row.file_key)
        except FileMissing:
            self._deleted_meanwhile(row)

    def _deleted_meanwhile(self, row: InstanceRow) -> NoReturn:
        if self.index.has_file(row.file_key):
            raise FileNotFoundError(f"the file {row.file_key} is lost")
        self._missing(row.study_uid, row.series_uid, row.sop_uid)

    def may_become(self, row: InstanceRow, attributes: Mapping[str, Any], transfer_syntax: str) -> bool:
        """Whether the instance can be had in this transfer syntax, told from its attributes (DICOM JSON) alone.

        A promise but for pixel data that are not what the attributes say.
        """
        stored, wanted = TRANSFER_SYNTAXES.get(row.transfer_syntax), TRANSFER_SYNTAXES.get(transfer_syntax)
        if row.transfer_syntax == transfer_syntax:
            return True
        if stored is None or wanted is None or not wanted.encodable:
            return False
        if stored.encapsulated and row.number_of_frames and not stored.decodable:
            return False
        return not wanted.encapsulated or _takes(wanted, attributes, decoded=stored.encapsulated)

    def open_as(self, row: InstanceRow, transfer_syntax: str) -> BinaryIO:
        """The instance in another transfer syntax, as a file. Raises CannotTranscode, NotFound, Gone."""
        return self._begin_open_as(row, transfer_syntax).result()

    def open_each_as(self, rows: Iterable[InstanceRow], transfer_syntax: str) -> Iterator[BinaryIO | CannotTranscode]:
        """`open_as` of many, in order; the next ones are worked on while one is used."""
        return self._ahead(self._begin_open_as(row, transfer_syntax) for row in rows)

    def _begin_open_as(self, row: InstanceRow, transfer_syntax: str) -> _Pending[BinaryIO]:
        if not _is_pixel_work(row.transfer_syntax, transfer_syntax):
            return _Pending(lambda: self._open_converted(row, transfer_syntax))
        key = f"{row.file_key} {transfer_syntax}"
        if cached := self.cache.open(key):
            return _Pending(lambda: cached, drop=cached.close)
        source = str(self._storage.local_path(row.file_key))
        path = self.cache.spool()
        future = self._codecs.submit(
            transcode_file, source, str(path), transfer_syntax, max_inflated=self.max_inflated_bytes
        )

        def finish() -> BinaryIO:
            try:
                future.result()
                return self.cache.keep(path, key)
            except FileNotFoundError:  # the file, or the cache, was deleted just now
                return self._open_converted(row, transfer_syntax)
            except CannotTranscode:
                path.unlink(missing_ok=True)  # a process that crashed has left it
                raise

        def drop() -> None:
            if not future.cancel():
                future.add_done_callback(lambda _: path.unlink(missing_ok=True))

        return _Pending(finish, drop=drop)

    def open_deidentified(self, row: InstanceRow, transfer_syntax: str) -> BinaryIO:
        """A de-identified copy of the instance (PS3.15 Annex E) in this transfer syntax, as a file.

        Raises CannotDeidentify, CannotTranscode, NotFound, Gone.
        """
        if self._deidentify_on_retrieve is None:
            raise CannotDeidentify("This server is not set up to de-identify.")
        with SpooledTemporaryFile(_IN_MEMORY) as copy, self.open_file(row) as source:
            self._deidentify_on_retrieve().deidentify(source, cast(BinaryIO, copy))
            copy.seek(0)
            target = cast(BinaryIO, SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 (the caller closes it)
            try:
                transcode(cast(BinaryIO, copy), target, transfer_syntax, max_inflated=self.max_inflated_bytes)
            except BaseException:
                target.close()
                raise
        target.seek(0)
        return target

    def _open_converted(self, row: InstanceRow, transfer_syntax: str) -> BinaryIO:
        """The instance in another transfer syntax, converted here and now into a temporary file."""
        target = cast(BinaryIO, SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115 (the caller closes it)
        try:
            with self.open_file(row) as source:
                transcode(source, target, transfer_syntax, max_inflated=self.max_inflated_bytes)
        except BaseException:
            target.close()
            raise
        target.seek(0)
        return target

    # Frames

    def read_frame(self, row: InstanceRow, frames: dicom_header.Frames, number: int) -> bytes:
        """The stored bit stream of one frame (from 1); little endian when it is native.

        1-bit frames begin at the lowest bit of their first byte. Raises CannotTranscode, LookupError, NotFound, Gone.
        """
        if not frames.encapsulated and not (_is_plain(row) and frames.on_byte_boundaries):
            if _is_deflated(row):
                return self.frame_as(row, frames, number, EXPLICIT_VR_LITTLE_ENDIAN)
            with self.open_file(row) as source:
                return decode_frame(source, number)
        runs = frames.locate(number)
        try:
            return b"".join([self._storage.read(row.file_key, offset, length) for offset, length in runs])
        except FileMissing:
            self._deleted_meanwhile(row)

    def read_stream(
        self, row: InstanceRow, frames: dicom_header.Frames, first: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        """All frames together as they are stored, e.g. a whole video, in pieces; of these the bytes first to end."""
        at = 0  # in the stream
        for offset, length in frames.stream():
            start, stop = max(first - at, 0), length if end is None else min(end - at, length)
            at += length
            for begin in range(start, stop, _PIECE):
                yield self._storage.read(row.file_key, offset + begin, min(_PIECE, stop - begin))

    def frame_as(self, row: InstanceRow, frames: dicom_header.Frames, number: int, transfer_syntax: str) -> bytes:
        """The bit stream of one frame (from 1) in another transfer syntax; native in an uncompressed one.

        Raises CannotTranscode, LookupError, NotFound, Gone.
        """
        return self._begin_frame(row, frames, number, transfer_syntax).result()

    def frames_as(
        self, row: InstanceRow, frames: dicom_header.Frames, numbers: Iterable[int], transfer_syntax: str
    ) -> Iterator[bytes | CannotTranscode]:
        """`frame_as` of many, in the order of `numbers`; the next ones are worked on while one is used."""
        return self._ahead(self._begin_frame(row, frames, number, transfer_syntax) for number in numbers)

    def _begin_frame(
        self, row: InstanceRow, frames: dicom_header.Frames, number: int, transfer_syntax: str
    ) -> _Pending[bytes]:
        key = f"{row.file_key} {number} {transfer_syntax}"
        cached = self.cache.read(key)
        if cached is not None:
            return _Pending(lambda: cached)
        future = self._codecs.submit(
            transcode_frame_of_file,
            str(self._storage.local_path(row.file_key)),
            number,
            transfer_syntax,
            frames.pack(),
            max_inflated=self.max_inflated_bytes,
        )

        def finish() -> bytes:
            try:
                frame = future.result()
            except FileNotFoundError:
                self._deleted_meanwhile(row)
            self.cache.write(key, frame)
            return frame

        return _Pending(finish, drop=future.cancel)

    def _ahead(self, begun: Iterator[_Pending[Result]]) -> Iterator[Result | CannotTranscode]:
        """The results in order, while as many as there are codec processes are under way."""
        waiting: deque[_Pending[Result]] = deque()
        try:
            for pending in begun:
                waiting.append(pending)
                if len(waiting) > self._codecs.size:
                    yield waiting.popleft().outcome()
            while waiting:
                yield waiting.popleft().outcome()
        finally:
            for pending in waiting:
                pending.drop()

    # Renderings

    def rendered(self, row: InstanceRow, render: Callable[..., bytes], *arguments: object) -> bytes:
        """`render(path of the file, *arguments)`, from the cache where it was made before.

        Compressed frames are decoded in the codec processes; native ones are drawn here, which takes less time than
        the way there. Raises what `render` raises, NotFound, Gone.
        """
        key = f"{row.file_key} {render.__name__} {arguments!r}"
        if (cached := self.cache.read(key)) is not None:
            return cached
        path = str(self.path_of(row))
        syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
        try:
            if syntax is not None and (syntax.encapsulated or syntax.deflated):
                picture = self._codecs.submit(render, path, *arguments).result()
                self.cache.write(key, picture)
            else:
                picture = render(path, *arguments)
        except FileNotFoundError:
            self._deleted_meanwhile(row)
        return picture

    def path_of(self, row: InstanceRow) -> Path:
        """Where the file lies on this machine."""
        return self._storage.local_path(row.file_key)

    # Bulk data

    def bulk_values(self, row: InstanceRow) -> list[dicom_header.BulkValue]:
        """Every bulk value of an instance. Raises NotFound, Gone when it is there no more."""
        found = self.index.bulk_data(row.study_uid, row.series_uid, row.sop_uid)
        _, packed = found or self._missing(row.study_uid, row.series_uid, row.sop_uid)
        return dicom_header.unpack_bulk_data(packed)

    def open_bulk_value(self, row: InstanceRow, value: dicom_header.BulkValue) -> tuple[BinaryIO, int]:
        """A file positioned on the bytes of a bulk value, little endian, and their number. Raises CannotTranscode."""
        if value.offset < 0:
            with self.open_file(row) as damaged:
                data = read_damaged_value(damaged, value.path)
            return BytesIO(data), len(data)
        if _is_plain(row):
            file = self.open_file(row)
        else:  # deflated or big endian: the same value of the converted file
            file = self.open_as(row, EXPLICIT_VR_LITTLE_ENDIAN)
            header = dicom_header.scan(file.read(), max_inflated=self.max_inflated_bytes)
            value = next(other for other in header.bulk_data if other.path == value.path)
        file.seek(value.offset)
        return file, value.length

    def _missing(self, study: str, series: str | None, instance: str | None) -> NoReturn:
        what = f"study {study}"
        if series is not None:
            what = f"series {series} in the {what}"
        if instance is not None:
            what = f"instance {instance} in the {what}"
        if self.index.was_deleted(study, series, instance):
            raise Gone(f"The {what} was deleted")
        raise NotFound(f"There is no {what}")

    # Delete

    def delete(self, study: str, series: str | None = None, instance: str | None = None) -> int:
        """Delete a study, series or instance and the parents that are empty then; return how many files went.

        Raises NotFound, Gone.
        """
        keys = self.index.remove(study, series, instance) or self._missing(study, series, instance)
        self._remove_files(keys)
        self.cache.forget(study)
        return len(keys)

    def _remove_files(self, keys: Sequence[str]) -> None:
        removed = []
        for key in keys:
            try:
                self._storage.delete(key)
            except OSError as error:  # still open on Windows, or the storage is away: `recover` tries again
                log.warning("file %s could not be removed yet: %s", key, error.strerror)
            else:
                removed.append(key)
                self.cache.forget(key)
        self.index.files_removed(removed)

    # Keeping index and files one

    def migrate(self) -> list[str]:
        """Bring the database to this version's schema; return the names of the migrations applied."""
        return migrate(self._database, MIGRATIONS)

    def pending_migrations(self) -> list[str]:
        return pending(self._database, MIGRATIONS)

    def recover(self) -> None:
        """Finish what a crash interrupted: file instances whose row was not written, remove deleted files.

        Safe while other processes store: a file is only ever given the row that it lacks.
        """
        self._remove_files(self.index.files_to_remove())
        unconfirmed = self._storage.unconfirmed()
        for start in range(0, len(unconfirmed), _BATCH):
            batch = unconfirmed[start : start + _BATCH]
            for key, fault in self._file_orphans(batch):
                log.warning("recovered file %s %s", key, fault or "into the index")
        for key in unconfirmed:
            self._storage.confirm([key])
        self._storage.remove_abandoned(_ABANDONED)

    def verify(self, *, repair: bool = False, checksums: bool = False) -> Iterator[Finding]:
        """Hold the index against the files, both ways; with `checksums`, read every file too.

        Repair takes the rows of files that are gone out of the index, and files instances that have no row.
        """
        unknown: list[StoredFile] = []
        for row, file in _merge(self.index.files(), self._storage.files()):
            if row is None:
                assert file is not None
                unknown.append(file)
            elif file is None:
                yield from self._verify_missing(row[0], repair)
            elif row[1] != file.size:
                yield Finding("wrong size", file.key, f"{file.size} bytes on disk, {row[1]} in the index", False)
            elif checksums and self._checksum(file.key) != row[2]:
                yield Finding("wrong checksum", file.key, "its bytes are not those that were stored", False)
        yield from self._verify_unknown(unknown, repair)

    def _verify_missing(self, key: str, repair: bool) -> Iterator[Finding]:
        try:
            self._storage.open(key).close()  # stored or deleted while verify was running?
        except FileMissing:
            if self.index.has_file(key):
                if repair:
                    self.index.drop_instance_of_file(key)
                yield Finding("missing file", key, "the index names a file that is not there", repair)

    def _verify_unknown(self, files: Sequence[StoredFile], repair: bool) -> Iterator[Finding]:
        deleted = set(self.index.files_to_remove())
        orphans = [file for file in files if file.key not in deleted and not self.index.has_file(file.key)]
        for start in range(0, len(orphans), _BATCH):
            batch = [file.key for file in orphans[start : start + _BATCH]]
            if not repair:
                for key in batch:
                    yield Finding("unknown file", key, "no row in the index names this file", False)
                continue
            for key, fault in self._file_orphans(batch):
                message = f"no row in the index; {fault}" if fault else "had no row in the index; filed"
                yield Finding("unreadable file" if fault else "unknown file", key, message, not fault)

    def reindex(self) -> Iterator[ReindexStep]:
        """Build the index anew from the files, oldest first. Stop the server before."""
        self._remove_files(self.index.files_to_remove())
        self.index.clear()
        batch: list[str] = []
        for file in self._storage.files():
            if self.index.has_file(file.key):  # a version that was replaced
                continue
            batch.append(file.key)
            if len(batch) == _BATCH:
                yield from self._index_files(batch, "replace")
                batch = []
        yield from self._index_files(batch, "replace")

    def _file_orphans(self, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Give rows to complete files that have none; yield each key with its fault, if it has one."""
        orphans = [key for key in keys if not self.index.has_file(key)]
        for step in self._index_files(orphans, "keep"):
            if step.message is None and not self.index.has_file(step.key):
                self._storage.delete(step.key)  # its instance is in the index with another file
            yield step.key, step.message

    def _index_files(self, keys: Sequence[str], duplicates: DuplicatePolicy) -> Iterator[ReindexStep]:
        new: list[NewInstance] = []
        steps: list[ReindexStep] = []
        for key in keys:
            try:
                with self._storage.open(key) as file:
                    new.append(self._read_stored(file, key))
            except (InvalidInstance, FileMissing, OSError) as error:
                steps.append(ReindexStep(key, getattr(error, "message", str(error))))
            else:
                steps.append(ReindexStep(key, None))
        self.index.add(new, duplicates)
        yield from steps

    def _read_stored(self, file: BinaryIO, key: str) -> NewInstance:
        size = file.seek(0, 2)
        if size == 0:
            raise InvalidInstance(FailureReason.CANNOT_UNDERSTAND, "the file is empty")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as buffer:
            header = dicom_header.scan(buffer, max_inflated=self.max_inflated_bytes)
            checksum = hashlib.sha256(buffer).digest()
        return _new_instance(header, checksum, size, key)

    def _checksum(self, key: str) -> bytes:
        with self._storage.open(key) as file:
            return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


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

    A context manager; leaving it without a commit removes everything that was spooled.
    """

    def __init__(
        self,
        archive: Archive,
        storage: Storage,
        study_uid: str | None,
        changes: Mapping[str, Any],
        quarantine: Quarantine | None,
    ) -> None:
        self._archive = archive
        self._storage = storage
        self._study_uid = study_uid
        self._changes = changes
        self._quarantine = quarantine
        self._items: list[StoreItem | _Spooled] = []
        self._spools: list[Spool] = []

    def __enter__(self) -> StoreBatch:
        return self

    def __exit__(self, *_: object) -> None:
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
                item.incoming.sync_soon()  # while this one comes in
        iterator = iter(chunks)
        try:
            incoming = self._storage.receive()
        except OSError as error:
            self._items.append(_out_of_resources(error))
            _drain(iterator)
            return
        try:
            self._items.append(self._receive(incoming, iterator, tuple(warnings)))
        except InvalidInstance as error:
            self._keep_aside(incoming, error)
            incoming.discard()
            self._items.append(_failed(error))
        except OSError as error:
            incoming.discard()
            if error.errno not in _NO_SPACE:
                raise
            self._items.append(_out_of_resources(error))
            _drain(iterator)
        except BaseException:
            incoming.discard()
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
        with incoming.buffer() as buffer:
            header = dicom_header.scan(buffer, max_inflated=self._archive.max_inflated_bytes)
            self._check_study(header)
            if header.prefix:
                incoming, digest, header = self._completed(incoming, buffer, header)
        if self._archive.deidentify_on_store is not None:
            incoming, digest, header = self._deidentified(incoming, header)
        original: Mapping[str, Any] | None = None
        if self._changes:
            incoming, digest, header, changed = self._coerced(incoming, digest, header)
            if changed is not None:
                original = changed.original
                warnings = ((WarningReason.COERCED, f"Coerced: {', '.join(changed.names)}"), *warnings)
        return _Spooled(incoming, _new_instance(header, digest.digest(), incoming.size, ""), warnings, original)

    def _deidentified(
        self, incoming: Incoming, header: dicom_header.Header
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header]:
        """The instance de-identified (PS3.15 Annex E); what came is not kept. Raises InvalidInstance."""
        assert self._archive.deidentify_on_store is not None
        with SpooledTemporaryFile(_IN_MEMORY) as source, SpooledTemporaryFile(_IN_MEMORY) as copy:
            with incoming.buffer() as buffer:
                for at in range(0, len(buffer), _PIECE):
                    source.write(buffer[at : at + _PIECE])
            source.seek(0)
            try:
                self._archive.deidentify_on_store().deidentify(cast(BinaryIO, source), cast(BinaryIO, copy))
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
                return target, digest, dicom_header.scan(buffer, max_inflated=self._archive.max_inflated_bytes)
        except BaseException:
            target.discard()
            raise

    def _coerced(
        self, incoming: Incoming, digest: hashlib._Hash, header: dicom_header.Header
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header, coercion.Coerced | None]:
        """The instance with the attributes that the request sets, and the record of what they were."""
        with _mapped(incoming) as buffer:
            changed = coercion.coerce(buffer, header, self._changes, moment=self._moment(header), system=_SYSTEM)
            if changed is None:
                return incoming, digest, header, None
            target, digest = self._copied(changed.chunks())
            for piece in changed.pieces:
                if isinstance(piece, memoryview):
                    piece.release()
        incoming.discard()
        try:
            with target.buffer() as buffer:
                header = dicom_header.scan(buffer, max_inflated=self._archive.max_inflated_bytes)
        except BaseException:
            target.discard()
            raise
        return target, digest, header, changed

    def _moment(self, header: dicom_header.Header) -> str:
        """The time of a change: now, or that of the same change in the stored instance, should it come again."""
        uids = [metadata.text(header.attributes, key) for key in ("0020000D", "0020000E", "00080018")]
        with suppress(StopIteration):
            stored = next(self._archive.index.documents(*uids))
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

    def _completed(
        self, incoming: Incoming, buffer: bytes | mmap, header: dicom_header.Header
    ) -> tuple[Incoming, hashlib._Hash, dicom_header.Header]:
        """The same data set behind a preamble and File Meta Information (PS3.10 7.1), which the sender left out."""
        data_set = (buffer[at : at + _PIECE] for at in range(header.dataset_offset, len(buffer), _PIECE))
        complete, digest = self._copied(chain([header.prefix], data_set))
        incoming.discard()
        return complete, digest, header.behind_prefix()

    def commit(self) -> StoreReport:
        """Store everything spooled: files synced, rows committed when it returns."""
        items, self._items = self._items, []
        spooled = [item for item in items if not isinstance(item, StoreItem)]
        stored = iter(self._store(spooled))
        return StoreReport(tuple(item if isinstance(item, StoreItem) else next(stored) for item in items))

    def _store(self, spooled: Sequence[_Spooled]) -> list[StoreItem]:
        if not spooled:
            return []
        try:
            keys = self._storage.commit([each.incoming for each in spooled])
        except OSError as error:
            for each in spooled:
                each.incoming.discard()
            return [_out_of_resources(error, _identity(each.new)) for each in spooled]
        instances = [replace(each.new, file_key=key) for each, key in zip(spooled, keys, strict=True)]
        try:
            outcomes = self._archive.index.add(instances, self._archive.duplicates)
        except BaseException:
            self._take_back(keys)
            raise
        for key, outcome in zip(keys, outcomes, strict=True):
            # `recover` of another process may have given this very file its row: then it stays.
            if outcome not in (Outcome.ADDED, Outcome.REPLACED) and not self._archive.index.has_file(key):
                if outcome is Outcome.REJECTED and self._quarantine is not None:
                    self._keep_rejected(key, instances[keys.index(key)])
                self._storage.delete(key)
        self._storage.confirm(keys)
        return [_stored(each, outcome) for each, outcome in zip(spooled, outcomes, strict=True)]

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
        """Remove files whose rows could not be written. Where the index cannot tell, they are left to `recover`."""
        with suppress(Exception):
            for key in keys:
                if not self._archive.index.has_file(key):
                    self._storage.delete(key)
            self._storage.confirm(keys)


def open_archive(
    database_url: str,
    storage_url: str,
    *,
    cache_folder: Path | None = None,
    cache_bytes: int = 0,
    codec_workers: int = 1,
    duplicates: DuplicatePolicy = "reject",
    max_inflated_bytes: int = 1 << 30,
    min_free_bytes: int = 0,
    quarantine: Quarantine | None = None,
    deidentify_on_store: Callable[[], Deidentifier] | None = None,
    deidentify_on_retrieve: Callable[[], Deidentifier] | None = None,
) -> Archive:
    """The archive over the database and the storage that the URLs name. Raises ValueError for an unknown URL.

    Dear results are kept in `cache_folder`, at most `cache_bytes`; `codec_workers` processes do the pixel work.
    """
    cache = DiskCache(cache_folder, cache_bytes, min_free_bytes=min_free_bytes) if cache_folder else None
    return Archive(
        open_database(database_url),
        open_storage(storage_url),
        cache=cache,
        codec_workers=codec_workers,
        duplicates=duplicates,
        max_inflated_bytes=max_inflated_bytes,
        min_free_bytes=min_free_bytes,
        quarantine=quarantine,
        deidentify_on_store=deidentify_on_store,
        deidentify_on_retrieve=deidentify_on_retrieve,
    )


class _Pending(Generic[Result]):
    """A result that is being made: `finish` waits for it, `drop` gives it up."""

    def __init__(self, finish: Callable[[], Result], drop: Callable[[], object] = lambda: None) -> None:
        self.result = finish
        self.drop = drop

    def outcome(self) -> Result | CannotTranscode:
        try:
            return self.result()
        except CannotTranscode as error:
            return error


def _is_pixel_work(stored: str, wanted: str) -> bool:
    """Whether going from one transfer syntax to the other is dear: then it is done in a codec process, and kept."""
    return any(
        syntax is None or syntax.encapsulated or syntax.deflated
        for syntax in map(TRANSFER_SYNTAXES.get, (stored, wanted))
    )


def _is_deflated(row: InstanceRow) -> bool:
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    return syntax is not None and syntax.deflated


def _takes(wanted: TransferSyntax, attributes: Mapping[str, Any], *, decoded: bool) -> bool:
    """Whether an encoding takes the image that these attributes describe; `decoded`: it has to be decoded before."""
    bits = _number(attributes, "BitsAllocated")
    if "7FE00010" not in attributes or bits is None:
        return False
    samples = _number(attributes, "SamplesPerPixel") or 1
    photometric = metadata.text(attributes, "PhotometricInterpretation")
    if decoded and photometric.startswith("YBR_"):
        photometric = "RGB"  # most decoders give that, and every encoding that takes the other takes it too
    stored = _number(attributes, "BitsStored") or bits
    image = ImagePixel(
        rows=_number(attributes, "Rows") or 0,
        columns=_number(attributes, "Columns") or 0,
        samples=samples,
        frames=_number(attributes, "NumberOfFrames") or 1,
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=_number(attributes, "HighBit") or stored - 1,
        signed=_number(attributes, "PixelRepresentation") == 1,
        photometric=photometric,
        planar=_number(attributes, "PlanarConfiguration") or 0,
    )
    try:
        encoded(wanted, image)
    except CannotEncode:
        return False
    return True


def _number(attributes: Mapping[str, Any], keyword: str) -> int | None:
    text = metadata.text(attributes, keyword)
    return int(text) if text.isdecimal() else None


def _version(revision: int, changed_at: datetime) -> str:
    # The time as well: a new database counts its revisions from the beginning.
    return f"{revision}.{changed_at.timestamp():.6f}"


def _is_plain(row: InstanceRow) -> bool:
    """Whether values lie in the file as they are sent: little endian, and the data set not deflated."""
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    return syntax is None or (syntax.little_endian and not syntax.deflated)


def _new_instance(header: dicom_header.Header, checksum: bytes, size: int, key: str) -> NewInstance:
    attributes = header.attributes
    study, series, instance = (
        metadata.text(attributes, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    resource = f"/studies/{study}/series/{series}/instances/{instance}"
    # No quote inside a JSON string is unescaped, so this text occurs only where the scanner put a BulkDataURI.
    document = orjson.dumps(attributes).replace(
        b'"BulkDataURI":"/', f'"BulkDataURI":"{resource}/bulkdata/'.encode("ascii")
    )
    return NewInstance(
        attributes=attributes,
        document=document,
        transfer_syntax=header.transfer_syntax,
        file_key=key,
        size=size,
        checksum=checksum,
        dataset_offset=header.dataset_offset,
        frames=header.frames.pack() if header.frames else None,
        bulk_data=dicom_header.pack_bulk_data(header.bulk_data),
    )


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


def _merge(
    rows: Iterator[tuple[str, int, bytes]], files: Iterator[StoredFile]
) -> Iterator[tuple[tuple[str, int, bytes] | None, StoredFile | None]]:
    """Pair rows and files, both ordered by key; None where one side lacks the key."""
    row, file = next(rows, None), next(files, None)
    while row is not None or file is not None:
        if file is None or (row is not None and row[0] < file.key):
            yield row, None
            row = next(rows, None)
        elif row is None or file.key < row[0]:
            yield None, file
            file = next(files, None)
        else:
            yield row, file
            row, file = next(rows, None), next(files, None)
