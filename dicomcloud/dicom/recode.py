"""PS3.10 files read element by element, and their elements written anew in Explicit VR Little Endian.

Nothing here looks at the values: what a real file holds, right or wrong, comes out bit for bit, apart from the order
of the bytes. Files are read in pieces; no value is in memory as a whole.

    open_file           File Meta Information, and a Reader at the start of the data set
    Reader              element headers and values
    Recoder             elements of any encoding → Explicit VR Little Endian
    explicit_element    one element from its value
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple, cast

from .attributes import AMBIGUOUS_VR, vr_of
from .transfer_syntaxes import TRANSFER_SYNTAXES, CannotDecode, TransferSyntax

PIECE: Final = 1 << 20
UNDEFINED: Final = 0xFFFFFFFF
ITEM, _END_OF_ITEM, END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010
_MEDIA_STORAGE_SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x00020003, 0x00020010
_BITS_ALLOCATED, _PIXEL_REPRESENTATION = 0x00280100, 0x00280103
_WAVEFORM_BITS_ALLOCATED, _LUT_DATA = 0x54001004, 0x00283006
_MAX_DEPTH: Final = 100
_IN_MEMORY: Final = 1 << 24

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


class Encoding(NamedTuple):
    """How elements are written."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        return "<" if self.little else ">"


IMPLICIT: Final = Encoding(False, True)


class Element(NamedTuple):
    tag: int
    vr: str  # as written; '' in Implicit VR
    length: int  # UNDEFINED for an undefined length


def element_header(tag: int, vr: str, length: int) -> bytes:
    """The header of an Explicit VR Little Endian element (PS3.5 7.1.2)."""
    if vr in _LONG_VRS:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, length)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), length)


def explicit_element(tag: int, vr: str, value: str | int | bytes) -> bytes:
    """An Explicit VR Little Endian element: a US number, bytes as they are, or text padded to an even length."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    elif isinstance(value, str):
        value = value.encode("latin-1")
    value += (b"\0" if vr in ("UI", "OB") else b" ") * (len(value) % 2)
    return element_header(tag, vr, len(value)) + value


class Reader:
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
            piece = self.read(min(length, PIECE))
            length -= len(piece)
            yield piece

    def peek(self, length: int) -> bytes:
        data = self._file.read(length)
        self._file.seek(self.position)
        return data

    def element(self, encoding: Encoding) -> Element:
        """The next element header. Elements without a VR in an explicit data set exist: those are read as implicit."""
        header = self.read(8)
        group, number = struct.unpack_from(encoding.order + "HH", header)
        tag = group << 16 | number
        if group == 0xFFFE or not encoding.explicit:
            return Element(tag, "", struct.unpack_from(encoding.order + "I", header, 4)[0])
        vr = header[4:6].decode("latin-1")
        if vr in _LONG_VRS:
            return Element(tag, vr, struct.unpack(encoding.order + "I", self.read(4))[0])
        if vr in _SHORT_VRS or (vr.isascii() and vr.isalpha() and vr.isupper()):
            return Element(tag, vr, struct.unpack_from(encoding.order + "H", header, 6)[0])
        return Element(tag, "", struct.unpack_from(encoding.order + "I", header, 4)[0])

    def skip_value(self, element: Element, encoding: Encoding, depth: int = 0) -> None:
        if element.length != UNDEFINED:
            self.skip(element.length)
            return
        if depth > _MAX_DEPTH:
            raise CannotDecode(f"Sequences are nested more than {_MAX_DEPTH} deep.")
        if element.vr in ("UN", ""):  # PS3.5 6.2.2: always Implicit VR Little Endian inside
            encoding = IMPLICIT if encoding.explicit else encoding
        while (item := self.element(encoding)).tag != END_OF_SEQUENCE:
            if item.tag != ITEM:
                raise CannotDecode("A sequence holds something that is not an item.")
            if item.length != UNDEFINED:
                self.skip(item.length)
                continue
            while (inner := self.element(encoding)).tag != _END_OF_ITEM:
                self.skip_value(inner, encoding, depth + 1)


class DicomFile(NamedTuple):
    reader: Reader  # at the start of the data set
    preamble: bytes
    meta: list[tuple[int, bytes]]  # File Meta Information: tag, whole element
    syntax: TransferSyntax
    encoding: Encoding

    def meta_for(self, transfer_syntax: str, sop_instance: str | None = None) -> bytes:
        """Preamble and File Meta Information for another transfer syntax (and SOP Instance UID), all else kept."""
        new = {_TRANSFER_SYNTAX_UID: explicit_element(_TRANSFER_SYNTAX_UID, "UI", transfer_syntax)}
        if sop_instance:
            new[_MEDIA_STORAGE_SOP_INSTANCE_UID] = explicit_element(_MEDIA_STORAGE_SOP_INSTANCE_UID, "UI", sop_instance)
        elements = {**dict(self.meta), **new}
        elements.pop(0x00020000, None)
        body = b"".join(elements[tag] for tag in sorted(elements))
        return self.preamble + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body

    def inflated(self, max_inflated: int) -> DicomFile:
        """This file with a reader of its inflated data set: up to 16 MiB of it in memory, else in an unnamed file."""
        data_set = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115 (closed with the reader)
        for piece in inflate(self, max_inflated):
            data_set.write(piece)
        data_set.seek(0)
        return self._replace(reader=Reader(data_set))


def open_file(source: BinaryIO) -> DicomFile:
    """Read the File Meta Information (PS3.10 7.1) and determine how the data set is written."""
    source.seek(0)
    reader = Reader(source)
    preamble = reader.peek(132)
    if preamble[128:] != b"DICM":
        raise CannotDecode("The file has no File Meta Information, its transfer syntax is not known.")
    reader.seek(132)
    meta: list[tuple[int, bytes]] = []
    uid = ""
    while reader.peek(2) == b"\x02\x00":
        start = reader.position
        head = reader.element(Encoding(True, True))
        if head.length > PIECE:
            raise CannotDecode("The File Meta Information is damaged.")
        value = reader.read(head.length)
        if head.tag == _TRANSFER_SYNTAX_UID:
            uid = value.decode("latin-1").strip("\0 ")
        end = reader.position
        reader.seek(start)
        meta.append((head.tag, reader.read(end - start)))
    syntax = TRANSFER_SYNTAXES.get(uid)
    if syntax is None:
        raise CannotDecode(f"The transfer syntax {uid or '(none given)'} is not known.")
    encoding = Encoding(syntax.explicit, syntax.little_endian)
    if not syntax.deflated and encoding.little:
        # Files whose data set contradicts their File Meta Information are common enough.
        start_of_data_set = reader.peek(6)
        if len(start_of_data_set) == 6:
            encoding = Encoding(start_of_data_set[4:].decode("latin-1") in _LONG_VRS | _SHORT_VRS, True)
    return DicomFile(reader, preamble[:128], meta, syntax, encoding)


def inflate(file: DicomFile, max_inflated: int) -> Iterator[bytes]:
    """The data set of a deflated file in pieces (PS3.5 A.5: RFC 1951)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total = 0
    pieces = file.reader.pieces(file.reader.size - file.reader.position)
    try:
        for piece in pieces:
            while piece and not inflater.eof:
                out = inflater.decompress(piece, PIECE)
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


def swapped(data: bytes, width: int) -> bytes:
    """`data` with the bytes of each `width`-byte word reversed; an incomplete last word stays as it is."""
    if width == 1:
        return data
    words = array({2: "H", 4: "I", 8: "Q"}[width])
    whole = len(data) - len(data) % width
    words.frombytes(data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


def pixel_swap_width(vr: str, bits_allocated: int | None) -> int:
    """How many bytes turn round together in big endian Pixel Data.

    Cells of 16 bits and more are swapped as cells, whatever the VR: writers differ (OB is seen), and pydicom reads
    them so. Smaller cells are swapped in pairs where the VR is OW (PS3.5 7.3).
    """
    if bits_allocated in (16, 32, 64):
        return bits_allocated // 8
    return 2 if vr == "OW" else 1


class Recoder:
    """Writes elements read as Implicit VR or Big Endian in Explicit VR Little Endian, values as they are.

    Sequences and items get undefined lengths, so that nothing has to be known before it is written.
    """

    def __init__(self, reader: Reader, write: Callable[[bytes], object]) -> None:
        self._reader = reader
        self._write = write

    def data_set(self, encoding: Encoding, end: int | None, numbers: dict[int, int], depth: int) -> None:
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
                if element.length == 0 and element.tag in (_END_OF_ITEM, END_OF_SEQUENCE):
                    continue  # a delimiter too many
                raise CannotDecode("An item lies outside a sequence.")
            if end is not None and element.length != UNDEFINED and reader.position + element.length > end:
                raise CannotDecode(f"The value of ({element.tag >> 16:04X},{element.tag & 0xFFFF:04X}) is too long.")
            if element.tag & 0xFFFF == 0:
                reader.skip_value(element, encoding)
            elif element.length == UNDEFINED or element.vr == "SQ" or (not element.vr and vr_of(element.tag) == "SQ"):
                self._sequence(element, encoding, numbers, depth)
            else:
                self._value(element, encoding, numbers)

    def _sequence(self, element: Element, encoding: Encoding, numbers: dict[int, int], depth: int) -> None:
        reader = self._reader
        if element.tag == PIXEL_DATA or element.vr in ("OB", "OW"):
            raise CannotDecode("The pixel data are encapsulated, but the transfer syntax says they are not.")
        if element.vr in ("UN", "") and encoding.explicit:
            encoding = IMPLICIT  # PS3.5 6.2.2
        self._write(element_header(element.tag, "SQ", UNDEFINED))
        end = None if element.length == UNDEFINED else reader.position + element.length
        while end is None or reader.position < end:
            item = reader.element(encoding)
            if item.tag == END_OF_SEQUENCE and end is None:
                break
            if item.tag != ITEM:
                raise CannotDecode("A sequence holds something that is not an item.")
            end_of_item = None if item.length == UNDEFINED else reader.position + item.length
            if end_of_item is not None and end_of_item > (reader.size if end is None else end):
                raise CannotDecode("An item is longer than its sequence.")
            self._write(struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED))
            self.data_set(encoding, end_of_item, dict(numbers), depth + 1)
            self._write(struct.pack("<HHI", 0xFFFE, 0xE00D, 0))
        self._write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

    def _value(self, element: Element, encoding: Encoding, numbers: dict[int, int]) -> None:
        tag, vr, length = element
        if tag in (_BITS_ALLOCATED, _PIXEL_REPRESENTATION, _WAVEFORM_BITS_ALLOCATED) and length >= 2:
            numbers[tag] = int.from_bytes(self._reader.peek(2), "little" if encoding.little else "big")
        is_pixel_data = tag == PIXEL_DATA
        if encoding.little:
            width = 1
        elif is_pixel_data:
            width = pixel_swap_width(vr, numbers.get(_BITS_ALLOCATED))
        else:
            width = _SWAP_WIDTH.get(vr, 1)
        vr = vr or _resolved_vr(tag, length, numbers)
        if is_pixel_data and numbers.get(_BITS_ALLOCATED, 8) > 8:
            vr = "OW"  # PS3.5 A.2
        if length > 0xFFFE and vr not in _LONG_VRS:
            vr = "UN"
        self._write(element_header(tag, vr, length))
        for piece in self._reader.pieces(length):
            self._write(swapped(piece, width))


def _resolved_vr(tag: int, length: int, numbers: Mapping[int, int]) -> str:
    """The VR of an element of an Implicit VR data set (PS3.5 A.1, A.2); of the choices PS3.6 gives, the right one."""
    choice = AMBIGUOUS_VR.get(tag)
    if choice is None:
        return vr_of(tag)
    if choice == "US or SS":
        return "SS" if numbers.get(_PIXEL_REPRESENTATION) == 1 else "US"
    if tag == _LUT_DATA and length == 2:
        return "US"
    bits = numbers.get(_BITS_ALLOCATED if tag == PIXEL_DATA else _WAVEFORM_BITS_ALLOCATED, 16)
    return "OB" if choice == "OB or OW" and bits <= 8 else "OW"
