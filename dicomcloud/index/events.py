"""What happens in the archive, written down in the transaction in which it happens: the change feed and the outbox.

The feed has a row for each instance that was stored, replaced or deleted. Its sequence is a counter whose row every
writer locks first: who reads a number has read all smaller ones that there will ever be. The outbox has a row for each
event and each place that it is to be delivered to (`outbox.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from time import time_ns
from typing import Any, Final, Literal, NamedTuple
from uuid import uuid4

import orjson

from dicomcloud.errors import Gone
from dicomcloud.index.database import Database, unit_of_work

Kind = Literal["stored", "replaced", "deleted", "retrieved", "failed"]

_MOST_INSTANCES: Final = 150  # of one event; it has to fit into a message of an Azure queue (48 KiB)
_PRUNED_EVERY: Final = 1000  # changes after which old ones are looked for
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, as it is delivered. `study_uid` may be empty where it is not known (a failure).

    `data` is what the kind has to tell, in JSON: for stored, replaced and deleted `instances`, each with `series`,
    `instance` and `sop_class`; for failed `reason` and `message`; for retrieved `resource` and `status`. It never holds
    a name or another attribute of the patient.
    """

    id: str
    kind: Kind
    time: datetime
    study_uid: str
    data: Mapping[str, Any]

    def payload(self) -> bytes:
        """The event as JSON, in the form of Standard Webhooks: type, timestamp, data."""
        body = {
            "type": self.kind,
            "timestamp": self.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "id": self.id,
            "data": {**({"study": self.study_uid} if self.study_uid else {}), **self.data},
        }
        return orjson.dumps(body)

    @classmethod
    def read(cls, payload: str) -> Event:
        body = orjson.loads(payload)
        data = body["data"]
        study = data.pop("study", "")
        return cls(body["id"], body["type"], datetime.fromisoformat(body["timestamp"]), study, data)


def new_event(kind: Kind, study_uid: str, data: Mapping[str, Any]) -> Event:
    return Event(str(uuid4()), kind, datetime.now(UTC), study_uid, data)


class Change(NamedTuple):
    """One instance that changed."""

    action: Literal["stored", "replaced", "deleted"]
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str


class FeedEntry(NamedTuple):
    sequence: int
    changed_at: datetime
    action: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str


class EventLog:
    """Writes changes and events; reads the feed. `targets`: the kinds of events that each destination is sent.

    Changes older than `keep_days` are forgotten, with 0 none are. Without feed and targets nothing is ever written.
    """

    def __init__(
        self,
        database: Database,
        *,
        feed: bool = False,
        keep_days: int = 0,
        targets: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._database = database
        self._run = database.run
        self._feed = feed
        self._keep = keep_days * 86_400_000_000
        self._targets = {name: frozenset(kinds) for name, kinds in (targets or {}).items()}
        self._kinds = frozenset().union(*self._targets.values())
        self.committed: Callable[[], None] = lambda: None  # called when events wait to be delivered

    def wants(self, kind: str) -> bool:
        """Whether anybody is sent events of this kind."""
        return kind in self._kinds

    # Writing

    def record(self, changes: Sequence[Change], *, announce: bool = True) -> bool:
        """Write the changes that the transaction under way makes; whether events wait to be delivered.

        `announce` False: only in the feed, for instances that were there before (reindex).
        """
        if not changes:
            return False
        if self._feed:
            self._write_feed(changes)
        wanted = [change for change in changes if announce and change.action in self._kinds]
        return self._write_outbox(_events(wanted))

    def publish(self, events: Iterable[Event]) -> None:
        """Write events that belong to no change, in a transaction of their own."""
        if wanted := [event for event in events if event.kind in self._kinds]:
            self._publish(wanted)
            self.committed()

    @unit_of_work
    def _publish(self, events: Sequence[Event]) -> None:
        with self._database.write():
            self._write_outbox(events)

    def _write_feed(self, changes: Sequence[Change]) -> None:
        now = time_ns() // 1000
        self._database.later("UPDATE last_change SET sequence = sequence + ? WHERE id = 1", (len(changes),))
        last = self._run("SELECT sequence FROM last_change WHERE id = 1").fetchone()[0]
        first = last - len(changes) + 1
        self._database.insert_rows(
            "archive_change",
            ("sequence", "changed_at", "action", "study_uid", "series_uid", "sop_uid", "sop_class_uid"),
            [(sequence, now, *change) for sequence, change in enumerate(changes, first)],
        )
        if self._keep and (first - 1) // _PRUNED_EVERY != last // _PRUNED_EVERY:
            self._prune(now - self._keep)

    def _prune(self, oldest: int) -> None:
        page, values = self._database.page(1, 0)
        row = self._run(
            f"SELECT sequence FROM archive_change WHERE changed_at >= ? ORDER BY sequence {page}", (oldest, *values)
        ).fetchone()
        self._run("DELETE FROM archive_change WHERE sequence < ?", (row[0],))  # the newest are never older than that

    def _write_outbox(self, events: Iterable[Event]) -> bool:
        now = time_ns() // 1000
        written = False
        for event in events:
            payload = event.payload().decode()
            for target, kinds in self._targets.items():
                if event.kind in kinds:
                    self._database.later(
                        "INSERT INTO outbox (event_id, target, kind, study_uid, payload, created_at, state, attempts,"
                        " due_at, last_error) VALUES (?, ?, ?, ?, ?, ?, 'waiting', 0, ?, '')",
                        (event.id, target, event.kind, event.study_uid, payload, now, now),
                    )
                    written = True
        return written

    # The feed

    @unit_of_work
    def close_feed(self) -> None:
        """Empty the feed where it is switched off: with a gap in it, nobody could go on reading."""
        if self._feed or self._run("SELECT min(sequence) FROM archive_change").fetchone()[0] is None:
            return
        with self._database.write():
            self._run("DELETE FROM archive_change")
            self._run("UPDATE last_change SET sequence = sequence + 1 WHERE id = 1")

    @property
    def has_feed(self) -> bool:
        return self._feed

    def page(self, since: int, limit: int) -> tuple[list[FeedEntry], int]:
        """Up to `limit` changes behind the sequence `since`, in order, and the last sequence that there is.

        `since` 0 is the oldest change that is kept. Raises Gone when changes behind `since` are no longer kept, or when
        `since` is from another database.
        """
        last = self._run("SELECT sequence FROM last_change WHERE id = 1").fetchone()[0]
        oldest = self._run("SELECT min(sequence) FROM archive_change").fetchone()[0] or last + 1
        if since > last:
            raise Gone(
                f"There is no change {since} yet: the last one is {last}. The index was made anew; begin with 0."
            )
        if 0 < since < oldest - 1:
            raise Gone(f"Changes before {oldest} are no longer kept. List the studies, then go on from {last}.")
        page, values = self._database.page(limit, 0)
        rows = self._run(
            "SELECT sequence, changed_at, action, study_uid, series_uid, sop_uid, sop_class_uid FROM archive_change"
            f" WHERE sequence > ? ORDER BY sequence {page}",
            (since, *values),
        ).fetchall()
        entries = [FeedEntry(row[0], _EPOCH + timedelta(microseconds=row[1]), *row[2:]) for row in rows]
        return entries, max(last, entries[-1].sequence if entries else 0)


def _events(changes: Iterable[Change]) -> Iterator[Event]:
    """Changes of one study and one kind that follow one another are one event, up to a size."""
    for (action, study), group in groupby(changes, key=lambda change: (change.action, change.study_uid)):
        instances = [
            {"series": change.series_uid, "instance": change.sop_uid, "sop_class": change.sop_class_uid}
            for change in group
        ]
        for start in range(0, len(instances), _MOST_INSTANCES):
            yield new_event(action, study, {"instances": instances[start : start + _MOST_INSTANCES]})
