"""DICOM files made byte by byte, right and wrong, for the tests of the scanner."""

from __future__ import annotations

import struct
from typing import Any

from dicomcloud.dicom.header import Frames, scan

EXPLICIT, IMPLICIT, BIG, DEFLATED = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
JPEG, RLE, MPEG = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.102"
UIDS = {0x00080016: "1.2.840.10008.5.1.4.1.1.7", 0x00080018: "1.2.3.4", 0x0020000D: "1.2.3", 0x0020000E: "1.2.3.1"}


def element(tag: int, vr: str, value: bytes, order: str = "<") -> bytes:
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}:
        return head + struct.pack(order + "xxL", len(value)) + value
    return head + struct.pack(order + "H", len(value)) + value


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def uid(value: str) -> bytes:
    return value.encode() + b"\0" * (len(value) % 2)


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(value)) + value


OPEN_ITEM = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
END_ITEM, END_SEQUENCE = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
IDENTITY = b"".join(element(tag, "UI", uid(value)) for tag, value in UIDS.items())


def part10(data_set: bytes, transfer_syntax: str = EXPLICIT) -> bytes:
    meta = element(0x00020002, "UI", uid(UIDS[0x00080016])) + element(0x00020010, "UI", uid(transfer_syntax))
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta + data_set


def instance(*elements: bytes) -> bytes:
    return part10(IDENTITY + b"".join(elements))


def attribute(tag: int, vr: str, value: bytes, *before: bytes) -> dict[str, Any]:
    found: dict[str, Any] = scan(instance(*before, element(tag, vr, value))).attributes[f"{tag:08X}"]
    return found


def native(rows: int, columns: int, bits: int, data: bytes, *, frames: str = "", samples: int = 1) -> bytes:
    return instance(
        element(0x00280002, "US", struct.pack("<H", samples)),
        *([element(0x00280008, "IS", frames.encode() + b" " * (len(frames) % 2))] if frames else []),
        element(0x00280010, "US", struct.pack("<H", rows)),
        element(0x00280011, "US", struct.pack("<H", columns)),
        element(0x00280100, "US", struct.pack("<H", bits)),
        element(0x7FE00010, "OW", data),
    )


def encapsulated(value: bytes, frames: int, transfer_syntax: str = JPEG, *before: bytes) -> bytes:
    number = str(frames).encode()
    return part10(
        IDENTITY
        + element(0x00280008, "IS", number + b" " * (len(number) % 2))
        + b"".join(before)
        + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
        + value
        + END_SEQUENCE,
        transfer_syntax,
    )


def frame_bytes(data: bytes, frames: Frames, number: int) -> bytes:
    return b"".join(data[offset : offset + length] for offset, length in frames.locate(number))
