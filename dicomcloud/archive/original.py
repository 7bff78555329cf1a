"""The files of the original DICOMcloud (C#), which are only read.

Below the store's folder a file lies at MEDIA/STUDY/SERIES/INSTANCE/FRAME. MEDIA is a media type, for DICOM files with
the transfer syntax (`application-dicom;1.2.840.10008.1.2.1`); a part of more than 32 characters is replaced by its MD5.
In Azure the media are containers, whose names differ; downloaded, each is a folder like the others. The names are not
trusted: what a file is, is told by its contents.

Of one instance there may be several DICOM files: one as it was received, one in Explicit VR Little Endian that the
original always made, and one in JPEG 2000 that its first versions made.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..dicom.pixel_data import EXPLICIT_VR_LITTLE_ENDIAN
from ..index.original import OriginalDatabase
from ..media import HEAD

__all__ = ["Copy", "OriginalDatabase", "OriginalFolder", "Place", "place_of"]

_JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
_TRANSFER_SYNTAX: Final = b"\x02\x00\x10\x00UI"  # (0002,0010), PS3.10 7.1
_LONGEST_PART: Final = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """A DICOM file of an instance."""

    path: str
    size: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Place:
    """What lies in one folder STUDY/SERIES/INSTANCE of all media: for each instance, its copies, the best one first.

    `others` is the number of files in other forms (JSON, XML, JPEG, pixels), `faults` are paths that cannot be read.
    """

    name: str
    instances: list[list[Copy]]
    others: int
    faults: list[tuple[str, str]]


class OriginalFolder:
    def __init__(self, folder: Path) -> None:
        self._media = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())

    def places(self) -> Iterator[str]:
        """The folders with files in them, without their media, each once, ordered within a medium."""
        for number, medium in enumerate(self._media):
            for folder, below, names in os.walk(medium):
                below.sort()
                name = os.path.relpath(folder, medium)
                if names and not any(_has_files(os.path.join(earlier, name)) for earlier in self._media[:number]):
                    yield name

    def look(self, name: str) -> Place:
        """What is in a folder that `places` has named."""
        copies: dict[str, list[Copy]] = defaultdict(list)
        others, faults = 0, []
        for medium in self._media:
            folder = os.path.join(medium, name)
            try:
                entries = sorted((entry for entry in os.scandir(folder) if entry.is_file()), key=lambda each: each.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                faults.append((folder, error.strerror or str(error)))
                continue
            for entry in entries:
                try:
                    copy = _dicom_file(entry.path, entry.stat().st_size)
                except OSError as error:
                    faults.append((entry.path, error.strerror or str(error)))
                    continue
                if copy is None:
                    others += 1
                else:
                    copies[entry.name].append(copy)
        return Place(name, [sorted(each, key=_rank) for each in copies.values()], others, faults)


def place_of(study: str, series: str, sop: str) -> tuple[str, str]:
    """Where the files of an instance are: with parts as they are, and with long ones as the original shortened them."""
    parts = (study, series, sop)
    short = (_shortened(part) if len(part) > _LONGEST_PART else part for part in parts)
    return os.path.join(*parts), os.path.join(*short)


def _shortened(part: str) -> str:
    return hashlib.md5(part.encode(), usedforsecurity=False).hexdigest().upper()


def _has_files(folder: str) -> bool:
    try:
        return any(entry.is_file() for entry in os.scandir(folder))
    except OSError:
        return False


def _dicom_file(path: str, size: int) -> Copy | None:
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head[128:132] != b"DICM":
        return None
    _, found, rest = head.partition(_TRANSFER_SYNTAX)
    length = int.from_bytes(rest[:2], "little")
    return Copy(path, size, rest[2 : 2 + length].rstrip(b"\0 ").decode("ascii", "replace") if found else "")


def _rank(copy: Copy) -> tuple[int, str]:
    """What comes first is what was received, as far as can be told, and never what has lost something."""
    made = {EXPLICIT_VR_LITTLE_ENDIAN: 1, _JPEG_2000: 2}
    return made.get(copy.transfer_syntax, 0), copy.path
