"""The frames of a stored file: where they lie, and what is in them as native little endian bytes."""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO, Final

from . import codecs, recode, values
from .codecs import ImagePixel
from .frames import Frames
from .header import Header
from .recode import PIXEL_DATA, UNDEFINED, DicomFile, Element, Recoder
from .transfer_syntaxes import TRANSFER_SYNTAXES, CannotDecode, CannotEncode, TransferSyntax
from .values import Attributes

#: The largest decoded frame, in bytes. Headers and codestreams may agree on absurd sizes.
MAX_FRAME_LENGTH: Final = 1 << 29
MAX_INFLATED: Final = 1 << 30
_PIXEL_DATA_PATHS: Final = ("/7FE00010", "/7FE00008", "/7FE00009")
_MAX_OFFSET_TABLE: Final = 1 << 24  # two million frames

_SOP_CLASS_UID, _SOP_INSTANCE_UID, _EXTENDED_OFFSET_TABLE = 0x00080016, 0x00080018, 0x7FE00001
_SEGMENTATIONS: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})  # and Label Map
_FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00008, 0x7FE00009
_IMAGE_TAGS: Final = frozenset({0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011}) | frozenset(
    range(0x00280100, 0x00280104)
)


class PixelData:
    """The pixel data of one stored file, read frame by frame.

    `image` describes the frames as stored, `decoded` those that `frame` returns: a JPEG that is YBR_FULL_422 as stored
    is RGB when decoded. Not for use by several threads at once.
    """

    def __init__(self, source: BinaryIO, *, frames: Frames | None = None, max_inflated: int = MAX_INFLATED) -> None:
        """`frames`: where encapsulated frames lie, if the header scan is at hand. Raises CannotDecode if the file
        cannot be read; one without pixel data has `present` False, and everything else raises LookupError."""
        file = recode.open_file(source)
        self._load(file.inflated(max_inflated) if file.syntax.deflated else file, frames, max_inflated)

    @classmethod
    def of_file(cls, file: DicomFile, max_inflated: int = MAX_INFLATED) -> PixelData:
        """The pixel data of a file that is open, at the start of its data set; a deflated one is inflated."""
        new = cls.__new__(cls)
        new._load(file, None, max_inflated)
        return new

    def _load(self, file: DicomFile, frames: Frames | None, max_inflated: int) -> None:
        self._max_frame_length = min(max_inflated, MAX_FRAME_LENGTH)
        self.syntax = file.syntax
        self.file = file
        self.elements: list[tuple[Element, int, int]] = []  # of the top level: element, where it starts and ends
        self._reader = reader = file.reader
        self._encoding = encoding = file.encoding
        self._pixels: tuple[Element, int] | None = None
        self._fragments: list[tuple[int, int]] = []
        self._located = frames if frames is not None and frames.encapsulated else None
        self._decoded: ImagePixel | None = None
        described: dict[int, bytes] = {}
        offsets = b""
        while reader.size - reader.position >= 8:
            start = reader.position
            element = reader.element(encoding)
            value = reader.position
            if element.tag in (PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA):
                self._pixels = (element, value)
                if self._located:
                    break
                if element.length == UNDEFINED:
                    self._read_fragments()
                else:
                    # The last bytes may be missing: the frames that are there can still be read.
                    reader.seek(min(value + element.length, reader.size))
            elif element.length != UNDEFINED and element.tag in _IMAGE_TAGS and element.length <= 64:
                described[element.tag] = reader.read(element.length)
            elif element.tag == _EXTENDED_OFFSET_TABLE and element.length <= _MAX_OFFSET_TABLE:
                offsets = reader.read(element.length)
            else:
                reader.skip_value(element, encoding)
            self.elements.append((element, start, reader.position))
        self._offset_table = offsets
        self._described = described

    def text(self, tag: int) -> str:
        """The value of a text element of the top level, byte for byte as in Latin-1; "" without one."""
        for element, _, end in self.elements:
            if element.tag == tag and element.length != UNDEFINED:
                self._reader.seek(end - element.length)
                return self._reader.read(element.length).decode("latin-1").strip("\0 ")
        return ""

    @property
    def sop_instance(self) -> str:
        return self.text(_SOP_INSTANCE_UID)

    def recoded(self, tag: int) -> bytes:
        """A whole element of the top level in Explicit VR Little Endian, sequences with delimiters; b"" without one."""
        out = io.BytesIO()
        for element, start, end in self.elements:
            if element.tag == tag:
                self._reader.seek(start)
                Recoder(self._reader, out.write).data_set(self._encoding, end, {}, 0)
                break
        return out.getvalue()

    def _read_fragments(self) -> None:
        """Where the fragments lie, Basic Offset Table first (PS3.5 A.4). A missing delimiter at the end is let pass."""
        reader = self._reader
        while reader.size - reader.position >= 8:
            item = reader.element(recode.IMPLICIT)
            if item.tag == recode.END_OF_SEQUENCE:
                break
            if item.tag != recode.ITEM or item.length == UNDEFINED:
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
        described = self._described

        def number(tag: int, name: str, default: int | None = None) -> int:
            value = described.get(tag, b"")
            if len(value) >= 2:
                return int(struct.unpack_from(self._encoding.order + "H", value)[0])
            if default is None:
                raise CannotDecode(f"The image has no {name}.")
            return default

        try:
            frames = int(described.get(0x00280008, b"").split(b"\\")[0].strip(b"\0 ") or b"1") or 1
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
            photometric=described.get(0x00280004, b"").decode("latin-1").strip("\0 "),
            planar=number(0x00280006, "Planar Configuration", 0),
        )
        return _sensible(image, self._max_frame_length)

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

    def _runs(self, number: int) -> list[tuple[int, int]]:
        missing = CannotDecode(f"Frame {number} is missing from the {self.syntax.name} pixel data.")
        if self._located is None:
            frames: list[list[tuple[int, int]]] = self._frames
            if number > len(frames):
                raise missing
            return frames[number - 1]
        try:
            return self._located.locate(number)
        except LookupError as error:
            raise missing from error

    def encoded_frame(self, number: int) -> bytes:
        """The bit stream of one frame of encapsulated pixel data, numbered from 1; LookupError if there is none."""
        self._check_number(number)
        parts = []
        for offset, length in self._runs(number):
            self._reader.seek(offset)
            parts.append(self._reader.read(length))
        return b"".join(parts)

    def require_decodable(self) -> None:
        """Raises CannotDecode if the frames are in a syntax that nothing here decodes, or not encapsulated at all."""
        if not self.syntax.decodable:
            raise CannotDecode(f"This server cannot decode {self.syntax.name}.")
        if self._pixels is None or self._pixels[0].length != UNDEFINED:
            raise CannotDecode(f"The pixel data are not encapsulated, as {self.syntax.name} demands.")

    def require_frames(self) -> None:
        """Raises CannotDecode unless frames can be decoded and are all there; looked at before the first is."""
        if self.syntax.encapsulated:
            self.require_decodable()
            self._runs(self.image.frames)
        else:
            self._native_extent(self.image.frames)

    def require_encodable(self, wanted: TransferSyntax) -> None:
        """Raises CannotEncode for what no frame encoding takes: floating point pixels, and if it loses something,
        segmentations, whose samples are labels."""
        if self._pixels and self._pixels[0].tag != PIXEL_DATA:
            raise CannotEncode(f"{wanted.name} takes no floating point pixel data.")
        if codecs.ENCODINGS[wanted.uid].method and self.text(_SOP_CLASS_UID) in _SEGMENTATIONS:
            raise CannotEncode(f"{wanted.name} loses something: a segmentation would not be the same.")

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
        frame, self._decoded = codecs.decode(self.syntax, self.encoded_frame(number), self.image)
        return frame

    def frame_like(self, kind: ImagePixel, number: int) -> bytes:
        """`frame`, but CannotDecode if it is not an image of this kind: one data set describes them all."""
        frame = self.frame(number)
        if self.decoded != kind:
            raise CannotDecode(f"The frames of the {self.syntax.name} pixel data are of different kinds.")
        return frame

    def _native_extent(self, number: int) -> tuple[int, int]:
        """The first and the last bit (exclusive) of a native frame, counted from the start of the value."""
        assert self._pixels is not None
        element, start = self._pixels
        if element.length == UNDEFINED:
            raise CannotDecode("The pixel data are encapsulated, but the transfer syntax says they are not.")
        bits = self.image.frame_bits
        if number * bits > (min(self._reader.size, start + element.length) - start) * 8:
            raise CannotDecode(f"The pixel data end before the end of frame {number}.")
        return (number - 1) * bits, number * bits

    def _native_frame(self, number: int) -> bytes:
        first_bit, last_bit = self._native_extent(number)
        assert self._pixels is not None
        element, start = self._pixels
        width = 1 if self._encoding.little else recode.pixel_swap_width(element.vr, self.image.bits_allocated)
        begin, end = first_bit // 8, -(-last_bit // 8)
        aligned = begin - begin % width
        padded = -(-end // width) * width
        self._reader.seek(start + aligned)
        data = self._reader.read(min(padded, self._reader.size - start) - aligned)
        frame = recode.swapped(data, width)[begin - aligned : end - aligned]
        return _shifted(frame, first_bit % 8, last_bit - first_bit)


class LocatedPixels:
    """The frames of a stored file of which the header is known: nothing but the frames is read.

    `image` and `decoded` as of `PixelData`. Not for use by several threads at once.
    """

    def __init__(self, source: BinaryIO, header: Header) -> None:
        """`header`: of this file, not deflated. Raises CannotDecode if it has no image that can be read."""
        syntax = TRANSFER_SYNTAXES.get(header.transfer_syntax)
        if syntax is None:
            raise CannotDecode(f"This server does not know the transfer syntax {header.transfer_syntax}.")
        if header.frames is None:
            image_of(header.attributes, 1)  # a more telling reason, if there is one
            raise CannotDecode("The pixel data are missing or hold not even one whole frame.")
        self.syntax = syntax
        self.image = image_of(header.attributes, header.frames.count)
        if not syntax.encapsulated and header.frames.frame_bits() != self.image.frame_bits:
            # Called YBR_FULL_422, but every pixel has its own colour.
            self.image = replace(self.image, photometric=self.image.photometric.replace("_422", ""))
        self._source = source
        self._frames = header.frames
        self._swap_width = 1
        if not syntax.little_endian:
            vr = next((value.vr for value in header.bulk_data if value.path in _PIXEL_DATA_PATHS), "OW")
            self._swap_width = recode.pixel_swap_width(vr, self.image.bits_allocated)

    def frame(self, number: int) -> tuple[bytes, ImagePixel]:
        """One frame as native little endian bytes, numbered from 1, decoded if it is compressed; and what it is then.

        Raises LookupError if there is no such frame or it cannot be told apart, CannotDecode.
        """
        if not self.syntax.decodable:
            raise CannotDecode(f"This server cannot decode {self.syntax.name}.")
        runs = self._frames.locate(number)
        if not self.syntax.encapsulated:
            return self._native_frame(number, *runs[0]), self.image
        return codecs.decode(self.syntax, b"".join(self._read(*run) for run in runs), self.image)

    def _native_frame(self, number: int, offset: int, length: int) -> bytes:
        start, whole = self._frames.stream()[0]
        width = self._swap_width
        before = (offset - start) % width
        end = min(start + -(-(offset + length - start) // width) * width, start + whole)
        frame = recode.swapped(self._read(offset - before, end - offset + before), width)[before : before + length]
        if len(frame) < length:
            raise CannotDecode(f"The pixel data end before the end of frame {number}.")
        return _shifted(frame, self._frames.bit_offset(number), self._frames.frame_bits() or 0)

    def _read(self, offset: int, length: int) -> bytes:
        self._source.seek(offset)
        return self._source.read(length)


def image_of(attributes: Attributes, frames: int) -> ImagePixel:
    """The Image Pixel Module of a data set in the DICOM JSON Model, that has `frames` frames.

    Raises CannotDecode if an attribute without which frames cannot be read is missing or absurd.
    """

    def number(keyword: str, name: str, default: int | None = None) -> int:
        found = values.number(attributes, keyword)
        if found is None and default is None:
            raise CannotDecode(f"The image has no {name}.")
        return int(found) if found is not None else default or 0

    bits = number("BitsAllocated", "Bits Allocated")
    stored = number("BitsStored", "Bits Stored", bits)
    return _sensible(
        ImagePixel(
            rows=number("Rows", "Rows"),
            columns=number("Columns", "Columns"),
            samples=number("SamplesPerPixel", "Samples per Pixel", 1),
            frames=frames,
            bits_allocated=bits,
            bits_stored=stored,
            high_bit=number("HighBit", "High Bit", stored - 1),
            signed=number("PixelRepresentation", "Pixel Representation", 0) == 1,
            photometric=values.string(attributes, "PhotometricInterpretation"),
            planar=number("PlanarConfiguration", "Planar Configuration", 0),
        )
    )


def _sensible(image: ImagePixel, max_frame_length: int = MAX_FRAME_LENGTH) -> ImagePixel:
    bits, stored = image.bits_allocated, image.bits_stored
    sensible = image.rows > 0 and image.columns > 0 and image.samples in (1, 3, 4) and image.frames > 0
    if not (sensible and (bits == 1 or (bits % 8 == 0 and 8 <= bits <= 64)) and 1 <= stored <= bits):
        raise CannotDecode("The image's dimensions or bit depths make no sense.")
    if image.frame_bits > max_frame_length * 8:
        raise CannotDecode(f"A frame of the image is larger than {max_frame_length} bytes.")
    return image


def _shifted(frame: bytes, first: int, bits: int) -> bytes:
    """The `bits` bits of a native frame from the bit `first` on, from the lowest bit of the first byte on."""
    if bits % 8 == 0 and first == 0:
        return frame
    value = int.from_bytes(frame, "little") >> first
    return (value & (1 << bits) - 1).to_bytes(-(-bits // 8), "little")
