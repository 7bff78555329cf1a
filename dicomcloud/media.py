"""What lies on the media that clinics have (PS3.10, PS3.12): which files are instances, and what ZIP files hold.

Whatever a ZIP file claims, reading it costs bounded memory, and its members together unpack to no more than
`max_bytes` and 200 times the size of the ZIP file (but 256 MiB are always allowed).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

from .errors import FailureReason, InvalidInstance

HEAD: Final = 1024  # bytes at the beginning that tell what a file is
_PIECE: Final = 1 << 20
_RATIO: Final = 200
_ALWAYS: Final = 256 << 20
_MEDIA_STORAGE_DIRECTORY: Final = b"1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR, PS3.10 8
_ENCRYPTED: Final = 1  # flag bit 0


def reason_to_skip(head: bytes) -> str | None:
    """Why a file that begins so is no instance to be stored; None when it looks like one."""
    if not head:
        return "empty file"
    if head[128:132] == b"DICM":
        media_storage = head.find(b"\x02\x00\x02\x00UI")  # (0002,0002) Media Storage SOP Class UID
        if media_storage > 0 and head[media_storage + 8 :].startswith(_MEDIA_STORAGE_DIRECTORY):
            return "DICOMDIR: the table of contents of a medium"
        return None
    return None if _is_bare_data_set(head) else "not a DICOM file"


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a ZIP file with something in it."""
    return head[:4] == b"PK\x03\x04"


def _is_bare_data_set(head: bytes) -> bool:
    """Without preamble: does it begin with an element of group 0002 or 0008, explicit or implicit VR?"""
    group, length = head[:2], int.from_bytes(head[4:8], "little")
    if len(head) < 8 or group not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    return (head[4:6].isalpha() and head[4:6].isupper()) or (head[1] == 0 and length <= 64)


class ZipMedium:
    """The files in a ZIP file, wherever they lie in its folders. A ZIP file inside is not opened."""

    def __init__(self, file: IO[bytes], *, max_members: int, max_bytes: int) -> None:
        """Raises ValueError for what is no ZIP file, or one with too many members."""
        size = file.seek(0, 2)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeError, OverflowError) as error:
            raise ValueError(str(error) or "it is damaged") from None
        self._infos = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        if len(self._infos) > max_members:
            raise ValueError(f"it has more than {max_members} members")
        self._left = min(max_bytes, max(_ALWAYS, _RATIO * size))

    def members(self) -> Iterator[Member]:
        """Each member with its beginning; what cannot be unpacked says so when its bytes are asked for."""
        for info in self._infos:
            yield self._member(info)

    def _member(self, info: zipfile.ZipInfo) -> Member:
        try:
            if info.flag_bits & _ENCRYPTED:
                raise ValueError("it is encrypted")
            stream: IO[bytes] = self._zip.open(info)
            head = stream.read(HEAD)
        except _FAULTS as error:
            return Member(info.filename, info.file_size, None, b"", None, self, _fault(error))
        return Member(info.filename, info.file_size, reason_to_skip(head), head, stream, self, "")

    def spend(self, size: int) -> None:
        """Count unpacked bytes. Raises InvalidInstance beyond the bound."""
        self._left -= size
        if self._left < 0:
            raise InvalidInstance(
                FailureReason.PROCESSING_FAILURE, "The ZIP file unpacks to more than this server accepts of one"
            )


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a ZIP file, to be read before the next. `size` is what the directory claims."""

    name: str
    size: int
    reason_to_skip: str | None
    head: bytes
    _stream: Any
    _medium: ZipMedium
    _fault: str

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, unpacked piece by piece. Raises InvalidInstance where they cannot be had."""
        if self._stream is None:
            raise self._invalid(self._fault)
        with self._stream:
            data = self.head
            while data:
                self._medium.spend(len(data))
                yield data
                try:
                    data = self._stream.read(_PIECE)
                except _FAULTS as error:
                    raise self._invalid(_fault(error)) from None

    def _invalid(self, fault: str) -> InvalidInstance:
        return InvalidInstance(FailureReason.CANNOT_UNDERSTAND, f"A member of the ZIP file cannot be unpacked: {fault}")


_FAULTS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)


def _fault(error: Exception) -> str:
    return str(error) or "it ends too early"


def view_file(view: memoryview) -> IO[bytes]:
    """A file over bytes that are mapped and not read."""
    return io.BufferedReader(_ViewFile(view))


class _ViewFile(io.RawIOBase):
    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = max(0, offset + (0, self._at, len(self._view))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
