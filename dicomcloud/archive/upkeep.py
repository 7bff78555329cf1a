"""Keeping index and files one: what a crash left is finished, each is held against the other, the index made anew."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import UnsupportedOperation
from mmap import ACCESS_READ, mmap
from shutil import copyfileobj
from tempfile import TemporaryFile
from threading import Lock, Timer
from typing import BinaryIO, Literal

from ..dicom import header as dicom_header
from ..errors import FailureReason, InvalidInstance, Unavailable
from ..index.repository import Index
from ..index.writing import NewInstance
from ..storage import FileMissing, Storage, StoredFile
from ..storage.cache import DiskCache
from .store import DuplicatePolicy, new_instance

log = logging.getLogger(__name__)

_BATCH = 200  # files indexed in one transaction by reindex and repair
_PIECE = 1 << 20  # bytes copied at a time
_SOON = 3.0  # seconds after which a database that went away is asked again
_LONGEST_PAUSE = 60.0  # seconds between two attempts to remove a file that is held open
_ABANDONED = 24 * 3600.0  # seconds after which a spooled file belongs to a request that died


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


class Upkeep:
    """The work on a whole archive, by the command line and at every start."""

    def __init__(self, index: Index, storage: Storage, cache: DiskCache, *, max_inflated_bytes: int) -> None:
        self._index = index
        self._storage = storage
        self._cache = cache
        self._max_inflated_bytes = max_inflated_bytes
        self._waiting: dict[str, bool] = {}  # the keys of `see_to_later`
        self._lock = Lock()
        self._timer: Timer | None = None
        self._kept: set[str] = set()  # the keys of files that could not be removed yet
        self._removal: Timer | None = None
        self._closed = False

    def close(self) -> None:
        """What waits to be seen to is left to the next start."""
        with self._lock:
            self._closed = True
            for timer in (self._timer, self._removal):
                if timer is not None:
                    timer.cancel()

    def remove_files(self, keys: Sequence[str]) -> None:
        """Remove files that no row names any more; those that cannot be removed now are tried again."""
        self._remove(keys, _SOON)

    def _remove(self, keys: Sequence[str], pause: float) -> None:
        removed, kept = [], []
        for key in keys:
            try:
                self._storage.delete(key)
            except (OSError, Unavailable) as error:  # still open on Windows, or the storage is away
                kept.append(key)
                if key not in self._kept:
                    log.warning("file %s could not be removed yet: %s", key, error)
            else:
                removed.append(key)
                self._cache.forget(key)
        with self._lock:
            self._kept = (self._kept - set(removed)).union(kept)
            if self._kept and self._removal is None and not self._closed:
                self._removal = Timer(pause, self._remove_kept, [min(2 * pause, _LONGEST_PAUSE)])
                self._removal.daemon = True
                self._removal.start()
        self._index.files_removed(removed)

    def _remove_kept(self, next_pause: float) -> None:
        with self._lock:
            self._removal = None
            keys = sorted(self._kept)
        try:
            self._remove(keys, next_pause)
        except Unavailable as error:
            log.warning("that files were removed is noted at the next start: %s", error)
        except Exception:
            log.exception("files that could not be removed are left to the next start")

    def unfinished(self) -> int:
        """How many files a crash left to `recover`."""
        return len(self._index.files_to_remove()) + len(self._storage.unconfirmed())

    def recover(self) -> None:
        """Finish what a crash interrupted: file instances whose row was not written, remove deleted files.

        Safe while other processes store: a file is only ever given the row that it lacks.
        """
        self.remove_files(self._index.files_to_remove())
        self._storage.remove_abandoned(_ABANDONED)
        try:
            self._file_unconfirmed(self._storage.unconfirmed())
        except Unavailable as error:
            log.warning("what a crash may have left in the storage is seen to at the next start: %s", error)

    def see_to_later(self, keys: Sequence[str], perhaps_stored: bool) -> None:
        """As soon as the index can be asked, remove files that have no row; file them if `perhaps_stored`.

        Returns at once.
        """
        with self._lock:
            self._waiting |= dict.fromkeys(keys, perhaps_stored)
            if self._timer is None and not self._closed:
                self._timer = Timer(_SOON, self._see_to_waiting)
                self._timer.daemon = True
                self._timer.start()

    def _see_to_waiting(self) -> None:
        with self._lock:
            self._timer = None
            waiting = dict(self._waiting)
        try:
            self._file_unconfirmed([key for key, perhaps_stored in waiting.items() if perhaps_stored])
            for key, perhaps_stored in waiting.items():
                if not perhaps_stored and not self._index.has_file(key):
                    self._storage.delete(key)
            self._storage.confirm(list(waiting))
        except (OSError, Unavailable) as error:
            log.warning("what was being stored when the index went away is seen to later: %s", error)
            self.see_to_later((), False)
        except Exception:
            log.exception("what was being stored when the index went away is left to the next start")
        else:
            with self._lock:
                for key in waiting:
                    self._waiting.pop(key, None)

    def _file_unconfirmed(self, unconfirmed: Sequence[str]) -> None:
        for start in range(0, len(unconfirmed), _BATCH):
            batch = unconfirmed[start : start + _BATCH]
            for key, fault in self._file_orphans(batch):
                log.warning("recovered file %s %s", key, fault or "into the index")
        for key in unconfirmed:
            self._storage.confirm([key])

    def verify(
        self,
        *,
        repair: bool = False,
        checksums: bool = False,
        after: str = "",
        go_on: Callable[[str, int], bool] = lambda key, size: True,
    ) -> Iterator[Finding]:
        """Hold the index against the files, both ways; with `checksums`, read every file too.

        Repair takes the rows of files that are gone out of the index, and files instances that have no row. With
        `after`, only the files behind this key are looked at. `go_on` is told the key and the size in bytes of each
        file that has been looked at; it may take its time, and ends the work with False.
        """
        unknown: list[StoredFile] = []
        for row, file in _merge(self._index.files(after), (file for file in self._storage.files() if file.key > after)):
            if row is None:
                assert file is not None
                unknown.append(file)
            elif file is None:
                yield from self._verify_missing(row[0], repair)
            elif row[1] != file.size:
                yield Finding("wrong size", file.key, f"{file.size} bytes on disk, {row[1]} in the index", False)
            elif checksums:
                yield from self._verify_checksum(row, repair)
            if row is not None and not go_on(row[0], row[1]):
                break
        yield from self._verify_unknown(unknown, repair)

    def _verify_checksum(self, row: tuple[str, int, bytes], repair: bool) -> Iterator[Finding]:
        try:
            if self._checksum(row[0]) != row[2]:
                yield Finding("wrong checksum", row[0], "its bytes are not those that were stored", False)
        except FileMissing:
            yield from self._verify_missing(row[0], repair)
        except OSError as error:
            yield Finding("unreadable file", row[0], f"it cannot be read: {error.strerror or error}", False)

    def _verify_missing(self, key: str, repair: bool) -> Iterator[Finding]:
        try:
            self._storage.open(key, fresh=True).close()  # stored or deleted while verify was running?
        except FileMissing:
            if self._index.has_file(key):
                if repair:
                    self._index.drop_instance_of_file(key)
                yield Finding("missing file", key, "the index names a file that is not there", repair)

    def _verify_unknown(self, files: Sequence[StoredFile], repair: bool) -> Iterator[Finding]:
        deleted = set(self._index.files_to_remove())
        orphans = [file for file in files if file.key not in deleted and not self._index.has_file(file.key)]
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
        self.remove_files(self._index.files_to_remove())
        self._index.clear()
        batch: list[str] = []
        for file in self._storage.files():
            if self._index.has_file(file.key):  # a version that was replaced
                continue
            batch.append(file.key)
            if len(batch) == _BATCH:
                yield from self._index_files(batch, "replace", announce=False)
                batch = []
        yield from self._index_files(batch, "replace", announce=False)

    def _file_orphans(self, keys: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Give rows to complete files that have none; yield each key with its fault, if it has one."""
        orphans = [key for key in keys if not self._index.has_file(key)]
        for step in self._index_files(orphans, "keep"):
            if step.message is None and not self._index.has_file(step.key):
                self._storage.delete(step.key)  # its instance is in the index with another file
            yield step.key, step.message

    def _index_files(
        self, keys: Sequence[str], duplicates: DuplicatePolicy, *, announce: bool = True
    ) -> Iterator[ReindexStep]:
        new: list[NewInstance] = []
        steps: list[ReindexStep] = []
        for key in keys:
            try:
                with self._storage.open(key, fresh=True) as file:
                    new.append(self._read_stored(file, key))
            except (InvalidInstance, FileMissing, OSError) as error:
                steps.append(ReindexStep(key, getattr(error, "message", str(error))))
            else:
                steps.append(ReindexStep(key, None))
        self._index.add(new, duplicates, announce=announce, has_file=lambda key: self._storage.size(key) is not None)
        yield from steps

    def _read_stored(self, file: BinaryIO, key: str) -> NewInstance:
        size = file.seek(0, 2)
        if size == 0:
            raise InvalidInstance(FailureReason.CANNOT_UNDERSTAND, "the file is empty")
        with _mapped(file) as buffer:
            header = dicom_header.scan(buffer, max_inflated=self._max_inflated_bytes)
            checksum = hashlib.sha256(buffer).digest()
        return new_instance(header, checksum, size, key)

    def _checksum(self, key: str) -> bytes:
        with self._storage.open(key, fresh=True) as file:
            return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap]:
    """All bytes of a file; one that is not on this machine is fetched."""
    with TemporaryFile() as copy:
        try:
            number = file.fileno()
        except UnsupportedOperation:
            file.seek(0)
            copyfileobj(file, copy, _PIECE)
            copy.flush()
            number = copy.fileno()
        with mmap(number, 0, access=ACCESS_READ) as buffer:
            yield buffer


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
