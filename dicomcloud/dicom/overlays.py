"""What lies over the pixels of an image in its own matrix: overlay planes and display shutters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy
from PIL import Image, ImageDraw

from . import values
from .lut import Array, Rgb, rgb_of_cielab
from .stored_image import CannotRender, StoredImage, StoredObject
from .values import Attributes

_MAX_OVERLAY_PIXELS: Final = 100_000_000
_MAX_VERTICES: Final = 100_000
GROUPS: Final = range(0x6000, 0x6020, 2)


@dataclass(frozen=True, slots=True)
class Overlay:
    """One overlay plane (PS3.3 C.9.2): a bitmap, and the column and row of the image under its first pixel, from 0."""

    group: int
    column: int
    row: int
    bitmap: Array  # rows × columns, 0 or 255


def group_of(attributes: Attributes, group: int) -> Attributes:
    """The attributes of one repeating group, under the keys of group 6000."""
    prefix = f"{group:04X}"
    return {"6000" + key[4:]: attribute for key, attribute in attributes.items() if key.startswith(prefix)}


def overlays(source: StoredObject, number: int, image: StoredImage | None = None) -> Iterator[Overlay]:
    """The overlay planes for a frame that a data set has: those of an image, or of a presentation state.

    `image`: where planes lie in unused bits of its pixel cells (retired, PS3.5 8.1.2). Damaged planes are left out.
    """
    if not any(key.startswith("60") for key in source.attributes):
        return
    for group in GROUPS:
        plane = group_of(source.attributes, group)
        rows, columns = values.integer(plane, "OverlayRows"), values.integer(plane, "OverlayColumns")
        if not (rows > 0 and columns > 0 and rows * columns <= _MAX_OVERLAY_PIXELS):
            continue
        bitmap = _bitmap(source, plane, number, image)
        origin = values.numbers(plane, "OverlayOrigin")
        if bitmap is not None:
            row, column = (int(origin[0]), int(origin[1])) if len(origin) > 1 else (1, 1)
            yield Overlay(group, column - 1, row - 1, bitmap)


def _bitmap(source: StoredObject, plane: Attributes, number: int, image: StoredImage | None) -> Array | None:
    rows, columns = values.integer(plane, "OverlayRows"), values.integer(plane, "OverlayColumns")
    octets = source.octets(plane.get(values.key_of("OverlayData")))
    if octets:
        frames = max(values.integer(plane, "NumberOfFramesInOverlay", 1), 1)
        index = number - values.integer(plane, "ImageFrameOrigin", 1) if frames > 1 else 0
        start = index * rows * columns
        octets = octets[start // 8 : -(-(start + rows * columns) // 8)] if 0 <= index < frames else b""
        bits = numpy.unpackbits(numpy.frombuffer(octets, numpy.uint8), bitorder="little")[start % 8 :]
        if bits.size < rows * columns:
            return None
        return bits[: rows * columns].reshape(rows, columns) * numpy.uint8(255)
    position = values.integer(plane, "OverlayBitPosition")
    if image is None or image.image.samples != 1 or not 0 < position < image.image.bits_allocated:
        return None
    if image.cells.high_bit - image.cells.stored < position <= image.cells.high_bit:
        return None  # those are bits of the image itself
    try:
        samples, _ = image.samples(number)
    except CannotRender:
        return None
    if samples.shape != (rows, columns) or samples.dtype.kind != "u":
        return None
    return (samples >> position & 1).astype(numpy.uint8) * numpy.uint8(255)


def draw_overlay(picture: Image.Image, overlay: Overlay, colour: Rgb) -> Image.Image:
    """The picture (L or RGB) with a plane drawn over it in one colour."""
    rows, columns = overlay.bitmap.shape
    mask = Image.frombuffer("L", (columns, rows), overlay.bitmap, "raw", "L", 0, 1)
    picture = with_colour(picture, colour)
    picture.paste(ink(picture, colour), (overlay.column, overlay.row), mask)
    return picture


def with_colour(picture: Image.Image, colour: Rgb) -> Image.Image:
    """A picture that can be drawn upon in a colour: RGB if the colour is none of the greys."""
    if picture.mode == "L" and len(set(colour)) > 1:
        return picture.convert("RGB")
    return picture.copy() if picture.readonly else picture


def ink(picture: Image.Image, colour: Rgb) -> int | Rgb:
    return colour[0] if picture.mode == "L" else colour


# ---------------------------------------------------------------------------------------------------------------------
# Shutters


def shutter(attributes: Attributes, size: tuple[int, int]) -> Image.Image | None:
    """What a Display Shutter (PS3.3 C.7.6.11) leaves free, 255 free and 0 covered; None if nothing is covered."""
    shapes = {str(shape).strip().upper() for shape in values.values(attributes, "ShutterShape")}
    free = None
    for shape, draw in (("RECTANGULAR", _rectangle), ("CIRCULAR", _circle), ("POLYGONAL", _polygon)):
        if shape in shapes:
            mask = Image.new("L", size)
            if draw(attributes, ImageDraw.Draw(mask)):
                free = mask if free is None else Image.composite(mask, Image.new("L", size), free)
    return free


def _rectangle(attributes: Attributes, draw: ImageDraw.ImageDraw) -> bool:
    edges = [
        values.number(attributes, f"Shutter{side}Edge")
        for side in ("LeftVertical", "UpperHorizontal", "RightVertical", "LowerHorizontal")
    ]
    if None in edges:
        return False
    left, top, right, bottom = (_bounded((edge or 0) - 1) for edge in edges)
    if left <= right and top <= bottom:
        draw.rectangle((left, top, right, bottom), fill=255)
    return True


def _circle(attributes: Attributes, draw: ImageDraw.ImageDraw) -> bool:
    center, radius = values.numbers(attributes, "CenterOfCircularShutter"), _radius(attributes)
    if len(center) != 2 or radius is None:
        return False
    row, column = _bounded(center[0] - 1), _bounded(center[1] - 1)
    draw.ellipse((column - radius, row - radius, column + radius, row + radius), fill=255)
    return True


def _radius(attributes: Attributes) -> float | None:
    radius = values.number(attributes, "RadiusOfCircularShutter")
    return _bounded(radius) if radius is not None and radius >= 0 else None


def _polygon(attributes: Attributes, draw: ImageDraw.ImageDraw) -> bool:
    found = [_bounded(value - 1) for value in values.numbers(attributes, "VerticesOfThePolygonalShutter")]
    if not 6 <= len(found) <= _MAX_VERTICES:
        return False
    draw.polygon([(column, row) for row, column in zip(found[::2], found[1::2], strict=False)], fill=255)
    return True


def _bounded(coordinate: float) -> float:
    return min(max(coordinate, -1e5), 1e5)


def shutter_colour(attributes: Attributes) -> Rgb:
    """What covered pixels look like (PS3.3 C.7.6.11, C.7.6.15): black where nothing is said."""
    colour = values.numbers(attributes, "ShutterPresentationColorCIELabValue")
    if len(colour) == 3:
        return rgb_of_cielab(colour)
    grey = min(max(values.integer(attributes, "ShutterPresentationValue"), 0), 0xFFFF) >> 8
    return grey, grey, grey


def cover(picture: Image.Image, free: Image.Image, colour: Rgb) -> Image.Image:
    """The picture where it is free, the colour elsewhere."""
    picture = with_colour(picture, colour)
    return Image.composite(picture, Image.new(picture.mode, picture.size, ink(picture, colour)), free)
