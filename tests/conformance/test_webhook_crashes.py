"""The server is killed while webhooks wait: what was acknowledged is told, each event at least once, none made up."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.conformance.kill_loop import wait_to_kill
from tests.data import make_dataset, make_file
from tests.receiver import Receiver

pytestmark = pytest.mark.skipif(os.name == "nt", reason="killing a group of processes is POSIX")


def test_events_survive_kill_9_and_nothing_acknowledged_is_left_untold(new_server: Callable[..., Any]) -> None:
    healthy = threading.Event()
    receiver = Receiver(lambda number, event: 204 if healthy.is_set() else 503)
    server = new_server(DICOMCLOUD_WEBHOOKS=receiver.url, DICOMCLOUD_WEBHOOK_SECRET="sixteen secret characters")
    acknowledged: dict[str, str] = {}
    for _ in range(2):
        stop = threading.Event()

        def send(stop: threading.Event = stop) -> None:
            session = requests.Session()
            while not stop.is_set():
                dataset = make_dataset()
                try:
                    answer = session.post(
                        f"{server.root}/studies", data=make_file(dataset), headers={"Content-Type": "application/dicom"}
                    )
                    acknowledged[dataset.SOPInstanceUID] = "stored" if answer.status_code == 200 else answer.text
                except requests.RequestException:
                    return

        senders = [threading.Thread(target=send) for _ in range(3)]
        for sender in senders:
            sender.start()
        enough = len(acknowledged) + 11
        wait_to_kill(0.8, lambda enough=enough: len(acknowledged) >= enough)  # type: ignore[misc]
        server.kill()
        stop.set()
        for sender in senders:
            sender.join()
        server.start()
    assert len(acknowledged) > 20
    assert set(acknowledged.values()) == {"stored"}
    waiting = server.run("events", "list", "--json")
    assert waiting.returncode == 0, waiting.stderr
    healthy.set()
    server.run("events", "retry", *_ids(waiting.stdout))  # instead of waiting for their turn
    feed = requests.get(f"{server.root}/changes", params={"limit": 10000}, timeout=60).json()["changes"]
    happened = {change["instance"] for change in feed}  # more than was acknowledged, where the answer was cut off
    told = receiver.wait_until(lambda events: _instances(events) >= happened, 90)
    assert set(acknowledged) <= _instances(told)
    assert _instances(told) == happened
    receiver.close()


def _instances(events: list[dict[str, Any]]) -> set[str]:
    return {each["instance"] for event in events for each in event["data"]["instances"]}


def _ids(listing: str) -> list[str]:
    return [str(row["id"]) for row in json.loads(listing)["events"]]
