"""Backups: a pool of the immutable files, and generations of the index beside it.

    <folder>/storage/01k9/x3f/….dcm              every file that a generation names, copied once
    <folder>/generations/20261128T165000Z/       a backup
        index.sqlite3                            the index as it was at one moment
        data/                                    the other files of the data directory: keys, users, audit trail
        manifest.json                            written last: without it the backup is not complete

The server may run meanwhile. The index is copied first, then the files that it names; one that is deleted in between is
taken out of the copy of the index. Since stored files never change, the next backup copies new files only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from .. import __version__
from ..errors import Unavailable
from ..index.database import Database, open_database, open_snapshot
from ..index.repository import Index
from ..storage import FileMissing, Storage
from ..storage.filesystem import FileSystemStorage, sync_folder
from ..storage.spool import sync_file

_PIECE = 1 << 20
_FORMAT = 1
INDEX = "index.sqlite3"


class NotABackup(Unavailable):
    """The folder holds no complete backup that this version can read."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A complete backup."""

    name: str  # when it was begun, UTC
    version: str  # of DICOMcloud
    studies: int
    instances: int
    bytes: int
    index_checksum: str  # SHA-256, hexadecimal
    format: int = _FORMAT


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one file."""

    key: str
    size: int  # bytes that were copied or read; 0 when it was there already
    fault: str | None = None


class Backup:
    """The backups in a folder, of one archive."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._generations = self._folder / "generations"

    def generations(self) -> list[Generation]:
        """The complete backups, oldest first."""
        found = []
        for path in sorted(self._generations.glob("*/manifest.json")):
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                names = {field.name for field in fields(Generation)}
                found.append(Generation(**{name: value for name, value in manifest.items() if name in names}))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def generation(self, name: str | None = None) -> Generation:
        """The backup of this name, else the last one. Raises NotABackup."""
        found = {each.name: each for each in self.generations()}
        if not found:
            raise NotABackup(f"{self._folder} holds no complete backup")
        if name is not None and name not in found:
            raise NotABackup(f"{self._folder} holds no backup {name}; there are: {', '.join(found)}")
        chosen = found[name] if name is not None else list(found.values())[-1]
        if chosen.format > _FORMAT:
            raise NotABackup(f"The backup {chosen.name} was made by the newer version {chosen.version}")
        return chosen

    # Backing up

    def make(
        self, database: Database, storage: Storage, data_folder: Path, *, without: Collection[Path] = (), keep: int = 7
    ) -> Iterator[Step]:
        """Make a backup; keep the last `keep` of them and the files that those name. Yields each file.

        The files in `data_folder` are copied too, but for those at or below `without`. What cannot be had of a stored
        file is told by its step and makes no other file wait. Raises OSError when the folder cannot be written,
        Unavailable when another backup is under way in it.
        """
        self._generations.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            for old in self._generations.glob("*.part"):
                shutil.rmtree(old)
            name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            draft = self._generations / f"{name}.part"
            draft.mkdir(mode=0o700)
            database.snapshot(draft / INDEX)
            copy = open_database(f"sqlite:///{draft / INDEX}")
            try:
                yield from _copy_named(Index(copy), storage, self._pool(), Index(database))
                counts = Index(copy).counts()
            finally:
                copy.snapshot(draft / f"{INDEX}.final")  # one file, without the write-ahead log of a database in use
                copy.close()
            os.replace(draft / f"{INDEX}.final", draft / INDEX)
            sync_file(draft / INDEX)
            left_out = {path.absolute() for path in without} | {self._folder}
            _copy_others(data_folder.absolute(), draft / "data", left_out, self._last_data())
            generation = Generation(
                name, __version__, counts["studies"], counts["instances"], counts["bytes"], _checksum(draft / INDEX)
            )
            _write(draft / "manifest.json", json.dumps(asdict(generation), indent=2))
            os.replace(draft, self._generations / name)
            sync_folder(self._generations)
            self._forget(keep)

    def _pool(self) -> FileSystemStorage:
        return FileSystemStorage(str(self._folder / "storage"))

    def _last_data(self) -> Path | None:
        found = self.generations()
        return self._generations / found[-1].name / "data" if found else None

    def _forget(self, keep: int) -> None:
        """Remove all but the last `keep` backups, and the files that none of those names."""
        kept = [generation.name for generation in self.generations()[-max(keep, 1) :]]
        for path in self._generations.iterdir():
            if path.name not in kept:
                shutil.rmtree(path)
        pool = self._pool()
        with ExitStack() as stack:
            indexes = [stack.enter_context(_opened(self._generations / name / INDEX)) for name in kept]
            named = (key for key, _ in groupby(merge(*map(_keys, indexes))))
            wanted = next(named, None)
            for file in pool.files():
                while wanted is not None and wanted < file.key:
                    wanted = next(named, None)
                if file.key != wanted:
                    pool.delete(file.key)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let nobody else write here meanwhile; a crash leaves no lock."""
        with closing(sqlite3.connect(self._folder / "lock.sqlite3", timeout=1, isolation_level=None)) as lock:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                raise Unavailable(f"Another backup into {self._folder} is under way") from None
            yield

    # Reading back

    def verify(self, generation: Generation) -> Iterator[Step]:
        """Read every file of a backup and compare its check sum; the step of one that differs has a fault."""
        pool = self._pool()
        with _opened(self._index_of(generation)) as index:
            for key, size, checksum in index.files():
                try:
                    with pool.open(key) as file:
                        digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
                    fault = None if digest == checksum else "its bytes are not those that were stored"
                except FileMissing:
                    fault = "the file is lost"
                except OSError as error:
                    fault = f"it cannot be read: {error.strerror or error}"
                yield Step(key, size, fault)

    def restore(self, generation: Generation, storage: Storage, index: Path, data_folder: Path) -> Iterator[Step]:
        """Put a backup into an empty archive: its files, the other files of the data directory, last the index.

        Every file is held against its check sum. What was interrupted goes on where it stopped. Raises NotABackup,
        OSError.
        """
        source = self._index_of(generation)
        with _opened(source) as copy:
            for key, size, checksum in copy.files():
                yield _copy(self._pool(), storage, key, size, checksum)
        _copy_others(source.parent / "data", data_folder, (), None)
        index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = index.with_name(f"{index.name}.part")
        shutil.copyfile(source, draft)
        sync_file(draft)
        os.replace(draft, index)
        sync_folder(index.parent)

    def _index_of(self, generation: Generation) -> Path:
        path = self._generations / generation.name / INDEX
        if not path.is_file() or _checksum(path) != generation.index_checksum:
            raise NotABackup(f"The index {path} is damaged. Take another backup, or copy the files and reindex them")
        return path


def _keys(index: Index) -> Iterator[str]:
    return (key for key, _, _ in index.files())


@contextmanager
def _opened(path: Path) -> Iterator[Index]:
    database = open_snapshot(path)
    try:
        yield Index(database)
    finally:
        database.close()


def _copy_named(copy: Index, source: Storage, target: Storage, live: Index) -> Iterator[Step]:
    """Copy the files that the copy of the index names; those deleted meanwhile are taken out of it."""
    deleted = []
    for key, size, checksum in copy.files():
        step = _copy(source, target, key, size, checksum)
        if step.fault and not live.has_file(key):
            deleted.append(key)
        else:
            yield step
    for key in deleted:
        copy.drop_instance_of_file(key)


def _copy(source: Storage, target: Storage, key: str, size: int, checksum: bytes) -> Step:
    """Copy one file unless it is there. What differs from its check sum is not copied. Raises OSError of the target."""
    if target.size(key) == size:
        return Step(key, 0)
    incoming = target.receive()
    try:
        digest = hashlib.sha256()
        try:
            with source.open(key) as file:
                for piece in iter(partial(_read, file), b""):
                    digest.update(piece)
                    incoming.write(piece)
        except FileMissing:
            return Step(key, 0, "the file is lost")
        except _CannotRead as error:
            return Step(key, 0, f"it cannot be read: {error}")
        if digest.digest() != checksum:
            return Step(key, 0, "its bytes are not those that were stored")
        target.put(incoming, key)
        return Step(key, size)
    finally:
        incoming.discard()


class _CannotRead(Exception):
    pass


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(_PIECE)
    except OSError as error:
        raise _CannotRead(error.strerror or str(error)) from None


def _copy_others(source: Path, target: Path, without: Collection[Path], last: Path | None) -> None:
    """Copy the files below a folder, but those that are there. What did not change since `last` is linked to it."""
    # On Windows with the rights of the folder above: 0o700 would shut the service out of what an administrator copied.
    target.mkdir(mode=0o777 if os.name == "nt" else 0o700, parents=True, exist_ok=True)
    if not source.is_dir():
        return
    for path in sorted(source.iterdir()):
        copy = target / path.name
        if path in without or any(path.name.startswith(f"{other.name}-") for other in without):
            continue
        if path.is_dir() and not path.is_symlink():
            _copy_others(path, copy, without, last / path.name if last else None)
        elif path.is_file() and not copy.exists():
            if last and _looks_same(path, last / path.name):
                with suppress(OSError):
                    os.link(last / path.name, copy)
                    continue
            shutil.copy2(path, copy)


def _looks_same(path: Path, other: Path) -> bool:
    try:
        one, two = path.stat(), other.stat()
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (two.st_size, two.st_mtime_ns)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync_file(path)
