"""Requests that two servers could understand differently, through a real nginx: none brings a second one in."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.data import make_dataset, make_file

NGINX = shutil.which("nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")

PROJECT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def behind(new_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, int]]:
    """A server behind nginx with config/nginx.conf, but for TLS; and the port of nginx."""
    server = new_server(DICOMCLOUD_TRUSTED_PROXIES="127.0.0.1", DICOMCLOUD_AUTHENTICATION="none")
    folder = tmp_path_factory.mktemp("nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (PROJECT / "config" / "nginx.conf").read_text(encoding="utf-8")
    text = re.sub(r"server \{\n    listen 80;.*?\n\}\n", "", text, flags=re.DOTALL)
    text = re.sub(r"    (ssl_|listen \[).*\n", "", text)
    text = re.sub(r"listen 443 ssl http2;", f"listen 127.0.0.1:{port};", text)
    text = re.sub(r"server unix:\S+;", f"server {server.bind};", text)
    (folder / "site.conf").write_text(text, encoding="utf-8")
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = (
        f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}"
        f" http {{ access_log off; {temporary} include {folder}/site.conf; }}"
    )
    (folder / "nginx.conf").write_text(main, encoding="utf-8")
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
                break
            time.sleep(0.1)
        yield server, port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int, request: bytes) -> list[int]:
    """The statuses of all answers to these bytes, on one connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(1.5)
        received = b""
        with suppress(TimeoutError, ConnectionError):
            while piece := connection.recv(1 << 16):
                received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


SMUGGLED = b"DELETE /dicomweb/studies/{study} HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n"
END = b"0\r\n\r\n"
FORGED = {
    "both lengths": POST + b"Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n" + END + SMUGGLED,
    "two different lengths": POST + b"Content-Length: 0\r\nContent-Length: {length}\r\n\r\n" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 0, {length}\r\n\r\n" + SMUGGLED,
    "a signed length": POST + b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    "a coding in disguise": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n" + END + SMUGGLED,
    "a coding after a space": POST + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n" + END + SMUGGLED,
    "a coding after a tab": POST + b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n" + END + SMUGGLED,
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + END + SMUGGLED,
    "a folded coding": POST + b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END + SMUGGLED,
    "a lone CR": POST + b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END + SMUGGLED,
    "a chunk with a lie": POST + b"Transfer-Encoding: chunked\r\n\r\n0;\nx\r\n\r\n" + SMUGGLED,
    "a huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n" + SMUGGLED,
    "a length with a body for GET": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n" + SMUGGLED,
    "a name with a NUL": POST + b"Content-Length\0: 0\r\nContent-Length: {length}\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("where", ["through nginx", "directly"])
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_request_hidden_in_another_one_is_not_carried_out(behind: tuple[Any, int], forged: bytes, where: str) -> None:
    server, port = behind
    dataset = make_dataset()
    sent = requests.post(
        f"{server.root}/studies", make_file(dataset), headers={"Content-Type": "application/dicom"}, timeout=60
    )
    assert sent.status_code == 200
    hidden = SMUGGLED.replace(b"{study}", dataset.StudyInstanceUID.encode())
    request = forged.replace(SMUGGLED, hidden).replace(b"{length}", str(len(hidden)).encode())
    found = answers(port if where == "through nginx" else int(server.bind.split(":")[1]), request)
    # What follows a request that is complete for both is a request of its own, which this client may send anyway.
    # It is smuggled when the front took it for a body: then only one answer is due, and the study is gone.
    there = requests.get(f"{server.root}/studies/{dataset.StudyInstanceUID}/metadata", timeout=60).status_code
    assert there == 200 or found.count(204) == 1 == len(found) - 1, (found, there)
    assert all(status < 500 or status == 501 for status in found), found


def test_what_nginx_is_told_about_the_client_cannot_be_forged(behind: tuple[Any, int]) -> None:
    _, port = behind
    forged = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "ftp", "X-Forwarded-Prefix": "/evil"}
    document = requests.get(f"http://127.0.0.1:{port}/openapi.json", headers=forged, timeout=60).json()
    assert document["servers"] == [{"url": f"http://127.0.0.1:{port}"}]
    assert requests.get(f"http://127.0.0.1:{port}/stored/x", timeout=60).status_code == 404


def test_a_client_is_told_to_come_again_while_the_server_is_restarted(behind: tuple[Any, int]) -> None:
    server, port = behind
    url = f"http://127.0.0.1:{port}/dicomweb/studies"
    server.stop()
    try:
        for answer in (requests.get(url, timeout=60), requests.post(url, make_file(make_dataset()), timeout=60)):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert answer.json()["status"] == 503
    finally:
        server.start()
    assert requests.get(url, timeout=60).status_code == 200
