"""Rendered images: a frame of a stored instance, as asked for, to a picture, and a picture to the bytes of an image.

    parse_rendering, parse_uri_rendering   what is asked for (PS3.18 8.3.5.1, 9.5.1.2)
    render_frame, render_frames            frames, with a presentation state where one is given
    thumbnail                              a small picture without anything that identifies the patient
    encode, encode_animation               image/jpeg, image/png, image/gif, image/jp2, image/webp

What the Standard leaves open: overlay planes and shutters of the image are shown (thumbnails have no overlays, since
these may hold text); pixels that are no squares are made ones; a viewport enlarges small images too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final

from PIL import Image

from ..errors import BadRequest, NotAcceptable
from . import values
from .annotation import annotate
from .color_profiles import with_profile
from .header import Header
from .jpeg_files import jpeg_file
from .overlays import cover, draw_overlay, overlays, shutter, shutter_colour
from .placement import placement_of
from .presentation_state import PRESENTATION_STATES, PresentationState
from .rendering_parameters import (
    Rendering,
    UriRendering,
    Viewport,
    Window,
    parse_rendering,
    parse_uri_rendering,
)
from .stored_image import MAX_PIXELS, CannotRender, StoredImage, read_header
from .values import Attributes

__all__ = [
    "DEFAULT_QUALITY",
    "IMAGE_TYPES",
    "MAX_PIXELS",
    "PRESENTATION_STATES",
    "THUMBNAIL_SIDE",
    "CannotRender",
    "Rendering",
    "UriRendering",
    "Viewport",
    "Window",
    "encode",
    "encode_animation",
    "frame_milliseconds",
    "parse_rendering",
    "parse_uri_rendering",
    "read_header",
    "render_frame",
    "render_frames",
    "thumbnail",
]

#: The media types that `encode` writes.
IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/gif", "image/jp2", "image/webp")
_WITH_PROFILES: Final = ("image/jpeg", "image/png", "image/webp")
_LONGEST_SIDE: Final = {"image/jpeg": 65_500, "image/gif": 65_535, "image/webp": 16_383}
#: JPEG quality where none is asked for.
DEFAULT_QUALITY: Final = 90
#: The box of a thumbnail where no viewport is asked for.
THUMBNAIL_SIDE: Final = 128


def render_frame(
    source: BinaryIO,
    number: int,
    rendering: Rendering | None = None,
    *,
    presentation_state: BinaryIO | None = None,
    state_header: Header | None = None,
    max_pixels: int = MAX_PIXELS,
    header: Header | None = None,
) -> Image.Image:
    """Frame `number`, from 1, of a stored PS3.10 file as an 8-bit image of mode L or RGB.

    Reads the attributes and the bytes of this frame; not even the attributes if `header`, what `read_header` gives for
    this file, is at hand (`state_header`: that of the presentation state). Raises BadRequest for a viewport outside
    the image, a result of more than `max_pixels`, what cannot be combined with a presentation state, and a state that
    does not refer to the frame; CannotRender if there is no such frame or it cannot be decoded, or has more than
    `max_pixels` pixels.
    """
    frames = render_frames(
        source,
        (number,),
        rendering,
        presentation_state=presentation_state,
        state_header=state_header,
        max_pixels=max_pixels,
        header=header,
    )
    return next(frames)


def render_frames(
    source: BinaryIO,
    numbers: Iterable[int] | None = None,
    rendering: Rendering | None = None,
    *,
    presentation_state: BinaryIO | None = None,
    state_header: Header | None = None,
    max_pixels: int = MAX_PIXELS,
    header: Header | None = None,
) -> Iterator[Image.Image]:
    """`render_frame` for several frames (None: all), one after the other; the attributes are read once."""
    rendering = rendering or Rendering()
    image = StoredImage(source, header=header, max_pixels=max_pixels)
    state = PresentationState(presentation_state, header=state_header) if presentation_state is not None else None
    for number in numbers if numbers is not None else range(1, image.image.frames + 1):
        if state is not None:
            yield _presented(image, number, state, rendering, max_pixels)
        else:
            yield _rendered(image, number, rendering, max_pixels)


def _rendered(image: StoredImage, number: int, rendering: Rendering, max_pixels: int) -> Image.Image:
    size = (image.image.columns, image.image.rows)
    placement = placement_of(size, image.aspect(number), rendering.viewport, rendering.region, max_pixels)
    picture = _with_shutter(image.picture(number, rendering.window), image, number)
    for plane in overlays(image, number, image):
        picture = draw_overlay(picture, plane, (255, 255, 255))
    picture = with_profile(placement.apply(picture, smooth=not image.is_segmentation), image, rendering.icc_profile)
    if rendering.annotation:
        picture = _writable(picture)
        annotate(picture, image, number, rendering.annotation, _window_shown(image, number, rendering.window))
    return picture


def _with_shutter(picture: Image.Image, image: StoredImage, number: int) -> Image.Image:
    attributes = image.group(number, "FrameDisplayShutterSequence")
    free = shutter(attributes, picture.size)
    return picture if free is None else cover(picture, free, shutter_colour(attributes))


def _writable(picture: Image.Image) -> Image.Image:
    return picture.copy() if picture.readonly else picture


def _window_shown(image: StoredImage, number: int, window: Window | None) -> Window | None:
    if not image.is_grayscale:
        return None
    found = window or image.voi(number, image.modality(number))
    return found if isinstance(found, Window) else None


def _presented(
    image: StoredImage, number: int, state: PresentationState, rendering: Rendering, max_pixels: int
) -> Image.Image:
    if rendering.window is not None:
        raise BadRequest("A window cannot be given for a presentation state, which has its own")
    if not state.refers_to(image, number):
        raise BadRequest("The presentation state does not refer to this image")
    placement = state.place(image, number, rendering.viewport, rendering.region, max_pixels)
    picture = placement.apply(state.picture(image, number))
    picture = with_profile(picture, image, rendering.icc_profile)
    picture = state.draw(_writable(picture), placement, image, number)
    if rendering.annotation:
        annotate(picture, image, number, rendering.annotation, None)
    return picture


def thumbnail(
    source: BinaryIO,
    number: int = 1,
    viewport: Viewport | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    header: Header | None = None,
) -> Image.Image:
    """A small picture of a frame, 128 × 128 pixels at most if no viewport is given (PS3.18 10.4.1.2).

    Nothing that identifies the patient is drawn upon it, and overlays, which may hold text, are left out. What is
    burned into the pixels stays: it is the caller's to choose another image (Burned In Annotation (0028,0301)).
    Raises BadRequest, for a viewport that selects a part too, and CannotRender.
    """
    viewport = viewport or Viewport(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    if not viewport.shows_everything:
        raise BadRequest("viewport must be vw,vh only for a thumbnail, which shows the whole image")
    image = StoredImage(source, header=header, max_pixels=max_pixels)
    size = (image.image.columns, image.image.rows)
    placement = placement_of(size, image.aspect(number), viewport, None, max_pixels)
    picture = _with_shutter(image.picture(number), image, number)
    return placement.apply(picture, smooth=not image.is_segmentation)


# ---------------------------------------------------------------------------------------------------------------------
# Images as bytes


def encode(image: Image.Image, media_type: str, rendering: Rendering | None = None) -> bytes:
    """The picture as a file of one of `IMAGE_TYPES`, with the ICC profile it was rendered with.

    Quality (PS3.18 8.3.5.1.2), 90 if not given: of JPEG and WebP it is the encoder's own scale of 1 to 100, colours
    are subsampled below 90; of JPEG 2000 it stands for a signal-to-noise ratio from 25 to 55 dB, and 100 for lossless
    (as without a quality). PNG and GIF have no qualities. Raises NotAcceptable for another media type, BadRequest for
    an ICC profile in one that has none, CannotRender if the format has no images of this size.
    """
    rendering = rendering or Rendering()
    if media_type not in IMAGE_TYPES:
        raise NotAcceptable(f"{media_type} is not available; available: {', '.join(IMAGE_TYPES)}")
    if media_type not in _WITH_PROFILES and rendering.icc_profile not in (None, "no"):
        raise BadRequest(f"{media_type} images have no ICC profile; iccprofile must be no")
    _require_side(image, media_type)
    quality = rendering.quality
    target = io.BytesIO()
    profile = {"icc_profile": image.info.get("icc_profile")} if media_type in _WITH_PROFILES else {}
    if media_type == "image/jpeg":
        return jpeg_file(image, quality or DEFAULT_QUALITY, profile["icc_profile"])
    if media_type == "image/png":
        image.save(target, "PNG", compress_level=1, **profile)  # a third larger than level 6 at a quarter of its time
    elif media_type == "image/webp":
        image.save(target, "WEBP", quality=quality or DEFAULT_QUALITY, method=2, **profile)
    elif media_type == "image/jp2":
        lossy: dict[str, Any] = {}
        if quality is not None and quality < 100:
            lossy = {"irreversible": True, "quality_mode": "dB", "quality_layers": [25 + quality * 0.3]}
        image.save(target, "JPEG2000", num_resolutions=_resolutions(image), **lossy)
    else:
        _paletted(image).save(target, "GIF")
    return target.getvalue()


def encode_animation(
    frames: Iterable[Image.Image], media_type: str, milliseconds: int, *, max_pixels: int = 4 * MAX_PIXELS
) -> bytes:
    """Pictures of one size as an animated image/gif or image/webp that repeats for ever.

    `milliseconds`: how long each is seen; see `frame_milliseconds`. Raises NotAcceptable for another media type,
    CannotRender if there are none, or more than `max_pixels` pixels in all: the encoder keeps them in memory.
    """
    if media_type not in ("image/gif", "image/webp"):
        raise NotAcceptable(f"{media_type} images are not animated")
    seen = 0

    def counted() -> Iterator[Image.Image]:
        nonlocal seen
        for frame in frames:
            seen += frame.width * frame.height
            if seen > max_pixels:
                raise CannotRender(f"All frames together have more than the {max_pixels} pixels of an animation.")
            yield _paletted(frame) if media_type == "image/gif" else frame.convert("RGB")

    pictures = counted()
    first = next(pictures, None)
    if first is None:
        raise CannotRender("There are no frames.")
    _require_side(first, media_type)
    target = io.BytesIO()
    duration = max(milliseconds, 20)  # browsers take shorter ones for 100
    if media_type == "image/gif":
        first.save(
            target, "GIF", save_all=True, append_images=pictures, duration=duration, loop=0, disposal=1, optimize=False
        )
    else:
        first.save(
            target, "WEBP", save_all=True, append_images=pictures, duration=duration, loop=0, quality=80, method=0
        )
    return target.getvalue()


def frame_milliseconds(attributes: Attributes) -> int:
    """How long a frame is to be seen: by Frame Time, Recommended Display Frame Rate or Cine Rate; else 100 ms."""
    time = values.number(attributes, "FrameTime")
    for keyword in ("RecommendedDisplayFrameRate", "CineRate"):
        rate = values.number(attributes, keyword)
        if not time and rate and rate > 0:
            time = 1000 / rate
    return round(min(max(time, 20.0), 10_000.0)) if time and time > 0 else 100


def _require_side(image: Image.Image, media_type: str) -> None:
    longest = _LONGEST_SIDE.get(media_type, 1 << 31)
    if max(image.size) > longest:
        raise CannotRender(f"An image of {image.width} × {image.height} pixels is too large for {media_type}.")


def _paletted(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else image.quantize(256, method=Image.Quantize.MEDIANCUT)


def _resolutions(image: Image.Image) -> int:
    """Levels of a JPEG 2000 image: small ones cannot have as many as usual."""
    return next((levels for levels in range(6, 1, -1) if min(image.size) >> levels), 1)
