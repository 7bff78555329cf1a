"""Sends the audit trail to a syslog server over TLS (RFC 5425), in its order and from where it stopped.

Of all server processes one sends at a time. What was sent is noted in the database: while the server is away events
wait there, and none is left out. An event may come twice, after a connection that broke.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from dataclasses import dataclass
from secrets import token_hex
from threading import Event as Signal
from threading import Thread
from typing import Final

from ..errors import DicomWebError
from ..index.audit import AuditTable
from .messages import syslog_message

log = logging.getLogger(__name__)

_INTERVAL: Final = 1.0  # seconds between two looks at the trail
_IDLE: Final = 10.0  # where another process has the task
_LEASE: Final = 30.0
_TIMEOUT: Final = 10.0
_LONGEST_WAIT: Final = 60.0
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class SyslogServer:
    """`authority`: a file with the certificates that are believed, '' for those of the system. `certificate` and `key`:
    files with which this client shows who it is, '' if the server does not ask."""

    host: str
    port: int
    authority: str = ""
    certificate: str = ""
    key: str = ""

    def connect(self) -> ssl.SSLSocket:
        """Raises OSError, also for a certificate that is not believed."""
        context = ssl.create_default_context(cafile=self.authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key or None)
        plain = socket.create_connection((self.host, self.port), timeout=_TIMEOUT)
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class Forwarder:
    """A thread that sends what the trail has and the syslog server has not."""

    def __init__(self, table: AuditTable, server: SyslogServer) -> None:
        self._table = table
        self._server = server
        self._name = f"{socket.gethostname()[:40]}-{os.getpid()}-{token_hex(4)}"
        self._stop = Signal()
        self._connection: ssl.SSLSocket | None = None
        self._surely = 2**62  # the number up to which the server has read, as far as can be known
        self._thread = Thread(target=self._send_on, name="audit-syslog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT)

    def _send_on(self) -> None:
        wait = _INTERVAL
        while not self._stop.wait(wait):
            try:
                wait = _INTERVAL if self._send() else _IDLE
            except (OSError, DicomWebError) as error:
                self._disconnect()
                wait = min(max(wait, _INTERVAL) * 2, _LONGEST_WAIT)
                log.error("the audit trail cannot be sent to %s: %s", self._server.host, error)
            except Exception:
                self._disconnect()
                wait = _LONGEST_WAIT
                log.exception("the audit trail cannot be sent")
        self._disconnect()

    def _send(self) -> bool:
        """Send all that is new; False where another process has the task."""
        forwarded = self._table.claim_forwarding(self._name, _LEASE)
        if forwarded is None:
            self._disconnect()
            self._surely = 2**62
            return False
        if self._connection is not None and _has_hung_up(self._connection):
            self._disconnect()
        if self._connection is None:
            forwarded = min(forwarded, self._surely)  # what was sent last may not have been read
        while entries := list(self._table.entries(after=forwarded, limit=_BATCH)):
            if self._connection is None:
                self._connection = self._server.connect()
            self._surely = forwarded
            frames = []
            for entry in entries:
                message = syslog_message(entry, os.getpid())
                frames.append(f"{len(message)} ".encode() + message)  # RFC 5425 4.3
            self._connection.sendall(b"".join(frames))
            forwarded = entries[-1].sequence
            self._table.note_forwarded(self._name, forwarded)
            if self._table.claim_forwarding(self._name, _LEASE) is None:
                return False
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _has_hung_up(connection: ssl.SSLSocket) -> bool:
    """Whether the server has closed the connection: it never sends anything else."""
    connection.settimeout(0.0)
    try:
        return connection.recv(1) == b""
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_TIMEOUT)
