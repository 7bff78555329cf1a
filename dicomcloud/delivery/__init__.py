"""Delivering events: a thread for each destination takes them from the outbox and sends them, again if need be.

Every server process runs these threads; who claims an event sends it. An event is delivered at least once: after a
crash in the wrong moment a second time, with the same id. Events of one study arrive in order, unless one is given up.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from threading import Event as Signal
from threading import Thread
from typing import Any, Final

from ..errors import Unavailable
from ..index.events import Event, EventLog, new_event
from ..index.outbox import Outbox, Waiting
from ..plugins import PluginError, load
from ..settings import Settings, SettingsError

log = logging.getLogger(__name__)

LEASE: Final = 40.0  # seconds after which an event that somebody claimed is free again; a delivery takes less
_POLL: Final = 2.0  # seconds between looks for events of other processes
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 3600.0
_LONGEST_SILENCE: Final = 300.0  # of a destination that cannot be reached: then one event tries again
_MOST_RETRIEVALS: Final = 10_000  # waiting in memory


class NotDelivered(Exception):
    """The destination did not take the event. `unreachable`: it would not take another one now either."""

    def __init__(self, message: str, *, unreachable: bool = False, retry_after: float = 0) -> None:
        super().__init__(message)
        self.unreachable = unreachable
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Target:
    """A destination. `deliver` raises NotDelivered, or anything else."""

    name: str
    kinds: frozenset[str]
    deliver: Callable[[Event], object]


def open_targets(settings: Settings) -> list[Target]:
    """The destinations that the settings name. Raises SettingsError for one that is not installed or malformed."""
    kinds = frozenset(settings.event_kinds)
    targets = []
    if settings.webhooks:
        from .webhook import Webhook

        if not settings.webhook_secret:
            raise SettingsError("Setting webhook_secret: webhooks need a secret to sign with, of 16 characters or more")
        for url in settings.webhooks:
            hook = Webhook(url, settings.webhook_secret)
            targets.append(Target(hook.name, kinds, hook.deliver))
    if settings.event_queue_url:
        from .azure_queue import AzureQueue

        queue = AzureQueue(settings.event_queue_url, settings.event_queue_key)
        targets.append(Target(queue.name, kinds, queue.deliver))
    for name in settings.subscribers:
        try:
            subscriber = load("subscribers", name)
        except PluginError as error:
            raise SettingsError(f"Setting subscribers: {error}") from error
        targets.append(Target(f"subscriber {name}", frozenset(getattr(subscriber, "kinds", kinds)), subscriber))
    return targets


class Delivery:
    """Sends what waits in the outbox. `start` runs it in threads of this process; `send_due` in the caller's."""

    def __init__(self, outbox: Outbox, events: EventLog, targets: Sequence[Target], *, attempts: int) -> None:
        self._outbox = outbox
        self._events = events
        self._targets = tuple(targets)
        self._attempts = attempts
        self._stopped = Signal()
        self._signals = {target.name: Signal() for target in targets}
        self._threads: list[Thread] = []
        self._retrievals: deque[Event] = deque(maxlen=_MOST_RETRIEVALS)
        self._lost = 0

    def start(self) -> None:
        """Begin to deliver; events of this process are sent at once, those of others within seconds."""
        self._events.committed = self.wake
        self._threads = [
            Thread(target=self._run, args=(target,), name=f"delivery to {target.name}", daemon=True)
            for target in self._targets
        ]
        if self._events.wants("retrieved"):
            self._threads.append(Thread(target=self._keep_retrievals, name="retrieve events", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send nothing more, and write down the retrievals that are still in memory.

        A delivery under way gets a moment to finish; it would be made again otherwise.
        """
        self._stopped.set()
        self.wake()
        for thread in self._threads:
            thread.join(2 * _POLL)

    def wake(self) -> None:
        for signal in self._signals.values():
            signal.set()

    def retrieved(self, study: str, data: dict[str, Any]) -> None:
        """Note a retrieval. It costs no more than a place in memory; the outbox gets it within two seconds."""
        if len(self._retrievals) == _MOST_RETRIEVALS:
            self._lost += 1
        self._retrievals.append(new_event("retrieved", study, data))

    def send_due(self) -> tuple[int, int]:
        """Send everything that is due now; how many events were delivered, and how many were not."""
        sent = failed = 0
        for target in self._targets:
            while (delivered := self._send_one(target)) is not None:
                sent, failed = sent + delivered.ok, failed + (not delivered.ok)
                if delivered.silence:
                    break
        return sent, failed

    # The threads

    def _run(self, target: Target) -> None:
        signal = self._signals[target.name]
        silence = 0.0
        while not self._stopped.is_set():
            signal.clear()
            try:
                outcome = self._send_one(target)
            except Unavailable:
                outcome = None  # the index is busy: later
            except Exception:
                log.exception("the outbox cannot be read")
                outcome = None
            if outcome is None:
                signal.wait(_POLL)
                continue
            silence = min(max(_FIRST_PAUSE, silence * 2), _LONGEST_SILENCE) if outcome.silence else 0.0
            if outcome.silence:
                self._pause(max(silence, outcome.retry_after))

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _send_one(self, target: Target) -> _Outcome | None:
        waiting = self._outbox.claim(target.name, LEASE)
        if waiting is None:
            return None
        try:
            target.deliver(waiting.event)
        except NotDelivered as error:
            self._failed(waiting, str(error), error.retry_after)
            return _Outcome(False, error.unreachable, error.retry_after)
        except Exception as error:  # a subscriber of somebody else's
            log.warning("%s failed: %s: %s", target.name, type(error).__name__, error)
            self._failed(waiting, f"{type(error).__name__}: {error}")
            return _Outcome(False)
        self._outbox.delivered(waiting)
        return _Outcome(True)

    def _failed(self, waiting: Waiting, error: str, retry_after: float = 0) -> None:
        if waiting.attempts >= self._attempts:
            log.error("event %s to %s was given up: %s", waiting.event.id, waiting.target, error)
            self._outbox.failed(waiting, error, None)
            return
        pause = min(_FIRST_PAUSE * 2 ** min(waiting.attempts - 1, 20), _LONGEST_PAUSE)
        self._outbox.failed(waiting, error, max(pause * random.uniform(0.8, 1.2), retry_after))

    def _keep_retrievals(self) -> None:
        while True:
            self._pause(_POLL)
            stopping = self._stopped.is_set()
            events = [self._retrievals.popleft() for _ in range(len(self._retrievals))]
            if self._lost:
                log.warning("%d retrieve events were lost: there were too many at once", self._lost)
                self._lost = 0
            try:
                self._events.publish(events)
            except Exception:
                log.exception("%d retrieve events could not be written", len(events))
            if stopping:
                return


@dataclass(frozen=True, slots=True)
class _Outcome:
    ok: bool
    silence: bool = False  # the destination cannot be reached
    retry_after: float = 0


def kinds_by_target(targets: Collection[Target]) -> dict[str, frozenset[str]]:
    return {target.name: target.kinds for target in targets}
