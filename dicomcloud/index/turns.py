"""Writers of one SQLite file take turns.

SQLite gives its write lock to whoever asks at the right moment. A writer that ends one transaction and begins the next
asks at once, those that wait ask ten times a second. That is the fastest way to get much written, since nobody has to
be woken for it; but one may wait for many seconds. So whoever has waited for a while becomes the next one, and the
others let that one pass before they ask again. To be the next one is to hold the write lock of a second SQLite file
beside the index, in which nothing is ever written: it works for threads and processes, on every system, and is free
again when its process has died.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from contextlib import suppress
from typing import Final

logger = logging.getLogger(__name__)

_PATIENCE: Final = 0.3  # seconds after which a writer wants to be the next one
_NEXT: Final = 0.0005  # after which the next one looks again
_NOTED: Final = 60.0  # for which a note is heeded; nobody waits longer
_OTHERS: Final = (0.001, 0.003)  # after which the others look again, at random, so that each has the same chance


class Connection(sqlite3.Connection):
    """A connection and its place in the queue. It can be referenced weakly."""

    _queue: sqlite3.Connection | None = None
    _alone = False  # there can be no queue

    def queue(self, path: str) -> sqlite3.Connection | None:
        """A connection to the file of the queue; None where there cannot be one."""
        if self._queue is None and not self._alone:
            try:
                self._queue = _open_queue(path)
            except (sqlite3.Error, OSError) as error:
                logger.warning("writers of %s do not take turns: %s-queue: %s", path, path, error)
                self._alone = True
        return self._queue

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
            self._queue = None
        super().close()


def _open_queue(path: str) -> sqlite3.Connection:
    queue = sqlite3.connect(f"{path}-queue", timeout=0, isolation_level=None)
    try:
        if _begins(queue):
            queue.execute("ROLLBACK")
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # the server's user is to be able to use it
            owner = os.stat(path)
            os.chown(f"{path}-queue", owner.st_uid, owner.st_gid)
    except BaseException:
        queue.close()
        raise
    return queue


def begin(connection: Connection, path: str, seconds: float) -> None:
    """Begin a transaction that holds the write lock of the file `path`, no sooner than those that have waited long.

    Raises sqlite3.OperationalError (SQLITE_BUSY) when the lock is not to be had in `seconds`.
    """
    until = time.monotonic() + seconds
    try:
        if _lets_pass(connection, path, until):
            _set_patience(connection, min(seconds, _PATIENCE))
            if _begins(connection):
                return
        queue = connection.queue(path)
        if queue is None:
            _set_patience(connection, until - time.monotonic())
            connection.execute("BEGIN IMMEDIATE")
            return
        _set_patience(connection, 0)
        _note(path)
        _wait(queue, until, _OTHERS)
        try:
            _wait(connection, until, (_NEXT, _NEXT))
        finally:
            queue.execute("ROLLBACK")
    finally:
        _set_patience(connection, seconds)


def _lets_pass(connection: Connection, path: str, until: float) -> bool:
    """Wait while somebody else is the next one; False when that takes so long that one wants to be it oneself."""
    if not _is_noted(path) or (queue := connection.queue(path)) is None:
        return True
    until = min(until, time.monotonic() + _PATIENCE)
    while not _begins(queue):
        if time.monotonic() > until:
            return False
        time.sleep(random.uniform(*_OTHERS))
    queue.execute("ROLLBACK")
    return True


def _note(path: str) -> None:
    """Leave a note that somebody waits: the time of the file."""
    with suppress(OSError):
        os.utime(f"{path}-queue")


def _is_noted(path: str) -> bool:
    """Whether somebody may be waiting. To look at the time is much cheaper than to look at the lock."""
    try:
        return time.time() - os.stat(f"{path}-queue").st_mtime < _NOTED
    except OSError:
        return False


def _wait(connection: sqlite3.Connection, until: float, pause: tuple[float, float]) -> None:
    while not _begins(connection):
        if time.monotonic() > until:
            connection.execute("BEGIN IMMEDIATE")
            return
        time.sleep(random.uniform(*pause))


def _begins(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _set_patience(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {max(0, int(seconds * 1000))}")
