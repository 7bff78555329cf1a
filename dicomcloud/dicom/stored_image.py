"""One frame of a stored instance as an 8-bit picture in its own matrix: nothing scaled, nothing laid over it.

`StoredImage` reads the header and the bytes of the frames that are asked for, no more. What the Standard leaves open:

- Without a window or VOI LUT the frame's own least and greatest value become black and white.
- Pixel padding is black, whatever MONOCHROME1 or a window makes of its value; not so on slides, whose background is
  meant to be as bright as glass.
- Segments have their recommended colours, else those of a fixed list. An RT dose is a colour wash from zero (black)
  over blue, green and yellow to red, the greatest dose in the frame.
"""

from __future__ import annotations

import functools
import io
import mmap
import tempfile
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Final

import numpy
from PIL import Image

from ..errors import InvalidInstance
from . import values
from .header import EXPLICIT_BIG, Header, scan
from .jpeg_files import grey_picture
from .lut import (
    Array,
    Cells,
    Grayscale,
    LookupTable,
    Palette,
    Range,
    Rescale,
    Rgb,
    colour_table,
    expand_segments,
    grey_levels,
    look_up,
    rgb_of_cielab,
    value_range,
)
from .mask import Mask, mask_of, wants_subtraction
from .pixel_data import CannotDecode, ImagePixel, to_explicit_little_endian
from .rendering_parameters import Window, WindowFunction
from .stored_pixels import LocatedPixels
from .values import Attributes

#: The largest image, stored or rendered, in pixels. An RGB image of this size takes 300 MB.
MAX_PIXELS: Final = 100_000_000

_MAX_BULK_VALUE: Final = 1 << 27
_FLOATING_POINT: Final = {"7FE00008": "<f4", "7FE00009": "<f8"}
_PIXEL_DATA: Final = "7FE00010"
_WHOLE_SLIDE_IMAGES: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
_RT_DOSE: Final = "1.2.840.10008.5.1.4.1.1.481.2"
_SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_XRAY_PROJECTIONS: Final = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")
_SEGMENT_COLOURS: Final[tuple[Rgb, ...]] = (
    (230, 75, 53),
    (77, 187, 213),
    (0, 160, 135),
    (255, 200, 60),
    (132, 145, 240),
    (243, 155, 127),
    (145, 209, 120),
    (220, 120, 220),
    (176, 126, 80),
    (240, 240, 240),
)
_VOI_FUNCTIONS: Final[dict[str, WindowFunction]] = {"SIGMOID": "sigmoid", "LINEAR_EXACT": "linear-exact"}


class CannotRender(Exception):
    """The instance, or the frame, cannot be made an image of; the message is for people."""


def read_header(source: BinaryIO) -> Header:
    """The header of a stored file. Raises CannotRender."""
    try:
        try:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        except (AttributeError, OSError, ValueError):
            source.seek(0)
            return scan(source.getvalue() if isinstance(source, io.BytesIO) else source.read())
        with mapped:
            return scan(mapped)
    except InvalidInstance as error:
        raise CannotRender(f"The instance cannot be read: {error.message}.") from error


class StoredObject:
    """The attributes of a stored PS3.10 file, and its bulk data as they are asked for."""

    def __init__(self, source: BinaryIO, header: Header | None = None) -> None:
        """`header`: the file's, where the caller has it already. Raises CannotRender."""
        header = header or read_header(source)
        if header.deflated:
            source.seek(0)
            inflated = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
            try:
                to_explicit_little_endian(source, inflated)
            except CannotDecode as error:
                raise CannotRender(str(error)) from error
            source, header = inflated, read_header(inflated)
        self.source = source
        self.header = header
        self.attributes: Attributes = header.attributes
        self.sop_class = values.string(self.attributes, "SOPClassUID")
        self.sop_instance = values.string(self.attributes, "SOPInstanceUID")

    def octets(self, attribute: Any) -> bytes:
        """The bytes of a binary or 16-bit number value, wherever it is, in little endian words; b"" if absent."""
        if not attribute:
            return b""
        if "InlineBinary" in attribute:
            return b64decode(attribute["InlineBinary"])
        if "Value" in attribute:
            try:
                return (numpy.array(attribute["Value"], numpy.int64) & 0xFFFF).astype("<u2").tobytes()
            except (TypeError, ValueError, OverflowError):
                return b""
        path = attribute.get("BulkDataURI")
        value = next((value for value in self.header.bulk_data if value.path == path), None)
        if value is None or value.offset < 0 or value.length > _MAX_BULK_VALUE:
            return b""
        self.source.seek(value.offset)
        octets = self.source.read(value.length)
        if self.header.transfer_syntax == EXPLICIT_BIG and value.vr != "OB":
            octets = numpy.frombuffer(octets[: len(octets) & ~1], ">u2").astype("<u2").tobytes()
        return octets

    def lookup_table(self, item: Attributes, *, signed_input: bool) -> LookupTable | None:
        """A modality, VOI or presentation LUT from an item (PS3.3 C.11.1.1.1); None if it is damaged.

        `signed_input`: whether the values that are looked up can be negative.
        """
        descriptor = _descriptor(item, "LUTDescriptor")
        if descriptor is None:
            return None
        count, first, bits = descriptor
        if not signed_input:
            first &= 0xFFFF
        octets = self.octets(item.get(values.key_of("LUTData")))
        if bits <= 8 and len(octets) in (count, count + 1):
            octets = numpy.frombuffer(octets[:count], numpy.uint8).astype("<u2").tobytes()
        octets = octets[: min(2 * count, len(octets) & ~1)]
        return LookupTable(first, bits, octets) if octets and 1 <= bits <= 16 else None

    def palette(self) -> Palette | None:
        """The Palette Color Lookup Tables (PS3.3 C.7.6.3.1.5), segmented ones expanded (C.7.9.2); None if there are
        none, or damaged ones."""
        channels = []
        first = bits = 0
        for colour in ("Red", "Green", "Blue"):
            descriptor = _descriptor(self.attributes, f"{colour}PaletteColorLookupTableDescriptor")
            if descriptor is None:
                return None
            count, first, bits = descriptor
            octets = self.octets(self.attributes.get(values.key_of(f"{colour}PaletteColorLookupTableData")))
            if not octets:
                octets = self._expanded(f"Segmented{colour}PaletteColorLookupTableData", count, bits)
            elif bits <= 8 and len(octets) in (count, count + 1):
                octets = numpy.frombuffer(octets[:count], numpy.uint8).astype("<u2").tobytes()
            octets = octets[: min(2 * count, len(octets) & ~1)]
            if not octets:
                return None
            channels.append(octets)
        return Palette(first, bits, *channels)

    def _expanded(self, keyword: str, count: int, bits: int) -> bytes:
        octets = self.octets(self.attributes.get(values.key_of(keyword)))
        size = 1 if bits == 8 else 2
        words = numpy.frombuffer(octets[: len(octets) // size * size], f"<u{size}").tolist()
        try:
            return numpy.array(expand_segments(words, count, size), "<u2").tobytes()
        except ValueError:
            return b""


def _descriptor(attributes: Attributes, keyword: str) -> tuple[int, int, int] | None:
    """Number of entries, first value mapped (read as signed) and bits of an entry, of a LUT Descriptor."""
    found = values.numbers(attributes, keyword)
    if len(found) != 3:
        return None
    count, first, bits = (int(value) & 0xFFFF for value in found)
    return count or 0x10000, first - 0x10000 if first >= 0x8000 else first, bits


class StoredImage(StoredObject):
    """The image in a stored PS3.10 file. Not for use by several threads at once."""

    def __init__(self, source: BinaryIO, *, header: Header | None = None, max_pixels: int = MAX_PIXELS) -> None:
        """Raises CannotRender; so for images of more than `max_pixels` pixels, before any of them is read."""
        super().__init__(source, header)
        if not self.attributes.keys() & {_PIXEL_DATA, *_FLOATING_POINT}:
            raise CannotRender("The instance has no pixel data.")
        try:
            self._pixels = LocatedPixels(self.source, self.header)
            self.image: ImagePixel = self._pixels.image
        except CannotDecode as error:
            raise CannotRender(str(error)) from error
        if self.image.pixels > max_pixels:
            raise CannotRender(
                f"The image has {self.image.columns} × {self.image.rows} pixels, more than the {max_pixels} "
                "that this server renders."
            )

    # -- attributes

    def groups(self, number: int) -> Iterator[Attributes]:
        """The functional groups of a frame, its own before the shared ones (PS3.3 C.7.6.16)."""
        per_frame = values.items(self.attributes, "PerFrameFunctionalGroupsSequence")
        if 0 < number <= len(per_frame):
            yield per_frame[number - 1]
        yield values.item(self.attributes, "SharedFunctionalGroupsSequence")

    def group(self, number: int, sequence: str) -> Attributes:
        """The first item of one functional group of a frame; the data set itself where there is no such group."""
        for group in self.groups(number):
            if found := values.item(group, sequence):
                return found
        return self.attributes

    def find(self, number: int, keyword: str) -> Attributes:
        """The data set, or the functional group of a frame, that has a value of an attribute; {} if none has."""
        if values.values(self.attributes, keyword):
            return self.attributes
        for group in self.groups(number):
            for attribute in group.values():
                for item in attribute.get("Value", ()) if attribute.get("vr") == "SQ" else ():
                    if isinstance(item, dict) and values.values(item, keyword):
                        return item
        return {}

    @functools.cached_property
    def cells(self) -> Cells:
        image = self.image
        return Cells(image.bits_allocated, image.bits_stored, image.high_bit, image.signed)

    def aspect(self, number: int) -> float:
        """Height of a pixel of a frame by its width (PS3.3 C.7.6.3.1.7, 10.7.1.3)."""
        for found in (
            values.numbers(self.attributes, "PixelAspectRatio"),
            values.numbers(self.group(number, "PixelMeasuresSequence"), "PixelSpacing"),
            values.numbers(self.attributes, "ImagerPixelSpacing"),
            values.numbers(self.attributes, "NominalScannedPixelSpacing"),
        ):
            if len(found) == 2 and found[0] > 0 and found[1] > 0:
                ratio = found[0] / found[1]
                # Below one per cent nobody sees it; beyond ten the numbers are wrong.
                return ratio if 0.1 <= ratio <= 10 and abs(ratio - 1) > 0.01 else 1.0
        return 1.0

    @property
    def _is_floating_point(self) -> bool:
        return _PIXEL_DATA not in self.attributes

    @property
    def is_segmentation(self) -> bool:
        return self.sop_class in _SEGMENTATIONS

    @property
    def is_grayscale(self) -> bool:
        return self.image.photometric in ("MONOCHROME1", "MONOCHROME2") and not self.is_segmentation

    # -- pixels

    def samples(self, number: int) -> tuple[Array, ImagePixel]:
        """The cells of a frame, (rows, columns) or (rows, columns, samples), and what they are. Raises CannotRender."""
        if not 1 <= number <= self.image.frames:
            raise CannotRender(f"There is no frame {number}: the image has {self.image.frames}.")
        try:
            octets, decoded = self._pixels.frame(number)
        except (CannotDecode, LookupError) as error:
            raise CannotRender(str(error)) from error
        rows, columns, count = decoded.rows, decoded.columns, decoded.samples
        if decoded.bits_allocated == 1 and count == 1:
            bits = numpy.unpackbits(numpy.frombuffer(octets, numpy.uint8), bitorder="little")
            return bits[: rows * columns].reshape(rows, columns), decoded
        kind = next((kind for key, kind in _FLOATING_POINT.items() if key in self.attributes), None)
        if _PIXEL_DATA in self.attributes or kind is None:
            if decoded.bits_allocated not in (8, 16, 32, 64):
                raise CannotRender(f"Pixel cells of {decoded.bits_allocated} bits cannot be rendered.")
            kind = f"<u{decoded.bits_allocated // 8}"
        if count == 3 and decoded.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            if len(octets) == decoded.frame_bits // 8 and columns % 2 == 0:
                return _upsampled(numpy.frombuffer(octets, kind).reshape(rows, columns // 2, 4)), decoded
            raise CannotRender("The subsampled colours of the image are damaged.")
        cells = numpy.frombuffer(octets, kind)
        if cells.size != rows * columns * count:
            raise CannotRender("The frame has not as many pixels as its rows and columns say.")
        if count == 1:
            return cells.reshape(rows, columns), decoded
        if decoded.planar == 1:
            return numpy.ascontiguousarray(numpy.moveaxis(cells.reshape(count, rows, columns), 0, -1)), decoded
        return cells.reshape(rows, columns, count), decoded

    def picture(
        self,
        number: int,
        window: Window | None = None,
        grayscale: Grayscale | None = None,
        mask: Mask | None = None,
    ) -> Image.Image:
        """A frame as an 8-bit grey (L) or RGB image of Rows × Columns. Raises CannotRender.

        `window` replaces the image's own VOI transformation, `grayscale` all of its grayscale transformations, and
        brings its own `mask`. They are for grayscale images and are ignored for others (PS3.18 8.3.5.1.4).
        """
        if grayscale is None and self.is_grayscale and wants_subtraction(self.attributes):
            mask = mask_of(self.attributes, number, self.image.frames)
        if mask is not None and self.is_grayscale:
            return self._subtracted(number, mask, window, grayscale)
        samples, image = self.samples(number)
        if self.is_segmentation and image.samples == 1:
            return self._segments(number, samples, image)
        if image.samples > 1:
            return _colour_picture(samples, image)
        cells = Cells(image.bits_allocated, image.bits_stored, image.high_bit, image.signed)
        if image.bits_allocated == 1:
            cells = Cells(8, 1, 0, False)
        if image.photometric == "PALETTE COLOR":
            return self._palette_picture(samples, cells)
        if grayscale is None:
            grayscale = self.grayscale(number, samples, cells, window)
        if self.sop_class == _RT_DOSE:
            return _painted(grey_levels(samples, cells, grayscale), _dose_colours())
        if (palette := self._supplemental_palette(number)) and samples.dtype.itemsize <= 2:
            return _from_table(samples, colour_table(cells, palette, grayscale))
        return grey_picture(grey_levels(samples, cells, grayscale))

    def _subtracted(self, number: int, mask: Mask, window: Window | None, grayscale: Grayscale | None) -> Image.Image:
        """A frame without what is in its mask too: the difference of the values after the modality LUT.

        The image's own window is for frames as they are; without another one the least and the greatest difference
        become black and white.
        """
        modality = grayscale.modality if grayscale else self.modality(number)
        subtrahend = self._mean(mask.frames, modality)
        if any(mask.shift):
            down, across = mask.shift
            moved = Image.fromarray(subtrahend).transform(
                (subtrahend.shape[1], subtrahend.shape[0]),
                Image.Transform.AFFINE,
                (1, 0, -across, 0, 1, -down),
                Image.Resampling.BILINEAR,
            )
            subtrahend = numpy.asarray(moved)
        difference = self._mean(mask.contrast, modality) - subtrahend
        if grayscale is None:
            inverse = self.image.photometric == "MONOCHROME1"
            grayscale = Grayscale(
                Rescale(), window or value_range(difference, self.cells, Rescale(), None), None, inverse
            )
        else:
            grayscale = replace(grayscale, modality=Rescale(), padding=None)
        return grey_picture(grey_levels(difference, self.cells, grayscale))

    def _mean(self, numbers: Sequence[int], modality: Rescale | LookupTable) -> Array:
        """The mean of frames, after the modality LUT."""
        total: Array | None = None
        for number in numbers:
            samples, image = self.samples(number)
            cells = Cells(image.bits_allocated, image.bits_stored, image.high_bit, image.signed)
            stored = samples if samples.dtype.kind == "f" else cells.values(samples)
            frame = modality.apply(stored.astype(numpy.float32)).astype(numpy.float32)
            total = frame if total is None else total + frame
        assert total is not None
        return total / numpy.float32(len(numbers))

    # -- grayscale

    def grayscale(self, number: int, samples: Array, cells: Cells, window: Window | None = None) -> Grayscale:
        """The grayscale transformations that the image itself asks for."""
        modality = self.modality(number)
        padding = self.padding(samples.dtype.kind == "f")
        voi: Window | LookupTable | Range | None = window or self.voi(number, modality)
        if voi is None:
            voi = value_range(samples, cells, modality, padding)
            if self.sop_class == _RT_DOSE:
                voi = Range(0.0, voi.high)
            elif voi.low == voi.high and samples.dtype.kind != "f" and isinstance(modality, Rescale):
                ends = modality.apply(numpy.array([cells.lowest, cells.highest], float))
                voi = Range(float(ends.min()), float(ends.max()))
        shape = values.string(self.attributes, "PresentationLUTShape")
        inverse = self.image.photometric == "MONOCHROME1" or shape == "INVERSE"
        return Grayscale(modality, voi, None, inverse, padding)

    def modality(self, number: int) -> Rescale | LookupTable:
        """The modality LUT (PS3.3 C.11.1); of projection X-ray it is no part of display where pixel values are
        logarithmic or made for display (C.8.7.1.1.2)."""
        relationship = values.string(self.attributes, "PixelIntensityRelationship")
        if self.sop_class in _XRAY_PROJECTIONS and relationship in ("LOG", "DISP"):
            return Rescale()
        if table := values.item(self.attributes, "ModalityLUTSequence"):
            found = self.lookup_table(table, signed_input=self.image.signed)
            if found:
                return found
        group = self.group(number, "PixelValueTransformationSequence")
        slope, intercept = values.number(group, "RescaleSlope"), values.number(group, "RescaleIntercept")
        if slope is None and intercept is None and self.sop_class == _RT_DOSE:
            slope = values.number(self.attributes, "DoseGridScaling")
        return Rescale(slope or 1.0, intercept or 0.0)

    def voi(self, number: int, modality: Rescale | LookupTable) -> Window | LookupTable | None:
        """The first window of the frame that makes sense, else its first VOI LUT (PS3.3 C.11.2)."""
        for attributes in (self.group(number, "FrameVOILUTSequence"), self.attributes):
            if found := first_window(attributes):
                if found.function == "linear" and self._is_floating_point:
                    # LINEAR is for whole numbers: of values from 0 to 1 it would leave two grey levels.
                    return Window(found.center, found.width, "linear-exact")
                return found
        signed = self.image.signed or (isinstance(modality, Rescale) and modality.intercept < 0)
        for item in values.items(self.attributes, "VOILUTSequence"):
            if table := self.lookup_table(item, signed_input=signed):
                return table
        return None

    def padding(self, floating_point: bool) -> tuple[float, float] | None:
        """The stored values that are padding, lowest and highest (PS3.3 C.7.5.1.1.2)."""
        if self.sop_class == _WHOLE_SLIDE_IMAGES:
            return None
        if floating_point:
            prefix = "DoubleFloat" if "7FE00009" in self.attributes else "Float"
            value = values.number(self.attributes, prefix + "PixelPaddingValue")
            limit = values.number(self.attributes, prefix + "PixelPaddingRangeLimit")
        else:
            value = values.number(self.attributes, "PixelPaddingValue")
            limit = values.number(self.attributes, "PixelPaddingRangeLimit")
            # Whether it was written as signed or unsigned, its bits are those of a stored value.
            value, limit = self._as_stored(value), self._as_stored(limit)
        if value is None:
            return None
        return min(value, value if limit is None else limit), max(value, value if limit is None else limit)

    def _as_stored(self, value: float | None) -> float | None:
        if value is None:
            return None
        bits = int(value) & (1 << self.image.bits_stored) - 1
        is_negative = self.image.signed and bits >> (self.image.bits_stored - 1)
        return float(bits - (1 << self.image.bits_stored) if is_negative else bits)

    # -- colour

    def _palette_picture(self, samples: Array, cells: Cells) -> Image.Image:
        palette = self.palette()
        if palette is None:
            raise CannotRender("The image is PALETTE COLOR, but its palette is missing or damaged.")
        if samples.dtype.itemsize > 2:
            return _rgb_image(palette.rgb(cells.values(samples)))
        return _from_table(samples, colour_table(cells, palette))

    def _supplemental_palette(self, number: int) -> Palette | None:
        group = self.find(number, "PixelPresentation")
        if values.string(group, "PixelPresentation") not in ("COLOR", "MIXED"):
            return None
        return self.palette()

    def _segments(self, number: int, samples: Array, image: ImagePixel) -> Image.Image:
        """A frame of a segmentation (PS3.3 C.8.20): its segments in their colours on black."""
        colours = {
            values.integer(segment, "SegmentNumber"): _segment_colour(segment)
            for segment in values.items(self.attributes, "SegmentSequence")
        }
        kind = values.string(self.attributes, "SegmentationType")
        if kind == "LABELMAP" or (not kind and self.sop_class.endswith("66.7")):
            if image.photometric == "PALETTE COLOR" and self.palette():
                return self._palette_picture(samples, self.cells)
            top = 1 << (8 * samples.dtype.itemsize)
            if samples.dtype.itemsize > 2:
                raise CannotRender("Label maps of more than 16 bits cannot be rendered.")
            table = numpy.zeros((top, 4), numpy.uint8)
            cycle = numpy.array(_SEGMENT_COLOURS, numpy.uint8)
            table[1:, :3] = cycle[(numpy.arange(1, top) - 1) % len(cycle)]
            for segment, colour in colours.items():
                if 0 < segment < top:
                    table[segment, :3] = colour
            background = values.number(self.attributes, "PixelPaddingValue")
            if background is not None and 0 <= background < top:
                table[int(background)] = 0
            return _from_table(samples, table.reshape(-1).view("<u4"))
        identification = self.group(number, "SegmentIdentificationSequence")
        segment = values.integer(identification, "ReferencedSegmentNumber", 1)
        colour = colours.get(segment) or _SEGMENT_COLOURS[(segment - 1) % len(_SEGMENT_COLOURS)]
        highest = values.integer(self.attributes, "MaximumFractionalValue", 255) if kind == "FRACTIONAL" else 1
        if samples.dtype.itemsize > 1:
            raise CannotRender("Segments of more than 8 bits cannot be rendered.")
        shares = numpy.clip(numpy.arange(256) / max(highest, 1), 0, 1)
        return _painted(samples, numpy.rint(shares[:, None] * numpy.array(colour)).astype(numpy.uint8))


# ---------------------------------------------------------------------------------------------------------------------
# Parts of data sets


def first_window(attributes: Attributes) -> Window | None:
    """The first usable Window Center and Width of a data set (PS3.3 C.11.2.1.2)."""
    function = _VOI_FUNCTIONS.get(values.string(attributes, "VOILUTFunction"), "linear")
    centers, widths = values.numbers(attributes, "WindowCenter"), values.numbers(attributes, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        window = Window(center, width, function)
        if window.is_valid:
            return window
        if 0 < width < 1:  # no LINEAR one; images of small numbers have them all the same
            return Window(center, width, "linear-exact")
    return None


def _segment_colour(segment: Attributes) -> Rgb:
    recommended = values.numbers(segment, "RecommendedDisplayCIELabValue")
    if len(recommended) == 3:
        return rgb_of_cielab(recommended)
    return _SEGMENT_COLOURS[(values.integer(segment, "SegmentNumber", 1) - 1) % len(_SEGMENT_COLOURS)]


# ---------------------------------------------------------------------------------------------------------------------
# Arrays to images


def _rgb_image(colours: Array) -> Image.Image:
    rows, columns, _ = colours.shape
    return Image.frombuffer("RGB", (columns, rows), numpy.ascontiguousarray(colours), "raw", "RGB", 0, 1)


def _from_table(samples: Array, table: Array) -> Image.Image:
    """An RGB image by a table of R G B 0."""
    rows, columns = samples.shape
    return Image.frombuffer("RGBX", (columns, rows), look_up(table, samples), "raw", "RGBX", 0, 1).convert("RGB")


def _painted(levels: Array, colours: Array) -> Image.Image:
    """An RGB image of 8-bit levels by 256 colours."""
    table = numpy.zeros((256, 4), numpy.uint8)
    table[:, :3] = colours
    return _from_table(levels, table.reshape(-1).view("<u4"))


@functools.cache
def _dose_colours() -> Array:
    """Black for zero, then blue, cyan, green, yellow, red in equal steps."""
    stops = numpy.array([(0, 0, 128), (0, 64, 255), (0, 220, 220), (0, 200, 0), (255, 230, 0), (255, 0, 0)], float)
    places = numpy.linspace(0, len(stops) - 1, 256)
    colours = numpy.stack(
        [numpy.interp(places, numpy.arange(len(stops)), stops[:, channel]) for channel in range(3)], 1
    )
    colours[0] = 0
    painted: Array = numpy.rint(colours).astype(numpy.uint8)
    return painted


def _upsampled(pairs: Array) -> Array:
    """YBR_FULL_422 (PS3.3 C.7.6.3.1.2): Y1 Y2 CB CR for two pixels, to (rows, columns, 3)."""
    rows, half, _ = pairs.shape
    found = numpy.empty((rows, half, 2, 3), pairs.dtype)
    found[..., 0] = pairs[..., :2]
    found[..., 1:] = pairs[:, :, None, 2:]
    return found.reshape(rows, half * 2, 3)


def _to_8_bits(samples: Array, image: ImagePixel) -> Array:
    if samples.dtype.kind == "f":
        raise CannotRender("Colour images of floating point numbers cannot be rendered.")
    if samples.dtype.itemsize > 1:
        return (samples >> max(image.bits_stored - 8, 0)).astype(numpy.uint8)
    if image.bits_stored < 8:
        return (samples.astype(numpy.uint16) * 255 // ((1 << image.bits_stored) - 1)).clip(0, 255).astype(numpy.uint8)
    return samples


def _colour_picture(samples: Array, image: ImagePixel) -> Image.Image:
    """An RGB image of three or four samples per pixel (PS3.3 C.7.6.3.1.2)."""
    eight = _to_8_bits(samples, image)
    photometric = image.photometric
    if image.samples == 4:
        if photometric == "CMYK":
            rows, columns, _ = eight.shape
            ink = numpy.ascontiguousarray(eight)
            return Image.frombuffer("CMYK", (columns, rows), ink, "raw", "CMYK", 0, 1).convert("RGB")
        return _rgb_image(eight[..., 1:] if photometric == "ARGB" else eight[..., :3])
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        rows, columns, _ = eight.shape
        full = numpy.ascontiguousarray(eight)
        return Image.frombuffer("YCbCr", (columns, rows), full, "raw", "YCbCr", 0, 1).convert("RGB")
    if photometric in ("YBR_PARTIAL_422", "YBR_PARTIAL_420"):
        return _rgb_image(_partial_range(eight))
    if photometric == "HSV":
        rows, columns, _ = eight.shape
        hsv = numpy.ascontiguousarray(eight)
        return Image.frombuffer("HSV", (columns, rows), hsv, "raw", "HSV", 0, 1).convert("RGB")
    return _rgb_image(eight)


def _partial_range(samples: Array) -> Array:
    """RGB of ITU-R BT.601 with headroom: Y from 16 to 235, CB and CR from 16 to 240."""
    found = numpy.empty(samples.shape, numpy.uint8)
    for row in range(0, samples.shape[0], 64):
        y, cb, cr = numpy.moveaxis(samples[row : row + 64].astype(float), -1, 0)
        y, cb, cr = (y - 16) * (255 / 219), (cb - 128) * (255 / 224), (cr - 128) * (255 / 224)
        rgb = numpy.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
        found[row : row + 64] = numpy.clip(numpy.rint(rgb), 0, 255)
    return found
