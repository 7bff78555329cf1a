"""Encryption on the way to a database server, as far as its login: the driver against a server that goes no further."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from dicomcloud.index import open_database
from dicomcloud.index.database import ServerAway
from tests.audit.test_syslog import make_certificate

SUPPORTED, NOT_SUPPORTED = 0, 2


class LoginServer:
    """Speaks TDS up to the end of the TLS handshake, then closes; counts the handshakes that succeeded."""

    def __init__(self, certificate: tuple[Path, Path] | None) -> None:
        self.handshakes = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if certificate:
            self._context.load_cert_chain(*certificate)
        self._encryption = SUPPORTED if certificate else NOT_SUPPORTED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError, struct.error):
                    connection.settimeout(10)
                    self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        receive(connection)
        options = struct.pack(">BHHBHHB", 0, 11, 6, 1, 17, 1, 0xFF) + bytes([16, 0, 0, 0, 0, 0, self._encryption])
        send(connection, 4, options)
        if self._encryption == NOT_SUPPORTED:
            return
        arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(arrived, leaving, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if leaving.pending:
                    send(connection, 0x12, leaving.read())
                arrived.write(receive(connection))
        send(connection, 0x12, leaving.read())
        self.handshakes += 1

    def close(self) -> None:
        self._listener.close()


def receive(connection: socket.socket) -> bytes:
    head = connection.recv(8, socket.MSG_WAITALL)
    length = struct.unpack(">BBHHBB", head)[2]
    return connection.recv(length - 8, socket.MSG_WAITALL)


def send(connection: socket.socket, kind: int, content: bytes) -> None:
    connection.sendall(struct.pack(">BBHHBB", kind, 1, 8 + len(content), 0, 0, 0) + content)


@pytest.fixture
def login_server() -> Iterator[Callable[[tuple[Path, Path] | None], LoginServer]]:
    servers: list[LoginServer] = []

    def start(certificate: tuple[Path, Path] | None) -> LoginServer:
        servers.append(LoginServer(certificate))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def said(server: LoginServer, option: str) -> ServerAway:
    with pytest.raises(ServerAway) as caught:
        open_database(f"mssql://user:secret@127.0.0.1:{server.port}/db?login_timeout=5&{option}").run("SELECT 1")
    assert "secret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("option", ["encryption=require", "ca={}"])
def test_a_server_that_does_not_encrypt_is_told(
    login_server: Callable[..., LoginServer], tmp_path: Path, option: str
) -> None:
    error = said(login_server(None), option.format(make_certificate(tmp_path)[0]))
    assert "does not encrypt" in str(error)
    assert not error.waiting_helps


def test_a_certificate_of_another_authority_is_told(login_server: Callable[..., LoginServer], tmp_path: Path) -> None:
    server = login_server(make_certificate(tmp_path, "server"))
    error = said(server, f"ca={make_certificate(tmp_path, 'other')[0]}")
    assert "certificate of the database server is not accepted" in str(error)
    assert not error.waiting_helps
    assert server.handshakes == 0


def test_a_certificate_for_another_host_is_told(login_server: Callable[..., LoginServer], tmp_path: Path) -> None:
    pem, key = make_certificate(tmp_path, "server", address="192.0.2.1")
    server = login_server((pem, key))
    assert "it is for another host name" in str(said(server, f"ca={pem}"))


@pytest.mark.parametrize("option", ["encryption=require", "ca={}"])
def test_a_right_certificate_is_accepted(login_server: Callable[..., LoginServer], tmp_path: Path, option: str) -> None:
    pem, key = make_certificate(tmp_path)
    server = login_server((pem, key))
    error = said(server, option.format(pem))
    assert "cannot be reached" in str(error)  # it goes no further
    assert error.waiting_helps
    assert server.handshakes >= 1
