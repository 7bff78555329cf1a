"""Takes events. Stores and deletes are written in their own transaction; the rest a second later, together.

Reading is what happens most: requests of one second that differ in nothing but the instance become one event that says
how many they were. They are in memory until then: a server that is killed may lose the last second of searches,
retrieves and refusals, never a store or a delete.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from threading import Event as Signal
from threading import Lock, Thread
from time import time_ns
from typing import Any, Final

import orjson

from ..errors import DicomWebError
from ..index.audit import PRUNE, AuditTable, Event
from .actor import current_actor
from .syslog import Forwarder, SyslogServer

log = logging.getLogger(__name__)

_INTERVAL: Final = 1.0  # seconds between two writes
_LONGEST_INTERVAL: Final = 30.0  # seconds, while the database is away
_MOST: Final = 50_000  # different events kept while the database is away

_Key = tuple[str, int, str, str, str, str, str, str]


class AuditTrail:
    """One for each process; its thread starts with the first event. Safe to use from several threads.

    `changes_only`: searches and retrieves are not recorded.
    """

    def __init__(self, table: AuditTable, *, changes_only: bool = False, enabled: bool = True) -> None:
        self.table = table
        self.enabled = enabled
        self.changes_only = changes_only
        self._waiting: dict[_Key, list[Any]] = {}  # began, ended, times, instance, request
        self._lock = Lock()
        self._writing = Lock()
        self._process = 0
        self._stop = Signal()
        self._thread: Thread | None = None
        self._forwarder: Forwarder | None = None

    def note(
        self,
        action: str,
        outcome: int,
        *,
        study: str = "",
        series: str = "",
        instance: str = "",
        detail: str = "",
    ) -> None:
        """Record what the current actor did, within a second."""
        if not self.enabled or (self.changes_only and action in ("search", "retrieve")):
            return
        actor = current_actor()
        key = (action, outcome, actor.caller, actor.method, actor.address, study, series, detail)
        moment = time_ns() // 1000
        with self._lock:
            found = self._waiting.get(key)
            if found is None:
                if len(self._waiting) >= _MOST:
                    log.error("the audit trail cannot be written: an event is lost")
                    return
                self._waiting[key] = [moment, moment, 1, instance, actor.request_id]
            else:
                found[1] = moment
                found[2] += 1
                if found[3] != instance:
                    found[3] = ""
                if found[4] != actor.request_id:
                    found[4] = ""
        if self._process != os.getpid():
            self._start()

    def note_login(self, name: str, method: str, outcome: int) -> None:
        """Record that somebody gave a password or a key, and whether it was right."""
        actor = current_actor()
        actor.caller, actor.method = name, method
        self.note("login", outcome)
        actor.recorded |= outcome >= 400  # what is refused in consequence is no event of its own

    def write(self, action: str, outcome: int = 200, *, study: str = "", detail: str = "") -> None:
        """Record what the current actor did, now; durable when it returns. Raises Unavailable."""
        if self.enabled:
            self.table.append([self._event(action, outcome, study=study, detail=detail)])

    def write_within(self, action: str, changes: Iterable[tuple[str, str, str, int, dict[str, Any]]]) -> None:
        """Record changes as a part of the transaction that this thread has open.

        Of each the study, series and SOP Instance UID ('' for several), how many instances, and what more there is.
        """
        if not self.enabled:
            return
        events = [
            self._event(
                action,
                200,
                study=study,
                series=series,
                instance=instance,
                times=times,
                detail=orjson.dumps(detail).decode() if detail else "",
            )
            for study, series, instance, times, detail in changes
        ]
        if events:
            self.table.append_within(events)
            current_actor().recorded = True

    def prune(self, through: int) -> Iterator[int]:
        """Remove the events up to a number for ever; yields how many went, piecemeal. What is left can be verified.

        An event says so first, with the hash of the last one that goes (`AuditTable.verify`). Raises Unavailable.
        """
        detail = {"through": through, "hash": self.table.hash_of(through)}
        self.table.append([self._event(PRUNE, 200, detail=orjson.dumps(detail).decode())])
        yield from self.table.remove(through)

    def _event(
        self,
        action: str,
        outcome: int,
        *,
        study: str = "",
        series: str = "",
        instance: str = "",
        times: int = 1,
        detail: str = "",
    ) -> Event:
        actor, moment = current_actor(), time_ns() // 1000
        return Event(
            moment, moment, action, outcome, times, actor.caller, actor.method, actor.address, study, series, instance,
            actor.request_id, detail,
        )  # fmt: skip

    def forward_to(self, server: SyslogServer) -> None:
        """Send all events on to a syslog server, from where that stopped."""
        self._forwarder = Forwarder(self.table, server)
        self._forwarder.start()

    # The thread that writes

    def _start(self) -> None:
        with self._writing:
            if self._process == os.getpid():
                return
            self._process = os.getpid()  # after a fork: the parent's thread is not here
            self._stop = Signal()
            self._thread = Thread(target=self._write_on, args=(self._stop,), name="audit", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _write_on(self, stop: Signal) -> None:
        pause, fault = _INTERVAL, ""
        while not stop.wait(pause):
            try:
                self.flush()
            except Exception as error:  # said once for each reason, tried ever more rarely
                if fault != (fault := type(error).__name__):
                    log.error("the audit trail could not be written yet: %s", fault)
                pause = min(2 * pause, _LONGEST_INTERVAL)
            else:
                if fault:
                    log.warning("the audit trail is written again")
                pause, fault = _INTERVAL, ""

    def flush(self) -> None:
        """Write what waits; durable when it returns. Raises Unavailable, and keeps it."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            if not waiting:
                return
            events = [
                Event(
                    began,
                    ended,
                    key[0],
                    key[1],
                    times,
                    key[2],
                    key[3],
                    key[4],
                    key[5],
                    key[6],
                    instance,
                    request,
                    key[7],
                )
                for key, (began, ended, times, instance, request) in waiting.items()
            ]
            try:
                self.table.append(events)
            except BaseException:
                with self._lock:
                    self._waiting = {**waiting, **self._waiting}
                raise

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._stop.set()
        if self._forwarder is not None:
            self._forwarder.close()
        try:
            self.flush()
        except (DicomWebError, OSError) as error:
            log.error("the last events could not be written to the audit trail: %s", error)
        thread, self._thread = self._thread, None
        if thread is not None and self._process == os.getpid():
            thread.join(2 * _INTERVAL)
        self._process = 0
        atexit.unregister(self.close)


def by_study(items: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str, int]]:
    """(study, series, instance) of many → one entry for each study, with '' where they differ, and their number."""
    found: dict[str, list[Any]] = {}
    for study, series, instance in items:
        entry = found.setdefault(study, [series, instance, 0])
        entry[2] += 1
        if entry[0] != series:
            entry[0] = ""
        if entry[1] != instance:
            entry[1] = ""
    return [(study, series, instance, times) for study, (series, instance, times) in found.items()]
