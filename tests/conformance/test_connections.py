"""Connections to a running server: kept alive, pipelined, silent, more of them than threads, and cut off."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conformance.test_operations import SERVERS
from tests.data import make_dataset, make_file

STORED = {"Accept": "application/dicom; transfer-syntax=*"}


@pytest.fixture(scope="module", params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The program that speaks HTTP: what is said here holds for both."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Any], kind: str) -> Any:
    return new_server(DICOMCLOUD_SERVER=kind)


@pytest.fixture(scope="module")
def narrow(new_server: Callable[..., Any], kind: str) -> Any:
    """A server with one process and one thread, which waits two seconds for a silent client."""
    return new_server(
        DICOMCLOUD_SERVER=kind, DICOMCLOUD_WORKERS="1", DICOMCLOUD_THREADS="1", DICOMCLOUD_REQUEST_TIMEOUT="2"
    )


@contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    host, _, port = server.bind.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def get(server: Any, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {server.bind}", *lines, "", ""]).encode()


def answer(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


def store(server: Any, **attributes: Any) -> tuple[str, bytes, Path]:
    """The resource of a new instance, its file, and where the archive keeps it."""
    dataset = make_dataset(**attributes)
    file = make_file(dataset)
    headers = {"Content-Type": "application/dicom"}
    assert requests.post(f"{server.root}/studies", data=file, headers=headers, timeout=60).status_code == 200
    path = f"/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    newest = max((server.data / "storage").rglob("*.dcm"), key=lambda found: found.name)
    return path, file, newest


def test_requests_sent_together_are_answered_in_their_order(server: Any) -> None:
    paths = ["/dicomweb/studies?limit=0", "/nowhere", "/healthz"]
    with connected(server) as connection:
        connection.sendall(b"".join(get(server, path) for path in paths))
        stream = connection.makefile("rb")
        for status in (200, 404, 200):
            assert int(stream.readline().split()[1]) == status
            headers = http.client.parse_headers(stream)
            assert headers.get("Connection", "keep-alive") == "keep-alive"
            assert len(stream.read(int(headers["Content-Length"]))) == int(headers["Content-Length"])


def test_a_request_may_come_in_pieces_and_after_a_pause_of_its_connection(server: Any) -> None:
    request = get(server, "/dicomweb/studies?limit=1")
    with connected(server) as connection:
        for pause in (0.0, 0.005, 0.2, 0.0):
            time.sleep(pause)
            for byte in range(0, len(request), 20):
                connection.sendall(request[byte : byte + 20])
                time.sleep(0.001)
            assert answer(connection).read().startswith(b"[")


HEADS = [
    "GET /dicomweb/studies?limit=1&PatientID=%C3%A9%20x HTTP/1.1\r\n{fields}",
    "HEAD /dicomweb/studies?limit=1 HTTP/1.1\r\n{fields}",
    "GET //dicomweb//studies?a=?b HTTP/1.1\r\n{fields}",
    "GET /dicomweb/studies#limit=1 HTTP/1.1\r\n{fields}",
    "GET http://pacs.example/healthz HTTP/1.1\r\n{fields}",
    "GET /healthz HTTP/1.0\r\n{fields}",
    "GET /healthz HTTP/1.7\r\n{fields}",
    "GET /heal\x01thz HTTP/1.1\r\n{fields}",
    "GET  /healthz HTTP/1.1\r\n{fields}",
    "GET /healthz?" + "a" * 9000 + " HTTP/1.1\r\n{fields}",
    "BREW /healthz HTTP/1.1\r\n{fields}",
    "OPTIONS /dicomweb/studies HTTP/1.1\r\n{fields}",
    "GET /dicomweb/studies HTTP/1.1\r\n{fields}Accept: image/png\r\n",
    "GET /healthz HTTP/1.1\r\nX-Bad Name: 1\r\n{fields}",
    "GET /healthz HTTP/1.1\r\n{fields}Connection: close\r\n",
    "GET /healthz HTTP/1.1\r\n{fields}Content-Length: nine\r\n",
]


@pytest.mark.parametrize("head", HEADS)
def test_a_request_is_answered_as_it_would_be_on_a_connection_of_its_own(server: Any, head: str) -> None:
    fields = f"Host: {server.bind}\r\nX-Study: 1\r\n"
    plain = f"GET /dicomweb/studies?limit=0 HTTP/1.1\r\n{fields}\r\n".encode()
    asked = (head.format(fields=fields) + "\r\n").encode("latin-1")

    def ask(connection: socket.socket) -> tuple[Any, ...]:
        connection.sendall(asked)
        response = http.client.HTTPResponse(connection, method=head.partition(" ")[0])
        response.begin()
        return response.status, response.headers.get("Connection"), response.headers["Content-Type"], response.read()

    with connected(server) as alone, connected(server) as kept:
        for _ in range(2):
            kept.sendall(plain)
            assert answer(kept).read() == b"[]"
        assert ask(kept) == ask(alone)


def test_a_client_that_falls_silent_in_the_head_of_a_request_is_given_up(narrow: Any) -> None:
    with connected(narrow) as silent:
        silent.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        began = time.monotonic()
        assert silent.recv(100) == b""
        assert 1 < time.monotonic() - began < 20
    assert requests.get(f"{narrow.url}/healthz", timeout=30).status_code == 200


def test_a_client_that_falls_silent_in_a_body_is_given_up(narrow: Any, kind: str) -> None:
    head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: {narrow.bind}\r\nContent-Type: application/dicom\r\n"
    with connected(narrow) as silent:
        silent.sendall(head.encode() + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
        if kind == "gunicorn":
            assert answer(silent).status == 400
        else:  # it has the whole body before anybody is asked
            assert silent.recv(100) == b""
    assert requests.get(f"{narrow.root}/studies", timeout=30).status_code == 200


def test_one_thread_serves_many_clients_who_keep_their_connections(narrow: Any) -> None:
    slowest = [0.0] * 6

    def ask(number: int) -> None:
        with requests.Session() as session:
            for _ in range(20):
                began = time.monotonic()
                assert session.get(f"{narrow.root}/studies", params={"limit": 1}, timeout=30).status_code == 200
                slowest[number] = max(slowest[number], time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(slowest))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < min(slowest) <= max(slowest) < 10  # nobody waits until the others have gone


def test_files_leave_whole_in_ranges_and_together(server: Any) -> None:
    study = make_dataset().StudyInstanceUID
    path, file, _ = store(server, StudyInstanceUID=study, PixelData=os.urandom(3 << 20), Rows=1024, Columns=1536)
    other = store(server, StudyInstanceUID=study)[1]
    with requests.Session() as session:
        assert session.get(server.root + path, headers=STORED, timeout=60).content == file
        ranged = session.get(server.root + path, headers={**STORED, "Range": "bytes=1000-2000000"}, timeout=60)
        assert (ranged.status_code, ranged.content) == (206, file[1000:2000001])
        assert session.head(server.root + path, headers=STORED, timeout=60).headers["Content-Length"] == str(len(file))
        together = session.get(f"{server.root}/studies/{study}", timeout=60)
        assert len(together.content) == int(together.headers["Content-Length"])
        assert file in together.content
        assert other in together.content


def test_frames_leave_from_their_place_in_the_file(server: Any) -> None:
    pixels = os.urandom(4 * 256 * 256 * 2)
    path, _, _ = store(server, PixelData=pixels, Rows=256, Columns=256, NumberOfFrames=4)
    frames = [pixels[start : start + 131072] for start in range(0, len(pixels), 131072)]
    alone = {"Accept": "application/octet-stream"}
    with requests.Session() as session:
        for number, frame in enumerate(frames, 1):
            assert session.get(f"{server.root}{path}/frames/{number}", headers=alone, timeout=60).content == frame
        part = session.get(f"{server.root}{path}/frames/3", headers={**alone, "Range": "bytes=10-1009"}, timeout=60)
        assert (part.status_code, part.content) == (206, frames[2][10:1010])
        together = session.get(f"{server.root}{path}/frames/2,4", timeout=60).content
        assert together.index(frames[1]) < together.index(frames[3])
        assert (
            session.head(f"{server.root}{path}/frames/1", headers=alone, timeout=60).headers["Content-Length"]
            == "131072"
        )


def test_an_answer_whose_file_has_lost_bytes_breaks_off_and_never_looks_whole(server: Any) -> None:
    path, _, stored = store(server, PixelData=bytes(1 << 20), Rows=512, Columns=1024)
    stored.chmod(0o600)
    with stored.open("rb+") as file:
        file.truncate(500_000)
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        requests.get(server.root + path, headers=STORED, timeout=60)
    assert requests.get(f"{server.url}/healthz", timeout=60).status_code == 200
    assert requests.delete(server.root + path, timeout=60).status_code == 204


def test_a_client_that_goes_away_in_the_middle_of_a_file_harms_nobody(server: Any) -> None:
    path, file, _ = store(server, PixelData=bytes(16 << 20), Rows=2048, Columns=4096)
    for _ in range(20):
        with connected(server) as connection:
            connection.sendall(get(server, f"/dicomweb{path}", "Accept: application/dicom; transfer-syntax=*"))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert requests.get(server.root + path, headers=STORED, timeout=60).content == file


def test_a_server_that_is_told_to_stop_says_so_to_a_client_that_goes_on(new_server: Callable[..., Any]) -> None:
    server = new_server(DICOMCLOUD_SERVER="gunicorn", DICOMCLOUD_WORKERS="1")
    request = get(server, "/dicomweb/studies?limit=1")
    with connected(server) as connection:
        connection.sendall(request)
        assert answer(connection).headers["Connection"] == "keep-alive"
        server.terminate()
        said = "keep-alive"
        until = time.monotonic() + 10
        while said == "keep-alive" and time.monotonic() < until:
            connection.sendall(request)
            last = answer(connection)
            assert last.status == 200
            last.read()
            said = last.headers["Connection"]
        assert said == "close"
    assert server.stop() == 0
