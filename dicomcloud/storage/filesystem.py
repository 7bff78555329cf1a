"""Files in a folder: written beside, synced, renamed into place.

    <folder>/01k9/x3f/01k9x3f5m2….dcm    stored files
    <folder>/incoming/                   spooled files (.part) and notes of commits under way (.note)

A key is 48 bits of time and 80 random bits in base 32 (26 characters, lower case, no UID and no name in any
path). Its first characters name the folder, so that files which came together lie together: a request touches
one or two folders, and an incremental backup finds only new ones.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO, cast

from . import FileMissing, Incoming, StoredFile

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class FileSystemStorage:
    """The Storage contract over a local folder."""

    def __init__(self, folder: str) -> None:
        self._root = Path(folder).absolute()
        self._spool = self._root / "incoming"
        self._spool.mkdir(parents=True, exist_ok=True)

    def receive(self) -> SpooledFile:
        return SpooledFile(self._spool / f"{_new_name()}.part")

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        spooled = cast("Sequence[SpooledFile]", incoming)  # `receive` makes no others
        if not spooled:
            return []
        moves: list[tuple[SpooledFile, str, Path]] = []
        for item in spooled:
            key = _key(_new_name())
            moves.append((item, key, self._path(key)))
        keys = [key for _, key, _ in moves]
        if len(spooled) > 1:
            for item in spooled:
                item.sync_soon()
        for item in spooled:
            item.synced()
        self._note(keys).write_text("\n".join(keys), encoding="ascii")
        try:
            folders = {path.parent for _, _, path in moves}
            for folder in folders:
                _make_folder(folder)
            for item, _, path in moves:
                os.replace(item.path, path)
            for folder in folders:
                sync_folder(folder)
        except OSError:
            for _, _, path in moves:
                path.unlink(missing_ok=True)
            self.confirm(keys)
            raise
        return keys

    def put(self, incoming: Incoming, key: str) -> None:
        spooled = cast("SpooledFile", incoming)
        spooled.synced()
        path = self._path(key)
        _make_folder(path.parent)
        os.replace(spooled.path, path)
        sync_folder(path.parent)

    def size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def confirm(self, keys: Sequence[str]) -> None:
        if keys:
            self._note(keys).unlink(missing_ok=True)

    def unconfirmed(self) -> list[str]:
        keys: list[str] = []
        for note in sorted(self._spool.glob("*.note")):
            with suppress(FileNotFoundError):  # another process has just confirmed it
                keys += note.read_text(encoding="ascii").split()
        return keys

    def open(self, key: str) -> BinaryIO:
        try:
            return open(self._path(key), "rb")
        except FileNotFoundError:
            raise FileMissing(key) from None

    def read(self, key: str, offset: int, length: int) -> bytes:
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(length)
                while len(data) < length and (more := file.read(length - len(data))):
                    data += more
                return data
        except FileNotFoundError:
            raise FileMissing(key) from None

    def local_path(self, key: str) -> Path:
        return self._path(key)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def files(self) -> Iterator[StoredFile]:
        for upper in sorted(self._folders(self._root)):
            for lower in sorted(self._folders(self._root / upper)):
                with os.scandir(self._root / upper / lower) as entries:
                    found = sorted((entry for entry in entries if entry.name.endswith(".dcm")), key=lambda e: e.name)
                for entry in found:
                    with suppress(FileNotFoundError):  # deleted since the folder was read
                        status = entry.stat()
                        yield StoredFile(f"{upper}/{lower}/{entry.name}", status.st_size, status.st_mtime)

    def remove_abandoned(self, older_than: float) -> int:
        removed = 0
        oldest = time.time() - older_than
        for path in self._spool.glob("*.part"):
            with suppress(OSError):  # finished or removed by another process, or still open (Windows)
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    def disk_space(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self._root)
        return usage.free, usage.total

    def check(self, key: str | None = None) -> None:
        if not os.access(self._spool, os.R_OK | os.W_OK | os.X_OK):
            reason = "may not be written" if self._spool.is_dir() else "is not there"
            raise OSError(f"{self._root} {reason}; is its disk mounted, and writable for this user?")
        if key is not None and not self._path(key).is_file():
            raise OSError(f"{self._root} lacks {key}, which the index names; is its disk mounted?")

    def _path(self, key: str) -> Path:
        return self._root / key

    def _note(self, keys: Sequence[str]) -> Path:
        return self._spool / f"{keys[0].rpartition('/')[2]}.note"

    def _folders(self, parent: Path) -> list[str]:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.name != self._spool.name and entry.is_dir()]


class SpooledFile:
    """The Incoming contract over a file in the spool folder of the same volume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file: BinaryIO | None = open(path, "xb", buffering=0)  # noqa: SIM115 (`_close` closes it)
        self._syncing: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:  # an unbuffered write may take only a part
            written = self._file.write(view)
            self.size += written
            view = view[written:]

    @contextmanager
    def buffer(self) -> Iterator[bytes | mmap]:
        self._close()
        if self.size == 0:  # an empty file cannot be mapped
            yield b""
            return
        with open(self.path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            yield mapped

    def sync_soon(self) -> None:
        self._close()
        if self._syncing is None:
            self._syncing = _sync_pool().submit(sync_file, self.path)

    def synced(self) -> None:
        """Return when the bytes are on disk. Raises OSError."""
        self._close()
        if self._syncing is None:
            sync_file(self.path)
        else:
            self._syncing.result()

    def discard(self) -> None:
        self._close()
        if self._syncing is not None:
            self._syncing.cancel()
            with suppress(Exception):
                self._syncing.result()
        with suppress(OSError):
            self.path.unlink()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@cache
def _sync_pool() -> ThreadPoolExecutor:
    # Several syncs at once share one journal commit of the file system.
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")


def _new_name() -> str:
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def _key(name: str) -> str:
    return f"{name[:4]}/{name[4:7]}/{name}.dcm"


def sync_file(path: Path) -> None:
    with open(path, "rb+", buffering=0) as file:
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there; NTFS journals its own names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
