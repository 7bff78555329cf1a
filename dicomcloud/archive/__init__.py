"""The archive: stores, opens and deletes instances, and keeps the index and the files one.

Store:  file, sync, rename, then row. Delete: row first, file second. A crash between the two leaves at most a file
without a row, which `recover` (at start) and `verify` find again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from io import BytesIO
from itertools import chain
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from threading import Timer
from time import monotonic, sleep
from typing import Any, BinaryIO, Generic, Literal, NamedTuple, NoReturn, TypeVar, cast

import orjson

from ..audit import AuditTrail
from ..diagnosis import Diagnosis, fault, good
from ..dicom import header as dicom_header
from ..dicom import metadata
from ..dicom.codecs import ImagePixel, encoded, get_codecs_ready
from ..dicom.damaged import read_damaged_value
from ..dicom.deidentification import CannotDeidentify, Deidentifier
from ..dicom.pixel_cleaning import is_at_risk
from ..dicom.pixel_data import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    CannotEncode,
    CannotTranscode,
    TransferSyntax,
    decode_frame,
    transcode,
    transcode_file,
    transcode_frame_of_file,
    transcode_frame_to_file,
)
from ..dicom.processing import Processor
from ..dicom.rendered_files import ImageFile, holds_up
from ..dicom.rendering import encode, thumbnail
from ..dicom.rendering_parameters import Viewport
from ..dicom.stored_image import MAX_PIXELS
from ..dicom.workers import CodecPool
from ..errors import Conflict, DicomWebError, Gone, NotFound, Unavailable
from ..index import copying
from ..index.accounts import NEVER, Accounts, Key, User
from ..index.audit import AuditTable
from ..index.audit import Entry as AuditEntry
from ..index.copying import CopyStep
from ..index.database import (
    DamagedDatabase,
    Database,
    ServerAway,
    migrate,
    migration_script,
    open_database,
    pending,
)
from ..index.database import explain as explain_database_error
from ..index.events import EventLog
from ..index.outbox import Outbox
from ..index.repository import Index, InstanceRow
from ..quarantine import Quarantine
from ..storage import FileMissing, LocalSpace, Storage, open_storage
from ..storage.cache import DiskCache
from .backup import Backup, Generation, Step
from .correction import Correction
from .retention import Plan
from .store import DuplicatePolicy, Rules, StoreBatch, StoreItem, StoreReport
from .upkeep import Finding, ReindexStep, Upkeep

__all__ = [
    "NEVER",
    "Archive",
    "DamagedDatabase",
    "AuditEntry",
    "EventLog",
    "Finding",
    "ImageFile",
    "InstanceRow",
    "Key",
    "LocalSpace",
    "Outbox",
    "Processor",
    "ReindexStep",
    "SeriesVersion",
    "CopyStep",
    "copy_index",
    "StoreBatch",
    "StoreItem",
    "StoreReport",
    "User",
    "explain",
    "open_archive",
]

log = logging.getLogger(__name__)

Result = TypeVar("Result")
AuditScope = Literal["all", "changes", "none"]
MIGRATIONS = Path(__file__).resolve().parent.parent.parent / "migrations"

_TRIED_EVERY, _TOLD_EVERY = 2.5, 60.0  # seconds, while the database server is away
_AFTER_START = 2.0  # seconds that the start of a server has for itself
_PIECE = 1 << 20  # bytes copied at a time
_KEPT_PIXELS = 2_000_000  # of a frame, from which on drawing it takes longer than reading a kept picture
_IN_MEMORY = 4 << 20  # bytes of a converted instance that need no temporary file on disk


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
        codec_timeout: float = 600,
        duplicates: DuplicatePolicy = "reject",
        max_inflated_bytes: int = 1 << 30,
        max_image_pixels: int = MAX_PIXELS,
        min_free_bytes: int = 0,
        quarantine: Quarantine | None = None,
        deidentify_on_store: Callable[[], Deidentifier] | None = None,
        deidentify_on_retrieve: Callable[[], Deidentifier] | None = None,
        audit: AuditScope = "all",
        processors: Sequence[Processor] = (),
        change_feed: bool = False,
        change_feed_days: int = 0,
        event_targets: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.events = EventLog(database, feed=change_feed, keep_days=change_feed_days, targets=event_targets)
        self.outbox = Outbox(database)
        self.before_close: list[Callable[[], None]] = []
        self.index = Index(database, self.events)
        self.accounts = Accounts(database)
        self.audit = AuditTrail(AuditTable(database), enabled=audit != "none", changes_only=audit == "changes")
        self.cache = cache or DiskCache(Path(gettempdir()) / "dicomcloud", 0)
        self._codecs = CodecPool(codec_workers, time_limit=codec_timeout)
        self.duplicates = duplicates
        self.max_inflated_bytes = max_inflated_bytes
        self.max_image_pixels = max_image_pixels
        self.quarantine = quarantine
        self.deidentify_on_store = deidentify_on_store
        self._deidentify_on_retrieve = deidentify_on_retrieve
        self._processors = tuple(processors)
        self._min_free_bytes = min_free_bytes
        self._database = database
        self._storage = storage
        self.correction = Correction(self.index, storage, self.cache, self._begin_correction)
        self.upkeep = Upkeep(self.index, storage, self.cache, max_inflated_bytes=max_inflated_bytes)

    def close(self) -> None:
        """Let go of the database connection of this thread, and of the codec processes."""
        self.upkeep.close()
        self.audit.close()
        for stop in self.before_close:
            stop()
        self._codecs.close()
        self._database.close()

    def health(self) -> dict[str, str]:
        """What is wrong with `index`, `storage` or `disk space`, in a sentence each; nothing when all is well."""
        faults: dict[str, str] = {}
        newest = None
        try:
            self._database.check()
            newest = self.index.newest_file()
        except Exception as error:  # every database has its own
            log.error("the index does not answer: %s", error)
            faults["index"] = "The index does not answer"
        try:
            self._storage.check(newest)
            free, _ = self._storage.disk_space()
            if free < self._min_free_bytes:
                faults["disk space"] = "The disk is almost full: nothing is stored any more"
        except (OSError, Unavailable) as error:
            log.error("the storage cannot be used: %s", error)
            faults["storage"] = "The storage cannot be used"
        return faults

    def check_storage(self) -> None:
        """Raises Unavailable where the files that the index names are not there: their disk may not be mounted.

        An object store is not asked, since the server's processes are forked afterwards; `health` tells of it.
        """
        if not self._storage.source("").is_local:
            return
        keys = self.index.first_and_last_file()
        try:
            self._storage.check()
        except OSError as error:
            raise Unavailable(str(error)) from None
        if keys and all(self._storage.size(key) is None for key in keys):
            raise Unavailable(
                "The storage lacks the files that the index names. Is its disk mounted? If they are lost for good, "
                "restore a backup, or let `verify --repair` take them out of the index."
            )

    def try_storage(self) -> Iterator[str]:
        """Write, read and delete a file of no instance; yields `written`, `read`, `deleted` after each.

        Raises OSError, Unavailable.
        """
        content = b"DICOMcloud looks whether its storage works."
        incoming = self._storage.receive()
        try:
            incoming.write(content)
            keys = self._storage.commit([incoming])
        except BaseException:
            incoming.discard()
            raise
        try:
            yield "written"
            with self._storage.open(keys[0], fresh=True) as file:
                if file.read() != content:
                    raise OSError("other bytes came back than were written")
            yield "read"
        finally:
            self._storage.delete(keys[0])
            self._storage.confirm(keys)
        yield "deleted"

    def disk_space(self) -> tuple[int, int]:
        """Free bytes and all bytes of the volume with the files. Raises OSError."""
        return self._storage.disk_space()

    def get_codecs_ready(self) -> None:
        """Start one codec process soon, which the first image to be decoded finds ready. Returns at once."""

        def start() -> None:
            with suppress(RuntimeError):  # the server is being stopped
                self._codecs.submit(get_codecs_ready)

        timer = Timer(_AFTER_START, start)
        timer.daemon = True
        timer.start()

    def watch_codecs(self, on_change: Callable[[int], object]) -> None:
        """Have `on_change` told how many pieces of pixel work wait or are under way, whenever that changes."""
        self._codecs.on_change = on_change

    def diagnose(self) -> Iterator[Diagnosis]:
        """What there is to say of the index, for `doctor`. Raises Unavailable."""
        names = self.pending_migrations()
        if names:
            yield fault("schema", f"not up to date, missing: {', '.join(names)}", "Run `migrate`.")
            return
        yield good("schema", "up to date")
        yield from self._database.diagnose()

    def presigned_url(self, row: InstanceRow, seconds: int) -> str | None:
        """Where a client can fetch the file itself for so long, if the store lets it. Raises Unavailable."""
        return self._storage.presigned_url(row.file_key, seconds)

    # Store

    def begin_store(
        self,
        study_uid: str | None = None,
        *,
        changes: Mapping[str, Any] | None = None,
        quarantine: bool = True,
        visible: Rules | None = None,
    ) -> StoreBatch:
        """A unit of work that stores instances; with `study_uid`, those of any other study fail (PS3.18 10.5.1.1).

        `changes` are attributes that every instance gets (`coercion.read_change`). `quarantine` is False where what
        cannot be stored is not lost: its sender keeps the file. With `visible`, instances of studies that fulfil none
        of these rules fail. Raises Unavailable when the disk is about to be full.
        """
        if self._min_free_bytes and self._storage.disk_space()[0] < self._min_free_bytes:
            raise Unavailable("The disk is almost full; nothing can be stored at the moment", retry_after=600)
        return StoreBatch(
            self.index,
            self._storage,
            duplicates=self.duplicates,
            max_inflated_bytes=self.max_inflated_bytes,
            deidentify=self.deidentify_on_store,
            processors=self._processors,
            study_uid=study_uid,
            changes=changes or {},
            quarantine=self.quarantine if quarantine else None,
            visible=visible,
            audit=self.audit,
            later=self.upkeep.see_to_later,
        )

    def _begin_correction(self, changes: Mapping[str, Any]) -> StoreBatch:
        return StoreBatch(
            self.index,
            self._storage,
            duplicates="replace",
            max_inflated_bytes=self.max_inflated_bytes,
            deidentify=None,
            processors=(),
            study_uid=None,
            changes=changes,
            quarantine=None,
            audit=self.audit,
            correcting=True,
            later=self.upkeep.see_to_later,
        )

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
            log.error("the file %s of the instance %s is not in the storage", row.file_key, row.sop_uid)
            raise Unavailable("The file of this instance is not to be found in the storage; `verify` tells more")
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
        return self._begin_made(
            row,
            f"{row.file_key} {transfer_syntax}",
            lambda: self._open_converted(row, transfer_syntax),
            transcode_file,
            transfer_syntax,
        )

    def _begin_made(
        self,
        row: InstanceRow,
        key: str,
        otherwise: Callable[[], BinaryIO],
        make: Callable[..., None],
        *arguments: object,
    ) -> _Pending[BinaryIO]:
        """The file that `make(open_source, path, *arguments)` writes in a codec process, or that of the cache.

        `otherwise` is tried when it could not be written, or when the source or the cache was deleted just now.
        """
        if cached := self.cache.open(key):
            return _Pending(lambda: cached, drop=cached.close)
        try:
            path = self.cache.spool()
        except OSError:
            return _Pending(otherwise)
        source = self._storage.source(row.file_key)
        future = self._codecs.submit(make, source.open, str(path), *arguments, max_inflated=self.max_inflated_bytes)

        def finish() -> BinaryIO:
            try:
                future.result()
                return self.cache.keep(path, key)  # before the answer: who deletes the instance after it finds it there
            except OSError:
                path.unlink(missing_ok=True)
                return otherwise()
            except CannotTranscode:
                path.unlink(missing_ok=True)  # a process that crashed has left it
                raise

        def drop() -> None:
            if not future.cancel():
                future.add_done_callback(lambda _: path.unlink(missing_ok=True))

        return _Pending(finish, drop=drop)

    def open_deidentified(self, row: InstanceRow, transfer_syntax: str) -> BinaryIO:
        """A de-identified copy of the instance (PS3.15 Annex E) in this transfer syntax, as a file.

        It is kept in the cache, and goes from there when the instance is deleted or replaced. Raises CannotDeidentify,
        CannotTranscode, NotFound, Gone.
        """
        deidentifier = self._retrieve_deidentifier()
        key = f"{row.file_key} deidentified {deidentifier.fingerprint} {transfer_syntax}"
        if cached := self.cache.open(key):
            return cached
        path = self.cache.spool()
        try:
            with SpooledTemporaryFile(_IN_MEMORY) as copy, self.open_file(row) as source, open(path, "xb") as target:
                deidentifier.deidentify(source, cast(BinaryIO, copy))
                copy.seek(0)
                transcode(cast(BinaryIO, copy), target, transfer_syntax, max_inflated=self.max_inflated_bytes)
            return self.cache.keep(path, key)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def deidentified_document(self, row: InstanceRow) -> bytes:
        """The DICOM JSON text of the de-identified copy, which has UIDs of its own.

        Bulk data are named without a BulkDataURI: they are in `open_deidentified` only. Raises CannotDeidentify,
        NotFound, Gone.
        """
        key = f"{row.file_key} deidentified {self._retrieve_deidentifier().fingerprint} document"
        if (kept := self.cache.read(key)) is not None:
            return kept
        with self.open_deidentified(row, EXPLICIT_VR_LITTLE_ENDIAN) as copy:
            header = dicom_header.scan(copy.read(), max_inflated=self.max_inflated_bytes)
        document = orjson.dumps(_without_bulk_data(header.attributes))
        self.cache.write(key, document)
        return document

    def deidentified_preview(self, row: InstanceRow, frame: int, side: int) -> bytes:
        """A JPEG of a frame (from 1) of the de-identified copy, `side` × `side` pixels at most, nothing drawn upon it.

        Raises CannotDeidentify, also for an image in which text may be burned, CannotTranscode, CannotRender, NotFound,
        Gone.
        """
        key = f"{row.file_key} deidentified {self._retrieve_deidentifier().fingerprint} preview {frame} {side}"
        if (kept := self.cache.read(key)) is not None:
            return kept
        attributes = orjson.loads(self.deidentified_document(row))
        about = {"modality": "Modality", "sop_class": "SOPClassUID", "burned_in": "BurnedInAnnotation"}
        if is_at_risk({name: metadata.text(attributes, keyword) for name, keyword in about.items()}):
            raise CannotDeidentify("Text may be burned into the pixels: there is no preview.")
        with self.open_deidentified(row, EXPLICIT_VR_LITTLE_ENDIAN) as copy:
            picture = thumbnail(copy, frame, Viewport(side, side), max_pixels=self.max_image_pixels)
        jpeg = encode(picture, "image/jpeg")
        self.cache.write(key, jpeg)
        return jpeg

    def _retrieve_deidentifier(self) -> Deidentifier:
        if self._deidentify_on_retrieve is None:
            raise CannotDeidentify("This server is not set up to de-identify.")
        return self._deidentify_on_retrieve()

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
                with self.open_frame_as(row, frames, number, EXPLICIT_VR_LITTLE_ENDIAN) as file:
                    return file.read()
            with self.open_file(row) as source:
                return decode_frame(source, number)
        runs = frames.locate(number)
        try:
            return b"".join([self._storage.read(row.file_key, offset, length) for offset, length in runs])
        except FileMissing:
            self._deleted_meanwhile(row)

    def open_frame(
        self, row: InstanceRow, frames: dicom_header.Frames, number: int
    ) -> tuple[BinaryIO, int, int] | None:
        """The file, the offset and the length of a frame that lies in it as `read_frame` gives it, in one piece.

        None for other frames, and where the file is not on this machine. Raises LookupError, NotFound, Gone.
        """
        runs = frames.locate(number) if frames.encapsulated or (_is_plain(row) and frames.on_byte_boundaries) else ()
        if len(runs) != 1 or not self._storage.source(row.file_key).is_local:
            return None
        return (self.open_file(row), *runs[0])

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

    def open_frame_as(
        self, row: InstanceRow, frames: dicom_header.Frames, number: int, transfer_syntax: str
    ) -> BinaryIO:
        """The bit stream of one frame (from 1) in another transfer syntax, as a file; native in an uncompressed one.

        Raises CannotTranscode, LookupError, NotFound, Gone.
        """
        return self._begin_frame(row, frames, number, transfer_syntax).result()

    def open_frames_as(
        self, row: InstanceRow, frames: dicom_header.Frames, numbers: Iterable[int], transfer_syntax: str
    ) -> Iterator[BinaryIO | CannotTranscode]:
        """`open_frame_as` of many, in the order of `numbers`; the next ones are worked on while one is used."""
        return self._ahead(self._begin_frame(row, frames, number, transfer_syntax) for number in numbers)

    def _begin_frame(
        self, row: InstanceRow, frames: dicom_header.Frames, number: int, transfer_syntax: str
    ) -> _Pending[BinaryIO]:
        packed = frames.pack()

        def in_memory() -> BinaryIO:
            source = self._storage.source(row.file_key)
            try:
                frame = self._codecs.submit(
                    transcode_frame_of_file,
                    source.open,
                    number,
                    transfer_syntax,
                    packed,
                    max_inflated=self.max_inflated_bytes,
                ).result()
            except FileNotFoundError:
                self._deleted_meanwhile(row)
            return BytesIO(frame)

        key = f"{row.file_key} {number} {transfer_syntax}"
        return self._begin_made(row, key, in_memory, transcode_frame_to_file, number, transfer_syntax, packed)

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

    def described(self, study: str, series: str, instance: str) -> tuple[InstanceRow, ImageFile]:
        """One instance, and its file with what the index knows of its header. Raises NotFound, Gone."""
        found = self.index.description(study, series, instance) or self._missing(study, series, instance)
        row, document, frames, bulk_data = found
        resource = f"/studies/{study}/series/{series}/instances/{instance}"
        source = self._storage.source(row.file_key)
        return row, ImageFile(
            row.file_key, source.open, source.is_local, row.transfer_syntax, resource, document, frames, bulk_data
        )

    def rendered(self, row: InstanceRow, file: ImageFile, render: Callable[..., bytes], *arguments: object) -> bytes:
        """`render(file, *arguments)` with the limit of pixels, from the cache where it was made before.

        What holds the interpreter's lock, or much memory, is done in the codec processes and kept, as are larger
        pictures and those of files elsewhere; others are drawn here, which takes less time than the way there. Raises
        what `render` raises, NotFound, Gone.
        """
        syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
        elsewhere = syntax is None or syntax.encapsulated or syntax.deflated or holds_up(file, render, arguments)
        if not elsewhere and file.is_local and file.pixels < _KEPT_PIXELS:
            return self._drawn(row, lambda: render(file, *arguments, max_pixels=self.max_image_pixels))
        key = f"{row.file_key} {render.__name__} {arguments!r}"
        if (picture := self.cache.read(key)) is None:
            if elsewhere:
                future = self._codecs.submit(render, file, *arguments, max_pixels=self.max_image_pixels)
                picture = self._drawn(row, future.result)
            else:
                picture = self._drawn(row, lambda: render(file, *arguments, max_pixels=self.max_image_pixels))
            self.cache.write(key, picture)
        return picture

    def _drawn(self, row: InstanceRow, draw: Callable[[], bytes]) -> bytes:
        try:
            return draw()
        except FileNotFoundError:
            self._deleted_meanwhile(row)

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

        def record(instances: int) -> None:
            self.audit.write_within("delete", [(study, series or "", instance or "", instances, {})])

        keys = self.index.remove(study, series, instance, record) or self._missing(study, series, instance)
        self.upkeep.remove_files(keys)
        self.cache.forget(study)
        return len(keys)

    # Retention

    def forget(self, plan: Plan) -> Iterator[str]:
        """Carry out a plan of retention rules; the UID of each study that is gone. Raises Unavailable."""
        for doomed in plan.studies:
            with suppress(NotFound, Gone):  # deleted meanwhile
                self.delete(doomed.study.uid)
                yield doomed.study.uid
        if plan.superseded:
            self.index.forget_superseded(plan.superseded)
            self.upkeep.remove_files(plan.superseded)

    # Backups

    def back_up(self, backup: Backup, data_folder: Path, *, without: Collection[Path], keep: int) -> Iterator[Step]:
        """Make a backup, also while the archive is in use (`Backup.make`)."""
        return backup.make(self._database, self._storage, data_folder, without=without, keep=keep)

    def restore(self, backup: Backup, generation: Generation, index: Path, data_folder: Path) -> Iterator[Step]:
        """Put a backup into this archive, which is empty; its database in the file `index` is replaced."""
        self._database.close()
        return backup.restore(generation, self._storage, index, data_folder)

    # The schema

    def migrate(self) -> list[str]:
        """Bring the database to this version's schema; return the names of the migrations applied."""
        names = migrate(self._database, MIGRATIONS)
        self.events.close_feed()
        return names

    def patiently(self, work: Callable[[], Result], tell: Callable[[str], object] = log.warning) -> Result:
        """`work()`, as soon as the database server can be reached: it may start later than this one.

        `tell` hears of it once a minute. Raises ServerAway for a login that is refused: waiting does not help there.
        """
        told = 0.0
        while True:
            try:
                return work()
            except ServerAway as error:
                if not error.waiting_helps:
                    raise
                if not told or monotonic() - told > _TOLD_EVERY:
                    tell(f"{error.message} Waiting for it.")
                    told = monotonic()
                sleep(_TRIED_EVERY)

    def put_index_aside(self) -> Path | None:
        """Put a damaged index aside, for `reindex` to make a new one; where the old one is now."""
        return self._database.put_aside()

    def migration_script(self, *, every: bool = False) -> str:
        """The pending migrations, or all, as SQL for a database administrator. `every` asks no database."""
        return migration_script(self._database, MIGRATIONS, every=every)

    def pending_migrations(self) -> list[str]:
        return pending(self._database, MIGRATIONS)


def open_archive(
    database_url: str,
    storage_url: str,
    local: LocalSpace,
    *,
    cache_folder: Path | None = None,
    cache_bytes: int = 0,
    codec_workers: int = 1,
    codec_timeout: float = 600,
    duplicates: DuplicatePolicy = "reject",
    max_inflated_bytes: int = 1 << 30,
    max_image_pixels: int = MAX_PIXELS,
    min_free_bytes: int = 0,
    quarantine: Quarantine | None = None,
    deidentify_on_store: Callable[[], Deidentifier] | None = None,
    deidentify_on_retrieve: Callable[[], Deidentifier] | None = None,
    audit: AuditScope = "all",
    processors: Sequence[Processor] = (),
    change_feed: bool = False,
    change_feed_days: int = 0,
    event_targets: Mapping[str, Collection[str]] | None = None,
) -> Archive:
    """The archive over the database and the storage that the URLs name. Raises ValueError for an unknown URL.

    Dear results are kept in `cache_folder`, at most `cache_bytes`; `codec_workers` processes do the pixel work.
    `processors` see every instance that is stored; `event_targets` are the kinds of events for each destination.
    """
    cache = DiskCache(cache_folder, cache_bytes, min_free_bytes=min_free_bytes) if cache_folder else None
    try:
        storage = open_storage(storage_url, local)
    except ValueError as error:
        raise ValueError(f"Setting storage_url: {error}") from None
    try:
        database = open_database(database_url)
    except ValueError as error:
        raise ValueError(f"Setting database_url: {error}") from None
    return Archive(
        database,
        storage,
        cache=cache,
        codec_workers=codec_workers,
        codec_timeout=codec_timeout,
        duplicates=duplicates,
        max_inflated_bytes=max_inflated_bytes,
        max_image_pixels=max_image_pixels,
        min_free_bytes=min_free_bytes,
        quarantine=quarantine,
        deidentify_on_store=deidentify_on_store,
        deidentify_on_retrieve=deidentify_on_retrieve,
        audit=audit,
        processors=processors,
        change_feed=change_feed,
        change_feed_days=change_feed_days,
        event_targets=event_targets,
    )


def explain(error: Exception) -> DicomWebError | None:
    """What an exception from below says of the state of index or storage; None where it is a fault of this program."""
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return Unavailable(f"The storage cannot be used at the moment: {error.strerror or type(error).__name__}")
    return explain_database_error(error)


def copy_index(source_url: str, target_url: str) -> Iterator[CopyStep]:
    """Copy an index from one database to another (`index.copying`). Raises ValueError for an unknown URL."""
    source, target = open_database(source_url), open_database(target_url)
    try:
        if missing := pending(source, MIGRATIONS):
            raise Conflict(f"The source lacks {', '.join(missing)}: run `migrate` on it first.")
        migrate(target, MIGRATIONS)
        yield from copying.copy_index(source, target)
    finally:
        source.close()
        target.close()


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


def _without_bulk_data(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes with bulk data named by their VR alone, in sequences too."""
    named: dict[str, Any] = {}
    for key, element in attributes.items():
        if "BulkDataURI" in element:
            named[key] = {"vr": element["vr"]}
        elif element["vr"] == "SQ" and "Value" in element:
            named[key] = {"vr": "SQ", "Value": [_without_bulk_data(item) for item in element["Value"]]}
        else:
            named[key] = element
    return named


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


def _is_plain(row: InstanceRow) -> bool:
    """Whether values lie in the file as they are sent: little endian, and the data set not deflated."""
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    return syntax is None or (syntax.little_endian and not syntax.deflated)


def _version(revision: int, changed_at: datetime) -> str:
    # The time as well: a new database counts its revisions from the beginning.
    return f"{revision}.{changed_at.timestamp():.6f}"
