"""Moving an archive's files from one storage into another, each under the key that it has.

May be stopped at any time and run again: a file that is complete in the target is not copied twice. The archive may be
in use meanwhile; a last run while it is not brings over what has come since.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from ..index.repository import Index
from ..storage import FileMissing, LocalSpace, Storage, StoredFile, open_storage

_PARALLEL = 8  # files copied at once
_PIECE = 1 << 20  # bytes copied at a time


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of one file."""

    key: str
    size: int
    outcome: Literal["copied", "there", "failed", "extra", "removed"]  # extra: the source has no such file
    message: str = ""


def copy_storage(
    source_url: str, target_url: str, index: Index, spool: Path, *, remove_extra: bool = False
) -> Iterator[Moved]:
    """Copy what the target lacks, in the order of keys; read what was copied again and hold it against its check sum.

    The index has the check sums of what was stored; a file that has no row is held against what was read. With
    `remove_extra`, what the source does not have is removed from the target: files that were deleted after an earlier
    copy, which a repair would else bring back. Raises ValueError for a URL, OSError or Unavailable from the target and
    a source that does not answer.
    """
    if source_url == target_url:
        raise ValueError("the files are to be copied to where they are")
    local = LocalSpace(spool, spool, 0)
    source, target = open_storage(source_url, local), open_storage(target_url, local)
    checksum_of = _checksums(index)
    with ExitStack() as at_end:
        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="copy")
        at_end.callback(pool.shutdown, cancel_futures=True)
        under_way: deque[Future[Moved]] = deque()
        for ours, theirs in _paired(source.files(), target.files()):
            if ours is None:
                assert theirs is not None
                step = partial(_remove, target, theirs) if remove_extra else partial(Moved, *_named(theirs), "extra")
            elif theirs is not None and theirs.size == ours.size:
                step = partial(Moved, *_named(ours), "there")
            else:
                step = partial(_copy, source, target, ours, checksum_of(ours.key))
            under_way.append(pool.submit(step))
            if len(under_way) > 4 * _PARALLEL:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _named(file: StoredFile) -> tuple[str, int]:
    return file.key, file.size


def _checksums(index: Index) -> Callable[[str], bytes | None]:
    """Gives the check sums of files whose keys are asked for in ascending order."""
    rows = index.files()
    current = next(rows, None)

    def checksum_of(key: str) -> bytes | None:
        nonlocal current
        while current is not None and current[0] < key:
            current = next(rows, None)
        return current[2] if current is not None and current[0] == key else None

    return checksum_of


def _paired(
    ours: Iterator[StoredFile], theirs: Iterator[StoredFile]
) -> Iterator[tuple[StoredFile | None, StoredFile | None]]:
    """The files of two storages side by side, in the order of keys; None where one side lacks the key."""
    left, right = chain(ours, [None]), chain(theirs, [None])
    one, other = next(left), next(right)
    while one is not None or other is not None:
        if other is None or (one is not None and one.key < other.key):
            yield one, None
            one = next(left)
        elif one is None or other.key < one.key:
            yield None, other
            other = next(right)
        else:
            yield one, other
            one, other = next(left), next(right)


def _copy(source: Storage, target: Storage, file: StoredFile, checksum: bytes | None) -> Moved:
    failed = partial(Moved, *_named(file), "failed")
    incoming = target.receive()
    try:
        digest = hashlib.sha256()
        try:
            with source.open(file.key, fresh=True) as reader:
                for piece in iter(partial(reader.read, _PIECE), b""):
                    digest.update(piece)
                    incoming.write(piece)
        except FileMissing:
            return Moved(*_named(file), "there", "deleted meanwhile")
        if checksum is not None and digest.digest() != checksum:
            return failed("its bytes are not those that were stored")
        target.put(incoming, file.key)
    finally:
        incoming.discard()
    with target.open(file.key, fresh=True) as copy:
        if hashlib.file_digest(copy, "sha256").digest() != digest.digest():  # type: ignore[arg-type]
            target.delete(file.key)
            return failed("what was copied is not what was read")
    return Moved(*_named(file), "copied")


def _remove(target: Storage, file: StoredFile) -> Moved:
    target.delete(file.key)
    return Moved(*_named(file), "removed")
