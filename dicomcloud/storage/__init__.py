"""The files: keys and bytes, never DICOM. `Storage` is the contract that every adapter keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

Buffer = bytes | bytearray | memoryview


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

    def write(self, data: Buffer) -> None: ...

    def buffer(self) -> AbstractContextManager[Buffer]:
        """All bytes written so far, mapped and not read into memory."""

    def discard(self) -> None:
        """Remove the spooled bytes. Does nothing after `Storage.commit`."""


class Storage(Protocol):
    """Immutable files under opaque, unique keys."""

    def receive(self) -> Incoming: ...

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        """Put the files into the store, in order; return their keys.

        When it returns, every file is complete and synced, and survives a loss of power. When it raises
        (OSError), none of the files counts as stored.
        """

    def open(self, key: str) -> BinaryIO:
        """Raises FileMissing."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file. Raises FileMissing."""

    def delete(self, key: str) -> None:
        """Remove the file; a missing one is no error."""

    def files(self) -> Iterator[StoredFile]:
        """Every stored file, ordered by key."""

    def remove_abandoned(self, older_than: float) -> int:
        """Remove spooled files that nobody has written to for `older_than` seconds; return how many."""

    def free_bytes(self) -> int: ...


def open_storage(url: str) -> Storage:
    """The adapter that `url` names, e.g. `file:///var/lib/dicomcloud/storage`.

    Only the chosen adapter's library is imported. Raises ValueError for a scheme that is not known.
    """
    scheme, separator, path = url.partition("://")
    if scheme == "file" and separator and path:
        from .filesystem import FileSystemStorage

        return FileSystemStorage(path)
    raise ValueError(f"storage URL {url!r}: the scheme must be file://")
