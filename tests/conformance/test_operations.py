"""Real server processes, of both kinds: metrics of all of them, and stopping without breaking off a request."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.data import make_dataset, make_file

SERVERS = [pytest.param("gunicorn", marks=pytest.mark.skipif(os.name == "nt", reason="not on Windows")), "waitress"]


def value_of(server: Any, name: str) -> float | None:
    found = re.search(rf"^{re.escape(name)} (\S+)$", requests.get(f"{server.url}/metrics", timeout=60).text, re.M)
    return float(found[1]) if found else None


def metric(server: Any, name: str) -> float:
    value = value_of(server, name)
    assert value is not None, name
    return value


def becomes(server: Any, name: str, value: float) -> bool:
    """Whether a metric comes to a value: answers are counted a second after they have left, the first ones too."""
    until = time.monotonic() + 30
    while value_of(server, name) != value:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("kind", SERVERS)
def test_the_metrics_are_those_of_all_server_processes(new_server: Callable[..., Any], kind: str) -> None:
    server = new_server(DICOMCLOUD_SERVER=kind, DICOMCLOUD_WORKERS="3")
    for _ in range(40):  # each on a connection of its own, so that every process gets some
        assert requests.get(f"{server.root}/studies", timeout=60).status_code == 200
    name = 'dicomcloud_requests_total{method="GET",operation="search_for_studies",status="200"}'
    assert becomes(server, name, 40)
    assert [metric(server, name) for _ in range(10)] == [40] * 10
    assert becomes(server, "dicomcloud_requests_in_progress", 1)


@pytest.mark.skipif(os.name == "nt", reason="gunicorn")
def test_a_killed_process_leaves_its_counts_and_nothing_under_way(new_server: Callable[..., Any]) -> None:
    server = new_server(DICOMCLOUD_SERVER="gunicorn", DICOMCLOUD_WORKERS="2")
    name = 'dicomcloud_requests_total{method="GET",operation="search_for_studies",status="200"}'
    for _ in range(20):
        requests.get(f"{server.root}/studies", timeout=60)
    assert becomes(server, name, 20)
    for worker in server.workers():
        os.kill(worker, signal.SIGKILL)
    server.wait_until_up()
    assert becomes(server, "dicomcloud_requests_in_progress", 1)  # when the last one has been buried
    assert metric(server, name) == 20


@pytest.mark.parametrize("kind", SERVERS)
def test_a_store_that_is_under_way_is_finished_when_the_server_is_stopped(
    new_server: Callable[..., Any], kind: str
) -> None:
    server = new_server(DICOMCLOUD_SERVER=kind)
    file = make_file(dataset := make_dataset())
    host, port = server.bind.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        headers = ["Host: x", "Content-Type: application/dicom", f"Content-Length: {len(file)}"]
        slow.sendall("\r\n".join(["POST /dicomweb/studies HTTP/1.1", *headers, "", ""]).encode() + file[:300])
        time.sleep(0.5)
        stopped = threading.Thread(target=server.stop)
        stopped.start()
        time.sleep(1.5)
        with pytest.raises(requests.RequestException):
            requests.get(f"{server.url}/healthz", timeout=1)  # nobody else is let in
        for start in range(300, len(file), 200):
            slow.sendall(file[start : start + 200])
            time.sleep(0.1)
        said = slow.recv(1 << 16)
        assert said.startswith(b"HTTP/1.1 200 ")
        assert kind == "gunicorn" or b"\r\nConnection: close\r\n" in said  # of gunicorn it is the next one that says so
    stopped.join(60)
    assert server.stop() == 0
    server.start()
    rows = requests.get(f"{server.root}/studies/{dataset.StudyInstanceUID}/instances", timeout=60).json()
    assert [row["00080018"]["Value"] for row in rows] == [[dataset.SOPInstanceUID]]


@pytest.mark.parametrize("kind", SERVERS)
def test_an_answer_that_is_under_way_is_finished_when_the_server_is_stopped(
    new_server: Callable[..., Any], kind: str
) -> None:
    server = new_server(DICOMCLOUD_SERVER=kind)
    file = make_file(dataset := make_dataset(NumberOfFrames=20_000, PixelData=bytes(512 * 20_000)))
    sent = requests.post(f"{server.root}/studies", file, headers={"Content-Type": "application/dicom"}, timeout=60)
    assert sent.status_code == 200
    path = f"{server.root}/studies/{dataset.StudyInstanceUID}"
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with requests.get(path, headers=accept, stream=True, timeout=60) as answer:
        received = len(answer.raw.read(1000))
        stopped = threading.Thread(target=server.stop)
        stopped.start()
        time.sleep(1)
        received += sum(len(piece) for piece in answer.iter_content(1 << 20))
    stopped.join(60)
    assert received == int(answer.headers["Content-Length"]) > len(file)
    assert server.stop() == 0


@pytest.mark.parametrize("kind", SERVERS)
def test_a_request_that_does_not_end_is_given_up_after_the_grace(new_server: Callable[..., Any], kind: str) -> None:
    server = new_server(DICOMCLOUD_SERVER=kind, DICOMCLOUD_SHUTDOWN_GRACE="1")
    host, port = server.bind.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n")
        slow.sendall(b"Content-Length: 1000\r\n\r\nbegun")
        time.sleep(0.5)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 30
    assert server.run("verify").returncode == 0
