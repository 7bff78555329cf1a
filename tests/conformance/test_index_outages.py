"""The index goes away in the middle of stores: what was acknowledged is there, what was not is told with 503, and when
the index is back, all goes on without anybody's doing.

On SQLite its disk is full, or another program holds its lock; the MS SQL Server of DICOMCLOUD_TEST_DATABASE_URL is cut
off, or says nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conformance.conftest import Server
from tests.conformance.kill_loop import Ledger, check
from tests.data import make_dataset, make_file
from tests.databases import on_sql_server, on_sqlite, through, url_of_new_server_database
from tests.emulators import Wire

resource = pytest.importorskip("resource", reason="limits of POSIX")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")

BOUNDARY = "instances"
MULTIPART = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}


class Batches(threading.Thread):
    """Stores 10 instances with each request until it is told to stop, and notes what it is told of each."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self._root = root
        self.study = make_dataset().StudyInstanceUID
        self.ledger = Ledger()
        self.stopped = threading.Event()
        self.acknowledged = self.refused = 0  # requests
        self.strange: list[str] = []

    def run(self) -> None:
        with requests.Session() as session:
            while not self.stopped.is_set():
                self._send(session)

    def _send(self, session: requests.Session) -> None:
        files = {}
        for number in range(10):
            dataset = make_dataset(StudyInstanceUID=self.study, InstanceNumber=number)
            path = f"/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
            files[f"/studies/{self.study}{path}"] = make_file(dataset)
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file + b"\r\n" for file in files.values()) + f"--{BOUNDARY}--\r\n".encode()
        self.ledger.in_doubt |= files.keys()
        answer = session.post(f"{self._root}/studies", data=body, headers=MULTIPART, timeout=120)
        if answer.status_code == 200 and len(answer.json()["00081199"]["Value"]) == len(files):
            self.acknowledged += 1
            self.ledger.kept |= files
            self.ledger.in_doubt -= files.keys()
        elif answer.status_code == 503 and "Retry-After" in answer.headers:
            self.refused += 1
            self.stopped.wait(0.2)
        else:
            self.strange.append(f"{answer.status_code} {answer.text[:300]}")


def until(true: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@contextmanager
def storing(server: Server, number: int = 2) -> Iterator[list[Batches]]:
    """Clients that store meanwhile; at the end all that they were told is true."""
    senders = [Batches(server.root) for _ in range(number)]
    for sender in senders:
        sender.start()
    try:
        yield senders
        told = sum(sender.acknowledged for sender in senders)
        until(lambda: sum(sender.acknowledged for sender in senders) > told + 2)  # all goes on
    finally:
        for sender in senders:
            sender.stopped.set()
        for sender in senders:
            sender.join()
    assert [fault for sender in senders for fault in sender.strange] == []
    ledger = Ledger()
    for sender in senders:
        ledger.add(sender.ledger)
    verified: list[str] = ["not yet"]
    deadline = time.monotonic() + 20
    while verified[-1] and time.monotonic() < deadline:  # what nobody knew of the last commits is seen to
        finished = server.run("verify")
        verified.append(finished.stdout + finished.stderr if finished.returncode else "")
    assert not verified[-1]
    assert check(server, ledger) == []
    for sender in senders:
        rows = requests.get(f"{server.root}/studies/{sender.study}/instances?limit=100000", timeout=60).json()
        uids = [row["00080018"]["Value"][0] for row in rows]
        assert len(uids) == len(set(uids)) >= 10 * sender.acknowledged


def refused(senders: list[Batches]) -> int:
    return sum(sender.refused for sender in senders)


def acknowledged(senders: list[Batches]) -> int:
    return sum(sender.acknowledged for sender in senders)


# SQLite


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the server's processes may grow beyond what the index's log has now."""
    size = (server.data / "index.sqlite3-wal").stat().st_size
    processes = server.workers()
    for process in processes:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        for process in processes:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@on_sqlite
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits of other processes on this system")
def test_an_index_whose_disk_is_full_in_the_middle_of_stores_loses_nothing(new_server: Callable[..., Any]) -> None:
    server = new_server(DICOMCLOUD_SERVER="gunicorn")
    with storing(server) as senders:
        for _ in range(2):
            before, told = acknowledged(senders), refused(senders)
            until(lambda before=before: acknowledged(senders) > before + 3)
            with full_disk(server):
                until(lambda told=told: refused(senders) > told + 2)


@on_sqlite
def test_an_index_that_another_program_locks_in_the_middle_of_stores_loses_nothing(
    new_server: Callable[..., Any],
) -> None:
    server = new_server()
    with storing(server) as senders:
        until(lambda: acknowledged(senders) > 3)
        with closing(sqlite3.connect(server.data / "index.sqlite3", isolation_level=None, timeout=60)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = acknowledged(senders)
            time.sleep(1.5)
            assert acknowledged(senders) <= before + len(senders)  # those whose answer was on its way
            assert requests.get(f"{server.root}/studies", timeout=60).status_code == 200
            other.execute("ROLLBACK")
    assert refused(senders) == 0  # they waited


# MS SQL Server


@pytest.fixture
def wired_server(tmp_path: Path) -> Iterator[tuple[Server, Wire]]:
    """A DICOMcloud that is not started yet, and the Wire to its database server."""
    url, wire = through(url_of_new_server_database())
    server = Server(tmp_path, DICOMCLOUD_DATABASE_URL=url)
    yield server, wire
    wire.resume()
    wire.mend()
    if server.is_running:
        server.stop()
    wire.close()


def ready(server: Server) -> int:
    with suppress(requests.RequestException):
        return requests.get(f"{server.url}/readyz", timeout=60).status_code
    return 0


@on_sql_server
def test_a_database_server_that_is_cut_off_in_the_middle_of_stores_loses_nothing(
    wired_server: tuple[Server, Wire],
) -> None:
    server, wire = wired_server
    server.start()
    with storing(server) as senders:
        for round in range(2):
            before, told = acknowledged(senders), refused(senders)
            until(lambda before=before: acknowledged(senders) > before + 2)
            if round % 2:
                wire.cut()
            else:  # in the middle of a commit
                wire.stays_cut, wire.cut_behind = True, "COMMIT TRANSACTION".encode("utf-16-le")
                until(lambda: not wire.cut_behind)
                wire.cut()
            until(lambda told=told: refused(senders) > told + 1)
            wire.mend()


@on_sql_server
def test_a_database_server_that_says_nothing_for_a_while_loses_nothing(wired_server: tuple[Server, Wire]) -> None:
    server, wire = wired_server
    server.start()
    with storing(server) as senders:
        until(lambda: acknowledged(senders) > 3)
        told = refused(senders)
        wire.pause()
        until(lambda: refused(senders) > told + 1)
        assert ready(server) == 503
        wire.resume()


@on_sql_server
def test_an_outage_is_told_and_ends_without_a_restart(wired_server: tuple[Server, Wire]) -> None:
    server, wire = wired_server
    server.start()
    dataset = make_dataset()
    study = f"{server.root}/studies/{dataset.StudyInstanceUID}"
    instance = f"{study}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    headers = {"Content-Type": "application/dicom"}
    assert requests.post(f"{server.root}/studies", make_file(dataset), headers=headers, timeout=60).status_code == 200
    wire.cut()
    asked = [f"{server.root}/studies?PatientID=P1", f"{study}/series", f"{study}/metadata", instance, study]
    asked += [f"{instance}/frames/1", f"{instance}/rendered", f"{study}/thumbnail"]
    for url in asked:
        answer = requests.get(url, timeout=30)
        assert (url, answer.status_code, "Retry-After" in answer.headers) == (url, 503, True)
    for answer in (
        requests.post(f"{server.root}/studies", make_file(), headers=headers, timeout=30),
        requests.delete(study, timeout=30),
    ):
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), answer.text
    assert ready(server) == 503
    assert requests.get(f"{server.url}/healthz", timeout=30).status_code == 200
    os.kill(server.workers()[0], signal.SIGKILL)  # the next one waits for the index, and ends nothing
    until(lambda: "Waiting for it" in server.log())
    assert server.is_running
    wire.mend()
    until(lambda: [ready(server) for _ in range(8)] == [200] * 8)
    assert [requests.get(url, timeout=60).status_code for url in asked] == [200] * len(asked)
    assert requests.delete(study, timeout=60).status_code == 204
    assert server.run("verify").returncode == 0


@on_sql_server
def test_a_server_that_starts_before_its_database_waits_for_it(wired_server: tuple[Server, Wire]) -> None:
    server, wire = wired_server
    wire.cut()
    server.begin()
    until(lambda: "The database server cannot be reached. Waiting for it." in server.log())
    told = server.run("verify")  # other commands do not wait
    assert (told.returncode, told.stderr.strip()) == (1, "The database server cannot be reached.")
    assert server.is_running
    wire.mend()
    server.wait_until_up()
    until(lambda: ready(server) == 200)
    wire.cut()
    assert server.stop() == 0


@on_sql_server
def test_a_server_whose_login_is_refused_does_not_start_and_says_so(tmp_path: Path) -> None:
    url = url_of_new_server_database()
    login = url.split("//")[1].split("@")[0]
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        server = Server(tmp_path, DICOMCLOUD_BIND=f"127.0.0.1:{elsewhere.getsockname()[1]}")  # should it start
        wrong = url.replace(login, f"{login.split(':')[0]}:wrong")
        finished = server.run("serve", DICOMCLOUD_DATABASE_URL=wrong)
    if "is in use" in finished.stderr:
        pytest.skip("this server believes every password")
    assert (finished.returncode, finished.stderr.strip()) == (1, "The database server refuses the login.")
