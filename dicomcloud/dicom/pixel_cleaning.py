"""Clean Pixel Data (PS3.15 E.3.1): which rectangles of an image are blacked out, and blacking them out.

Rules come from a TOML file, one table each; the first that matches an image counts:

    [[rule]]
    modality = "US"                     # each of these may be left out; * stands for anything, case does not matter
    manufacturer = "ACME*"
    model = "Sono 3*"
    sop_class = "1.2.840.10008.5.1.4.1.1.6.1"
    rows = 600
    columns = 800
    regions = [[0, 0, 800, 60]]         # left, top, width, height in pixels; [] says: nothing is burned in here
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, BinaryIO, Final

Region = tuple[int, int, int, int]

#: What a rule may ask for → tag.
RULE_ATTRIBUTES: Final[Mapping[str, int]] = {
    "modality": 0x00080060,
    "manufacturer": 0x00080070,
    "model": 0x00081090,
    "sop_class": 0x00080016,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "burned_in": 0x00280301,
}
_PATTERNS: Final = ("modality", "manufacturer", "model", "sop_class")
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_ULTRASOUND: Final = ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.6")
_LARGEST_FRAME: Final = 1 << 30


class CannotClean(Exception):
    """The pixels cannot be cleaned; the message is for people."""


@dataclass(frozen=True, slots=True)
class PixelRule:
    """Which images it is for, and their rectangles: left, top, width, height in pixels."""

    regions: tuple[Region, ...]
    modality: str = "*"
    manufacturer: str = "*"
    model: str = "*"
    sop_class: str = "*"
    rows: int | None = None
    columns: int | None = None

    def matches(self, image: Mapping[str, str]) -> bool:
        sizes = ((self.rows, "rows"), (self.columns, "columns"))
        return all(fnmatchcase(image.get(name, "").lower(), getattr(self, name).lower()) for name in _PATTERNS) and all(
            size is None or image.get(name) == str(size) for size, name in sizes
        )


def parse_pixel_rules(toml: str) -> tuple[PixelRule, ...]:
    """The rules of a TOML text, in their order. Raises ValueError saying which rule is wrong."""
    try:
        document = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"The pixel rules are not valid TOML: {error}") from None
    tables = document.pop("rule", [])
    if document or not isinstance(tables, list):
        raise ValueError("The pixel rules hold something other than [[rule]] tables")
    return tuple(_parse_rule(number, table) for number, table in enumerate(tables, 1))


def _parse_rule(number: int, table: Any) -> PixelRule:
    def demand(condition: bool, what: str) -> None:
        if not condition:
            raise ValueError(f"Pixel rule {number}: {what}")

    demand(isinstance(table, dict) and "regions" in table, "it has no regions")
    unknown = table.keys() - {"regions", "rows", "columns", *_PATTERNS}
    demand(not unknown, f"{', '.join(sorted(unknown))} is unknown")
    regions = table["regions"]
    demand(isinstance(regions, list), "regions is not a list")
    for region in regions:
        demand(
            isinstance(region, list) and len(region) == 4 and all(type(side) is int and side >= 0 for side in region),
            "a region is not [left, top, width, height]",
        )
    for name in _PATTERNS:
        demand(isinstance(table.get(name, ""), str), f"{name} is not a text")
    for name in ("rows", "columns"):
        demand(name not in table or type(table[name]) is int, f"{name} is not a whole number")
    return PixelRule(**{**table, "regions": tuple(map(tuple, regions))})


def matching_rule(rules: Iterable[PixelRule], image: Mapping[str, str]) -> PixelRule | None:
    return next((rule for rule in rules if rule.matches(image)), None)


def is_at_risk(image: Mapping[str, str]) -> bool:
    """Whether text may be burned in: it says so, or it is ultrasound or a secondary capture and does not deny it."""
    burned_in = image.get("burned_in", "").upper()
    if burned_in in ("YES", "NO"):
        return burned_in == "YES"
    sop_class = image.get("sop_class", "")
    return (
        image.get("modality", "").upper() in ("US", "IVUS")
        or sop_class.startswith((_SECONDARY_CAPTURE, *(f"{root}." for root in _ULTRASOUND)))
        or sop_class in _ULTRASOUND
    )


@dataclass(frozen=True, slots=True)
class Image:
    """How the pixels of a native image lie (PS3.3 C.7.6.3, PS3.5 8.2)."""

    rows: int
    columns: int
    frames: int
    samples: int
    planes: bool
    photometric: str
    bits_allocated: int
    bits_stored: int
    signed: bool
    little_endian: bool

    @classmethod
    def of(cls, look_up: Callable[[int], str], little_endian: bool) -> Image:
        """From a look-up of attributes by tag. Raises CannotClean."""

        def number(tag: int, default: int | None = None) -> int:
            text = look_up(tag)
            if not text and default is not None:
                return default
            if not text.lstrip("+").isdigit():
                raise CannotClean("The attributes of the image are missing or wrong: its pixels cannot be cleaned")
            return int(text)

        allocated = number(0x00280100)
        image = cls(
            rows=number(0x00280010),
            columns=number(0x00280011),
            frames=max(1, number(0x00280008, 1)),
            samples=number(0x00280002, 1),
            planes=number(0x00280006, 0) == 1,
            photometric=look_up(0x00280004),
            bits_allocated=allocated,
            bits_stored=number(0x00280101, allocated),
            signed=number(0x00280103, 0) == 1,
            little_endian=little_endian,
        )
        if allocated not in (8, 16, 32) or not 0 < image.bits_stored <= allocated or image.samples not in (1, 3, 4):
            raise CannotClean("Pixels of this depth cannot be cleaned")
        if not 0 < image.frame_length <= _LARGEST_FRAME:
            raise CannotClean("The image has no pixels, or too many")
        if image.subsampled and (image.columns % 2 or image.samples != 3 or allocated != 8):
            raise CannotClean("Subsampled pixels of this form cannot be cleaned")
        return image

    @property
    def subsampled(self) -> bool:
        return "422" in self.photometric

    @property
    def frame_length(self) -> int:
        samples = 2 if self.subsampled else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8

    def check(self, length: int) -> None:
        """Raises CannotClean when the pixel data are shorter than the image."""
        if length < self.frames * self.frame_length:
            raise CannotClean("The pixel data are shorter than the image")

    def clean(
        self, source: BinaryIO, target: BinaryIO, length: int, regions: Sequence[Region], overlay_bits: int
    ) -> None:
        """Copy `length` bytes of native pixel data frame by frame, with black regions and without `overlay_bits`."""
        import numpy

        order = "<" if self.little_endian else ">"
        kind = numpy.dtype(f"{order}u{self.bits_allocated // 8}")
        keep = ~overlay_bits & ((1 << self.bits_allocated) - 1)
        for _ in range(self.frames):
            data = source.read(self.frame_length)
            if len(data) != self.frame_length:
                raise CannotClean("The pixel data are shorter than the image")
            pixels = numpy.frombuffer(bytearray(data), kind)
            if overlay_bits:
                pixels &= kind.type(keep)
            for region in regions:
                self._blacken(pixels, region)
            target.write(pixels.tobytes())
        target.write(source.read(length - self.frames * self.frame_length))  # padding

    def _blacken(self, pixels: Any, region: Region) -> None:
        left, top, width, height = region
        across, down = slice(left, left + width), slice(top, top + height)
        if self.subsampled:  # Y Y Cb Cr for two pixels
            pairs = pixels.reshape(self.rows, self.columns // 2, 4)
            pairs[down, left // 2 : (left + width + 1) // 2] = (0, 0, 128, 128)
            return
        black = self._black()
        if self.samples == 1:
            pixels.reshape(self.rows, self.columns)[down, across] = black[0]
        elif self.planes:
            planes = pixels.reshape(self.samples, self.rows, self.columns)
            for plane, value in zip(planes, black, strict=True):
                plane[down, across] = value
        else:
            pixels.reshape(self.rows, self.columns, self.samples)[down, across] = black

    def _black(self) -> tuple[int, ...]:
        """The stored value of black, for each sample."""
        if self.photometric.startswith("YBR"):
            middle = 1 << (self.bits_stored - 1)
            return (0, *(middle,) * (self.samples - 1))
        stored = (1 << self.bits_stored) - 1
        least = 1 << (self.bits_stored - 1) if self.signed else 0
        if self.signed and self.photometric != "MONOCHROME1" and self.bits_stored < self.bits_allocated:
            least |= ((1 << self.bits_allocated) - 1) & ~stored  # the sign, in all bits
        if self.photometric == "MONOCHROME1":
            return (stored >> 1 if self.signed else stored,)
        return (least,) * self.samples
