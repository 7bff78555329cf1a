"""A DICOM file whose pixel data are not looked at: the data set before them, and copying them as they are.

Reading is stricter than pydicom's own: a file that ends in the middle of something is refused, not read in part.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dicomcloud.dicom import header
from dicomcloud.dicom.attributes import vr_of
from dicomcloud.dicom.pixel_cleaning import Image, Region
from dicomcloud.dicom.pixel_data import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    to_explicit_little_endian,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PIECE: Final = 1 << 20
_MOST_READS: Final = 5_000_000  # of the data set before the pixel data; an element takes two or three
_UNDEFINED: Final = 0xFFFFFFFF
_PIXEL_DATA: Final = 0x7FE00010
_DICOMDIR: Final = b"1.2.840.10008.1.3.10"
_NATIVE: Final = frozenset({IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN})
_LONG: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_PIXEL_ELEMENTS: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, _PIXEL_DATA})


class _Counted:
    """The reading side of a file, which ends when a data set has absurdly many elements and items."""

    def __init__(self, source: BinaryIO) -> None:
        self._read, self.seek, self.tell = source.read, source.seek, source.tell
        self._left = _MOST_READS

    def read(self, length: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise DamagedFile("The data set has too many elements")
        return self._read(length)


class DamagedFile(Exception):
    """The file cannot be read to its end, or is no instance; the message holds no value of it."""


@dataclass
class DicomFile:
    """A DICOM file, read up to its pixel data, which are copied later."""

    source: BinaryIO
    start: int  # of the data set
    transfer_syntax: str
    implicit: bool
    little_endian: bool
    sop_class: str = ""  # that of the File Meta Information
    pixels: int = 0  # where group 7FE0 begins; the end of the file without one

    @classmethod
    def open(cls, source: BinaryIO) -> DicomFile:
        source.seek(0)
        if source.read(132)[128:] != b"DICM":
            source = _with_meta(source)
        source.seek(132)
        syntax = sop_class = ""
        while (start := source.read(8))[:2] == b"\x02\x00":
            vr, length = start[4:6].decode("latin-1"), int.from_bytes(start[6:8], "little")
            if vr in _LONG:
                length = int.from_bytes(source.read(4), "little")
            if length > _PIECE:
                raise DamagedFile("The File Meta Information is damaged")
            value = source.read(length)
            if value.startswith(_DICOMDIR):
                raise DamagedFile("A DICOMDIR names its patients in every record: make a new one of the new files")
            if start[2:4] == b"\x02\x00":
                sop_class = value.decode("latin-1").strip("\0 ")
            if start[2:4] == b"\x10\x00":
                syntax = value.decode("latin-1").strip("\0 ")
        position = source.seek(-len(start), io.SEEK_CUR)
        if not syntax:
            return cls.open(_with_meta(source))
        if syntax not in TRANSFER_SYNTAXES:
            raise DamagedFile("The transfer syntax is not known")
        implicit = syntax == IMPLICIT_VR_LITTLE_ENDIAN
        if syntax not in (EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN) and len(start) > 5:
            # Files whose data set contradicts their File Meta Information are common enough.
            implicit = not (start[4:6].isalpha() and start[4:6].isupper())
        return cls(source, position, syntax, implicit, syntax != EXPLICIT_VR_BIG_ENDIAN, sop_class)

    @property
    def encapsulated(self) -> bool:
        return self.transfer_syntax not in _NATIVE

    @property
    def has_pixels(self) -> bool:
        return self.pixels < _size(self.source)

    def converted(self, target: Any, max_inflated: int) -> DicomFile:
        """The file in Explicit VR Little Endian, decoded; in the temporary file `target`."""
        target.seek(0)
        target.truncate()
        self.source.seek(0)
        to_explicit_little_endian(self.source, target, max_inflated=max_inflated)
        return DicomFile.open(target)

    def read_dataset(self) -> Dataset:
        """The data set before group 7FE0. pydicom's reader is used without its leniency about truncated files."""
        from pydicom.dataset import Dataset
        from pydicom.filereader import data_element_generator

        self.source.seek(self.start)
        size = self.pixels = _size(self.source)

        def is_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag >> 16 == 0x7FE0 or tag > 0x7FE00010:
                self.pixels = self.source.tell() - (12 if not self.implicit and vr in _LONG else 8)
                return True
            if tag == 0xFFFEE0DD or tag >> 16 == 0xFFFE:
                raise DamagedFile("A delimiter stands where an element should be")
            return False

        elements = {}
        counted: Any = _Counted(self.source)
        for element in data_element_generator(counted, self.implicit, self.little_endian, stop_when=is_pixels):
            if element.is_raw and element.VR is None and not self.implicit:
                element = element._replace(VR=vr_of(int(element.tag)))
            elements[element.tag] = element
        if self.pixels == size != self.source.tell():
            raise DamagedFile("A delimiter stands where an element should be")
        dataset = Dataset(elements)
        dataset.set_original_encoding(self.implicit, self.little_endian, dataset._character_set)
        return dataset

    def encode(self, dataset: Dataset) -> bytes:
        from pydicom.filebase import DicomBytesIO
        from pydicom.filewriter import write_dataset

        target = DicomBytesIO()
        target.is_implicit_VR, target.is_little_endian = self.implicit, self.little_endian
        write_dataset(target, dataset)
        return target.getvalue()

    def _pixel_elements(self) -> Iterator[tuple[int, int, int, int]]:
        """Tag, start of the element, start and length of its value, of every element of group 7FE0 that is kept."""
        size = _size(self.source)
        position = self.pixels
        order = "<" if self.little_endian else ">"
        while size - position >= 8:
            self.source.seek(position)
            head = self.source.read(12)
            group, number = struct.unpack_from(order + "HH", head)
            tag = group << 16 | number
            if tag > _PIXEL_DATA or group != 0x7FE0:
                return  # digital signatures, padding, private groups
            if self.implicit:
                value, length = position + 8, struct.unpack_from(order + "I", head, 4)[0]
            elif head[4:6].decode("latin-1") in _LONG and len(head) == 12:
                value, length = position + 12, struct.unpack_from(order + "I", head, 8)[0]
            else:
                value, length = position + 8, struct.unpack_from(order + "H", head, 6)[0]
            if length == _UNDEFINED:
                length = self._encapsulated_length(value, size)
            if value + length > size:
                raise DamagedFile("The pixel data end too early")
            if tag in _PIXEL_ELEMENTS:
                yield tag, position, value, length
            position = value + length

    def _encapsulated_length(self, start: int, size: int) -> int:
        """From the first item to behind the sequence delimiter (PS3.5 A.4)."""
        position = start
        while position + 8 <= size:
            self.source.seek(position)
            head = self.source.read(8)
            length = int.from_bytes(head[4:], "little")
            position += 8
            if head[:4] == b"\xfe\xff\xdd\xe0":
                return position - start
            if head[:4] != b"\xfe\xff\x00\xe0":
                break
            position += length
        raise DamagedFile("The fragments of the pixel data are damaged or end too early")

    def check_pixels(self, image: Image | None) -> None:
        """Walk the pixel elements, so that a truncated one is found before anything is written."""
        for tag, _, _, length in self._pixel_elements():
            if tag == _PIXEL_DATA and image is not None:
                image.check(length)

    def copy_pixels(
        self,
        target: BinaryIO,
        image: Image | None,
        regions: Sequence[Region],
        overlay_bits: int,
    ) -> None:
        for tag, start, value, length in list(self._pixel_elements()):
            self.source.seek(start)
            target.write(self.source.read(value - start))
            if tag == _PIXEL_DATA and image is not None:
                image.clean(self.source, target, length, regions, overlay_bits)
                continue
            while length:
                piece = self.source.read(min(length, _PIECE))
                if not piece:
                    raise DamagedFile("The pixel data end too early")
                target.write(piece)
                length -= len(piece)


def _size(source: BinaryIO) -> int:
    position = source.tell()
    size = source.seek(0, io.SEEK_END)
    source.seek(position)
    return size


def _with_meta(source: BinaryIO) -> BinaryIO:
    """A file without preamble or usable File Meta Information, with both in front."""
    source.seek(0)
    content = source.read()
    scanned = header.scan(content)
    if not scanned.prefix:
        raise DamagedFile("The File Meta Information is damaged")
    return io.BytesIO(scanned.prefix + content[scanned.dataset_offset :])


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """An empty preamble and new File Meta Information (PS3.10 7.1): none of the old one is kept (PS3.15 E.1.1)."""
    elements = struct.pack("<HH2sxxL", 2, 1, b"OB", 2) + b"\0\1"
    for number, vr, text in (
        (0x02, b"UI", sop_class),
        (0x03, b"UI", sop_instance),
        (0x10, b"UI", transfer_syntax),
        (0x12, b"UI", header.IMPLEMENTATION_CLASS_UID),
        (0x13, b"SH", "DICOMCLOUD"),
    ):
        if not text:
            continue
        value = text.encode("ascii", "replace")
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        elements += struct.pack("<HH2sH", 2, number, vr, len(value)) + value
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements
