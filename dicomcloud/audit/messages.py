"""Events as audit messages: XML of PS3.15 A.5 (which builds on RFC 3881), in syslog messages of RFC 5424."""

from __future__ import annotations

import base64
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.etree import ElementTree as ET

from ..index.audit import Entry, Event

_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FACILITY: Final = 10  # security/authorization messages (PS3.15 A.6)
_NOTICE, _WARNING = 5, 4

_CODES: Final = {  # PS3.16 D, CID 400 to 403
    "110100": "Application Activity",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110105": "DICOM Study Deleted",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
    "110120": "Application Start",
    "110121": "Application Stop",
    "110122": "Login",
    "110123": "Logout",
    "110127": "Use of Restricted Function",
    "110137": "User security Attributes Changed",
    "110150": "Application",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110180": "Study Instance UID",
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """Event ID, event action code (C R U D E), event type, and the role of the caller."""

    event: str
    action: str
    type: str = ""
    caller_role: str = ""
    own_role: str = "110150"


_KINDS: Final = {
    "search": _Kind("110112", "E", "", "110153", "110152"),
    "retrieve": _Kind("110104", "R", "", "110152", "110153"),
    "store": _Kind("110104", "C", "", "110153", "110152"),
    "delete": _Kind("110105", "D"),
    "login": _Kind("110114", "E", "110122"),
    "logout": _Kind("110114", "E", "110123"),
    "refuse": _Kind("110113", "E", "110127"),
    "share": _Kind("110113", "E", "110137"),
    "administer": _Kind("110113", "E", "110137"),
    "start": _Kind("110100", "E", "110120"),
    "stop": _Kind("110100", "E", "110121"),
}
_OTHER: Final = _Kind("110103", "U")


def audit_message(event: Event, source: str = "") -> bytes:
    """The AuditMessage of an event, UTF-8, without a declaration. `source` names this system."""
    source = source or socket.gethostname()
    kind = _KINDS.get(event.action, _OTHER)
    if event.action == "delete" and event.series_uid:
        kind = _Kind("110103", "D")  # a part of a study
    message = ET.Element("AuditMessage")
    identification = ET.SubElement(
        message,
        "EventIdentification",
        {
            "EventActionCode": kind.action,
            "EventDateTime": _time(event.began_at),
            "EventOutcomeIndicator": "0" if event.outcome < 400 else "4" if event.outcome < 500 else "8",
        },
    )
    _code(identification, "EventID", kind.event)
    if kind.type:
        _code(identification, "EventTypeCode", kind.type)
    if event.outcome >= 400:
        ET.SubElement(identification, "EventOutcomeDescription").text = f"HTTP status {event.outcome}"
    who = {"UserID": _text(event.caller) or "anonymous", "UserIsRequestor": "true"}
    if event.address:
        who |= {"NetworkAccessPointID": _text(event.address), "NetworkAccessPointTypeCode": "2"}
    participant = ET.SubElement(message, "ActiveParticipant", who)
    if kind.caller_role:
        _code(participant, "RoleIDCode", kind.caller_role)
    own = {"UserID": "DICOMcloud", "UserIsRequestor": "false", "NetworkAccessPointID": source}
    _code(
        ET.SubElement(message, "ActiveParticipant", own | {"NetworkAccessPointTypeCode": "1"}),
        "RoleIDCode",
        kind.own_role,
    )
    audit_source = ET.SubElement(message, "AuditSourceIdentification", {"AuditSourceID": source})
    ET.SubElement(audit_source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    if event.action == "search":
        _query(message, event)
    elif event.study_uid:
        _study(message, event)
    elif event.action in ("refuse", "share", "administer"):
        _function(message, event)
    return bytes(ET.tostring(message, encoding="utf-8", xml_declaration=False))


def _study(message: ET.Element, event: Event) -> None:
    """The study as a report (role 3), with its instances; the patient is not in the trail."""
    item = {
        "ParticipantObjectID": _text(event.study_uid),
        "ParticipantObjectTypeCode": "2",
        "ParticipantObjectTypeCodeRole": "3",
    }
    element = ET.SubElement(message, "ParticipantObjectIdentification", item)
    _code(element, "ParticipantObjectIDTypeCode", "110180")
    for name, value in (
        ("SeriesInstanceUID", event.series_uid),
        ("SOPInstanceUID", event.sop_uid),
        ("Times", str(event.times)),
        ("Detail", event.detail),
    ):
        if value:
            _detail(element, name, value)


def _query(message: ET.Element, event: Event) -> None:
    item = {
        "ParticipantObjectID": _text(event.detail.partition("?")[0]),
        "ParticipantObjectTypeCode": "2",
        "ParticipantObjectTypeCodeRole": "24",
    }
    element = ET.SubElement(message, "ParticipantObjectIdentification", item)
    attributes = {"csd-code": "110180", "codeSystemName": "DCM", "originalText": _CODES["110180"]}
    if not event.study_uid:
        attributes = {"csd-code": "12", "codeSystemName": "RFC-3881", "originalText": "URI"}
    ET.SubElement(element, "ParticipantObjectIDTypeCode", attributes)
    ET.SubElement(element, "ParticipantObjectQuery").text = _base64(event.detail)
    _detail(element, "Times", str(event.times))


def _function(message: ET.Element, event: Event) -> None:
    item = {
        "ParticipantObjectID": _text(event.detail) or event.action,
        "ParticipantObjectTypeCode": "2",
        "ParticipantObjectTypeCodeRole": "13",
    }
    element = ET.SubElement(message, "ParticipantObjectIdentification", item)
    attributes = {"csd-code": "12", "codeSystemName": "RFC-3881", "originalText": "URI"}
    ET.SubElement(element, "ParticipantObjectIDTypeCode", attributes)
    _detail(element, "Times", str(event.times))


def _code(parent: ET.Element, name: str, code: str) -> None:
    ET.SubElement(parent, name, {"csd-code": code, "codeSystemName": "DCM", "originalText": _CODES[code]})


def _detail(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, "ParticipantObjectDetail", {"type": name, "value": _base64(value)})


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")


def _text(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")


def syslog_message(entry: Entry, process: int, source: str = "") -> bytes:
    """The event as a syslog message (RFC 5424 6), its text the audit message; the number and the hash in the trail as
    structured data, under the number that IANA keeps for examples (RFC 5612)."""
    source = source or socket.gethostname()
    severity = _NOTICE if entry.event.outcome < 400 else _WARNING
    head = (
        f"<{8 * _FACILITY + severity}>1 {_time(entry.event.began_at)} {_printable(source)} DICOMcloud {process}"
        f' DICOM+RFC3881 [trail@32473 number="{entry.sequence}" hash="{entry.hash}"] '
    )
    return head.encode("ascii") + b"\xef\xbb\xbf" + audit_message(entry.event, source)


def _printable(name: str) -> str:
    return re.sub(r"[^\x21-\x7e]", "?", name)[:255] or "-"
