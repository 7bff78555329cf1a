"""Failed logins are counted, so that passwords cannot be tried out: by the address they come from, and by the name."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from time import monotonic
from typing import Final

from ..errors import TooManyRequests

_WINDOW: Final = 60.0  # seconds
_MOST: Final = 50_000  # addresses and names that are remembered
_NAMES: Final = 5  # times the limit: one name may be tried from several addresses


class Failures:
    """Counts for this process; `limit` failures a minute from one address, 0 for no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, tuple[int, float]] = {}  # failures, when the first of them was
        self._lock = Lock()

    def check(self, address: str, name: str) -> None:
        """Raises TooManyRequests when there were too many failures; asked before a password is hashed."""
        now = monotonic()
        for key, limit in self._keys(address, name):
            count, since = self._counts.get(key, (0, now))
            if self._limit and count >= limit and now - since < _WINDOW:
                raise TooManyRequests(
                    "There were too many failed logins; try again later", retry_after=int(_WINDOW - (now - since)) + 1
                )

    def count(self, address: str, name: str) -> None:
        now = monotonic()
        with self._lock:
            if len(self._counts) >= _MOST:
                self._counts = {key: entry for key, entry in self._counts.items() if now - entry[1] < _WINDOW}
                if len(self._counts) >= _MOST:
                    self._counts.clear()
            for key, _ in self._keys(address, name):
                count, since = self._counts.get(key, (0, now))
                self._counts[key] = (1, now) if now - since >= _WINDOW else (count + 1, since)

    def _keys(self, address: str, name: str) -> Iterable[tuple[str, int]]:
        return (f"from {address}", self._limit), (f"name {name}", _NAMES * self._limit)
