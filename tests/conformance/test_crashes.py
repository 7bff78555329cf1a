"""The server is killed while it stores and deletes: what it acknowledged is there, and nothing half."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.conformance import kill_loop
from tests.conformance.test_operations import SERVERS
from tests.data import make_dataset, make_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="killing a group of processes is POSIX")

KILLS = int(os.environ.get("TEST_KILLS", "4"))  # 200 take some minutes: python -m tests.conformance.kill_loop


@pytest.mark.parametrize("kind", SERVERS)
def test_a_killed_server_comes_back_with_all_it_acknowledged_and_nothing_half(
    new_server: Callable[..., Any], kind: str
) -> None:
    server = new_server(DICOMCLOUD_SERVER=kind)
    told = kill_loop.run(server, KILLS, every=max(KILLS // 2, 1))
    assert len(told.kept) > KILLS
    assert told.deleted
    studies = requests.get(f"{server.root}/studies", params={"limit": 1000}, timeout=60).json()
    found = requests.get(f"{server.root}/instances", params={"limit": 10_000}, timeout=60).json()
    assert sum(row["00201208"]["Value"][0] for row in studies) == len(found)
    paths = {
        f"/studies/{row['0020000D']['Value'][0]}/series/{row['0020000E']['Value'][0]}"
        f"/instances/{row['00080018']['Value'][0]}"
        for row in found
    }
    assert len(paths) == 1000 or set(told.kept) <= paths <= set(told.kept) | told.in_doubt


def test_eight_clients_storing_parts_of_one_study_lose_nothing(new_server: Callable[..., Any]) -> None:
    server = new_server()
    study = make_dataset().StudyInstanceUID
    series = [make_dataset().SeriesInstanceUID for _ in range(3)]
    faults: list[str] = []

    def send(number: int) -> None:
        session = requests.Session()
        for count in range(12):
            file = make_file(
                StudyInstanceUID=study, SeriesInstanceUID=series[count % 3], InstanceNumber=number * 100 + count
            )
            answer = session.post(
                f"{server.root}/studies/{study}", data=file, headers={"Content-Type": "application/dicom"}
            )
            if answer.status_code != 200:
                faults.append(answer.text)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    (row,) = requests.get(f"{server.root}/studies", timeout=60).json()
    assert (row["00201206"]["Value"], row["00201208"]["Value"]) == ([3], [96])
    rows = requests.get(f"{server.root}/studies/{study}/series", timeout=60).json()
    assert [item["00201209"]["Value"] for item in rows] == [[32], [32], [32]]


def test_a_server_that_is_told_to_stop_finishes_and_exits_cleanly(new_server: Callable[..., Any]) -> None:
    server = new_server()
    answer = requests.post(
        f"{server.root}/studies", data=make_file(), headers={"Content-Type": "application/dicom"}, timeout=60
    )
    assert answer.status_code == 200
    assert server.stop() == 0
    assert server.run("verify").returncode == 0
