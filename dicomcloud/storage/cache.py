"""A size-limited cache of results, and of files that lie elsewhere, on disk, shared by processes without locks.

    <folder>/3f/3fa9…-77….bin    a result: hash of its subject, the first word of its key, and of the whole key
    <folder>/spool/              files being written (.part)

A result is written beside and renamed, so that a reader sees all of it or nothing. Keys name what never changes (a
stored file, a revision) and what was done with it: nothing is ever invalidated, only removed, the least recently used
first, and with `forget` all of a subject that is deleted. Neither UIDs nor names are part of a path. The folder may be
deleted at any time, also while the server runs.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

_SHARE = 4  # a result larger than this part of the cache would drive out too much: it is not kept
_STEP = 16  # this part of the cache may be written by one process until the folder is measured again
_REMAINING = 0.9  # of the limit, when something has had to go
_TOUCHED = 60.0  # seconds: how exactly the last use of a result is noted
_ABANDONED = 24 * 3600.0


class DiskCache:
    """`max_bytes` 0: nothing is kept, and `spool` still gives a place for temporary files.

    The limit may be exceeded by 1/16 for each process that writes. Nothing is kept when the disk would have less than
    `min_free_bytes` left.
    """

    def __init__(self, folder: Path, max_bytes: int, *, min_free_bytes: int = 0) -> None:
        self._folder = folder
        self._spool = folder / "spool"
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._written: int | None = None  # bytes since the folder was measured; None: it has not been yet
        self._measuring = Lock()

    def open(self, key: str) -> BinaryIO | None:
        """The result under this key, to be read from its beginning; None if there is none."""
        if not self._max_bytes:
            return None
        path = self._path(key)
        try:
            file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        except OSError:
            return None
        with suppress(OSError):
            if time.time() - os.fstat(file.fileno()).st_mtime > _TOUCHED:
                os.utime(path)
        return file

    def read(self, key: str) -> bytes | None:
        file = self.open(key)
        if file is None:
            return None
        with file:
            return file.read()

    def write(self, key: str, data: bytes) -> None:
        """Keep a result. What cannot be kept (too large, disk full) is let go without a word: it can be made again."""
        if not self.fits(len(data)):
            return
        with suppress(OSError):
            path = self.spool()
            try:
                path.write_bytes(data)
                self._rename(path, key)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            self._count(len(data))

    def spool(self) -> Path:
        """A path at which a result can be written, to be given to `keep` or removed. Raises OSError."""
        self._spool.mkdir(parents=True, exist_ok=True)
        return self._spool / f"{uuid.uuid4().hex}.part"

    def keep(self, path: Path, key: str) -> BinaryIO:
        """The result written at `path`, opened; it stays under `key` if there is room, else goes when it is closed.

        Raises FileNotFoundError when the folder has been deleted meanwhile.
        """
        size = path.stat().st_size
        if not self.fits(size):
            return _open_unnamed(path)
        if os.name == "nt":  # an open file cannot be renamed there
            with suppress(OSError):
                self._rename(path, key)
                path = Path(self._path(key))
            file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        else:  # once it has its name, anyone may remove it
            file = open(path, "rb")  # noqa: SIM115
            try:
                self._rename(path, key)
            except OSError:
                path.unlink(missing_ok=True)
                return file
        self._count(size)
        return file

    def forget(self, subject: str) -> None:
        """Remove all results whose key begins with this word: what they were made of is deleted."""
        name = _digest(subject, 8)
        for entry in _entries(self._folder / name[:2]):
            if entry.name.startswith(f"{name}-"):
                with suppress(OSError):  # removed by another process, or open (Windows): it goes as the oldest
                    os.unlink(entry.path)

    def _path(self, key: str) -> str:  # a text: several times cheaper than a Path
        subject = _digest(key.partition(" ")[0], 8)
        return os.path.join(self._folder, subject[:2], f"{subject}-{_digest(key, 20)}.bin")

    def _rename(self, path: Path, key: str) -> None:
        target = self._path(key)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)

    def fits(self, size: int) -> bool:
        """Whether a result of so many bytes would be kept."""
        if size > self._max_bytes // _SHARE:
            return False
        if self._min_free_bytes:
            with suppress(OSError):  # the folder is not there yet
                return shutil.disk_usage(self._folder).free - size >= self._min_free_bytes
        return True

    def _count(self, size: int) -> None:
        if self._written is not None:
            self._written += size
            if self._written < self._max_bytes // _STEP:
                return
        if self._measuring.acquire(blocking=False):
            try:
                self._tidy()
                self._written = 0
            finally:
                self._measuring.release()

    def _tidy(self) -> None:
        """Measure the folder; where it holds too much, remove what was not used for longest."""
        found: list[tuple[float, int, str]] = []
        for folder in _entries(self._folder):
            if not folder.is_dir():
                continue
            for entry in _entries(folder):
                with suppress(OSError):
                    status = entry.stat()
                    if entry.name.endswith(".bin"):
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif entry.name.endswith(".part") and time.time() - status.st_mtime > _ABANDONED:
                        os.unlink(entry.path)
        total = sum(size for _, size, _ in found)
        if total <= self._max_bytes:
            return
        for _, size, path in sorted(found):
            with suppress(OSError):  # removed by another process, or open (Windows)
                os.unlink(path)
            total -= size
            if total <= self._max_bytes * _REMAINING:
                return


def _digest(text: str, size: int) -> str:
    return blake2b(text.encode(), digest_size=size).hexdigest()


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _open_unnamed(path: Path) -> BinaryIO:
    """Open a file that goes when it is closed."""
    if os.name == "nt":
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_TEMPORARY", 0)
        return cast(BinaryIO, os.fdopen(os.open(path, flags), "rb"))
    file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    path.unlink()
    return file
