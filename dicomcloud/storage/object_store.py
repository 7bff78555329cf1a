"""Files in an object store: uploaded in blocks under their keys, read by ranges, kept near while they are in use.

What all object stores share is here; `s3.py` and `azure_blob.py` are the Bucket contract over their client libraries.

- Files come into the spool folder of this machine (they are scanned there) and are uploaded by `commit`, several at
  once. An object is complete or absent: a client library that uploads in blocks makes them visible all at once.
- The notes of commits under way lie in the spool folder: after a crash this machine's next start finds what was
  uploaded and not filed. Should the machine be lost with its disk, what remains are objects that nobody was told
  about; `verify` finds them.
- Files and parts of files that were read or stored lately are kept in a DiskCache. Stored files never change, so it
  needs no invalidation.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import BinaryIO, Final, Protocol, cast
from urllib.parse import SplitResult, parse_qs, urlsplit

from . import FileMissing, Incoming, LocalSpace, StoredFile
from .cache import DiskCache
from .spool import Spool, SpooledFile, new_key, sync_file

log = logging.getLogger(__name__)

BLOCK: Final = 8 << 20  # bytes of one request at most: what is lost when a connection breaks, and sent again
CONTENT_TYPE: Final = "application/dicom"  # of every object: what a browser is told that follows a presigned URL
RETRIES: Final = 4  # after the first attempt, with back-off from 0.1 s to 2 s
CONNECT_TIMEOUT, TIMEOUT = 5.0, 60.0  # seconds; of one request
_PARALLEL: Final = 8  # uploads at once, of one process
_MOST_WAITING: Final = 200  # files that wait to be put into the cache
_FIRST_WINDOW: Final = 1 << 20  # bytes read when a file is opened: most files are smaller
_KEY: Final = re.compile(r"[0-9a-z]{4}/[0-9a-z]{3}/[0-9a-z]{26}\.dcm")


class Bucket(Protocol):
    """Objects in one bucket or container, by their name. Every method raises errors.Unavailable after its retries."""

    def put(self, name: str, path: Path, size: int) -> None:
        """Upload a file; the store checks what has arrived. The object is complete or absent."""

    def get(self, name: str, offset: int, length: int) -> tuple[bytes, int]:
        """Bytes from `offset`, fewer at the end of the object, and the object's size. Raises FileMissing."""

    def size(self, name: str) -> int:
        """Bytes of the object. Raises FileMissing."""

    def delete(self, name: str) -> None:
        """A missing object is no error."""

    def list(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Name, size and time of last change of the objects whose names begin so, ordered by name."""

    def presigned_url(self, name: str, seconds: int) -> str | None:
        """None where the credentials do not allow for one."""

    def check(self) -> None: ...


@dataclass(frozen=True)
class StorageUrl:
    """The parts of `scheme://[user:password@]bucket/prefix?options`."""

    bucket: str
    prefix: str  # with a slash at its end, or empty
    options: dict[str, str]
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, parts: SplitResult, known: Sequence[str]) -> StorageUrl:
        """Raises ValueError for an option that is not among `known`."""
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        for name in options:
            if name not in known:
                raise ValueError(f"it has an option {name!r}; there are {', '.join(known)}")
        prefix = parts.path.strip("/")
        host = parts.netloc.rpartition("@")[2]  # `hostname` would be in lower case
        return cls(host, f"{prefix}/" if prefix else "", options, parts.username or "", parts.password or "")


@cache
def open_object_storage(url: str, local: LocalSpace) -> ObjectStorage:
    """The storage of an `s3://` or `azure://` URL; nothing is sent. Raises ValueError."""
    parts = urlsplit(url)
    bucket: Bucket
    try:
        if parts.scheme == "s3":
            from .s3 import open_bucket

            bucket, prefix = open_bucket(parts)
        else:
            from .azure_blob import open_container

            bucket, prefix = open_container(parts)
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: python -m pip install -r requirements-objectstore.txt"
        ) from None
    return ObjectStorage(bucket, prefix, local, partial(open_object_storage, url, local))


if hasattr(os, "register_at_fork"):  # connections are not shared with a process that forked off
    os.register_at_fork(after_in_child=open_object_storage.cache_clear)


class ObjectStorage:
    """The Storage contract over a Bucket."""

    def __init__(
        self, bucket: Bucket, prefix: str, local: LocalSpace, reopen: Callable[[], ObjectStorage] | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._spool = Spool(local.spool, min_free_bytes=local.min_free_bytes)
        self._cache = DiskCache(local.cache, local.cache_bytes, min_free_bytes=local.min_free_bytes)
        self._keeps = local.cache_bytes > 0
        self._waiting = BoundedSemaphore(_MOST_WAITING)
        self._reopen = reopen

    @cached_property
    def _uploads(self) -> ThreadPoolExecutor:  # made when it is used: a process that forks has no threads before
        return ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload")

    @cached_property
    def _keeping(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2, thread_name_prefix="keep")

    # In

    def receive(self) -> SpooledFile:
        return self._spool.receive()

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        spooled = cast("Sequence[SpooledFile]", incoming)  # `receive` makes no others
        if not spooled:
            return []
        keys = [new_key() for _ in spooled]
        for item in spooled:
            item.close()
            item.path.stat()  # a file that is lost is told before anything is uploaded
        self._spool.note(keys)
        try:
            self._upload(spooled, keys)
        except BaseException:
            self._take_back(keys)
            raise
        for item, key in zip(spooled, keys, strict=True):
            self.keep(item.path, key)
        return keys

    def _upload(self, spooled: Sequence[SpooledFile], keys: Sequence[str]) -> None:
        if len(spooled) == 1:
            self._bucket.put(self._name(keys[0]), spooled[0].path, spooled[0].size)
            return
        under_way = [
            self._uploads.submit(self._bucket.put, self._name(key), item.path, item.size)
            for item, key in zip(spooled, keys, strict=True)
        ]
        wait(under_way, return_when=FIRST_EXCEPTION)
        begun = [each for each in under_way if not each.cancel()]  # none is cancelled where all have succeeded
        for each in begun:
            each.exception()
        for each in begun:
            each.result()

    def _take_back(self, keys: Sequence[str]) -> None:
        """Remove what was uploaded of a commit that failed; where that fails too, `unconfirmed` tries again."""
        try:
            for key in keys:
                self._bucket.delete(self._name(key))
        except Exception:
            self._spool.undo_later(keys)
        else:
            self._spool.strike(keys)

    def keep(self, path: Path, entry: str) -> None:
        """Put a complete file into the cache, soon, or remove it."""
        if self._keeps and self._waiting.acquire(blocking=False):
            self._keeping.submit(self._keep, path, entry)
        else:
            _remove(path)

    def _keep(self, path: Path, entry: str) -> None:
        try:
            sync_file(path)  # one that a loss of power had cut short would be served as it is
            self._cache.keep(path, entry).close()
        except OSError:  # no room, or the folder was deleted just now
            _remove(path)
        finally:
            self._waiting.release()

    def confirm(self, keys: Sequence[str]) -> None:
        self._spool.strike(keys)

    def unconfirmed(self) -> list[str]:
        for keys in self._spool.to_undo():
            for key in keys:
                self._bucket.delete(self._name(key))
            self._spool.undone(keys)
        return self._spool.noted()

    def put(self, incoming: Incoming, key: str) -> None:
        spooled = cast("SpooledFile", incoming)
        spooled.close()
        self._bucket.put(self._name(key), spooled.path, spooled.size)
        spooled.discard()

    # Out

    def size(self, key: str) -> int | None:
        try:
            return self._bucket.size(self._name(key))
        except FileMissing:
            return None

    def open(self, key: str, *, fresh: bool = False) -> BinaryIO:
        if fresh:
            return cast(BinaryIO, _ObjectFile(partial(self._get, key)))
        return self._cache.open(key) or cast(BinaryIO, _ObjectFile(partial(self._get, key), partial(self._tee, key)))

    def read(self, key: str, offset: int, length: int) -> bytes:
        if self._keeps:
            part = f"{key} {offset}+{length}"
            if whole := self._cache.open(key):
                with whole:
                    whole.seek(offset)
                    return whole.read(length)
            if (kept := self._cache.read(part)) is not None:
                return kept
        data, _ = self._get(key, offset, length)
        if self._keeps and (tee := self._tee(part, len(data))):
            tee.write(data)
        return data

    def _get(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        return self._bucket.get(self._name(key), offset, length)

    def _tee(self, entry: str, size: int) -> _Tee | None:
        """Where what is read from its beginning to its end is written too, to be kept."""
        if self._keeps and size and self._cache.fits(size):
            with suppress(OSError):
                return _Tee(self._cache.spool(), size, partial(self.keep, entry=entry))
        return None

    def source(self, key: str) -> RemoteFile:
        assert self._reopen is not None
        return RemoteFile(key, self._reopen)

    def presigned_url(self, key: str, seconds: int) -> str | None:
        return self._bucket.presigned_url(self._name(key), seconds)

    def delete(self, key: str) -> None:
        self._bucket.delete(self._name(key))
        self._cache.forget(key)

    def files(self) -> Iterator[StoredFile]:
        for name, size, modified in self._bucket.list(self._prefix):
            key = name.removeprefix(self._prefix)
            if _KEY.fullmatch(key):
                yield StoredFile(key, size, modified)

    def remove_abandoned(self, older_than: float) -> int:
        return self._spool.remove_abandoned(older_than)

    def disk_space(self) -> tuple[int, int]:
        return self._spool.disk_space()

    def check(self, key: str | None = None) -> None:
        if key is None:
            self._bucket.check()
        else:
            self._get(key, 0, 1)

    def _name(self, key: str) -> str:
        return self._prefix + key


@dataclass(frozen=True)
class RemoteFile:
    """The Source contract over an object; another process opens the store once, with its own connections."""

    key: str
    _reopen: Callable[[], ObjectStorage] = field(repr=False)
    is_local = False

    def open(self) -> BinaryIO:
        return self._reopen().open(self.key)


class _Tee:
    """A copy of what is read, kept when it is complete. What cannot be written is let go."""

    def __init__(self, path: Path, size: int, keep: Callable[[Path], None]) -> None:
        self._path = path
        self._left = size
        self._keep = keep
        self._file: BinaryIO | None = open(path, "xb", buffering=0)  # noqa: SIM115 (closed when complete, and by `drop`)

    def write(self, data: bytes) -> None:
        if self._file is None:
            return
        view = memoryview(data)
        self._left -= len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self.drop()
            return
        if not self._left:
            self._file.close()
            self._file = None
            self._keep(self._path)

    def drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            _remove(self._path)


class _ObjectFile(io.BufferedIOBase):
    """An object as a seekable file. What is read one after the other is fetched in growing windows."""

    def __init__(
        self, get: Callable[[int, int], tuple[bytes, int]], tee: Callable[[int], _Tee | None] = lambda _: None
    ) -> None:
        self._tee: _Tee | None = None
        self._get = get
        self._position = 0
        self._start = 0  # of the window
        self._next = 2 * _FIRST_WINDOW  # size of the next window, where it follows
        self._window, self._size = get(0, _FIRST_WINDOW)
        self._tee = tee(self._size)
        self._teed = 0
        self._copy()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning of the file")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        while wanted:
            piece = self._piece(wanted)
            pieces.append(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _piece(self, wanted: int) -> bytes:
        """Some of the next bytes; the window is moved to them where they lie outside."""
        at = self._position - self._start
        if not 0 <= at < len(self._window):
            self._fetch(wanted)
            at = self._position - self._start
            if not self._window:
                raise OSError("the object is shorter than it was")
        piece = self._window[at : at + wanted]
        self._position += len(piece)
        return piece

    def _fetch(self, wanted: int) -> None:
        if self._position == self._start + len(self._window):
            size, self._next = self._next, min(2 * self._next, BLOCK)
        else:
            size, self._next = _FIRST_WINDOW // 4, _FIRST_WINDOW
        self._start = self._position
        self._window, _ = self._get(self._start, max(size, min(wanted, BLOCK)))
        self._copy()

    def _copy(self) -> None:
        if self._tee is not None and self._start == self._teed:
            self._tee.write(self._window)
            self._teed += len(self._window)

    def close(self) -> None:
        if self._tee is not None:
            self._tee.drop()
        super().close()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
