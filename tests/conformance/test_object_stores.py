"""Running servers over object stores: the samples, two nodes over one index and one store, a store that dies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conformance import test_samples as samples
from tests.conformance.conftest import Server
from tests.data import make_dataset, make_file
from tests.databases import SERVER, new_server_database
from tests.emulators import Azurite, Wire, install_azurite

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}
DICOM = {"Content-Type": "application/dicom"}
EVERY = 1 if os.environ.get("TEST_ALL_SAMPLES") else 8  # of the samples, one in so many


@pytest.fixture(params=["s3", "azure"])
def storage_url(request: pytest.FixtureRequest) -> str:
    made: str = request.getfixturevalue("s3_server" if request.param == "s3" else "azurite").new_storage()
    return made


@pytest.fixture
def database_url(tmp_path: Path) -> Iterator[str]:
    if SERVER:
        with new_server_database() as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path / 'index.sqlite3'}"


Starter = Callable[..., list[Server]]


@pytest.fixture
def start_nodes(tmp_path: Path) -> Iterator[Starter]:
    """Starts servers at the same moment, each with a data directory of its own."""
    servers: list[Server] = []

    def start(number: int, **settings: str) -> list[Server]:
        new = [Server(tmp_path / f"node{count}", **settings) for count in range(number)]
        for server in new:
            server.data.mkdir(parents=True)
        threads = [threading.Thread(target=server.start) for server in new]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        servers.extend(new)
        return new

    yield start
    for server in servers:
        server.stop()


def test_the_samples_go_through_an_object_store(start_nodes: Starter, storage_url: str) -> None:
    (server,) = start_nodes(1, DICOMCLOUD_STORAGE_URL=storage_url)
    for path in samples.FILES[::EVERY]:
        samples.test_a_sample_is_stored_found_fetched_and_deleted_or_refused_with_a_reason(server, path)
    verified = server.run("verify", "--checksums")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_two_nodes_over_one_index_and_one_store_are_one_archive(
    start_nodes: Starter, storage_url: str, database_url: str
) -> None:
    one, other = start_nodes(2, DICOMCLOUD_STORAGE_URL=storage_url, DICOMCLOUD_DATABASE_URL=database_url)
    study, series = make_dataset().StudyInstanceUID, make_dataset().SeriesInstanceUID
    files = [make_file(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number) for number in range(6)]
    resource = f"/studies/{study}"
    for number, file in enumerate(files):
        here, there = (one, other) if number % 2 else (other, one)
        assert requests.post(f"{here.root}/studies", data=file, headers=DICOM, timeout=60).status_code == 200
        (row,) = requests.get(f"{there.root}/studies", timeout=60).json()  # at once, and not what it said before
        assert row["00201208"]["Value"] == [number + 1]
        metadata = requests.get(f"{there.root}{resource}/metadata", timeout=60).json()
        assert len(metadata) == number + 1
        instance = f"{resource}/series/{series}/instances/{metadata[-1]['00080018']['Value'][0]}"
        rendered = requests.get(f"{there.root}{instance}/rendered", timeout=60)
        assert (rendered.status_code, rendered.headers["Content-Type"]) == (200, "image/jpeg")
        assert requests.get(there.root + instance, headers=OCTETS, timeout=60).content == file
        assert requests.get(f"{there.root}{instance}/frames/1", timeout=60).status_code == 200
    assert requests.delete(one.root + instance, timeout=60).status_code == 204
    assert requests.get(other.root + instance, headers=OCTETS, timeout=60).status_code == 410
    assert len(requests.get(f"{other.root}{resource}/metadata", timeout=60).json()) == 5
    assert requests.delete(other.root + resource, timeout=60).status_code == 204
    assert requests.get(f"{one.root}/studies", timeout=60).json() == []
    assert one.run("verify").returncode == 0


def test_two_nodes_take_parts_of_one_study_at_the_same_time(
    start_nodes: Starter, storage_url: str, database_url: str
) -> None:
    nodes = start_nodes(2, DICOMCLOUD_STORAGE_URL=storage_url, DICOMCLOUD_DATABASE_URL=database_url)
    study = make_dataset().StudyInstanceUID
    faults: list[str] = []

    def send(number: int) -> None:
        for count in range(8):
            file = make_file(StudyInstanceUID=study, InstanceNumber=number * 100 + count)
            answer = requests.post(f"{nodes[number % 2].root}/studies", data=file, headers=DICOM, timeout=60)
            if answer.status_code != 200:
                faults.append(answer.text)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for node in nodes:
        (row,) = requests.get(f"{node.root}/studies", timeout=60).json()
        assert row["00201208"]["Value"] == [32]
    assert nodes[1].run("verify", "--checksums").returncode == 0


def test_a_store_that_dies_while_it_is_stored_to_loses_nothing_that_was_acknowledged(
    start_nodes: Starter, tmp_path: Path, wired: Callable[[str], tuple[str, Wire]]
) -> None:
    store = Azurite(install_azurite(), tmp_path / "azurite")
    store.start()
    try:
        url, wire = wired(store.new_storage())
        (server,) = start_nodes(1, DICOMCLOUD_STORAGE_URL=url, DICOMCLOUD_STORAGE_CACHE_BYTES="0")
        check_a_dying_store(store, wire, server)
    finally:
        store.kill()


def check_a_dying_store(store: Azurite, wire: Wire, server: Server) -> None:
    acknowledged: dict[str, bytes] = {}
    refused: list[requests.Response] = []
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            dataset = make_dataset()
            file = make_file(dataset)
            answer = requests.post(f"{server.root}/studies", data=file, headers=DICOM, timeout=60)
            if answer.status_code == 200:
                acknowledged[
                    f"/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
                    f"/instances/{dataset.SOPInstanceUID}"
                ] = file
            else:
                refused.append(answer)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for _ in range(2):
        wait_for(lambda: len(acknowledged) > 10)
        wire.cut()  # uploads break off in the middle
        store.stop()  # not killed: what Azurite has in memory goes to its disk every few seconds only
        before = len(refused)
        wait_for(lambda before=before: len(refused) > before)  # type: ignore[misc]
        store.start()
        wire.mend()
        stored = len(acknowledged)
        wait_for(lambda stored=stored: len(acknowledged) > stored + 5)  # type: ignore[misc]
    over.set()
    for sender in senders:
        sender.join()
    assert {answer.status_code for answer in refused} == {503}
    assert all(answer.headers["Retry-After"].isdigit() for answer in refused)
    for path, file in acknowledged.items():
        assert requests.get(server.root + path, headers=OCTETS, timeout=60).content == file
    server.stop()
    server.start()  # what could not be removed while the store was away is removed now
    found: Any = requests.get(f"{server.root}/instances", params={"limit": 1000}, timeout=60).json()
    assert len(acknowledged) <= len(found)
    verified = server.run("verify", "--checksums")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
