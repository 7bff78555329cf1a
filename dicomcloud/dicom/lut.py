"""From stored pixel values to what is displayed (PS3.4 N.2, PS3.3 C.11): modality, VOI and presentation LUT, palettes.

Everything is composed into one table over all values that a pixel cell can have, built once and kept. The cells of a
frame are then looked up as they lie in the file: unused bits, overlay bits and signs are a matter of the table. Only
cells of 32 bits and more, and floating point ones, are computed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from .halves import LARGE, in_halves
from .rendering_parameters import Window

Array = NDArray[Any]
Rgb = tuple[int, int, int]

_PIECE: Final = 1 << 16  # elements looked up at a time: the index that numpy makes of them stays in the cache
_FLOAT_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """The values to be shown as black and white where nothing else says so."""

    low: float
    high: float

    def apply(self, values: Array) -> Array:
        if self.high <= self.low:
            return (values > self.low).astype(float)
        # Halved: the difference of two large doubles may be infinite.
        return (values / 2 - self.low / 2) / (self.high / 2 - self.low / 2)


def windowed(window: Window, values: Array) -> Array:
    """0.0 and below for black to 1.0 and above for white, of values after the modality LUT (PS3.3 C.11.2.1.2)."""
    if window.function == "sigmoid":
        exponent = numpy.clip((values - window.center) * (-4.0 / window.width), -700, 700)
        return numpy.asarray(1.0 / (1.0 + numpy.exp(exponent)))
    if window.function == "linear-exact":
        return (values - window.center) / window.width + 0.5
    if window.width == 1:
        return (values > window.center - 0.5).astype(float)
    return (values - (window.center - 0.5)) / (window.width - 1) + 0.5


@dataclass(frozen=True, slots=True)
class Rescale:
    """Rescale Slope and Intercept (PS3.3 C.11.1)."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, values: Array) -> Array:
        if self.slope == 1 and self.intercept == 0:
            return values
        return values * self.slope + self.intercept


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A modality, VOI or presentation LUT (PS3.3 C.11.1.1.1, C.11.2.1.1): `entries` are 16-bit, little endian."""

    first: int
    bits: int
    entries: bytes

    def _look_up(self, index: Array) -> Array:
        table = numpy.frombuffer(self.entries, "<u2").astype(float)
        return numpy.asarray(table[numpy.clip(numpy.nan_to_num(index), 0, len(table) - 1).astype(numpy.intp)])

    def apply(self, values: Array) -> Array:
        """The entries for values; those outside the table get its first or last one."""
        return self._look_up(numpy.floor(values) - self.first)

    def apply_scaled(self, values: Array) -> Array:
        """0.0 to 1.0, for values."""
        return self.apply(values) / self._white

    def apply_to_fraction(self, fractions: Array) -> Array:
        """0.0 to 1.0, for 0.0 to 1.0: a presentation LUT, whose input range is that of the VOI LUT's output."""
        return self._look_up(numpy.rint(fractions * (len(self.entries) // 2 - 1))) / self._white

    @property
    def _white(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class Cells:
    """How a stored value lies in a pixel cell of 8 or 16 bits (PS3.5 8.1.1)."""

    allocated: int
    stored: int
    high_bit: int
    signed: bool

    @property
    def lowest(self) -> int:
        return -(1 << (self.stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.stored - self.signed)) - 1

    def values(self, cells: Array) -> Array:
        """The stored values, as int64, of unsigned cells."""
        shift = min(max(self.high_bit + 1 - self.stored, 0), self.allocated - self.stored)
        if self.stored >= 64:
            return cells.astype(numpy.uint64).view(numpy.int64) if self.signed else cells.astype(float)
        found = (cells.astype(numpy.uint64) >> numpy.uint64(shift) & numpy.uint64((1 << self.stored) - 1)).astype(
            numpy.int64
        )
        if self.signed:
            sign = 1 << (self.stored - 1)
            found = (found ^ sign) - sign
        return found


@dataclass(frozen=True, slots=True)
class Grayscale:
    """The grayscale transformations of a frame, in the order in which they are applied (PS3.4 Figure N.2-1).

    `padding` are the stored values, first and last, of pixels that are none (PS3.3 C.7.5.1.1.2): shown black whatever
    the other transformations say.
    """

    modality: Rescale | LookupTable
    voi: Window | Range | LookupTable
    presentation: LookupTable | None = None
    inverse: bool = False
    padding: tuple[float, float] | None = None

    def levels(self, stored: Array) -> NDArray[numpy.uint8]:
        """Grey levels, 0 black to 255 white, of stored values."""
        with numpy.errstate(all="ignore"):
            values = self.modality.apply(stored.astype(float))
            if isinstance(self.voi, LookupTable):
                fractions = self.voi.apply_scaled(values)
            elif isinstance(self.voi, Range):
                fractions = self.voi.apply(values)
            else:
                fractions = windowed(self.voi, values)
            fractions = numpy.clip(numpy.nan_to_num(fractions), 0.0, 1.0)
            if self.presentation:
                fractions = numpy.clip(self.presentation.apply_to_fraction(fractions), 0.0, 1.0)
            if self.inverse:
                fractions = 1.0 - fractions
            levels = (fractions * 255.0 + 0.5).astype(numpy.uint8)
        nothing = _padding(stored, self.padding)
        if stored.dtype.kind == "f":
            nothing = nothing | ~numpy.isfinite(stored)
        levels[nothing] = 0
        return levels


def _padding(stored: Array, padding: tuple[float, float] | None) -> NDArray[numpy.bool_]:
    if padding is None:
        return numpy.zeros(stored.shape, bool)
    return numpy.asarray((stored >= padding[0]) & (stored <= padding[1]))


@lru_cache(maxsize=8)
def _all_values(cells: Cells) -> Array:
    """The stored value of every possible content of a cell, by that content."""
    found = cells.values(numpy.arange(1 << cells.allocated))
    found.flags.writeable = False
    return found


@lru_cache(maxsize=128)
def grey_table(cells: Cells, grayscale: Grayscale) -> NDArray[numpy.uint8]:
    """The grey level of every possible content of a cell."""
    shift = cells.high_bit + 1 - cells.stored
    if cells.stored < cells.allocated and shift == 0:
        # The unused bits are above: the table repeats itself.
        levels = grayscale.levels(cells.values(numpy.arange(1 << cells.stored)))
        table = numpy.tile(levels, 1 << (cells.allocated - cells.stored))
    else:
        table = grayscale.levels(_all_values(cells))
    table.flags.writeable = False
    return table


def look_up(table: Array, cells: Array) -> Array:
    """table[cells], piece by piece; `table` must have an entry for every possible content of a cell."""
    found = numpy.empty(cells.shape, table.dtype)
    flat, target = cells.reshape(-1), found.reshape(-1)

    def part(first: int, end: int) -> None:
        for start in range(first, end, _PIECE):
            stop = min(start + _PIECE, end)
            numpy.take(table, flat[start:stop], out=target[start:stop], mode="clip")

    if flat.size < LARGE:
        part(0, flat.size)
    else:
        in_halves(part, flat.size)
    return found


def grey_levels(samples: Array, cells: Cells, grayscale: Grayscale) -> NDArray[numpy.uint8]:
    """Grey levels of a frame: unsigned integer cells as stored, or floating point values."""
    if samples.dtype.itemsize <= 2 and samples.dtype.kind == "u":
        return look_up(grey_table(cells, grayscale), samples)
    found = numpy.empty(samples.shape, numpy.uint8)
    flat, target = samples.reshape(-1), found.reshape(-1)
    for start in range(0, flat.size, _FLOAT_PIECE):
        piece = flat[start : start + _FLOAT_PIECE]
        target[start : start + _FLOAT_PIECE] = grayscale.levels(
            piece if piece.dtype.kind == "f" else cells.values(piece)
        )
    return found


def value_range(
    samples: Array, cells: Cells, modality: Rescale | LookupTable, padding: tuple[float, float] | None
) -> Range:
    """The least and greatest value in a frame after the modality LUT, padding left aside."""
    values = _extremes(samples, cells)
    if isinstance(modality, LookupTable) or _padding(values, padding).any():
        values = _present_values(samples, cells)
        values = values[~_padding(values, padding)]
    if values.size == 0:
        return Range(0.0, 1.0)
    with numpy.errstate(all="ignore"):
        found = modality.apply(values.astype(float))
    return Range(float(found.min()), float(found.max()))


def _extremes(samples: Array, cells: Cells) -> Array:
    """The least and greatest stored value of a frame."""
    if samples.dtype.kind == "f":
        finite = samples[numpy.isfinite(samples)]
        return numpy.array([finite.min(), finite.max()]) if finite.size else finite
    if cells.high_bit + 1 == cells.stored and samples.size:
        # If no cell has anything in its unused bits, cells can be compared as they are.
        plain = samples.view(f"<i{samples.dtype.itemsize}") if cells.signed else samples
        low, high = int(plain.min()), int(plain.max())
        if low >= cells.lowest and high <= cells.highest:
            return numpy.array([low, high], None if high < 1 << 63 else float)
    found = _present_values(samples, cells)
    return found[[found.argmin(), found.argmax()]] if found.size else found


def _present_values(samples: Array, cells: Cells) -> Array:
    """The stored values of a frame; where they are few each once."""
    if samples.dtype.kind == "f":
        return samples[numpy.isfinite(samples)]
    if samples.dtype.itemsize > 2:
        return cells.values(samples.reshape(-1))
    present = numpy.zeros(1 << cells.allocated, bool)
    for start in range(0, samples.size, _PIECE):
        present[samples.reshape(-1)[start : start + _PIECE]] = True
    return _all_values(cells)[present]


# ---------------------------------------------------------------------------------------------------------------------
# Colour


@dataclass(frozen=True, slots=True)
class Palette:
    """Red, green and blue Palette Color Lookup Tables (PS3.3 C.7.6.3.1.5): 16-bit little endian entries."""

    first: int
    bits: int
    red: bytes
    green: bytes
    blue: bytes

    def rgb(self, stored: Array) -> NDArray[numpy.uint8]:
        """Colours of stored values, shape (…, 3). Values outside the table get its first or last colour."""
        channels = []
        for entries in (self.red, self.green, self.blue):
            table = numpy.frombuffer(entries, "<u2")
            index = numpy.clip(stored - self.first, 0, len(table) - 1).astype(numpy.intp)
            channels.append(table[index])
        # Some writers promise 16 bits and give 8.
        shift = 8 if self.bits > 8 and any(channel.max(initial=0) > 255 for channel in channels) else 0
        return (numpy.stack(channels, axis=-1) >> shift).astype(numpy.uint8)


@lru_cache(maxsize=32)
def colour_table(cells: Cells, palette: Palette, grayscale: Grayscale | None = None) -> NDArray[numpy.uint32]:
    """The colour of every possible content of a cell, as the bytes R G B 0 in memory.

    With `grayscale` the palette is supplemental (PS3.3 C.7.6.19): only the values from its first on have colours.
    """
    stored = _all_values(cells)
    colours = numpy.zeros((len(stored), 4), numpy.uint8)
    colours[:, :3] = palette.rgb(stored)
    if grayscale is not None:
        below = stored < palette.first
        colours[below, :3] = grey_table(cells, grayscale)[below, None]
    table = colours.reshape(-1).view("<u4")
    table.flags.writeable = False
    return table


def expand_segments(words: Sequence[int], length: int, word_size: int) -> list[int]:
    """The `length` entries of a Segmented Palette Color Lookup Table (PS3.3 C.7.9.2) of words of 1 or 2 bytes.

    Raises ValueError if the segments are damaged.
    """
    table: list[int] = []
    starts: set[int] = set()
    offset_words = 4 // word_size

    def segment(at: int, *, nested: bool) -> int:
        """Append one segment; return where the next one begins."""
        if at + 3 > len(words):
            raise ValueError("a segment is cut off")
        kind, count = words[at], words[at + 1]
        if len(table) >= length or count == 0:
            raise ValueError("the segments do not make as many entries as they should")
        if kind == 0:
            entries = words[at + 2 : at + 2 + count]
            if len(entries) != count:
                raise ValueError("a discrete segment is cut off")
            table.extend(entries)
            return at + 2 + count
        if kind == 1 and table:
            start, end = table[-1], words[at + 2]
            table.extend(round(start + (end - start) * step / count) for step in range(1, count + 1))
            return at + 3
        if kind == 2 and not nested and at + 2 + offset_words <= len(words):
            parts = enumerate(words[at + 2 : at + 2 + offset_words])
            target = sum(word << 8 * word_size * place for place, word in parts) // word_size
            for _ in range(count):
                if target not in starts:
                    raise ValueError("an indirect segment points to nothing")
                target = segment(target, nested=True)
            return at + 2 + offset_words
        raise ValueError(f"a segment of type {kind} cannot be where it is")

    position = 0
    while len(table) < length:
        starts.add(position)
        position = segment(position, nested=False)
    return table[:length]


def rgb_of_cielab(value: Sequence[float]) -> Rgb:
    """sRGB of a CIELab value as DICOM encodes it: three numbers of 16 bits (PS3.3 C.10.7.1.1), D50."""
    fractions = [min(max(component / 65535, 0.0), 1.0) for component in value]
    lightness = fractions[0] * 100
    a, b = (fraction * 255 - 128 for fraction in fractions[1:3])
    fy = (lightness + 16) / 116
    xyz = [
        white * (f**3 if f > 6 / 29 else 3 * (6 / 29) ** 2 * (f - 4 / 29))
        for white, f in zip((0.9642, 1.0, 0.8249), (fy + a / 500, fy, fy - b / 200), strict=True)
    ]
    # XYZ of D50 → linear sRGB, Bradford adaptation included
    matrix = ((3.1339, -1.6169, -0.4906), (-0.9788, 1.9161, 0.0335), (0.0719, -0.2290, 1.4052))
    linear = (min(max(sum(m * c for m, c in zip(row, xyz, strict=True)), 0.0), 1.0) for row in matrix)
    red, green, blue = (round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)) for c in linear)
    return red, green, blue
