"""The spool folder: files on their way into a store, and notes of the commits that are under way.

<folder>/01k9x3f5m2….part    bytes that are coming in
<folder>/01k9x3f5m2….note    keys that were committed, until `confirm`; named after the first of them
<folder>/01k9x3f5m2….undo    keys of a commit that failed and could not be taken back yet
"""

from __future__ import annotations

import errno
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
from typing import BinaryIO

from . import CannotStore

_LOOK = 4 << 20  # bytes of one file after which the free space is looked at again
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Spool:
    """A folder of this machine, shared by its processes."""

    def __init__(self, folder: Path, *, min_free_bytes: int = 0) -> None:
        self.folder = folder
        self._min_free_bytes = min_free_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def receive(self) -> SpooledFile:
        return SpooledFile(self.folder / f"{_new_name()}.part", min_free_bytes=self._min_free_bytes)

    def note(self, keys: Sequence[str]) -> None:
        """Write down that these keys are about to be stored."""
        self._path(keys, "note").write_text("\n".join(keys), encoding="ascii")

    def strike(self, keys: Sequence[str]) -> None:
        """Remove the note that begins with the first of these keys."""
        if keys:
            self._path(keys, "note").unlink(missing_ok=True)

    def undo_later(self, keys: Sequence[str]) -> None:
        """Turn the note of these keys into one that says they are to be removed."""
        os.replace(self._path(keys, "note"), self._path(keys, "undo"))

    def undone(self, keys: Sequence[str]) -> None:
        self._path(keys, "undo").unlink(missing_ok=True)

    def noted(self) -> list[str]:
        """The keys of all notes, oldest first."""
        return [key for keys in self._read("note") for key in keys]

    def to_undo(self) -> list[list[str]]:
        """The keys to be removed, as they were committed together."""
        return self._read("undo")

    def remove_abandoned(self, older_than: float) -> int:
        """Remove files that nobody has written to for `older_than` seconds; return how many."""
        removed = 0
        oldest = time.time() - older_than
        for path in (*self.folder.glob("*.part"), *self.folder.glob("*.note")):
            with suppress(OSError):  # finished or removed by another process, or still open (Windows)
                status = path.stat()
                # A note without keys was begun when the process died: nothing was stored yet.
                if status.st_mtime < oldest and (path.suffix == ".part" or not status.st_size):
                    path.unlink()
                    removed += 1
        return removed

    def check(self) -> None:
        """Raises OSError when it may not be written."""
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise OSError("may not be written" if self.folder.is_dir() else "is not there")
        if os.name == "nt":  # where that looks at no rights
            probe = self.folder / f"{_new_name()}.part"
            try:
                open(probe, "xb").close()
                probe.unlink()
            except OSError as error:
                raise OSError(f"may not be written ({error.strerror})") from None

    def disk_space(self) -> tuple[int, int]:
        """Free bytes and all bytes of its volume. Raises OSError."""
        usage = shutil.disk_usage(self.folder)
        return usage.free, usage.total

    def _path(self, keys: Sequence[str], suffix: str) -> Path:
        return self.folder / f"{keys[0].rpartition('/')[2]}.{suffix}"

    def _read(self, suffix: str) -> list[list[str]]:
        found: list[list[str]] = []
        for path in sorted(self.folder.glob(f"*.{suffix}")):
            with suppress(FileNotFoundError):  # another process has just removed it
                found.append(path.read_text(encoding="ascii").split())
        return found


class SpooledFile:
    """The Incoming contract over a file in the spool folder."""

    def __init__(self, path: Path, *, min_free_bytes: int = 0) -> None:
        self.path = path
        self.size = 0
        self._min_free_bytes = min_free_bytes
        self._look_again = 0  # at the free space, when so much is written
        self._syncing: Future[None] | None = None
        self._file: BinaryIO | None = None
        with _telling():
            self._check_room()
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 (`close` closes it)

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        view = memoryview(data)
        with _telling():
            while view:  # an unbuffered write may take only a part
                written = self._file.write(view)
                self.size += written
                view = view[written:]
            if self.size >= self._look_again:
                self._check_room()

    def _check_room(self) -> None:
        self._look_again = self.size + _LOOK
        if self._min_free_bytes and shutil.disk_usage(self.path.parent).free < self._min_free_bytes:
            raise OSError(errno.ENOSPC, "the disk is almost full")

    @contextmanager
    def buffer(self) -> Iterator[bytes | mmap]:
        self.close()
        if self.size == 0:  # an empty file cannot be mapped
            yield b""
            return
        with open(self.path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            yield mapped

    def sync_soon(self) -> None:
        self.close()
        if self._syncing is None:
            self._syncing = _sync_pool().submit(sync_file, self.path)

    def synced(self) -> None:
        """Return when the bytes are on disk. Raises OSError."""
        self.close()
        if self._syncing is None:
            sync_file(self.path)
        else:
            self._syncing.result()

    def discard(self) -> None:
        self.close()
        if self._syncing is not None:
            self._syncing.cancel()
            with suppress(Exception):
                self._syncing.result()
        with suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """All bytes are written."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def _telling() -> Iterator[None]:
    """Faults of this storage, told from those of whoever the bytes come from."""
    try:
        yield
    except OSError as error:
        raise CannotStore(error.errno, error.strerror or str(error)) from error


def new_key() -> str:
    """A key that no other process makes, greater than all that were made in earlier milliseconds."""
    name = _new_name()
    folder = name[4:7].replace("prn", "pro")  # a name that Windows gives no folder; no other has an o
    return f"{name[:4]}/{folder}/{name}.dcm"


def _new_name() -> str:
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


@cache
def _sync_pool() -> ThreadPoolExecutor:
    # Several syncs at once share one journal commit of the file system.
    return ThreadPoolExecutor(max_workers=4, thread_name_prefix="sync")


def sync_file(path: Path) -> None:
    """Return when the file's bytes are on disk. Raises OSError."""
    with open(path, "rb+", buffering=0) as file:
        os.fsync(file.fileno())
