"""Kills the server, or one of its processes, again and again while clients store and delete, and looks what is left.

    python -m tests.conformance.kill_loop --kills 200

Every acknowledged instance has to be there, identical; what was deleted has to be gone; nothing may be half there; and
`verify` has to find index and files in agreement. Exit code 0 when all that holds.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.conformance.conftest import Server
from tests.data import make_dataset, make_file

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}
_SENDERS = 4


@dataclass
class Ledger:
    """What clients were told: paths below the DICOMweb root."""

    kept: dict[str, bytes] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)  # no answer came

    def add(self, other: Ledger) -> None:
        self.kept |= other.kept
        self.deleted |= other.deleted
        self.in_doubt |= other.in_doubt


class Sender(threading.Thread):
    """Stores instances of one study, and deletes every third, until it is told to stop or the server is gone."""

    def __init__(self, root: str, study: str, number: int, *, persistent: bool) -> None:
        super().__init__()
        self._root, self._study, self._number = root, study, number
        self._persistent = persistent  # goes on when a connection breaks: only one process was killed
        self.ledger = Ledger()
        self.stopped = threading.Event()

    def run(self) -> None:
        session = requests.Session()
        for count in range(1_000_000):
            if self.stopped.is_set():
                return
            dataset = make_dataset(StudyInstanceUID=self._study, SeriesNumber=self._number, InstanceNumber=count)
            file = make_file(dataset)
            path = f"/studies/{self._study}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
            self.ledger.in_doubt.add(path)
            try:
                self._send(session, path, file, delete=count % 3 == 2)
            except requests.RequestException:
                if not self._persistent:
                    return
                time.sleep(0.05)
                session = requests.Session()

    def _send(self, session: requests.Session, path: str, file: bytes, *, delete: bool) -> None:
        headers = {"Content-Type": "application/dicom"}
        answer = session.post(f"{self._root}/studies", data=file, headers=headers, timeout=60)
        if answer.status_code == 503:  # of a database that was just being recovered
            return
        assert answer.status_code == 200, answer.text
        if not delete:
            self.ledger.kept[path] = file
            self.ledger.in_doubt.discard(path)
        elif session.delete(self._root + path, timeout=60).status_code == 204:
            self.ledger.deleted.add(path)
            self.ledger.in_doubt.discard(path)


def wait_to_kill(seconds: float, enough: Callable[[], bool]) -> None:
    """Let clients go on for `seconds`, and where a slow server has not done `enough` by then, until it has.

    Then for a moment more, so that the kill does not follow an answer at once. Gives up after a minute.
    """
    time.sleep(seconds)
    deadline = time.monotonic() + 60
    if enough():
        return
    while not enough() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))


def kill_once(server: Any, studies: list[str], delay: float, *, worker: bool, least: tuple[int, int]) -> Ledger:
    """Let clients store and delete, kill in their midst, start again; what they were told.

    No kill comes before `delay`, and before so many instances as `least` says are known to be there, and deleted.
    """
    senders = [
        Sender(server.root, studies[number % len(studies)], number, persistent=worker) for number in range(_SENDERS)
    ]
    for sender in senders:
        sender.start()

    def enough() -> bool:
        ledgers = [sender.ledger for sender in senders]
        counts = sum(len(each.kept) for each in ledgers), sum(len(each.deleted) for each in ledgers)
        return all(count >= asked for count, asked in zip(counts, least, strict=True))

    wait_to_kill(delay, enough)
    if worker:
        with suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(server.workers()), signal.SIGKILL)
        time.sleep(delay)
        for sender in senders:
            sender.stopped.set()
    else:
        server.kill()
    ledger = Ledger()
    for sender in senders:
        sender.join()
        ledger.add(sender.ledger)
    if worker:
        server.wait_until_up()
    else:
        server.start()
    return ledger


def check(server: Any, ledger: Ledger) -> list[str]:
    """What is not as the clients were told."""
    faults = []
    session = requests.Session()
    for path, file in ledger.kept.items():
        answer = session.get(server.root + path, headers=OCTETS, timeout=60)
        if answer.status_code != 200 or answer.content != file:
            faults.append(f"{path} was acknowledged and is not there as it was sent: {answer.status_code}")
    for path in ledger.deleted:
        if session.get(server.root + path, timeout=60).status_code not in (404, 410):
            faults.append(f"{path} was deleted and is there")
    for path in ledger.in_doubt:  # there and whole, or not there
        answer = session.get(server.root + path, headers=OCTETS, timeout=60)
        if answer.status_code == 200:
            shown = session.get(f"{server.root}{path}/metadata", timeout=60)
            if shown.status_code != 200 or answer.content[128:132] != b"DICM":
                faults.append(f"{path} is there by half")
        elif answer.status_code not in (404, 410):
            faults.append(f"{path}: {answer.status_code} {answer.text[:100]}")
    verified = server.run("verify", "--checksums")
    if verified.returncode:
        faults.append(verified.stdout + verified.stderr)
    return faults


def run(server: Any, kills: int, *, every: int, seed: int = 1) -> Ledger:
    """Kill so many times, by turns the whole server and one process; check after `every` kills. AssertionError."""
    chance = random.Random(seed)
    everything, recent = Ledger(), Ledger()
    for number in range(1, kills + 1):
        studies = [make_dataset().StudyInstanceUID for _ in range(2)]
        worker = number % 3 == 0 and bool(server.workers())
        least = (2, 0 if recent.deleted or everything.deleted else 1)
        recent.add(kill_once(server, studies, chance.uniform(0.05, 0.6), worker=worker, least=least))
        if number % every == 0 or number == kills:
            faults = check(server, recent)
            assert not faults, "\n".join(faults)
            everything.add(recent)
            recent = Ledger()
            print(
                f"{number} kills: {len(everything.kept)} instances there, {len(everything.deleted)} deleted,", end=" "
            )
            print(f"{len(everything.in_doubt)} without an answer", flush=True)
    return everything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="kills between two checks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), DICOMCLOUD_LOG_LEVEL="error")
        server.start()
        try:
            found = run(server, arguments.kills, every=arguments.every)
            faults = check(server, found)
        finally:
            server.stop()
    print("\n".join(faults) or "All that was acknowledged is there, and nothing else.")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
