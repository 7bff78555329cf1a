"""Where a picture goes: which part of it is shown, how large, turned and mirrored; and where its points come to lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from ..errors import BadRequest
from .rendering_parameters import MAX_SIDE, Viewport

# Image.Transpose turns counterclockwise, Image Rotation (0070,0042) clockwise.
_TURNS: Final = {
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """The part of a picture between four edges, in pixels from its left upper corner, that fills width × height.

    The part may reach beyond the picture; there it is black. It is turned clockwise by `rotation` degrees, then
    mirrored; `width` and `height` are those of the result.
    """

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int
    rotation: int = 0
    mirrored: bool = False  # left and right
    upside_down: bool = False  # top and bottom
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # the part of a larger result that this is

    @property
    def _unturned(self) -> tuple[int, int]:
        return (self.height, self.width) if self.rotation in (90, 270) else (self.width, self.height)

    @property
    def scale(self) -> float:
        """Pixels of the result for one of the picture, in its horizontal direction."""
        return self._unturned[0] / (self.right - self.left)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the picture comes to lie."""
        width, height = self._unturned
        u = (x - self.left) / (self.right - self.left) * width
        v = (y - self.top) / (self.bottom - self.top) * height
        if self.rotation == 90:
            u, v = height - v, u
        elif self.rotation == 180:
            u, v = width - u, height - v
        elif self.rotation == 270:
            u, v = v, width - u
        return self.width - u if self.mirrored else u, self.height - v if self.upside_down else v

    def point_of_whole(self, x: float, y: float) -> tuple[float, float]:
        """Where a point given in fractions of the whole result comes to lie."""
        left, top, right, bottom = self.region
        return (x - left) / (right - left) * self.width, (y - top) / (bottom - top) * self.height

    def part(
        self,
        region: tuple[float, float, float, float],
        size: tuple[float, float],
        limits: tuple[int | None, int | None],
    ) -> Placement:
        """A part of the result, in fractions of it (left, top, right, bottom): as large as it would be in a whole of
        width and height `size`, then `fitted`."""
        left, top, right, bottom = region
        width, height = fitted((right - left) * size[0], (bottom - top) * size[1], limits)
        if self.upside_down:
            top, bottom = 1 - bottom, 1 - top
        if self.mirrored:
            left, right = 1 - right, 1 - left
        if self.rotation == 90:
            left, top, right, bottom = top, 1 - right, bottom, 1 - left
        elif self.rotation == 180:
            left, top, right, bottom = 1 - right, 1 - bottom, 1 - left, 1 - top
        elif self.rotation == 270:
            left, top, right, bottom = 1 - bottom, left, 1 - top, right
        across, down = self.right - self.left, self.bottom - self.top
        return replace(
            self,
            left=self.left + left * across,
            top=self.top + top * down,
            right=self.left + right * across,
            bottom=self.top + bottom * down,
            width=width,
            height=height,
            region=region,
        )

    def apply(self, picture: Image.Image, *, smooth: bool = True) -> Image.Image:
        """The result, of the picture's mode. Not `smooth`: pixels that become larger stay squares, as of labels."""
        width, height = self._unturned
        box = (
            max(self.left, 0.0),
            max(self.top, 0.0),
            min(self.right, float(picture.width)),
            min(self.bottom, float(picture.height)),
        )
        if box == (self.left, self.top, self.right, self.bottom):
            placed = _resized(picture, (width, height), box, smooth)
        else:
            placed = Image.new(picture.mode, (width, height))
            if box[0] < box[2] and box[1] < box[3]:
                x_scale, y_scale = width / (self.right - self.left), height / (self.bottom - self.top)
                x, y = round((box[0] - self.left) * x_scale), round((box[1] - self.top) * y_scale)
                size = max(round((box[2] - box[0]) * x_scale), 1), max(round((box[3] - box[1]) * y_scale), 1)
                placed.paste(_resized(picture, size, box, smooth), (x, y))
        if self.rotation in _TURNS:
            placed = placed.transpose(_TURNS[self.rotation])
        if self.mirrored:
            placed = placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.upside_down:
            placed = placed.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return placed


def _resized(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], smooth: bool
) -> Image.Image:
    if box == (0.0, 0.0, *picture.size) and size == picture.size:
        return picture
    # Cut out first: what is not to be seen must not shine through at the edges.
    left, top = math.floor(box[0]), math.floor(box[1])
    outer = (left, top, math.ceil(box[2]), math.ceil(box[3]))
    if outer != (0, 0, *picture.size):
        picture = picture.crop(outer)
        box = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    if box == (0.0, 0.0, *size):
        return picture
    if not smooth and size[0] >= box[2] - box[0]:
        return picture.resize(size, Image.Resampling.NEAREST, box=box)
    factor = (picture.width // size[0], picture.height // size[1])
    if min(factor) > 1 and box == (0.0, 0.0, size[0] * factor[0], size[1] * factor[1]) == (0.0, 0.0, *picture.size):
        return picture.reduce(factor)
    # A reduction by whole numbers first: as good, and much faster.
    return picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=1.5)


def fitted(width: float, height: float, limits: tuple[int | None, int | None]) -> tuple[int, int]:
    """The largest size of the same proportions within limits; without limits the size itself.

    At least one pixel on a side. Raises BadRequest if a side becomes longer than any image format has.
    """
    scales = [limit / side for limit, side in zip(limits, (width, height), strict=True) if limit is not None]
    scale = min(scales, default=1.0)
    found = max(round(width * scale), 1), max(round(height * scale), 1)
    if max(found) > MAX_SIDE:
        raise BadRequest(f"The image would be {found[0]} × {found[1]} pixels; no side can exceed {MAX_SIDE}")
    return found


def require_size(width: int, height: int, max_pixels: int) -> None:
    """Raises BadRequest for a result of more than `max_pixels`."""
    if width * height > max_pixels:
        raise BadRequest(f"The image would be {width} × {height} pixels; no more than {max_pixels} are rendered")


def placement_of(
    size: tuple[int, int],
    aspect: float,
    viewport: Viewport | None,
    region: tuple[float, float, float, float] | None,
    max_pixels: int,
) -> Placement:
    """Where an image of a size goes that has pixels of an aspect ratio (height by width).

    Pixels that are no squares are made ones, the shorter side of each being lengthened. Raises BadRequest for a part
    outside the image (PS3.18 8.3.5.1.3) and for too large a result.
    """
    columns, rows = size
    viewport = viewport or Viewport()
    left, top = viewport.x, viewport.y
    width = columns - left if viewport.source_width is None else abs(viewport.source_width)
    height = rows - top if viewport.source_height is None else abs(viewport.source_height)
    if width <= 0 or height <= 0 or left + width > columns or top + height > rows:
        raise BadRequest(
            f"The viewport's part {left:g},{top:g},{width:g},{height:g} is not within the image, "
            f"which is {columns} × {rows} pixels"
        )
    if region is not None:
        left, top, right, bottom = (edge * side for edge, side in zip(region, (*size, *size), strict=True))
        width, height = right - left, bottom - top
    natural = (width, height * aspect) if aspect >= 1 else (width / aspect, height)
    target = fitted(*natural, (viewport.width, viewport.height))
    require_size(*target, max_pixels)
    return Placement(
        left,
        top,
        left + width,
        top + height,
        *target,
        mirrored=(viewport.source_width or 0) < 0,
        upside_down=(viewport.source_height or 0) < 0,
    )
