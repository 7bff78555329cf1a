"""A DICOMDIR: the Basic Directory of files that lie together in a folder (PS3.3 Annex F, PS3.10 8.6).

Written here rather than with a library, since it describes files that are still on their way, from their attributes,
and since real instances lack values that a directory must have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from . import metadata
from .attributes import json_key, tag_of, vr_of
from .recode import element_header, explicit_element

DIRECTORY_STORAGE: Final = "1.2.840.10008.1.3.10"
_EXPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
_IMPLEMENTATION: Final = "2.25.301254672811447063870264935061487325604"
_ITEM, _IN_USE, _SEQUENCE = 0xFFFEE000, 0xFFFF, 0x00041220
_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."

# SOP Class, without its root, or the beginning of it → type of the directory record (PS3.3 Table F.4-1)
_TYPES: Final = {
    "88.59": "KEY OBJECT DOC",
    "88.": "SR DOCUMENT",
    "11.": "PRESENTATION",
    "9.": "WAVEFORM",
    "104.": "ENCAP DOC",
    "481.2": "RT DOSE",
    "481.3": "RT STRUCTURE SET",
    "481.5": "RT PLAN",
    "481.8": "RT PLAN",
    "481.4": "RT TREAT RECORD",
    "481.6": "RT TREAT RECORD",
    "481.7": "RT TREAT RECORD",
    "481.9": "RT TREAT RECORD",
    "66.1": "REGISTRATION",
    "66.2": "FIDUCIAL",
    "66.3": "REGISTRATION",
    "66.5": "SURFACE",
    "66.6": "TRACT",
    "66": "RAW DATA",
    "67": "VALUE MAP",
    "4.2": "SPECTROSCOPY",
}
_PATIENT: Final = ("PatientName", "PatientID")
_STUDY: Final = ("StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "StudyInstanceUID", "StudyID")
_SERIES: Final = ("Modality", "SeriesInstanceUID", "SeriesNumber")
_INSTANCE: Final = ("InstanceNumber",)
_OTHERS: Final = (  # of what is no image, as far as it is there
    "ContentDate",
    "ContentTime",
    "ConceptNameCodeSequence",
    "CompletionFlag",
    "VerificationFlag",
    "ContentLabel",
    "ContentDescription",
    "PresentationCreationDate",
    "PresentationCreationTime",
    "ContentCreatorName",
    "DocumentTitle",
    "MIMETypeOfEncapsulatedDocument",
    "DoseSummationType",
    "StructureSetLabel",
    "StructureSetDate",
    "StructureSetTime",
    "RTPlanLabel",
    "RTPlanDate",
    "RTPlanTime",
    "TreatmentDate",
    "TreatmentTime",
)
# Where an instance has no value for a type 1 key: the number of the record, or this.
_NUMBERED: Final = {"StudyID", "SeriesNumber", "InstanceNumber"}
_UNKNOWN: Final = {"PatientID": "UNKNOWN", "Modality": "OT"}


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file below the DICOMDIR: the components of its name, and what is in it."""

    name: tuple[str, ...]
    transfer_syntax: str
    sop_instance_uid: str


@dataclass(slots=True)
class _Record:
    kind: str
    content: bytes  # what follows the elements that every record begins with
    children: dict[Any, _Record] = field(default_factory=dict)
    offset: int = 0

    def item(self, following: int) -> bytes:
        """The item, when the offsets of the records after and below it are known."""
        first = next(iter(self.children.values())).offset if self.children else 0
        body = (
            explicit_element(0x00041400, "UL", struct.pack("<L", following))
            + explicit_element(0x00041410, "US", _IN_USE)
            + explicit_element(0x00041420, "UL", struct.pack("<L", first))
            + explicit_element(0x00041430, "CS", self.kind)
            + self.content
        )
        return struct.pack("<HHL", _ITEM >> 16, _ITEM & 0xFFFF, len(body)) + body


def dicomdir(instances: Iterable[tuple[Mapping[str, Any], FileReference]]) -> bytes:
    """The DICOMDIR of these instances, each given by its attributes (DICOM JSON) and its file. Texts are UTF-8."""
    patients: dict[Any, _Record] = {}
    for attributes, file in instances:
        level = patients
        name = metadata.text(attributes, "PatientName")
        for kind, key, keywords in (
            ("PATIENT", (metadata.text(attributes, "PatientID"), name), _PATIENT),
            ("STUDY", metadata.text(attributes, "StudyInstanceUID"), _STUDY),
            ("SERIES", metadata.text(attributes, "SeriesInstanceUID"), _SERIES),
        ):
            if key not in level:
                level[key] = _Record(kind, _keys(attributes, keywords, len(level) + 1))
            level = level[key].children
        kind = _record_type(attributes)
        leaf_keys = _INSTANCE if kind == "IMAGE" else (*_INSTANCE, *_OTHERS)
        reference = (
            explicit_element(0x00041500, "CS", "\\".join(file.name))
            + explicit_element(0x00041510, "UI", metadata.text(attributes, "SOPClassUID"))
            + explicit_element(0x00041511, "UI", file.sop_instance_uid)
            + explicit_element(0x00041512, "UI", file.transfer_syntax)
        )
        level[file.name] = _Record(kind, reference + _keys(attributes, leaf_keys, len(level) + 1))
    return _file(patients)


def _record_type(attributes: Mapping[str, Any]) -> str:
    sop_class = metadata.text(attributes, "SOPClassUID").removeprefix(_STORAGE)
    for beginning, kind in _TYPES.items():
        if sop_class == beginning or (beginning.endswith(".") and sop_class.startswith(beginning)):
            return kind
    return "IMAGE" if "00280010" in attributes else "RAW DATA"


def _file(patients: Mapping[Any, _Record]) -> bytes:
    uid = "2.25." + str(int.from_bytes(_digest(patients), "big"))
    meta = (
        explicit_element(0x00020001, "OB", b"\0\1")
        + explicit_element(0x00020002, "UI", DIRECTORY_STORAGE)
        + explicit_element(0x00020003, "UI", uid)
        + explicit_element(0x00020010, "UI", _EXPLICIT_LITTLE_ENDIAN)
        + explicit_element(0x00020012, "UI", _IMPLEMENTATION)
    )
    start = bytes(128) + b"DICM" + explicit_element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta
    at = len(start) + len(_root(0, 0)) + len(element_header(_SEQUENCE, "SQ", 0))
    records: list[tuple[_Record, _Record | None]] = []  # in file order, each with the one after it on its level
    _collect(patients, records)
    for record, _ in records:
        record.offset = at
        at += len(record.item(0))
    items = b"".join(record.item(after.offset if after else 0) for record, after in records)
    top = list(patients.values())
    root = _root(top[0].offset, top[-1].offset) if top else _root(0, 0)
    return start + root + element_header(_SEQUENCE, "SQ", len(items)) + items


def _collect(level: Mapping[Any, _Record], records: list[tuple[_Record, _Record | None]]) -> None:
    row: Sequence[_Record] = list(level.values())
    for record, after in zip(row, [*row[1:], None], strict=False):
        records.append((record, after))
        _collect(record.children, records)


def _root(first: int, last: int) -> bytes:
    return (
        explicit_element(0x00041130, "CS", "")
        + explicit_element(0x00041200, "UL", struct.pack("<L", first))
        + explicit_element(0x00041202, "UL", struct.pack("<L", last))
        + explicit_element(0x00041212, "US", 0)
    )


def _digest(patients: Mapping[Any, _Record]) -> bytes:
    records: list[tuple[_Record, _Record | None]] = []
    _collect(patients, records)
    return blake2b(b"".join(record.content for record, _ in records), digest_size=16).digest()


def _keys(attributes: Mapping[str, Any], keywords: Iterable[str], number: int) -> bytes:
    """The directory record keys, ascending by tag, behind Specific Character Set where they need one."""
    elements: dict[int, bytes] = {}
    for keyword in keywords:
        tag = tag_of(keyword)
        assert tag is not None
        element = attributes.get(json_key(tag), {})
        if keyword in _OTHERS and not element.get("Value"):
            continue
        vr = element.get("vr") or vr_of(tag)
        if vr == "SQ":
            elements[tag] = _sequence(tag, element["Value"])
            continue
        text = _text(element) or (str(number) if keyword in _NUMBERED else _UNKNOWN.get(keyword, ""))
        elements[tag] = explicit_element(tag, vr, text.encode())
    if not all(element[8:].isascii() for element in elements.values()):
        elements[0x00080005] = explicit_element(0x00080005, "CS", "ISO_IR 192")
    return b"".join(elements[tag] for tag in sorted(elements))


def _text(element: Mapping[str, Any]) -> str:
    values = []
    for value in element.get("Value", ()):
        if isinstance(value, Mapping):
            groups = [value.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
            values.append("=".join(groups).rstrip("="))
        else:
            values.append("" if value is None else str(value))
    return "\\".join(values)


def _sequence(tag: int, items: Iterable[Mapping[str, Any]]) -> bytes:
    """A sequence of plain items, such as codes; what is nested deeper is left out."""
    body = b""
    for item in items:
        content = b"".join(
            explicit_element(int(key, 16), element["vr"], _text(element).encode())
            for key, element in sorted(item.items())
            if element["vr"] in ("SH", "LO", "UI", "CS", "UC", "UR", "DT")
        )
        body += struct.pack("<HHL", _ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content
    return element_header(tag, "SQ", len(body)) + body
