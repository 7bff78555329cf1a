"""The files: keys and bytes, never DICOM. `Storage` is the contract that every adapter keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, Protocol

from ..plugins import PluginError, load


class FileMissing(FileNotFoundError):
    """No file is stored under this key."""


class CannotStore(OSError):
    """The storage takes nothing at the moment: full, read-only, away, or out of something."""


@dataclass(frozen=True, slots=True)
class LocalSpace:
    """What an adapter whose files lie elsewhere may use of this machine's disk."""

    spool: Path  # folder of files that are coming in; must not be lost while the server is down
    cache: Path  # folder of files that were used lately; may be deleted at any time
    cache_bytes: int  # its size; 0: nothing is kept
    min_free_bytes: int = 0  # nothing is kept, and nothing comes in, when the disk would have less left


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


class Source(Protocol):
    """A stored file, for other processes of this machine: it can be pickled, and its `repr` names the file."""

    @property
    def is_local(self) -> bool:
        """Whether reading it costs no way over a network."""

    def open(self) -> BinaryIO:
        """Raises FileNotFoundError, errors.Unavailable."""


class Storage(Protocol):
    """Immutable files under opaque, unique keys; keys sort in the order in which the files came.

    Where the files lie on another machine, every method but `receive` and `confirm` may raise errors.Unavailable, and
    only these, `source` and `disk_space` may be used in a process that forks afterwards.
    """

    def receive(self) -> Incoming:
        """Room for a new file. It and its `write` raise CannotStore, also when the disk is about to be full."""

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        """Put the files into the store, in order; return their keys.

        When it returns, every file is complete and synced, and survives a loss of power. When it raises
        (OSError, Unavailable), none of the files is stored. The keys stay noted until `confirm`.
        """

    def confirm(self, keys: Sequence[str]) -> None:
        """Strike the note of one `commit`: the index knows these files, or they are deleted again."""

    def unconfirmed(self) -> list[str]:
        """Keys that were committed and never confirmed: a crash came between the files and the index."""

    def put(self, incoming: Incoming, key: str) -> None:
        """Put one file under the key that it has in another store, durable when it returns. Raises OSError."""

    def size(self, key: str) -> int | None:
        """Bytes of the file; None where there is none."""

    def open(self, key: str, *, fresh: bool = False) -> BinaryIO:
        """Raises FileMissing. `fresh`: from the store itself, not a copy that is kept elsewhere."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file. Raises FileMissing."""

    def source(self, key: str) -> Source:
        """How other processes of this machine read the file, which need not be there (any more)."""

    def presigned_url(self, key: str, seconds: int) -> str | None:
        """Where anybody can fetch the file for so long; None from a store that nobody can reach but this server."""

    def delete(self, key: str) -> None:
        """Remove the file; a missing one is no error. Raises OSError where it cannot be removed now."""

    def files(self) -> Iterator[StoredFile]:
        """Every stored file, ordered by key."""

    def remove_abandoned(self, older_than: float) -> int:
        """Remove spooled files that nobody has written to for `older_than` seconds; return how many."""

    def disk_space(self) -> tuple[int, int]:
        """Free bytes and all bytes of the volume that files come in on. Raises OSError."""

    def check(self, key: str | None = None) -> None:
        """Raises OSError, errors.Unavailable when the files cannot be reached, or the file `key` is not among them."""


def open_storage(url: str, local: LocalSpace) -> Storage:
    """The adapter that `url` names: `file:///var/lib/dicomcloud/storage`, `s3://bucket/prefix`, `azure://container`.

    Only the chosen adapter's library is imported, and nothing is sent. Another scheme is that of a plug-in
    (docs/extending.md). Raises ValueError for a URL that is not understood, or whose library is not installed.
    """
    scheme, separator, path = url.partition("://")
    if scheme == "file" and separator and path:
        from .filesystem import FileSystemStorage

        return FileSystemStorage(path, min_free_bytes=local.min_free_bytes)
    if scheme in _REMOTE and separator and path:
        from .object_store import open_object_storage

        return open_object_storage(url, local)
    if separator and path and scheme != "file":
        try:
            open_adapter = load("storage", scheme)
        except PluginError as error:
            raise ValueError(f"{_UNKNOWN}; {error}") from None
        adapter: Storage = open_adapter(url, local)
        return adapter
    raise ValueError(_UNKNOWN)


_UNKNOWN = "it must begin with file://, s3:// or azure:// and name a folder, a bucket or a container"
_REMOTE = ("s3", "azure")
