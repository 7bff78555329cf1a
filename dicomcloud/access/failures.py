"""Failed logins are counted, so that passwords cannot be tried out: by the address they come from, and by the name."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from time import time
from typing import Final

from ..errors import TooManyRequests

_WINDOW: Final = 60.0  # seconds
_NAMES: Final = 5  # times the limit: one name may be tried from several addresses
_PATIENCE: Final = 2.0  # seconds for which another process is waited for
_TABLE: Final = "CREATE TABLE IF NOT EXISTS failure (who TEXT PRIMARY KEY, times INTEGER, since REAL) WITHOUT ROWID"


class Failures:
    """Allows `limit` failures a minute from one address, 0 for no limit.

    They are counted in the file `path`, a database of its own, for all processes that have the same one. Where it
    cannot be used, as on a full disk, or there is none, this process counts for itself. Safe to use from several
    threads.
    """

    def __init__(self, limit: int, path: Path | None = None) -> None:
        self._limit = limit
        self._path = path
        self._own = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._own.execute(_TABLE)
        self._lock = Lock()

    def check(self, address: str, name: str) -> None:
        """Raises TooManyRequests when there were too many failures; asked before a password is hashed."""
        if not self._limit:
            return
        now = time()
        for who, limit in self._keys(address, name):
            for times, since in self._ask("SELECT times, since FROM failure WHERE who = ?", (who,)):
                if times >= limit and 0 <= now - since < _WINDOW:
                    left = int(_WINDOW - (now - since)) + 1
                    raise TooManyRequests("There were too many failed logins; try again later", retry_after=left)

    def count(self, address: str, name: str) -> None:
        if not self._limit:
            return
        now = time()
        # also of a time to come: the clock was put back
        self._ask("DELETE FROM failure WHERE since <= ? OR since > ?", (now - _WINDOW, now))
        for who, _ in self._keys(address, name):
            self._ask(
                "INSERT INTO failure VALUES (?, 1, ?) ON CONFLICT (who) DO UPDATE SET times = times + 1", (who, now)
            )

    def _keys(self, address: str, name: str) -> Iterable[tuple[str, int]]:
        return (f"from {address}", self._limit), (f"name {name}", _NAMES * self._limit)

    def _ask(self, statement: str, values: tuple[object, ...]) -> list[tuple[int, float]]:
        try:
            if self._path is not None:
                with _opened(self._path) as database:
                    return database.execute(statement, values).fetchall()
        except sqlite3.Error:
            pass
        with self._lock:
            return self._own.execute(statement, values).fetchall()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")  # a count that the power takes away is no loss
        database.execute("PRAGMA journal_mode = MEMORY")
        database.execute(_TABLE)
        yield database
