"""Events that are still to be delivered: claimed by one of many workers, tried again, given up, listed.

A row waits until it is due. Who claims it moves that moment past the time that a delivery takes: should the worker
die, the row is due again then. Of one study and destination only the oldest waiting row may be claimed, so that its
events arrive in order. What is delivered is removed; what failed too often is `dead` and holds up nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import Any, Final, NamedTuple

from dicomcloud.index.database import Database, unit_of_work
from dicomcloud.index.events import Event

_COLUMNS: Final = "id, event_id, target, kind, study_uid, payload, created_at, state, attempts, due_at, last_error"
_NEXT: Final = (
    f"SELECT {', '.join(f'o.{column}' for column in _COLUMNS.split(', '))} FROM outbox o WHERE o.target = ?"
    " AND o.state = 'waiting' AND o.due_at <= ? AND NOT EXISTS (SELECT 1 FROM outbox p WHERE p.target = o.target"
    " AND p.study_uid = o.study_uid AND p.state = 'waiting' AND p.id < o.id) ORDER BY o.due_at, o.id "
)


class Waiting(NamedTuple):
    """A row of the outbox. `attempts` counts the present one too."""

    id: int
    target: str
    event: Event
    created_at: datetime
    state: str  # waiting or dead
    attempts: int
    due_at: datetime
    last_error: str


class Outbox:
    """Safe to use from several threads, processes and machines."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._run = database.run

    @unit_of_work
    def claim(self, target: str, seconds: float) -> Waiting | None:
        """The event to be sent next to this target, for `seconds`; None when none is due."""
        page, values = self._database.page(1, 0)
        if self._run(_NEXT + page, (target, _now(), *values)).fetchone() is None:  # without a lock: the usual case
            return None
        with self._database.write():
            row = self._run(_NEXT + page, (target, _now(), *values)).fetchone()
            if row is None:
                return None
            due = _now() + int(seconds * 1e6)
            self._run("UPDATE outbox SET attempts = attempts + 1, due_at = ? WHERE id = ?", (due, row[0]))
        return _waiting((*row[:8], row[8] + 1, due, row[10]))

    @unit_of_work
    def delivered(self, waiting: Waiting) -> None:
        with self._database.write():
            self._run("DELETE FROM outbox WHERE id = ? AND attempts = ?", (waiting.id, waiting.attempts))

    @unit_of_work
    def failed(self, waiting: Waiting, error: str, retry_in: float | None) -> None:
        """Try again in so many seconds; None: never, but keep it as dead."""
        state, due = ("dead", _now()) if retry_in is None else ("waiting", _now() + int(retry_in * 1e6))
        with self._database.write():
            self._run(
                "UPDATE outbox SET state = ?, due_at = ?, last_error = ? WHERE id = ? AND attempts = ?",
                (state, due, error[:400], waiting.id, waiting.attempts),
            )

    def rows(self, *, state: str | None = None, limit: int = 1000) -> list[Waiting]:
        """The oldest rows, of one state or of both."""
        condition, values = ("", []) if state is None else (" WHERE state = ?", [state])
        page, numbers = self._database.page(limit, 0)
        rows = self._run(f"SELECT {_COLUMNS} FROM outbox{condition} ORDER BY id {page}", [*values, *numbers]).fetchall()
        return [_waiting(row) for row in rows]

    def counts(self) -> dict[tuple[str, str], int]:
        """(target, state) → how many."""
        rows = self._run("SELECT target, state, count(*) FROM outbox GROUP BY target, state").fetchall()
        return {(target, state): count for target, state, count in rows}

    def retry(self, ids: Collection[int] | None = None) -> int:
        """Make these rows due now, dead ones too; without `ids` all dead ones. How many."""
        return self._change("UPDATE outbox SET state = 'waiting', attempts = 0, due_at = ?", [_now()], ids)

    def discard(self, ids: Collection[int] | None = None) -> int:
        """Forget these rows; without `ids` all dead ones. How many."""
        return self._change("DELETE FROM outbox", [], ids)

    @unit_of_work
    def _change(self, statement: str, values: list[Any], ids: Collection[int] | None) -> int:
        with self._database.write():
            if ids is None:
                rows = self._run("SELECT id FROM outbox WHERE state = 'dead'").fetchall()
                ids = [row[0] for row in rows]
            else:
                ids = [id for id in ids if self._run("SELECT 1 FROM outbox WHERE id = ?", (id,)).fetchone()]
            for id in ids:
                self._run(f"{statement} WHERE id = ?", (*values, id))
        return len(ids)


def _waiting(row: Sequence[Any]) -> Waiting:
    id, _, target, _, _, payload, created_at, state, attempts, due_at, last_error = row
    return Waiting(id, target, Event.read(payload), _moment(created_at), state, attempts, _moment(due_at), last_error)


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _now() -> int:
    return time_ns() // 1000
