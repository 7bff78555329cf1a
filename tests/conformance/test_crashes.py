"""The server is killed while it stores and deletes: what it acknowledged is there, and nothing half."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.data import make_dataset, make_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="killing a group of processes is POSIX")

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}


class Sender(threading.Thread):
    """Stores instances of one study, and deletes some, until the server is gone; keeps what was acknowledged."""

    def __init__(self, root: str, study: str, number: int) -> None:
        super().__init__()
        self._root, self._study, self._number = root, study, number
        self.acknowledged: dict[str, bytes] = {}
        self.deleted: set[str] = set()
        self.in_doubt: set[str] = set()

    def run(self) -> None:
        session = requests.Session()
        for count in range(10_000):
            dataset = make_dataset(StudyInstanceUID=self._study, SeriesNumber=self._number, InstanceNumber=count)
            file = make_file(dataset)
            path = f"/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
            self.in_doubt.add(path)
            try:
                answer = session.post(f"{self._root}/studies", data=file, headers={"Content-Type": "application/dicom"})
                assert answer.status_code == 200, answer.text
                self.acknowledged[path] = file
                if count % 3 == 2:
                    del self.acknowledged[path]
                    if session.delete(f"{self._root}/studies/{self._study}{path}").status_code == 204:
                        self.deleted.add(path)
                        self.in_doubt.discard(path)
                else:
                    self.in_doubt.discard(path)
            except requests.RequestException:
                return


def test_a_killed_server_comes_back_with_all_it_acknowledged_and_nothing_half(new_server: Callable[..., Any]) -> None:
    server = new_server()
    studies = [make_dataset().StudyInstanceUID for _ in range(2)]
    kept: dict[str, bytes] = {}
    gone: set[str] = set()
    doubt: set[str] = set()
    for delay in (0.3, 0.7, 0.45, 1.1, 0.6):
        senders = [Sender(server.root, studies[number % 2], number) for number in range(4)]
        for sender in senders:
            sender.start()
        threading.Event().wait(delay)
        server.kill()
        for sender in senders:
            sender.join()
            kept |= {f"/studies/{sender._study}{path}": file for path, file in sender.acknowledged.items()}
            gone |= {f"/studies/{sender._study}{path}" for path in sender.deleted}
            doubt |= {f"/studies/{sender._study}{path}" for path in sender.in_doubt}
        server.start()
        verified = server.run("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(kept) > 20
    for path, file in kept.items():
        answer = requests.get(server.root + path, headers=OCTETS, timeout=60)
        assert (answer.status_code, answer.content == file) == (200, True)
    assert {requests.get(server.root + path, timeout=60).status_code for path in gone} <= {404, 410}
    found = {
        f"/studies/{row['0020000D']['Value'][0]}/series/{row['0020000E']['Value'][0]}"
        f"/instances/{row['00080018']['Value'][0]}"
        for row in requests.get(f"{server.root}/instances", params={"limit": 1000}, timeout=60).json()
    }
    assert set(kept) <= found <= set(kept) | doubt
    studies_found = requests.get(f"{server.root}/studies", timeout=60).json()
    assert sum(row["00201208"]["Value"][0] for row in studies_found) == len(found)
    assert server.run("verify", "--checksums").returncode == 0


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
