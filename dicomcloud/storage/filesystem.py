"""Files in a folder: written beside, synced, renamed into place.

    <folder>/01k9/x3f/01k9x3f5m2….dcm    stored files
    <folder>/incoming/                   the spool

A key is 48 bits of time and 80 random bits in base 32 (26 characters, lower case, no UID and no name in any
path). Its first characters name the folder, so that files which came together lie together: a request touches
one or two folders, and an incremental backup finds only new ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from . import FileMissing, Incoming, StoredFile
from .spool import Spool, SpooledFile, new_key

_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()  # seconds


@dataclass(frozen=True, slots=True)
class LocalFile:
    """The Source contract over a path of this machine."""

    path: str
    is_local = True

    def open(self) -> BinaryIO:
        return open(self.path, "rb")


class FileSystemStorage:
    """The Storage contract over a local folder."""

    def __init__(self, folder: str, *, min_free_bytes: int = 0) -> None:
        self._root = Path(folder).absolute()
        self._spool = Spool(self._root / "incoming", min_free_bytes=min_free_bytes)

    def receive(self) -> SpooledFile:
        return self._spool.receive()

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        spooled = cast("Sequence[SpooledFile]", incoming)  # `receive` makes no others
        if not spooled:
            return []
        keys = [new_key() for _ in spooled]
        if len(spooled) > 1:
            for item in spooled:
                item.sync_soon()
        for item in spooled:
            item.synced()
        self._spool.note(keys)
        try:
            self._rename([(item.path, self._path(key)) for item, key in zip(spooled, keys, strict=True)])
        except OSError:
            for key in keys:
                self._path(key).unlink(missing_ok=True)
            self.confirm(keys)
            raise
        return keys

    def put(self, incoming: Incoming, key: str) -> None:
        spooled = cast("SpooledFile", incoming)
        spooled.synced()
        self._rename([(spooled.path, self._path(key))])

    def size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def confirm(self, keys: Sequence[str]) -> None:
        self._spool.strike(keys)

    def unconfirmed(self) -> list[str]:
        return self._spool.noted()

    def open(self, key: str, *, fresh: bool = False) -> BinaryIO:
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

    def source(self, key: str) -> LocalFile:
        return LocalFile(str(self._path(key)))

    def presigned_url(self, key: str, seconds: int) -> str | None:
        return None

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
        return self._spool.remove_abandoned(older_than)

    def disk_space(self) -> tuple[int, int]:
        return self._spool.disk_space()

    def check(self, key: str | None = None) -> None:
        try:
            self._spool.check()
        except OSError as error:
            raise OSError(f"{self._root} {error}; is its disk mounted, and writable for this user?") from None
        if key is not None and not self._path(key).is_file():
            raise OSError(f"{self._root} lacks {key}, which the index names; is its disk mounted?")

    def _path(self, key: str) -> Path:
        return self._root / key

    def _rename(self, moves: Sequence[tuple[Path, Path]]) -> None:
        folders = {target.parent for _, target in moves}
        for folder in folders:
            _make_folder(folder)
        for path, target in moves:
            _replace(path, target)
        for folder in folders:
            sync_folder(folder)

    def _folders(self, parent: Path) -> list[str]:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.name != self._spool.folder.name and entry.is_dir()]


def _replace(path: Path, target: Path) -> None:
    for pause in _PAUSES:  # on Windows a virus scanner or an indexer may look into a new file for a moment
        try:
            os.replace(path, target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    os.replace(path, target)


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
