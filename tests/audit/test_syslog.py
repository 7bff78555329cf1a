"""The trail sent to a syslog server over TLS, which runs here and reads what RFC 5425 and PS3.15 A.5 say."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from xml.etree import ElementTree as ET

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dicomcloud.audit.messages import audit_message
from dicomcloud.audit.syslog import Forwarder, SyslogServer
from dicomcloud.index.audit import Event
from tests.conftest import AppMaker


def make_certificate(folder: Path, name: str = "syslog", address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_file


class Receiver:
    """Takes syslog messages over TLS and cuts them apart by their lengths."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.messages: list[bytes] = []
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
                connection = self._context.wrap_socket(plain, server_side=True)
            except (ssl.SSLError, ConnectionError):
                continue
            except OSError:
                return
            self._open.append(connection)
            Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: ssl.SSLSocket) -> None:
        data = b""
        try:
            while piece := connection.recv(65536):
                data += piece
                while (found := re.match(rb"(\d+) ", data)) and len(data) >= found.end() + int(found[1]):
                    self.messages.append(data[found.end() : found.end() + int(found[1])])
                    data = data[found.end() + int(found[1]) :]
        except OSError:
            pass

    def hang_up(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open = []

    def close(self) -> None:
        self._listener.close()
        self.hang_up()

    def wait_for(self, number: int) -> list[bytes]:
        until = monotonic() + 20
        while len(self.messages) < number and monotonic() < until:
            sleep(0.02)
        return self.messages


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


@pytest.fixture
def receiver(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr("dicomcloud.audit.syslog._INTERVAL", 0.05)
    receiver = Receiver(*certificate)
    yield receiver
    receiver.close()


def parsed(message: bytes) -> tuple[re.Match[bytes], ET.Element]:
    """The parts of the syslog header (RFC 5424 6.2), and the audit message."""
    header = re.match(
        rb"<(?P<priority>\d+)>1 (?P<time>\S+) (?P<host>\S+) DICOMcloud (?P<process>\d+) DICOM\+RFC3881"
        rb' \[trail@32473 number="(?P<number>\d+)" hash="(?P<hash>[0-9a-f]{64})"\] \xef\xbb\xbf'
        rb"(?P<text><AuditMessage.*)",
        message,
        re.DOTALL,
    )
    assert header, message
    return header, ET.fromstring(header["text"])


def test_every_event_arrives_once_in_order_over_tls(
    make_app: AppMaker, receiver: Receiver, certificate: tuple[Path, Path]
) -> None:
    app = make_app(audit_syslog=f"127.0.0.1:{receiver.port}", audit_syslog_authority=certificate[0])
    trail = app.extensions["dicomcloud"].archive.audit
    client = app.test_client()
    client.get("/dicomweb/studies?PatientName=Doe*")
    trail.flush()
    for number in range(30):
        trail.write("delete", study=f"1.2.{number}")
    found = [parsed(message) for message in receiver.wait_for(31)]
    assert [int(header["number"]) for header, _ in found] == list(range(1, 32))
    assert [header["hash"].decode() for header, _ in found] == [entry.hash for entry in trail.table.entries()]
    query = found[0][1]
    assert query.find("EventIdentification/EventID").get("csd-code") == "110112"
    text = query.find("ParticipantObjectIdentification/ParticipantObjectQuery").text
    assert base64.b64decode(text) == b"search_for_studies?PatientName=Doe*"
    assert {header["priority"] for header, _ in found} == {b"85"}


def test_after_a_broken_connection_nothing_is_left_out(
    make_app: AppMaker, receiver: Receiver, certificate: tuple[Path, Path]
) -> None:
    app = make_app(audit_syslog=f"127.0.0.1:{receiver.port}", audit_syslog_authority=certificate[0])
    trail = app.extensions["dicomcloud"].archive.audit
    trail.write("delete", study="1.2.1")
    receiver.wait_for(1)
    receiver.hang_up()
    trail.write("delete", study="1.2.2")
    numbers = [1]
    for wanted in (2, 3):
        if 2 not in numbers:
            numbers = [int(parsed(message)[0]["number"]) for message in receiver.wait_for(wanted)]
    assert numbers in ([1, 1, 2], [1, 2])  # the first may not have been read, and is then sent again


def test_a_server_whose_certificate_is_not_believed_gets_nothing(
    make_app: AppMaker, receiver: Receiver, tmp_path: Path
) -> None:
    other, _ = make_certificate(tmp_path, "other")
    app = make_app(audit_syslog=f"127.0.0.1:{receiver.port}", audit_syslog_authority=other)
    app.extensions["dicomcloud"].archive.audit.write("delete", study="1.2.1")
    sleep(0.5)
    assert receiver.messages == []
    with pytest.raises(ssl.SSLCertVerificationError):
        SyslogServer("127.0.0.1", receiver.port, str(other)).connect()


def test_one_process_of_several_has_the_task_until_it_is_gone(make_app: AppMaker) -> None:
    table = make_app().extensions["dicomcloud"].archive.audit.table
    assert table.claim_forwarding("one", 60) == 0
    assert table.claim_forwarding("two", 60) is None
    assert table.claim_forwarding("one", -1) == 0
    assert table.claim_forwarding("two", 60) == 0
    table.note_forwarded("one", 5)
    assert table.claim_forwarding("two", 60) == 0
    table.note_forwarded("two", 5)
    assert table.claim_forwarding("two", 60) == 5
    assert Forwarder(table, SyslogServer("127.0.0.1", 1))._name != Forwarder(table, SyslogServer("127.0.0.1", 1))._name


def event(action: str, outcome: int = 200, study: str = "1.2", **more: object) -> Event:
    moment = 1_800_000_000_000_000
    plain = Event(moment, moment, action, outcome, 3, "anna", "password", "192.0.2.1", study, "", "", "r", "view")
    return plain._replace(**more)


@pytest.mark.parametrize(
    ("recorded", "code", "action", "kind", "outcome"),
    [
        (event("search"), "110112", "E", None, "0"),
        (event("retrieve"), "110104", "R", None, "0"),
        (event("store"), "110104", "C", None, "0"),
        (event("delete"), "110105", "D", None, "0"),
        (event("delete", series_uid="1.2.3"), "110103", "D", None, "0"),
        (event("login", 401), "110114", "E", "110122", "4"),
        (event("logout"), "110114", "E", "110123", "0"),
        (event("refuse", 403), "110113", "E", "110127", "4"),
        (event("share", study=""), "110113", "E", "110137", "0"),
        (event("start", study=""), "110100", "E", "110120", "0"),
        (event("correct", 500), "110103", "U", None, "8"),
    ],
)
def test_an_event_becomes_the_audit_message_of_ps3_15_a_5(
    recorded: Event, code: str, action: str, kind: str | None, outcome: str
) -> None:
    message = ET.fromstring(audit_message(recorded, "pacs"))
    assert [child.tag for child in message][:4] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
    ]
    identification = message.find("EventIdentification")
    assert identification.find("EventID").attrib["csd-code"] == code
    assert identification.get("EventActionCode") == action
    assert identification.get("EventOutcomeIndicator") == outcome
    assert identification.get("EventDateTime") == "2027-01-15T08:00:00.000+00:00"
    types = [each.get("csd-code") for each in identification.findall("EventTypeCode")]
    assert types == ([kind] if kind else [])
    who = message.find("ActiveParticipant")
    assert (who.get("UserID"), who.get("NetworkAccessPointID")) == ("anna", "192.0.2.1")
    if recorded.study_uid and recorded.action != "search":
        assert message.find("ParticipantObjectIdentification").get("ParticipantObjectID") == "1.2"


def test_what_cannot_be_in_xml_is_replaced() -> None:
    message = ET.fromstring(audit_message(event("login", caller='<a>"&\x00\x1b\ud800', study="")))
    assert message.find("ActiveParticipant").get("UserID") == '<a>"&???'
