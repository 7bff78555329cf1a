"""Transfer syntaxes: what they are called, which media type their frames have, and how to leave them.

    TRANSFER_SYNTAXES            the table (PS3.6 A.1, PS3.18 8.7.3)
    to_explicit_little_endian    a whole file, converted or decoded, in Explicit VR Little Endian
    PixelData, decode_frame      single frames of a stored file

The uncompressed syntaxes are re-encoded here, element by element and without looking at the values: what a real file
holds, right or wrong, comes out bit for bit. Compressed frames go through pydicom's decoders, to which imagecodecs is
added as one more plug-in (`_decoders`): it decodes 12-bit and lossless JPEG and does not hold the interpreter lock.
Frames of syntaxes that pydicom does not know go to the codec directly. Every header a codec will believe is read here
first, so that a few bytes cannot make it allocate gigabytes.
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import tempfile
import threading
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from dicomcloud.dicom.attributes import AMBIGUOUS_VR, vr_of

if TYPE_CHECKING:
    import numpy

_PIECE: Final = 1 << 20
_UNDEFINED: Final = 0xFFFFFFFF
#: The longest value a native Pixel Data element can hold (PS3.5 7.1.1: an even 32-bit length).
MAX_NATIVE_LENGTH: Final = 2**32 - 2
#: The largest decoded frame, in bytes. Headers and codestreams may agree on absurd sizes.
MAX_FRAME_LENGTH: Final = 1 << 29
_MAX_DEPTH: Final = 100
_MAX_OFFSET_TABLE: Final = 1 << 24  # two million frames


class CannotDecode(Exception):
    """The pixel data or the data set cannot be given in Explicit VR Little Endian; the message is for people."""


# ---------------------------------------------------------------------------------------------------------------------
# The table

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """A transfer syntax (PS3.5 Annex A) and the media type of its frames (PS3.18 Tables 8.7.3-2 to 8.7.3-6)."""

    uid: str
    name: str
    media_type: str
    encapsulated: bool
    lossless: bool  # cannot lose anything; False where the syntax allows both
    video: bool = False
    decodable: bool = True
    explicit: bool = True
    little_endian: bool = True
    deflated: bool = False  # the whole data set (PS3.5 A.5), not the frames
    codec: str = ""


def _table() -> dict[str, TransferSyntax]:
    octets = "application/octet-stream"
    root = "1.2.840.10008.1.2"
    native = (
        TransferSyntax(root, "Implicit VR Little Endian", octets, False, True, explicit=False),
        TransferSyntax(root + ".1", "Explicit VR Little Endian", octets, False, True),
        TransferSyntax(root + ".1.99", "Deflated Explicit VR Little Endian", octets, False, True, deflated=True),
        TransferSyntax(root + ".2", "Explicit VR Big Endian", octets, False, True, little_endian=False),
    )
    # UID after the root, name, media type, lossless, codec ("" where nothing here decodes it)
    encapsulated = (
        (".1.98", "Encapsulated Uncompressed Explicit VR Little Endian", octets, True, "none"),
        (".4.50", "JPEG Baseline (Process 1)", "image/jpeg", False, "jpeg"),
        (".4.51", "JPEG Extended (Process 2 & 4)", "image/jpeg", False, "jpeg"),
        # Retired, in no table of PS3.18; old archives hold them.
        (".4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 & 8)", "image/jpeg", False, "jpeg"),
        (".4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 & 12)", "image/jpeg", False, "jpeg"),
        (".4.57", "JPEG Lossless, Non-Hierarchical (Process 14)", "image/jpeg", True, "jpeg-lossless"),
        (".4.70", "JPEG Lossless, First-Order Prediction (Process 14 SV1)", "image/jpeg", True, "jpeg-lossless"),
        (".4.80", "JPEG-LS Lossless", "image/jls", True, "jpeg-ls"),
        (".4.81", "JPEG-LS Lossy (Near-Lossless)", "image/jls", False, "jpeg-ls"),
        (".4.90", "JPEG 2000 (Lossless Only)", "image/jp2", True, "jpeg-2000"),
        (".4.91", "JPEG 2000", "image/jp2", False, "jpeg-2000"),
        (".4.92", "JPEG 2000 Part 2 Multi-component (Lossless Only)", "image/jpx", True, ""),
        (".4.93", "JPEG 2000 Part 2 Multi-component", "image/jpx", False, ""),
        (".4.110", "JPEG XL Lossless", "image/jxl", True, "jpeg-xl"),
        (".4.111", "JPEG XL JPEG Recompression", "image/jxl", False, "jpeg-xl"),
        (".4.112", "JPEG XL", "image/jxl", False, "jpeg-xl"),
        (".4.201", "High-Throughput JPEG 2000 (Lossless Only)", "image/jphc", True, "jpeg-2000"),
        (".4.202", "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", "image/jphc", True, "jpeg-2000"),
        (".4.203", "High-Throughput JPEG 2000", "image/jphc", False, "jpeg-2000"),
        (".5", "RLE Lossless", "image/dicom-rle", True, "rle"),
        (".8.1", "Deflated Image Frame Compression", "application/x-deflate", True, "deflate"),
    )
    video = (
        (".4.100", "MPEG2 Main Profile / Main Level", "video/mpeg"),
        (".4.100.1", "Fragmentable MPEG2 Main Profile / Main Level", "video/mpeg"),
        (".4.101", "MPEG2 Main Profile / High Level", "video/mpeg"),
        (".4.101.1", "Fragmentable MPEG2 Main Profile / High Level", "video/mpeg"),
        (".4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
        (".4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
        (".4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        (".4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        (".4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        (".4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        (".4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        (".4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        (".4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        (".4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        (".4.107", "HEVC/H.265 Main Profile / Level 5.1", "video/H265"),
        (".4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", "video/H265"),
    )
    rows = [
        *native,
        *(
            TransferSyntax(root + tail, name, media, True, lossless, decodable=bool(codec), codec=codec)
            for tail, name, media, lossless, codec in encapsulated
        ),
        *(
            TransferSyntax(root + tail, name, media, True, False, video=True, decodable=False)
            for tail, name, media in video
        ),
    ]
    return {row.uid: row for row in rows}


TRANSFER_SYNTAXES: Final[Mapping[str, TransferSyntax]] = _table()


def leaves_as_stored(uid: str) -> bool:
    """Whether a web service may send data in this transfer syntax: Implicit VR and Big Endian never leave.

    PS3.18 8.7.3.4. Syntaxes this server does not know leave as they came: it cannot make anything else of them.
    """
    return uid not in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


# ---------------------------------------------------------------------------------------------------------------------
# Reading a file: File Meta Information, elements

_LONG_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_SHORT_VRS: Final = frozenset(
    {"AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM"}
    | {"UI", "UL", "US"}
)
_SWAP_WIDTH: Final[Mapping[str, int]] = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}

_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_BITS_ALLOCATED, _HIGH_BIT, _PIXEL_REPRESENTATION = 0x00280100, 0x00280102, 0x00280103
_PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION = 0x00280004, 0x00280006
_WAVEFORM_BITS_ALLOCATED, _LUT_DATA = 0x54001004, 0x00283006
_EXTENDED_OFFSET_TABLE, _PIXEL_DATA = 0x7FE00001, 0x7FE00010
_FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00008, 0x7FE00009
# Extended Offset Table, its Lengths, Encapsulated Pixel Data Value Total Length: only for encapsulated pixel data.
_ONLY_ENCAPSULATED: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})


class _Encoding(NamedTuple):
    """How elements are written."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        return "<" if self.little else ">"


_IMPLICIT: Final = _Encoding(False, True)


class _Element(NamedTuple):
    tag: int
    vr: str  # as written; '' in Implicit VR
    length: int  # _UNDEFINED for an undefined length


class _Reader:
    """Element headers and values from a binary file; the end of the file inside one of them is CannotDecode."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        position = file.tell()
        self.size = file.seek(0, io.SEEK_END)
        file.seek(position)
        self.position = position

    def seek(self, position: int) -> None:
        if position > self.size:
            raise CannotDecode("The file ends in the middle of a value.")
        self.position = self._file.seek(position)

    def skip(self, length: int) -> None:
        self.seek(self.position + length)

    def read(self, length: int) -> bytes:
        if length > self.size - self.position:
            raise CannotDecode("The file ends in the middle of a value.")
        data = self._file.read(length)
        if len(data) != length:
            raise CannotDecode("The file ends in the middle of a value.")
        self.position += length
        return data

    def pieces(self, length: int) -> Iterator[bytes]:
        if length > self.size - self.position:
            raise CannotDecode("The file ends in the middle of a value.")
        while length:
            piece = self.read(min(length, _PIECE))
            length -= len(piece)
            yield piece

    def peek(self, length: int) -> bytes:
        data = self._file.read(length)
        self._file.seek(self.position)
        return data

    def element(self, encoding: _Encoding) -> _Element:
        """The next element header. Elements without a VR in an explicit data set exist: those are read as implicit."""
        header = self.read(8)
        group, number = struct.unpack_from(encoding.order + "HH", header)
        tag = group << 16 | number
        if group == 0xFFFE or not encoding.explicit:
            return _Element(tag, "", struct.unpack_from(encoding.order + "I", header, 4)[0])
        vr = header[4:6].decode("latin-1")
        if vr in _LONG_VRS:
            return _Element(tag, vr, struct.unpack(encoding.order + "I", self.read(4))[0])
        if vr in _SHORT_VRS or (vr.isascii() and vr.isalpha() and vr.isupper()):
            return _Element(tag, vr, struct.unpack_from(encoding.order + "H", header, 6)[0])
        return _Element(tag, "", struct.unpack_from(encoding.order + "I", header, 4)[0])

    def skip_value(self, element: _Element, encoding: _Encoding, depth: int = 0) -> None:
        if element.length != _UNDEFINED:
            self.skip(element.length)
            return
        if depth > _MAX_DEPTH:
            raise CannotDecode(f"Sequences are nested more than {_MAX_DEPTH} deep.")
        if element.vr in ("UN", ""):  # PS3.5 6.2.2: always Implicit VR Little Endian inside
            encoding = _IMPLICIT if encoding.explicit else encoding
        while (item := self.element(encoding)).tag != _END_OF_SEQUENCE:
            if item.tag != _ITEM:
                raise CannotDecode("A sequence holds something that is not an item.")
            if item.length != _UNDEFINED:
                self.skip(item.length)
                continue
            while (inner := self.element(encoding)).tag != _END_OF_ITEM:
                self.skip_value(inner, encoding, depth + 1)


class _File(NamedTuple):
    reader: _Reader  # at the start of the data set
    preamble: bytes
    meta: list[tuple[int, bytes]]  # File Meta Information: tag, whole element
    syntax: TransferSyntax
    encoding: _Encoding

    def meta_for(self, uid: str) -> bytes:
        """Preamble and File Meta Information, all kept but the transfer syntax and the group length."""
        value = uid.encode() + b"\0" * (len(uid) % 2)
        syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
        elements = b"".join(syntax if tag == 0x00020010 else raw for tag, raw in self.meta if tag != 0x00020000)
        return self.preamble + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _open(source: BinaryIO) -> _File:
    """Read the File Meta Information (PS3.10 7.1) and determine how the data set is written."""
    source.seek(0)
    reader = _Reader(source)
    preamble = reader.peek(132)
    if preamble[128:] != b"DICM":
        raise CannotDecode("The file has no File Meta Information, its transfer syntax is not known.")
    reader.seek(132)
    meta: list[tuple[int, bytes]] = []
    uid = ""
    while reader.peek(2) == b"\x02\x00":
        start = reader.position
        element = reader.element(_Encoding(True, True))
        if element.length > _PIECE:
            raise CannotDecode("The File Meta Information is damaged.")
        value = reader.read(element.length)
        if element.tag == 0x00020010:
            uid = value.decode("latin-1").strip("\0 ")
        end = reader.position
        reader.seek(start)
        meta.append((element.tag, reader.read(end - start)))
    syntax = TRANSFER_SYNTAXES.get(uid)
    if syntax is None:
        raise CannotDecode(f"The transfer syntax {uid or '(none given)'} is not known.")
    encoding = _Encoding(syntax.explicit, syntax.little_endian)
    if not syntax.deflated and encoding.little:
        # Files whose data set contradicts their File Meta Information are common enough.
        start_of_data_set = reader.peek(6)
        if len(start_of_data_set) == 6:
            encoding = _Encoding(start_of_data_set[4:].decode("latin-1") in _LONG_VRS | _SHORT_VRS, True)
    return _File(reader, preamble[:128], meta, syntax, encoding)


def _inflate(file: _File, max_inflated: int) -> Iterator[bytes]:
    """The data set of a deflated file in pieces (PS3.5 A.5: RFC 1951)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    pieces = file.reader.pieces(file.reader.size - file.reader.position)
    try:
        for piece in pieces:
            while piece and not inflater.eof:
                out = inflater.decompress(piece, _PIECE)
                piece = inflater.unconsumed_tail
                total += len(out)
                if total > max_inflated:
                    raise CannotDecode(f"The deflated data set is larger than {max_inflated} bytes.")
                yield out
        out = inflater.flush()
    except zlib.error as error:
        raise CannotDecode(f"The data set is not proper {file.syntax.name}: {error}.") from error
    if not inflater.eof:
        raise CannotDecode("The deflated data set ends early.")
    yield out


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


def to_explicit_little_endian(source: BinaryIO, target: BinaryIO, *, max_inflated: int = 1 << 30) -> None:
    """Write the PS3.10 file `source` to `target` in Explicit VR Little Endian, 1.2.840.10008.1.2.1.

    Implicit VR and Big Endian are re-encoded (group lengths are left out, they would be wrong), a deflated data set is
    inflated to at most `max_inflated` bytes, compressed pixel data are decoded frame by frame. A file that is in
    Explicit VR Little Endian already is copied byte for byte. Private elements of Implicit VR become UN with the bytes
    they had; a value too long for a 16-bit length becomes UN (PS3.18 8.7.3.4 note 3).

    `source` must be seekable; `target` is only written to. Raises CannotDecode, then `target` may hold a part.
    """
    file = _open(source)
    syntax = file.syntax
    if syntax.uid == EXPLICIT_VR_LITTLE_ENDIAN and file.encoding.explicit:
        file.reader.seek(0)
        for piece in file.reader.pieces(file.reader.size):
            target.write(piece)
        return
    meta = file.meta_for(EXPLICIT_VR_LITTLE_ENDIAN)
    if syntax.deflated:
        target.write(meta)
        for piece in _inflate(file, max_inflated):
            target.write(piece)
    elif syntax.encapsulated:
        _write_decoded(file, meta, target)
    else:
        target.write(meta)
        _Recoder(file.reader, target).data_set(file.encoding, file.reader.size, {}, 0)


def _swapped(data: bytes, width: int) -> bytes:
    """`data` with the bytes of each `width`-byte word reversed; an incomplete last word stays as it is."""
    if width == 1:
        return data
    words = array({2: "H", 4: "I", 8: "Q"}[width])
    whole = len(data) - len(data) % width
    words.frombytes(data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


def _pixel_swap_width(vr: str, bits_allocated: int | None) -> int:
    """How many bytes turn round together in big endian Pixel Data.

    Cells of 16 bits and more are swapped as cells, whatever the VR: writers differ (OB is seen), and pydicom reads
    them so. Smaller cells are swapped in pairs where the VR is OW (PS3.5 7.3).
    """
    if bits_allocated in (16, 32, 64):
        return bits_allocated // 8
    return 2 if vr == "OW" else 1


class _Recoder:
    """Writes elements read as Implicit VR or Big Endian in Explicit VR Little Endian, values as they are.

    Sequences and items get undefined lengths, so that nothing has to be known before it is written.
    """

    def __init__(self, reader: _Reader, target: BinaryIO) -> None:
        self._reader = reader
        self._write = target.write

    def data_set(self, encoding: _Encoding, end: int | None, numbers: dict[int, int], depth: int) -> None:
        """One data set, up to `end` or (None) its item delimiter.

        `numbers`: Bits Allocated and the like, those of the enclosing data sets to begin with: VRs depend on them.
        """
        if depth > _MAX_DEPTH:
            raise CannotDecode(f"Sequences are nested more than {_MAX_DEPTH} deep.")
        reader = self._reader
        while end is None or reader.position < end:
            if depth == 0 and reader.size - reader.position < 8:
                if any(reader.peek(8)):
                    raise CannotDecode("The data set ends in the middle of an element.")
                return  # zeros after the end
            element = reader.element(encoding)
            if element.tag == _END_OF_ITEM and end is None:
                return
            if element.tag >> 16 == 0xFFFE:
                if element.length == 0 and element.tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
                    continue  # a delimiter too many
                raise CannotDecode("An item lies outside a sequence.")
            if end is not None and element.length != _UNDEFINED and reader.position + element.length > end:
                raise CannotDecode(f"The value of ({element.tag >> 16:04X},{element.tag & 0xFFFF:04X}) is too long.")
            if element.tag & 0xFFFF == 0:
                reader.skip_value(element, encoding)
            elif element.length == _UNDEFINED or element.vr == "SQ" or (not element.vr and vr_of(element.tag) == "SQ"):
                self._sequence(element, encoding, numbers, depth)
            else:
                self._value(element, encoding, numbers)

    def _header(self, tag: int, vr: str, length: int) -> None:
        if vr in _LONG_VRS:
            self._write(struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, length))
        else:
            self._write(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), length))

    def _sequence(self, element: _Element, encoding: _Encoding, numbers: dict[int, int], depth: int) -> None:
        reader = self._reader
        if element.tag == _PIXEL_DATA or element.vr in ("OB", "OW"):
            raise CannotDecode("The pixel data are encapsulated, but the transfer syntax says they are not.")
        if element.vr in ("UN", "") and encoding.explicit:
            encoding = _IMPLICIT  # PS3.5 6.2.2
        self._header(element.tag, "SQ", _UNDEFINED)
        end = None if element.length == _UNDEFINED else reader.position + element.length
        while end is None or reader.position < end:
            item = reader.element(encoding)
            if item.tag == _END_OF_SEQUENCE and end is None:
                break
            if item.tag != _ITEM:
                raise CannotDecode("A sequence holds something that is not an item.")
            end_of_item = None if item.length == _UNDEFINED else reader.position + item.length
            if end_of_item is not None and end_of_item > (reader.size if end is None else end):
                raise CannotDecode("An item is longer than its sequence.")
            self._write(struct.pack("<HHI", 0xFFFE, 0xE000, _UNDEFINED))
            self.data_set(encoding, end_of_item, dict(numbers), depth + 1)
            self._write(struct.pack("<HHI", 0xFFFE, 0xE00D, 0))
        self._write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

    def _value(self, element: _Element, encoding: _Encoding, numbers: dict[int, int]) -> None:
        tag, vr, length = element
        if tag in (_BITS_ALLOCATED, _PIXEL_REPRESENTATION, _WAVEFORM_BITS_ALLOCATED) and length >= 2:
            numbers[tag] = int.from_bytes(self._reader.peek(2), "little" if encoding.little else "big")
        is_pixel_data = tag == _PIXEL_DATA
        if encoding.little:
            width = 1
        elif is_pixel_data:
            width = _pixel_swap_width(vr, numbers.get(_BITS_ALLOCATED))
        else:
            width = _SWAP_WIDTH.get(vr, 1)
        vr = vr or _resolved_vr(tag, length, numbers)
        if is_pixel_data and numbers.get(_BITS_ALLOCATED, 8) > 8:
            vr = "OW"  # PS3.5 A.2
        if length > 0xFFFE and vr not in _LONG_VRS:
            vr = "UN"
        self._header(tag, vr, length)
        for piece in self._reader.pieces(length):
            self._write(_swapped(piece, width))


def _resolved_vr(tag: int, length: int, numbers: Mapping[int, int]) -> str:
    """The VR of an element of an Implicit VR data set (PS3.5 A.1, A.2); of the choices PS3.6 gives, the right one."""
    choice = AMBIGUOUS_VR.get(tag)
    if choice is None:
        return vr_of(tag)
    if choice == "US or SS":
        return "SS" if numbers.get(_PIXEL_REPRESENTATION) == 1 else "US"
    if tag == _LUT_DATA and length == 2:
        return "US"
    bits = numbers.get(_BITS_ALLOCATED if tag == _PIXEL_DATA else _WAVEFORM_BITS_ALLOCATED, 16)
    return "OB" if choice == "OB or OW" and bits <= 8 else "OW"


# ---------------------------------------------------------------------------------------------------------------------
# Pixel data of a file


@dataclass(frozen=True, slots=True)
class ImagePixel:
    """The attributes of the Image Pixel Module (PS3.3 C.7.6.3) that say how to read frames."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def frame_bits(self) -> int:
        """The length of one native frame in bits (PS3.5 8.1, 8.2); no whole number of bytes for 1-bit pixels."""
        bits = self.pixels * self.samples * self.bits_allocated
        if self.samples == 3 and self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            return bits * 2 // 3
        return bits // 2 if self.samples == 3 and self.photometric == "YBR_PARTIAL_420" else bits


_IMAGE_TAGS: Final = frozenset({0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011}) | frozenset(
    range(0x00280100, 0x00280104)
)


class PixelData:
    """The pixel data of one stored file, read frame by frame.

    `image` describes the frames as stored, `decoded` those that `frame` returns: a JPEG that is YBR_FULL_422 as stored
    is RGB when decoded. Not for use by several threads at once.
    """

    def __init__(self, source: BinaryIO, *, max_inflated: int = 1 << 30) -> None:
        """Raises CannotDecode if the file cannot be read, LookupError if it has no pixel data."""
        file = _open(source)
        if file.syntax.deflated:
            # At most 16 MiB in memory; the rest goes to an unnamed file for as long as this object lives.
            inflated = tempfile.SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115
            for piece in _inflate(file, max_inflated):
                inflated.write(piece)
            inflated.seek(0)
            file = file._replace(reader=_Reader(inflated))  # type: ignore[arg-type]
        self._load(file)

    @classmethod
    def _of(cls, file: _File) -> PixelData:
        new = cls.__new__(cls)
        new._load(file)
        return new

    def _load(self, file: _File) -> None:
        self.syntax = file.syntax
        self.elements: list[tuple[_Element, int, int]] = []  # of the top level: element, where it starts and ends
        self._file = file
        self._reader = reader = file.reader
        self._encoding = encoding = file.encoding
        self._pixels: tuple[_Element, int] | None = None
        self._fragments: list[tuple[int, int]] = []
        self._decoded: ImagePixel | None = None
        values: dict[int, bytes] = {}
        offsets = b""
        while reader.size - reader.position >= 8:
            start = reader.position
            element = reader.element(encoding)
            value = reader.position
            if element.tag in (_PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA):
                self._pixels = (element, value)
                if element.length == _UNDEFINED:
                    self._read_fragments()
                else:
                    # The last bytes may be missing: the frames that are there can still be read.
                    reader.seek(min(value + element.length, reader.size))
            elif element.length != _UNDEFINED and element.tag in _IMAGE_TAGS and element.length <= 64:
                values[element.tag] = reader.read(element.length)
            elif element.tag == _EXTENDED_OFFSET_TABLE and element.length <= _MAX_OFFSET_TABLE:
                offsets = reader.read(element.length)
            else:
                reader.skip_value(element, encoding)
            self.elements.append((element, start, reader.position))
        self._offset_table = offsets
        self._values = values

    def _read_fragments(self) -> None:
        """Where the fragments lie, Basic Offset Table first (PS3.5 A.4). A missing delimiter at the end is let pass."""
        reader = self._reader
        while reader.size - reader.position >= 8:
            item = reader.element(_IMPLICIT)
            if item.tag == _END_OF_SEQUENCE:
                break
            if item.tag != _ITEM or item.length == _UNDEFINED:
                raise CannotDecode(f"The fragments of the {self.syntax.name} pixel data are damaged.")
            self._fragments.append((reader.position, item.length))
            reader.skip(item.length)

    @property
    def present(self) -> bool:
        return self._pixels is not None

    @functools.cached_property
    def image(self) -> ImagePixel:
        """Raises CannotDecode if an attribute without which frames cannot be read is missing or absurd."""
        if self._pixels is None:
            raise LookupError("The instance has no pixel data.")
        values = self._values

        def number(tag: int, name: str, default: int | None = None) -> int:
            value = values.get(tag, b"")
            if len(value) >= 2:
                return int(struct.unpack_from(self._encoding.order + "H", value)[0])
            if default is None:
                raise CannotDecode(f"The image has no {name}.")
            return default

        try:
            frames = int(values.get(0x00280008, b"").split(b"\\")[0].strip(b"\0 ") or b"1") or 1
        except ValueError as error:
            raise CannotDecode("Number of Frames is not a number.") from error
        bits = number(0x00280100, "Bits Allocated")
        stored = number(0x00280101, "Bits Stored", bits)
        image = ImagePixel(
            rows=number(0x00280010, "Rows"),
            columns=number(0x00280011, "Columns"),
            samples=number(0x00280002, "Samples per Pixel", 1),
            frames=frames,
            bits_allocated=bits,
            bits_stored=stored,
            high_bit=number(0x00280102, "High Bit", stored - 1),
            signed=number(0x00280103, "Pixel Representation", 0) == 1,
            photometric=values.get(0x00280004, b"").decode("latin-1").strip("\0 "),
            planar=number(0x00280006, "Planar Configuration", 0),
        )
        sensible = image.rows and image.columns and image.samples in (1, 3, 4) and image.frames > 0
        if not (sensible and (bits == 1 or (bits % 8 == 0 and 8 <= bits <= 64)) and 1 <= stored <= bits):
            raise CannotDecode("The image's dimensions or bit depths make no sense.")
        if image.frame_bits > MAX_FRAME_LENGTH * 8:
            raise CannotDecode(f"A frame of the image is larger than {MAX_FRAME_LENGTH} bytes.")
        return image

    @property
    def decoded(self) -> ImagePixel:
        """The Image Pixel attributes of the frame that `frame` returned last; of the first one to begin with."""
        if self._decoded is None:
            self._decoded = self.image
            if self.syntax.encapsulated:
                self.frame(1)
        return self._decoded

    @functools.cached_property
    def _frames(self) -> list[list[tuple[int, int]]]:
        """The fragments of each frame (PS3.5 A.4): by an offset table that holds, else by counting, else by the ends
        of the codestreams."""
        fragments = self._fragments[1:]
        count = self.image.frames
        if not fragments:
            return []
        first = fragments[0][0] - 8
        starts = {offset - 8 - first: index for index, (offset, _) in enumerate(fragments)}
        for table, size in ((self._offset_table, 8), (self._basic_offset_table(), 4)):
            offsets = [int.from_bytes(table[at : at + size], "little") for at in range(0, len(table), size)]
            indexes = [starts.get(offset, -1) for offset in offsets[: count + 1]]
            if len(indexes) >= count and indexes[0] == 0 and all(a < b for a, b in pairwise(indexes)):
                return [fragments[a:b] for a, b in pairwise([*indexes, len(fragments)])][:count]
        if count == 1:
            return [fragments]
        if len(fragments) <= count or not self.syntax.codec.startswith("jpeg"):
            return [[fragment] for fragment in fragments]
        frames: list[list[tuple[int, int]]] = [[]]
        for offset, length in fragments:
            frames[-1].append((offset, length))
            self._reader.seek(offset + max(length - 10, 0))
            if b"\xff\xd9" in self._reader.read(min(length, 10)):  # EOI, EOC
                frames.append([])
        return [frame for frame in frames if frame]

    def _basic_offset_table(self) -> bytes:
        offset, length = self._fragments[0]
        if length > 4 * len(self._fragments):
            return b""
        self._reader.seek(offset)
        return self._reader.read(length)

    def encoded_frame(self, number: int) -> bytes:
        """The bit stream of one frame of encapsulated pixel data, numbered from 1; LookupError if there is none."""
        self._check_number(number)
        if number > len(self._frames):
            raise CannotDecode(f"Frame {number} is missing from the {self.syntax.name} pixel data.")
        parts = []
        for offset, length in self._frames[number - 1]:
            self._reader.seek(offset)
            parts.append(self._reader.read(length))
        return b"".join(parts)

    def require_decodable(self) -> None:
        """Raises CannotDecode if the frames are in a syntax that nothing here decodes, or not encapsulated at all."""
        if not self.syntax.decodable:
            raise CannotDecode(f"This server cannot decode {self.syntax.name}.")
        if self._pixels is None or self._pixels[0].length != _UNDEFINED:
            raise CannotDecode(f"The pixel data are not encapsulated, as {self.syntax.name} demands.")

    def _check_number(self, number: int) -> None:
        if not 1 <= number <= self.image.frames:
            raise LookupError(f"There is no frame {number}: the instance has {self.image.frames}.")

    def frame(self, number: int) -> bytes:
        """One frame as native little endian bytes, numbered from 1; decoded if it is compressed.

        A frame of 1-bit pixels starts at the lowest bit of the first byte, the unused bits of the last are 0 (in a
        stored native object it may start within a byte, PS3.5 8.1.1). Raises LookupError if there is no such frame,
        CannotDecode.
        """
        self._check_number(number)
        if not self.syntax.encapsulated:
            return self._native_frame(number)
        self.require_decodable()
        frame, self._decoded = _decode(self.syntax, self.encoded_frame(number), self.image)
        return frame

    def _native_frame(self, number: int) -> bytes:
        assert self._pixels is not None
        element, start = self._pixels
        if element.length == _UNDEFINED:
            raise CannotDecode("The pixel data are encapsulated, but the transfer syntax says they are not.")
        bits = self.image.frame_bits
        first_bit = (number - 1) * bits
        width = 1 if self._encoding.little else _pixel_swap_width(element.vr, self.image.bits_allocated)
        begin, end = first_bit // 8, -(-(first_bit + bits) // 8)
        aligned = begin - begin % width
        padded = -(-end // width) * width
        if start + end > min(self._reader.size, start + element.length):
            raise CannotDecode(f"The pixel data end before the end of frame {number}.")
        self._reader.seek(start + aligned)
        data = self._reader.read(min(padded, self._reader.size - start) - aligned)
        frame = _swapped(data, width)[begin - aligned : end - aligned]
        if bits % 8 == 0:
            return frame
        value = int.from_bytes(frame, "little") >> first_bit % 8
        return (value & (1 << bits) - 1).to_bytes(-(-bits // 8), "little")


def decode_frame(source: BinaryIO, number: int) -> bytes:
    """One native little endian frame of a stored PS3.10 file of any transfer syntax, numbered from 1.

    Exactly Rows × Columns × Samples per Pixel × Bits Allocated / 8 bytes; multi-sample frames that were compressed come
    colour-by-pixel. Raises LookupError if there is no such frame or no pixel data, CannotDecode. `PixelData` tells the
    photometric interpretation of what comes out, and serves several frames of one file for less.
    """
    return PixelData(source).frame(number)


def _write_decoded(file: _File, meta: bytes, target: BinaryIO) -> None:
    """The rest of `to_explicit_little_endian` for an encapsulated syntax."""
    pixels = PixelData._of(file)
    reader = file.reader
    recoder, numbers = _Recoder(reader, target), dict[int, int]()
    changes: dict[int, bytes] = {}
    first, length = b"", 0
    if pixels.present:
        pixels.require_decodable()
        pixels.encoded_frame(pixels.image.frames)  # before the first is decoded: are all of them there?
        first = pixels.frame(1)
        length = -(-pixels.decoded.frame_bits * pixels.image.frames // 8)
        if length + length % 2 > MAX_NATIVE_LENGTH:
            raise CannotDecode(f"The {file.syntax.name} pixel data are too large to be decoded into one element.")
        changes = _image_changes(pixels.image, pixels.decoded)
    target.write(meta)
    for element, start, end in pixels.elements:
        while changes and (tag := min(changes)) < element.tag:
            target.write(changes.pop(tag))
        if element.tag in changes:
            target.write(changes.pop(element.tag))
        elif element.tag == _PIXEL_DATA:
            _write_native(pixels, first, length, target)
        elif element.tag & 0xFFFF and element.tag not in _ONLY_ENCAPSULATED:
            reader.seek(start)
            if file.encoding.explicit:
                for piece in reader.pieces(end - start):
                    target.write(piece)
            else:
                recoder.data_set(file.encoding, end, numbers, 0)


def _image_changes(stored: ImagePixel, decoded: ImagePixel) -> dict[int, bytes]:
    """The elements to write in place of those of the stored data set."""
    changes: dict[int, bytes] = {}
    if decoded.photometric != stored.photometric:
        value = decoded.photometric.encode("latin-1")
        value += b" " * (len(value) % 2)
        changes[_PHOTOMETRIC_INTERPRETATION] = struct.pack("<HH2sH", 0x28, 0x04, b"CS", len(value)) + value
    if decoded.samples > 1:
        changes[_PLANAR_CONFIGURATION] = struct.pack("<HH2sHH", 0x28, 0x06, b"US", 2, decoded.planar)
    if decoded.high_bit != stored.high_bit:
        changes[_HIGH_BIT] = struct.pack("<HH2sHH", 0x28, 0x102, b"US", 2, decoded.high_bit)
    return changes


def _write_native(pixels: PixelData, first: bytes, length: int, target: BinaryIO) -> None:
    """Pixel Data of known length, frame by frame; 1-bit frames follow each other without padding (PS3.5 8.1.1)."""
    image = pixels.image
    vr = b"OW" if image.bits_allocated > 8 else b"OB"
    target.write(struct.pack("<HH2sHI", 0x7FE0, 0x10, vr, 0, length + length % 2))
    kind = pixels.decoded
    bits = kind.frame_bits
    pending, pending_bits = 0, 0
    for number in range(1, image.frames + 1):
        frame = first if number == 1 else pixels.frame(number)
        if pixels.decoded != kind:
            raise CannotDecode(f"The frames of the {pixels.syntax.name} pixel data are of different kinds.")
        if bits % 8 == 0:
            target.write(frame)
            continue
        pending |= int.from_bytes(frame, "little") << pending_bits
        whole, pending_bits = divmod(pending_bits + bits, 8)
        target.write((pending & (1 << whole * 8) - 1).to_bytes(whole, "little"))
        pending >>= whole * 8
    if pending_bits:
        target.write(pending.to_bytes(1, "little"))
    target.write(b"\0" * (length % 2))


# ---------------------------------------------------------------------------------------------------------------------
# Codestreams: what they claim, read before a codec believes it


class _Codestream(NamedTuple):
    rows: int
    columns: int
    samples: int
    precision: int
    data: bytes  # the codestream proper, without a JP2 wrapper
    is_rgb: bool | None = None  # JPEG with three components: what its markers say; None if they say nothing


def _jpeg_header(data: bytes) -> _Codestream:
    """Frame header and colour markers of a JPEG or JPEG-LS stream (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no SOI")
    position = 2
    adobe: int | None = None
    jfif = False
    while True:
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if data[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[position + 1]
        if marker == 1 or 0xD0 <= marker <= 0xD7:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2 or marker in (0xD8, 0xD9, 0xDA):
            raise ValueError("no frame header")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
        jfif = jfif or (marker == 0xE0 and segment.startswith(b"JFIF"))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            break
        position += 2 + length
    if data.rfind(b"\xff\xd9", position) < 0:
        raise ValueError("it ends early")  # libjpeg would fill the rest with grey and say nothing
    precision, rows, columns, samples = struct.unpack_from(">BHHB", segment)
    ids = bytes(segment[6 + 3 * index] for index in range(samples))
    subsampled = len({segment[7 + 3 * index] for index in range(samples)}) > 1
    is_rgb: bool | None = None
    if subsampled:
        is_rgb = False  # nobody subsamples green
    elif adobe is not None:
        is_rgb = adobe == 0
    elif ids in (b"RGB", b"rgb"):
        is_rgb = True
    elif jfif:
        is_rgb = False
    return _Codestream(rows, columns, samples, precision, data, is_rgb)


def _jpeg_2000_header(data: bytes) -> _Codestream:
    """SIZ of a JPEG 2000 codestream (ISO/IEC 15444-1 A.5.1), taken out of a JP2 file if it is in one.

    DICOM wants the bare codestream (PS3.5 A.4.4); a JP2 file's palette could multiply its size.
    """
    if data[4:8] == b"jP  ":
        position = 0
        while data[position + 4 : position + 8] != b"jp2c":
            length, header = int.from_bytes(data[position : position + 4], "big"), 8
            if length == 1:
                length, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
            if length < header:
                raise ValueError("no codestream in the JP2 file")
            position += length
            if position >= len(data):
                raise ValueError("no codestream in the JP2 file")
        data = data[position + (16 if data[position : position + 4] == b"\0\0\0\1" else 8) :]
    if data[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no SOC and SIZ")
    x1, y1, x0, y0, tile_x, tile_y = struct.unpack_from(">6I", data, 8)
    (samples,) = struct.unpack_from(">H", data, 40)
    sizes = set()
    for index in range(min(samples, 16)):
        _, dx, dy = struct.unpack_from("3B", data, 42 + 3 * index)
        sizes.add((-(-y1 // dy) - -(-y0 // dy), -(-x1 // dx) - -(-x0 // dx)))
    rows, columns = max(sizes)
    if (y1 - y0, x1 - x0) != (rows, columns) or -(-x1 // tile_x) * -(-y1 // tile_y) > 65535:
        raise ValueError("an image or tile size that makes no sense")
    return _Codestream(rows, columns, samples, (data[42] & 0x7F) + 1, data)


def _jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Rows and columns from the SizeHeader of a JPEG XL codestream or file (ISO/IEC 18181-1 D.2)."""
    if data[4:8] == b"JXL ":
        position = 0
        while data[position + 4 : position + 8] not in (b"jxlc", b"jxlp"):
            length = int.from_bytes(data[position : position + 4], "big")
            if length < 8 or position + length >= len(data):
                raise ValueError("no codestream in the JPEG XL file")
            position += length
        data = data[position + (8 if data[position + 4 : position + 8] == b"jxlc" else 12) :]
    if data[:2] != b"\xff\x0a":
        raise ValueError("no JPEG XL signature")
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & (1 << count) - 1
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows = side()
    ratio = take(3)
    if ratio == 0:
        return rows, side()
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return rows, rows * numerator // denominator


# ---------------------------------------------------------------------------------------------------------------------
# Codecs

# The plug-ins of pydicom that may decode a syntax, best first. Only these: what else is installed must not decide
# what comes out. imagecodecs lets other threads run; openjpeg, rle and pyjpegls hold the interpreter lock.
_PLUGINS: Final[Mapping[str, tuple[str, ...]]] = {
    "jpeg": ("imagecodecs", "pillow"),
    "jpeg-lossless": ("imagecodecs",),
    "jpeg-ls": ("imagecodecs", "pyjpegls"),
    "jpeg-2000": ("imagecodecs", "pylibjpeg"),
    "rle": ("pylibjpeg", "pydicom"),
}
DECODER_DEPENDENCIES: Final[Mapping[str, tuple[str, ...]]] = {  # by this name pydicom asks for it
    uid: ("numpy", "imagecodecs")
    for uid, syntax in TRANSFER_SYNTAXES.items()
    if "imagecodecs" in _PLUGINS.get(syntax.codec, ())
}
_INTERRUPTS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
_registration = threading.Lock()


def is_available(uid: str) -> bool:
    """Whether `decode_with_imagecodecs` can be used for a transfer syntax; pydicom asks this of its plug-ins."""
    if uid not in DECODER_DEPENDENCIES:
        return False
    try:
        import imagecodecs

        return bool(imagecodecs.JPEG8.available and imagecodecs.JPEG2K.available)
    except ImportError:
        return False


@functools.cache
def _registered() -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    # A frame that a codec refuses becomes a CannotDecode; pydicom would log a traceback for each.
    logging.getLogger("pydicom.pixels.decoders.base").setLevel(logging.CRITICAL)
    for uid in DECODER_DEPENDENCIES:
        try:
            get_decoder(uid).add_plugin("imagecodecs", (__name__, "decode_with_imagecodecs"))
        except (NotImplementedError, ValueError):
            continue  # pydicom does not know the syntax, or has the plug-in already
    return True


def _decoder(uid: str) -> Any:
    """pydicom's decoder of a transfer syntax, imagecodecs among its plug-ins; None if pydicom does not know it."""
    from pydicom.pixels.decoders.base import get_decoder

    with _registration:
        _registered()
    try:
        return get_decoder(uid)
    except NotImplementedError:
        return None


def decode_with_imagecodecs(src: bytes, runner: Any) -> bytes:
    """Decode a frame for pydicom (its plug-in interface): little endian samples, colour-by-pixel."""
    pixels, photometric = _imagecodecs(
        TRANSFER_SYNTAXES[runner.transfer_syntax], bytes(src), str(runner.photometric_interpretation)
    )
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("photometric_interpretation", photometric)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


def _imagecodecs(syntax: TransferSyntax, data: bytes, photometric: str) -> tuple[numpy.ndarray[Any, Any], str]:
    """The samples of a frame and their photometric interpretation."""
    import imagecodecs

    if syntax.codec == "jpeg":
        header = _jpeg_header(data)
        if header.samples != 3:
            return imagecodecs.jpeg8_decode(data), photometric
        is_rgb = photometric == "RGB" if header.is_rgb is None else header.is_rgb
        return imagecodecs.jpeg8_decode(data, colorspace="RGB" if is_rgb else "YCbCr", outcolorspace="RGB"), "RGB"
    if syntax.codec == "jpeg-lossless":
        colour = "RGB" if _jpeg_header(data).samples == 3 else None
        return imagecodecs.jpeg8_decode(data, colorspace=colour, outcolorspace=colour), photometric
    if syntax.codec == "jpeg-ls":
        return imagecodecs.jpegls_decode(data), photometric
    if syntax.codec == "jpeg-xl":
        pixels = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True)
        is_kept = pixels.ndim == 2 or (syntax.lossless and photometric != "XYB")
        return pixels, photometric if is_kept else "RGB"
    if photometric in ("YBR_ICT", "YBR_RCT"):
        photometric = "RGB"
    # Not htj2k_decode, though it is twice as fast: its OpenJPH lets values out of range wrap round, and an error in
    # the codestream is lost on the way (imagecodecs 2026.3.6): what comes back then is memory that nobody filled.
    return imagecodecs.jpeg2k_decode(data), photometric


def _decode(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, ImagePixel]:
    """One frame decoded: native little endian bytes, and the image as it then is. Raises CannotDecode only."""
    try:
        return _decode_unguarded(syntax, data, image)
    except (CannotDecode, *_INTERRUPTS):
        raise
    except BaseException as error:  # a codec may raise anything; the panics of those in Rust are no Exception
        reason = " ".join(str(error).split())[:200]
        raise CannotDecode(f"The {syntax.name} frame cannot be decoded: {reason or type(error).__name__}.") from error


def _decode_unguarded(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, ImagePixel]:
    length = -(-image.frame_bits // 8)
    if syntax.codec in ("none", "deflate"):
        if syntax.codec == "deflate":
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length)
        if len(data) < length:
            raise ValueError("the frame is too short")
        return data[:length], image
    data, precision = _checked_codestream(syntax, data, image)
    if syntax.codec == "rle" and image.bits_allocated == 1:
        return _bits_of_rle(data, length), image
    pixels, photometric = _samples(syntax, data, image)
    # A codestream of Bits Stored bits has no room for a High Bit above them.
    is_exact = syntax.codec not in ("rle", "jpeg-xl") and precision == image.bits_stored
    high_bit = image.bits_stored - 1 if is_exact else image.high_bit
    decoded = replace(image, photometric=photometric, planar=0, high_bit=high_bit)
    if image.bits_allocated == 1:
        import numpy

        return numpy.packbits(pixels.reshape(-1) != 0, bitorder="little").tobytes(), decoded
    return pixels.tobytes(), decoded


def _checked_codestream(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, int]:
    """The codestream and its precision, after comparing what it claims with the image."""
    if syntax.codec == "rle":
        # A pair of bytes stands for 128 at most (PS3.5 G.3.1).
        if image.frame_bits // 8 > len(data) * 64:
            raise ValueError("the frame is too short")
        return data, image.bits_stored
    if syntax.codec == "jpeg-xl":
        rows, columns = _jpeg_xl_size(data)
        samples, precision = image.samples, image.bits_stored
    else:
        read = _jpeg_2000_header if syntax.codec == "jpeg-2000" else _jpeg_header
        rows, columns, samples, precision, data, *_ = read(data)
    if (rows, columns, samples) != (image.rows, image.columns, image.samples):
        raise CannotDecode(
            f"The {syntax.name} frame is {columns} × {rows} with {samples} samples per pixel, "
            f"the data set says {image.columns} × {image.rows} with {image.samples}."
        )
    if precision > image.bits_allocated:
        raise CannotDecode(
            f"The {syntax.name} frame has {precision} bits per sample, {image.bits_allocated} allocated."
        )
    return data, precision


def _bits_of_rle(data: bytes, length: int) -> bytes:
    """A frame of 1-bit pixels: one segment (PS3.5 G.2) that holds them packed."""
    from rle.utils import decode_segment  # type: ignore[attr-defined]

    count, offset = struct.unpack_from("<II", data)
    if count != 1 or offset != 64:
        raise ValueError("a segment too many")
    frame = bytes(decode_segment(data[offset:]))
    if len(frame) not in (length, length + length % 2):
        raise ValueError("the frame has the wrong length")
    return frame[:length]


def _samples(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[numpy.ndarray[Any, Any], str]:
    """The samples of a frame in cells of Bits Allocated, colour-by-pixel, little endian."""
    import numpy

    decoder = _decoder(syntax.uid)
    if decoder is None:
        pixels, photometric = _imagecodecs(syntax, data, image.photometric)
        shape = (image.rows, image.columns) if image.samples == 1 else (image.rows, image.columns, image.samples)
        kind = numpy.dtype(f"<u{max(image.bits_allocated // 8, 1)}")
        if pixels.shape != shape or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > kind.itemsize:
            raise ValueError("its size or sample type is not that of the data set")
        return pixels.astype(kind), photometric
    item = b"\xfe\xff\x00\xe0"
    pad = b"\0" * (len(data) % 2)
    buffer = b"".join((item, bytes(4), item, struct.pack("<I", len(data) + len(pad)), data, pad))
    failure: BaseException = ValueError("no codec for it is installed")
    for plugin in _PLUGINS[syntax.codec]:
        if plugin not in decoder.available_plugins:
            continue
        try:
            pixels, properties = decoder.as_array(
                buffer,
                index=0,
                validate=False,
                decoding_plugin=plugin,
                # Colours are converted where the codec would anyway or loses anyway; reversible codecs give what
                # was put in, YBR_FULL too.
                raw=syntax.codec != "jpeg",
                # Cells wider than Bits Stored: fill signed ones with their sign; whatever else is there is kept.
                correct_unused_bits=image.signed and syntax.codec != "rle",
                rows=image.rows,
                columns=image.columns,
                samples_per_pixel=image.samples,
                number_of_frames=1,
                bits_allocated=image.bits_allocated,
                bits_stored=image.bits_stored,
                pixel_representation=int(image.signed),
                photometric_interpretation=image.photometric,
                planar_configuration=image.planar,
                pixel_keyword="PixelData",
            )
        except _INTERRUPTS:
            raise
        except BaseException as error:  # see `_decode`; the next plug-in may do better
            failure = error
            continue
        return pixels, str(properties["photometric_interpretation"])
    raise failure
