"""Softcopy presentation states (PS3.3 A.33, PS3.4 N): how somebody wanted an image to be seen.

Applied in the order of PS3.4 Figure N.2-1: modality LUT, mask, VOI and presentation LUT of the state (never those of
the image), shutter, overlays that the state activates, displayed area with rotation and mirroring, graphics and texts.
Compound graphics are not drawn; blending and volumetric states are refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy
from PIL import Image, ImageDraw

from ..errors import BadRequest
from . import values
from .annotation import SMALLEST_LETTERS, draw_text, letter_size, text_size
from .header import Header
from .lut import Grayscale, LookupTable, Palette, Range, Rescale, Rgb, rgb_of_cielab
from .mask import mask_of
from .overlays import (
    GROUPS,
    cover,
    draw_overlay,
    group_of,
    ink,
    overlays,
    shutter,
    shutter_colour,
    with_colour,
)
from .placement import Placement, require_size
from .rendering_parameters import MAX_SIDE, Viewport, Window
from .stored_image import CannotRender, StoredImage, StoredObject, first_window
from .values import Attributes

Point = tuple[float, float]

_ROOT: Final = "1.2.840.10008.5.1.4.1.1.11."
_PSEUDO_COLOR: Final = _ROOT + "3"
#: Grayscale, color, pseudo-color, and XA/XRF grayscale softcopy presentation states.
PRESENTATION_STATES: Final = frozenset({_ROOT + "1", _ROOT + "2", _PSEUDO_COLOR, _ROOT + "5"})
_WHITE: Final[Rgb] = (255, 255, 255)
_MAX_OBJECTS: Final = 10_000  # graphics and texts of one state
_MAX_POINTS: Final = 100_000  # of one graphic


@dataclass(frozen=True, slots=True)
class DisplayedArea:
    """The part of the image to be shown (PS3.3 C.10.4), as edges in pixels from the image's left upper corner."""

    left: float
    top: float
    right: float
    bottom: float
    magnification: float | None  # of MAGNIFY; None for SCALE TO FIT, and for TRUE SIZE, which no browser can show
    aspect: float | None  # height of a pixel by its width; None if the state does not say


def referenced_images(attributes: Attributes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """SOP Instance UID and frame numbers (none: all) of a state's images, in its order (PS3.3 C.11.11)."""
    for series in values.items(attributes, "ReferencedSeriesSequence"):
        for image in values.items(series, "ReferencedImageSequence"):
            uid = values.string(image, "ReferencedSOPInstanceUID")
            if uid:
                yield uid, tuple(int(frame) for frame in values.numbers(image, "ReferencedFrameNumber"))


class PresentationState:
    """A stored presentation state."""

    def __init__(self, source: BinaryIO, *, header: Header | None = None) -> None:
        """Raises CannotRender for what is no presentation state, or one of a kind that is not supported."""
        self._object = StoredObject(source, header)
        self.attributes: Attributes = self._object.attributes
        if self._object.sop_class not in PRESENTATION_STATES:
            raise CannotRender("The instance is no grayscale, color or pseudo-color softcopy presentation state.")

    def refers_to(self, image: StoredImage, number: int) -> bool:
        references = referenced_images(self.attributes)
        return any(uid == image.sop_instance and (not frames or number in frames) for uid, frames in references)

    def _items(self, sequence: str, image: StoredImage, number: int) -> Iterator[Attributes]:
        """The items that are about a frame."""
        for item in values.items(self.attributes, sequence):
            references = values.items(item, "ReferencedImageSequence")
            if not references or any(_is_reference(reference, image, number) for reference in references):
                yield item

    # -- the picture

    def picture(self, image: StoredImage, number: int) -> Image.Image:
        """A frame in its own matrix, with the state's LUTs, shutter and overlays."""
        grayscale = self.grayscale(image, number) if image.is_grayscale else None
        picture = image.picture(number, grayscale=grayscale, mask=mask_of(self.attributes, number, image.image.frames))
        if self._object.sop_class == _PSEUDO_COLOR and picture.mode == "L" and (palette := self._object.palette()):
            picture = _pseudo_colours(picture, palette)
        free = shutter(self.attributes, picture.size)
        if free is not None:
            picture = cover(picture, free, shutter_colour(self.attributes))
        layers = self._layers()
        shutter_group = values.integer(self.attributes, "ShutterOverlayGroup", -1)
        planes = {plane.group: plane for plane in overlays(image, number, image)}
        planes.update((plane.group, plane) for plane in overlays(self._object, number))
        for group in GROUPS:
            layer = values.string(group_of(self.attributes, group), "OverlayActivationLayer")
            if group in planes and (layer or group == shutter_group):
                colour = layers.get(layer, (0, _WHITE))[1] if layer else shutter_colour(self.attributes)
                picture = draw_overlay(picture, planes[group], colour)
        return picture

    def grayscale(self, image: StoredImage, number: int) -> Grayscale:
        """The state's grayscale transformations for a frame; where it has none, the identity (PS3.4 N.2.1)."""
        modality: Rescale | LookupTable | None = None
        if item := values.item(self.attributes, "ModalityLUTSequence"):
            modality = self._object.lookup_table(item, signed_input=image.image.signed)
        if modality is None:
            slope = values.number(self.attributes, "RescaleSlope")
            modality = Rescale(slope or 1.0, values.number(self.attributes, "RescaleIntercept") or 0.0)
        presentation = None
        if item := values.item(self.attributes, "PresentationLUTSequence"):
            presentation = self._object.lookup_table(item, signed_input=False)
        return Grayscale(
            modality,
            self._voi(image, number, modality),
            presentation,
            values.string(self.attributes, "PresentationLUTShape") == "INVERSE",
            image.padding(floating_point=False),
        )

    def _voi(self, image: StoredImage, number: int, modality: Rescale | LookupTable) -> Window | Range | LookupTable:
        if isinstance(modality, LookupTable):
            full = Range(0.0, float((1 << modality.bits) - 1))
        else:
            cells = image.cells
            ends = modality.apply(numpy.array([cells.lowest, cells.highest], float))
            full = Range(float(ends.min()), float(ends.max()))
        for item in self._items("SoftcopyVOILUTSequence", image, number):
            if window := first_window(item):
                return window
            for table_item in values.items(item, "VOILUTSequence"):
                if table := self._object.lookup_table(table_item, signed_input=full.low < 0):
                    return table
        return full

    # -- the place

    def place(
        self,
        image: StoredImage,
        number: int,
        viewport: Viewport | None,
        region: tuple[float, float, float, float] | None,
        max_pixels: int,
    ) -> Placement:
        """Where the frame goes: displayed area, rotation and mirroring, fitted into the viewport (PS3.18 9.5.2.5).

        `region`: the part of the displayed area, as it is displayed, that is asked for. Raises BadRequest if the
        viewport selects a part, or the result would be too large.
        """
        viewport = viewport or Viewport()
        if not viewport.shows_everything:
            raise BadRequest("viewport must be vw,vh only for a presentation state, which says what is to be seen")
        area = self.displayed_area(image, number)
        limits = (viewport.width, viewport.height)
        rotation = values.integer(self.attributes, "ImageRotation") % 360
        rotation = rotation if rotation in (90, 180, 270) else 0
        aspect = area.aspect or image.aspect(number)
        width, height = area.right - area.left, area.bottom - area.top
        if area.magnification:
            width, height = width * area.magnification, height * area.magnification * aspect
        else:
            width, height = (width, height * aspect) if aspect >= 1 else (width / aspect, height)
        if rotation in (90, 270):
            width, height = height, width
        mirrored = values.string(self.attributes, "ImageHorizontalFlip") == "Y"
        whole = Placement(area.left, area.top, area.right, area.bottom, 1, 1, rotation, mirrored)
        left, top, right, bottom = region or (0.0, 0.0, 1.0, 1.0)
        if area.magnification and region is None:
            # MAGNIFY: what does not fit is cut off, evenly on both sides.
            across, down = (
                min((limit or math.inf) / side, 1.0) / 2 for limit, side in zip(limits, (width, height), strict=True)
            )
            left, top, right, bottom = 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down
            limits = (None, None)
        placement = whole.part((left, top, right, bottom), (width, height), limits)
        require_size(placement.width, placement.height, max_pixels)
        return placement

    def displayed_area(self, image: StoredImage, number: int) -> DisplayedArea:
        """The displayed area for a frame, the whole image where the state has none that makes sense."""
        item = next(self._items("DisplayedAreaSelectionSequence", image, number), {})
        corners = [values.numbers(item, f"DisplayedArea{corner}HandCorner") for corner in ("TopLeft", "BottomRight")]
        left, top, right, bottom = 0.0, 0.0, float(image.image.columns), float(image.image.rows)
        if all(len(corner) == 2 for corner in corners):
            (x1, y1), (x2, y2) = corners  # before rotation and mirroring, so either may be the greater one
            if max(map(abs, (x1, y1, x2, y2))) <= MAX_SIDE:
                left, right = min(x1, x2) - 1, max(x1, x2)
                top, bottom = min(y1, y2) - 1, max(y1, y2)
        ratio = values.numbers(item, "PresentationPixelSpacing") or values.numbers(item, "PresentationPixelAspectRatio")
        sensible = len(ratio) == 2 and min(ratio) > 0 and 0.1 <= ratio[0] / ratio[1] <= 10
        mode = values.string(item, "PresentationSizeMode")
        magnification = values.number(item, "PresentationPixelMagnificationRatio") or 0.0
        return DisplayedArea(
            left,
            top,
            right,
            bottom,
            magnification if mode == "MAGNIFY" and 0 < magnification <= 1000 else None,
            ratio[0] / ratio[1] if sensible else None,
        )

    # -- graphics and texts

    def _layers(self) -> dict[str, tuple[int, Rgb]]:
        """Order and colour of each graphic layer (PS3.3 C.10.7)."""
        layers = {}
        for layer in values.items(self.attributes, "GraphicLayerSequence"):
            colour = values.numbers(layer, "GraphicLayerRecommendedDisplayCIELabValue")
            grey = values.number(layer, "GraphicLayerRecommendedDisplayGrayscaleValue")
            rgb = values.numbers(layer, "GraphicLayerRecommendedDisplayRGBValue")  # retired
            drawn = _WHITE
            if len(colour) == 3:
                drawn = rgb_of_cielab(colour)
            elif len(rgb) == 3:
                drawn = (_byte(rgb[0]), _byte(rgb[1]), _byte(rgb[2]))
            elif grey is not None:
                drawn = (_byte(grey),) * 3
            order = values.integer(layer, "GraphicLayerOrder")
            layers[values.string(layer, "GraphicLayer")] = (order, drawn)
        return layers

    def draw(self, picture: Image.Image, placement: Placement, image: StoredImage, number: int) -> Image.Image:
        """The placed picture with the state's graphics and texts for a frame (PS3.3 C.10.5), layer by layer."""
        layers = self._layers()
        annotations = sorted(
            self._items("GraphicAnnotationSequence", image, number),
            key=lambda item: layers.get(values.string(item, "GraphicLayer"), (0, _WHITE))[0],
        )
        character_set = "\\".join(str(term) for term in values.values(self.attributes, "SpecificCharacterSet"))
        left = _MAX_OBJECTS
        for annotation in annotations:
            colour = layers.get(values.string(annotation, "GraphicLayer"), (0, _WHITE))[1]
            for graphic in values.items(annotation, "GraphicObjectSequence")[:left]:
                picture = _draw_graphic(picture, placement, graphic, colour)
                left -= 1
            for text in values.items(annotation, "TextObjectSequence")[:left]:
                picture = _draw_text_object(picture, placement, text, colour, character_set)
                left -= 1
        return picture


def _byte(value: float) -> int:
    return int(min(max(value, 0), 0xFFFF)) >> 8


def _is_reference(reference: Attributes, image: StoredImage, number: int) -> bool:
    frames = values.numbers(reference, "ReferencedFrameNumber")
    return values.string(reference, "ReferencedSOPInstanceUID") == image.sop_instance and (
        not frames or number in frames
    )


def _pseudo_colours(picture: Image.Image, palette: Palette) -> Image.Image:
    """The palette over the whole range of grey levels (PS3.4 N.2.4)."""
    entries = len(palette.red) // 2
    colours = palette.rgb(numpy.rint(numpy.arange(256) / 255 * (entries - 1)).astype(int) + palette.first)
    painted = Image.frombytes("P", picture.size, picture.tobytes())
    painted.putpalette(colours.tobytes(), "RGB")
    return painted.convert("RGB")


# ---------------------------------------------------------------------------------------------------------------------
# Graphic objects


def _points(placement: Placement, numbers: Sequence[float], units: str) -> list[Point]:
    """Pairs of coordinates in the result (PS3.3 C.10.5.1.1): of the image (PIXEL, MATRIX) or of the displayed area."""
    found = []
    for x, y in itertools.islice(zip(numbers[::2], numbers[1::2], strict=False), _MAX_POINTS):
        point = placement.point_of_whole(x, y) if units == "DISPLAY" else placement.point(x, y)
        found.append((min(max(point[0], -1e5), 1e5), min(max(point[1], -1e5), 1e5)))
    return found


def _style_colour(item: Attributes, sequence: str, keyword: str, colour: Rgb) -> Rgb:
    own = values.numbers(values.item(item, sequence), keyword)
    return rgb_of_cielab(own) if len(own) == 3 else colour


def _draw_graphic(picture: Image.Image, placement: Placement, graphic: Attributes, colour: Rgb) -> Image.Image:
    colour = _style_colour(graphic, "LineStyleSequence", "PatternOnColorCIELabValue", colour)
    units = values.string(graphic, "GraphicAnnotationUnits")
    kind = values.string(graphic, "GraphicType")
    points = _points(placement, values.numbers(graphic, "GraphicData"), units)
    line = _outline(kind, points)
    if not line:
        return picture
    picture = with_colour(picture, colour)
    draw = ImageDraw.Draw(picture)
    if kind == "POINT":
        (x, y), reach = line[0], max(min(picture.size) / 128, 3)
        _stroke(picture, [(x - reach, y), (x + reach, y)], colour)
        _stroke(picture, [(x, y - reach), (x, y + reach)], colour)
        return picture
    if values.string(graphic, "GraphicFilled") == "Y" and len(line) > 2 and _is_closed(line):
        fill = _style_colour(graphic, "FillStyleSequence", "PatternOnColorCIELabValue", colour)
        picture = with_colour(picture, fill)
        draw = ImageDraw.Draw(picture)
        draw.polygon(line, fill=ink(picture, fill))
    _stroke(picture, line, colour)
    return picture


def _is_closed(line: Sequence[Point]) -> bool:
    return math.dist(line[0], line[-1]) < 1


def _stroke(picture: Image.Image, line: Sequence[Point], colour: Rgb) -> None:
    """A line with a dark edge (or a bright one, if it is dark itself), so that it shows on anything."""
    draw = ImageDraw.Draw(picture)
    width = max(round(min(picture.size) / 400), 1)
    edge: Rgb = (0, 0, 0) if sum(colour) >= 3 * 96 else _WHITE
    draw.line(list(line), fill=ink(picture, edge), width=width + 2)
    draw.line(list(line), fill=ink(picture, colour), width=width)


def _outline(kind: str, points: list[Point]) -> list[Point]:
    """The line of a graphic (PS3.3 C.10.5.1.2); [] if it has not the points it needs."""
    if kind == "POINT":
        return points[:1]
    if kind == "POLYLINE" and len(points) > 1:
        return points
    if kind == "INTERPOLATED" and len(points) > 1:
        return _curve(points)
    if kind == "CIRCLE" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        return [
            (x + radius * math.cos(step * math.pi / 64), y + radius * math.sin(step * math.pi / 64))
            for step in range(129)
        ]
    if kind == "ELLIPSE" and len(points) == 4:
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
        x, y = (ax + bx) / 2, (ay + by) / 2
        turns = [step * math.pi / 64 for step in range(129)]
        return [
            (
                x + (bx - ax) / 2 * math.cos(turn) + (dx - cx) / 2 * math.sin(turn),
                y + (by - ay) / 2 * math.cos(turn) + (dy - cy) / 2 * math.sin(turn),
            )
            for turn in turns
        ]
    return []


def _curve(points: list[Point]) -> list[Point]:
    """A Catmull-Rom spline through points, closed if the last is the first."""
    closed = points[0] == points[-1] and len(points) > 3
    before, after = (points[-2], points[1]) if closed else (points[0], points[-1])
    ends = [before, *points, after]
    steps = max(2, min(16, _MAX_POINTS // len(points)))
    curve = []
    for p0, p1, p2, p3 in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        for step in range(steps):
            t = step / steps
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (-(t**2) + t**3) / 2,
            )
            pairs = list(zip(weights, (p0, p1, p2, p3), strict=True))
            curve.append((sum(w * p[0] for w, p in pairs), sum(w * p[1] for w, p in pairs)))
    return [*curve, points[-1]]


def _draw_text_object(
    picture: Image.Image, placement: Placement, text: Attributes, colour: Rgb, character_set: str
) -> Image.Image:
    colour = _style_colour(text, "TextStyleSequence", "TextColorCIELabValue", colour)
    lines = values.string(text, "UnformattedTextValue").splitlines()
    if not lines:
        return picture
    picture = with_colour(picture, colour)
    units = values.string(text, "BoundingBoxAnnotationUnits")
    corners = [
        *values.numbers(text, "BoundingBoxTopLeftHandCorner"),
        *values.numbers(text, "BoundingBoxBottomRightHandCorner"),
    ]
    anchors = _points(placement, values.numbers(text, "AnchorPoint"), values.string(text, "AnchorPointAnnotationUnits"))
    normal = letter_size(picture.size)
    if len(corners) == 4:
        (x1, y1), (x2, y2) = _points(placement, corners, units)
        left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        size = round(min(max((bottom - top) / len(lines) * 0.8, normal * 0.7, SMALLEST_LETTERS), normal * 1.5))
        if anchors and values.string(text, "AnchorPointVisibility") == "Y":
            x, y = anchors[0]
            _stroke(picture, [(x, y), (min(max(x, left), right), min(max(y, top), bottom))], colour)
    elif anchors:
        left, top = anchors[0]
        right, bottom, size = left, top, normal
    else:
        return picture
    # A box too small for letters that can be read does not keep them from being drawn, nor one beyond the edge.
    width, height = text_size(lines, size, character_set)
    right, bottom = min(max(right, left + width), picture.width), min(max(bottom, top + height), picture.height)
    left, top = max(min(left, right - width), 0), max(min(top, bottom - height), 0)
    align = values.string(text, "BoundingBoxTextHorizontalJustification")
    draw_text(
        picture,
        lines,
        (left, top, right, bottom),
        size=size,
        colour=colour,
        align="center" if align == "CENTER" else "right" if align == "RIGHT" else "left",
        character_set=character_set,
    )
    return picture
