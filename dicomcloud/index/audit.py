"""The SQL of the audit trail: a chain of rows, each with the hash of itself and the one before.

A row is added while the row of `audit_chain` is held, which serialises writers of all processes and machines; the trail
has no gaps and no forks. Rows are never changed (`Database.append_only`). What need not be kept any more can be
removed from the beginning: an event of the trail itself, PRUNE, then says up to where, and has the hash of the last row
that went, so that what is left still follows from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import time_ns
from typing import Final, NamedTuple

import orjson

from .database import Database, unit_of_work

START: Final = "0" * 64  # the hash before the first row
PRUNE: Final = "prune"  # the action of events that say what was removed
_LENGTHS: Final = {
    "action": 24,
    "caller": 100,
    "method": 24,
    "address": 64,
    "study_uid": 64,
    "series_uid": 64,
    "sop_uid": 64,
    "request_id": 64,
    "detail": 4000,
}
_BATCH: Final = 500
_REMOVED_AT_ONCE: Final = 5000  # rows; writers wait meanwhile


class Event(NamedTuple):
    """Who did what, to what, when, from where, and how it ended. Moments are microseconds since 1970 UTC.

    `outcome` is an HTTP status; `times`: how many such requests, or instances, it stands for; `detail`: JSON or a word.
    """

    began_at: int
    ended_at: int
    action: str
    outcome: int
    times: int
    caller: str
    method: str
    address: str
    study_uid: str
    series_uid: str
    sop_uid: str
    request_id: str
    detail: str


class Entry(NamedTuple):
    """An event in its place in the trail."""

    sequence: int
    event: Event
    hash: str


class Fault(NamedTuple):
    """Where the trail is not what was written."""

    sequence: int
    message: str


class Pruned(NamedTuple):
    """What was removed from the beginning: rows up to `sequence`, of which `hash` is the hash; by whom, and when."""

    sequence: int
    hash: str
    caller: str
    moment: int


_COLUMNS: Final = ", ".join(Event._fields)


def _cut(event: Event) -> Event:
    """With texts of the length of their columns, so that what is hashed is what is stored."""
    return event._replace(**{name: getattr(event, name)[:length] for name, length in _LENGTHS.items()})


def link(previous: str, sequence: int, event: Event) -> str:
    """The hash of a row: SHA-256 over that of the row before and all of its own values."""
    return hashlib.sha256(previous.encode() + orjson.dumps([sequence, *event])).hexdigest()


class AuditTable:
    """Safe to use from several threads, processes and machines."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._run = database.run

    @unit_of_work
    def append(self, events: Sequence[Event]) -> None:
        """Add events; durable when it returns. Raises Unavailable."""
        if events:
            with self._database.write():
                self.append_within(events)

    def append_within(self, events: Sequence[Event]) -> None:
        """Add events as a part of the transaction that this thread has open: they stand or fall with it."""
        # This holds the row.
        self._database.later("UPDATE audit_chain SET sequence = sequence + ? WHERE id = 1", (len(events),))
        last, previous = self._run("SELECT sequence, hash FROM audit_chain WHERE id = 1").fetchone()
        rows = []
        for sequence, event in enumerate(map(_cut, events), last - len(events) + 1):
            previous = link(previous, sequence, event)
            rows.append((sequence, *event, previous))
        self._database.insert_rows("audit_event", ("sequence", *Event._fields, "hash"), rows)
        self._database.later("UPDATE audit_chain SET hash = ? WHERE id = 1", (previous,))

    def head(self) -> tuple[int, str]:
        """The number and the hash of the last row."""
        row = self._run("SELECT sequence, hash FROM audit_chain WHERE id = 1").fetchone()
        return int(row[0]), str(row[1])

    def entries(
        self,
        *,
        after: int = 0,
        since: int = 0,
        until: int = 2**62,
        caller: str | None = None,
        action: str | None = None,
        study_uid: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Entry]:
        """The entries behind number `after` that fulfil all conditions, oldest first; no cursor stays open."""
        conditions, values = "began_at >= ? AND began_at < ?", [since, until]
        more: dict[str, str | None] = {"caller": caller, "action": action, "study_uid": study_uid}
        chosen = {column: value for column, value in more.items() if value is not None}
        conditions += "".join(f" AND {column} = ?" for column in chosen)
        left = limit if limit is not None else 2**62
        while left > 0:
            page, page_values = self._database.page(min(_BATCH, left), 0)
            rows = self._run(
                f"SELECT sequence, {_COLUMNS}, hash FROM audit_event WHERE sequence > ? AND {conditions}"
                f" ORDER BY sequence {page}",
                [after, *values, *chosen.values(), *page_values],
            ).fetchall()
            for row in rows:
                yield Entry(row[0], Event._make(row[1:-1]), row[-1])
            if len(rows) < min(_BATCH, left):
                return
            left -= len(rows)
            after = rows[-1][0]

    def verify(self) -> Iterator[Fault]:
        """Every place where a row is missing, was changed or was put in; what `prune` removed is not missing."""
        last, head = self.head()
        expected, previous = 1, START
        pruned = self.pruned()
        for entry in self.entries():
            if entry.sequence > last:
                break  # written since
            if expected == 1 < entry.sequence and pruned is not None and entry.sequence <= pruned.sequence + 1:
                expected = entry.sequence
                # A removal that broke off has left rows that are to go. The last of them tells for those before.
                previous = pruned.hash if entry.sequence > pruned.sequence else ""
            if entry.sequence != expected:
                yield Fault(expected, f"the rows {expected} to {entry.sequence - 1} are missing")
            elif previous and link(previous, entry.sequence, entry.event) != entry.hash:
                yield Fault(entry.sequence, "this row, or the one before, is not what was written")
            elif pruned is not None and entry.sequence == pruned.sequence and entry.hash != pruned.hash:
                yield Fault(entry.sequence, "this row is not the one that was to be removed last")
            expected, previous = entry.sequence + 1, entry.hash
        if expected <= last:
            yield Fault(expected, f"the rows {expected} to {last} are missing at the end")
        elif last and previous != head:
            yield Fault(last, "the last row is not the one that was written last")

    # Removing what need not be kept any more

    def older(self, moment: int) -> int:
        """The number of the last of the rows at the beginning that all ended before `moment`; 0: there are none."""
        row = self._run("SELECT MIN(sequence) FROM audit_event WHERE ended_at >= ?", (moment,)).fetchone()
        return int(row[0]) - 1 if row[0] is not None else self.head()[0]

    def first(self) -> int:
        """The number of the first row that is there; the one after the last where there is none."""
        row = self._run("SELECT MIN(sequence) FROM audit_event").fetchone()
        return int(row[0]) if row[0] is not None else self.head()[0] + 1

    def forwarded(self) -> int:
        """The number of the last row that a syslog server was sent."""
        return int(self._run("SELECT forwarded FROM audit_chain WHERE id = 1").fetchone()[0])

    def hash_of(self, sequence: int) -> str:
        """The hash of a row that is there."""
        return str(self._run("SELECT hash FROM audit_event WHERE sequence = ?", (sequence,)).fetchone()[0])

    def pruned(self) -> Pruned | None:
        """What was removed, by the last event that says so."""
        found = None
        for entry in self.entries(action=PRUNE):
            with suppress(ValueError, KeyError, TypeError):
                detail = orjson.loads(entry.event.detail)
                found = Pruned(int(detail["through"]), str(detail["hash"]), entry.event.caller, entry.event.ended_at)
        return found

    def remove(self, through: int) -> Iterator[int]:
        """Remove the rows up to a number, after the event that says so was written; yields how many went, piecemeal."""
        while (first := self.first()) <= through:
            upto = min(first + _REMOVED_AT_ONCE - 1, through)
            self._remove(upto)
            yield upto - first + 1

    @unit_of_work
    def _remove(self, upto: int) -> None:
        with self._database.write():
            self._database.not_append_only("audit_event")
            self._run("DELETE FROM audit_event WHERE sequence <= ?", (upto,))
            self._database.append_only("audit_event")

    # Forwarding to a syslog server: one process of all has the task, for a time

    @unit_of_work
    def claim_forwarding(self, forwarder: str, seconds: float) -> int | None:
        """The number up to which events were sent, if the task is this forwarder's now; None if it is another's."""
        moment = time_ns() // 1000
        with self._database.write():
            self._run(
                "UPDATE audit_chain SET forwarder = ?, forwarder_until = ? WHERE id = 1"
                " AND (forwarder = ? OR forwarder_until < ?)",
                (forwarder, moment + int(seconds * 1e6), forwarder, moment),
            )
            owner, forwarded = self._run("SELECT forwarder, forwarded FROM audit_chain WHERE id = 1").fetchone()
        return int(forwarded) if owner == forwarder else None

    @unit_of_work
    def note_forwarded(self, forwarder: str, sequence: int) -> None:
        with self._database.write():
            self._run("UPDATE audit_chain SET forwarded = ? WHERE id = 1 AND forwarder = ?", (sequence, forwarder))
