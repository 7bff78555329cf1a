"""The files: keys and bytes, never DICOM. `Storage` is the contract that every adapter keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, Protocol


class FileMissing(Exception):
    """No file is stored under this key."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch


class Incoming(Protocol):
    """A file on its way in: spooled on this machine, not yet in the store."""

    size: int

    def write(self, data: bytes | memoryview) -> None: ...

    def buffer(self) -> AbstractContextManager[bytes | mmap]:
        """All bytes written so far, mapped and not read into memory."""

    def sync_soon(self) -> None:
        """All bytes are written: begin to make them durable while other work goes on."""

    def discard(self) -> None:
        """Remove the spooled bytes. Does nothing after `Storage.commit`."""


class Storage(Protocol):
    """Immutable files under opaque, unique keys; keys sort in the order in which the files came."""

    def receive(self) -> Incoming: ...

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        """Put the files into the store, in order; return their keys.

        When it returns, every file is complete and synced, and survives a loss of power. When it raises
        (OSError), none of the files is stored. The keys stay noted until `confirm`.
        """

    def confirm(self, keys: Sequence[str]) -> None:
        """Strike the note of one `commit`: the index knows these files, or they are deleted again."""

    def unconfirmed(self) -> list[str]:
        """Keys that were committed and never confirmed: a crash came between the files and the index."""

    def put(self, incoming: Incoming, key: str) -> None:
        """Put one file under the key that it has in another store, durable when it returns. Raises OSError."""

    def size(self, key: str) -> int | None:
        """Bytes of the file; None where there is none."""

    def open(self, key: str) -> BinaryIO:
        """Raises FileMissing."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file. Raises FileMissing."""

    def local_path(self, key: str) -> Path:
        """Where other processes of this machine can read the file, which need not be there (any more)."""

    def delete(self, key: str) -> None:
        """Remove the file; a missing one is no error. Raises OSError where it cannot be removed now."""

    def files(self) -> Iterator[StoredFile]:
        """Every stored file, ordered by key."""

    def remove_abandoned(self, older_than: float) -> int:
        """Remove spooled files that nobody has written to for `older_than` seconds; return how many."""

    def disk_space(self) -> tuple[int, int]:
        """Free bytes and all bytes of the volume that the files lie on. Raises OSError."""

    def check(self, key: str | None = None) -> None:
        """Raises OSError when the files cannot be reached or written, or when the file `key` is not among them."""


def open_storage(url: str) -> Storage:
    """The adapter that `url` names, e.g. `file:///var/lib/dicomcloud/storage`.

    Only the chosen adapter's library is imported. Raises ValueError for a scheme that is not known.
    """
    scheme, separator, path = url.partition("://")
    if scheme == "file" and separator and path:
        from .filesystem import FileSystemStorage

        return FileSystemStorage(path)
    raise ValueError(f"storage URL {url!r}: it must start with file:// and name a folder")
