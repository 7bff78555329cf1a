"""Why an encrypted connection does not come about. The driver only says that it failed."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dicomcloud.index.sql_server.connections import Address

_SECONDS: Final = 3
_PORT: Final = 1433
# Packets of MS-TDS 2.2.3; the TLS handshake travels in those of type PRELOGIN (2.2.6.5).
_PRELOGIN: Final = 0x12
_HEADER: Final = struct.Struct(">BBHHBB")  # type, status, length, process, number, window
_LAST: Final = 1
_MOST: Final = 4096 - _HEADER.size
_ENCRYPTION: Final = 1  # an option
_END: Final = 0xFF  # behind the last one
_ON: Final = 1
_NOT_SUPPORTED: Final = 2
_QUESTION: Final = struct.pack(">BHH BHH B", 0, 11, 6, _ENCRYPTION, 17, 1, _END) + bytes(6) + bytes([_ON])


def refusal(address: Address) -> str | None:
    """What is wrong with the server's encryption or its certificate; None where nothing is, or it is not to be seen.

    The server is asked once more, for three seconds at most. `host\\INSTANCE` without a port is not asked.
    """
    if address.instance and not address.port:
        return None
    try:
        context = _context(address)
        with socket.create_connection((address.host, address.port or _PORT), timeout=_SECONDS) as connection:
            _send(connection, _QUESTION)
            if _encryption(_receive(connection)) == _NOT_SUPPORTED:
                return "The database server does not encrypt, and database_url demands it (encryption=require)."
            _shake_hands(connection, context, address.host)
    except ssl.SSLCertVerificationError as error:
        reason = "it is for another host name" if "match" in error.verify_message else error.verify_message
        return f"The certificate of the database server is not accepted: {reason}."
    except ssl.SSLError as error:
        return f"No encrypted connection to the database server: {error.reason or error}."
    except (OSError, ValueError, IndexError, struct.error):  # away, or no SQL Server
        return None
    return None


def _context(address: Address) -> ssl.SSLContext:
    if address.ca:
        context = ssl.create_default_context(cafile=None if address.ca == "system" else address.ca)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # with which the driver begins
    return context


def _shake_hands(connection: socket.socket, context: ssl.SSLContext, host: str) -> None:
    arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(arrived, leaving, server_hostname=host)
    while True:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            _send(connection, leaving.read())
            arrived.write(_receive(connection))


def _send(connection: socket.socket, content: bytes) -> None:
    for start in range(0, len(content), _MOST):
        part = content[start : start + _MOST]
        status = _LAST if start + _MOST >= len(content) else 0
        connection.sendall(_HEADER.pack(_PRELOGIN, status, _HEADER.size + len(part), 0, 0, 0) + part)


def _receive(connection: socket.socket) -> bytes:
    """The content of the packets of one message."""
    content, status = b"", 0
    while not status & _LAST:
        _, status, length, *_ = _HEADER.unpack(_exactly(connection, _HEADER.size))
        content += _exactly(connection, length - _HEADER.size)
    return content


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise ConnectionError
        content += part
    return content


def _encryption(answer: bytes) -> int:
    """The server's word on encryption in its answer to PRELOGIN."""
    at = 0
    while answer[at] != _END:
        option, offset, _ = struct.unpack_from(">BHH", answer, at)
        if option == _ENCRYPTION:
            return int(answer[offset])
        at += 5
    return _NOT_SUPPORTED
