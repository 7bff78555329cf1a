"""Renderings as bytes, of stored files: what a codec process can do and a cache can keep.

Every function takes and returns what can be pickled, and raises CannotRender, BadRequest or NotAcceptable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from .header import Header
from .rendering import (
    encode,
    encode_animation,
    frame_milliseconds,
    render_frame,
    render_frames,
    render_presentation_state,
    thumbnail,
)
from .rendering_parameters import Rendering, Viewport
from .stored_image import read_header


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A stored file; with its header, where that is at hand and need not be read from the file."""

    open: Callable[[], BinaryIO]
    header: Header | None = field(default=None, repr=False)


def frame_image(
    file: ImageFile, number: int, rendering: Rendering, media_type: str, state: ImageFile | None = None
) -> bytes:
    """Frame `number` (from 1) as an image file; with a presentation state."""
    with file.open() as source:
        if state is None:
            return encode(render_frame(source, number, rendering, header=file.header), media_type, rendering)
        with state.open() as presentation_state:
            picture = render_frame(source, number, rendering, presentation_state=presentation_state, header=file.header)
            return encode(picture, media_type, rendering)


def animation(file: ImageFile, rendering: Rendering, media_type: str) -> bytes:
    """All frames as one image/gif or image/webp that moves."""
    with file.open() as source:
        header = file.header or read_header(source)
        pictures = render_frames(source, None, rendering, header=header)
        return encode_animation(pictures, media_type, frame_milliseconds(header.attributes))


def thumbnail_image(file: ImageFile, number: int, viewport: Viewport | None, media_type: str) -> bytes:
    """A small image file of frame `number`, with nothing drawn upon it."""
    with file.open() as source:
        return encode(thumbnail(source, number, viewport, header=file.header), media_type)


def presented_images(
    state: ImageFile, referenced: Mapping[str, ImageFile], rendering: Rendering, media_type: str
) -> list[bytes]:
    """What a presentation state shows, an image file for each frame; `referenced`: SOP Instance UID → file."""
    with state.open() as presentation_state:

        def opened(uid: str) -> BinaryIO | None:
            return referenced[uid].open() if uid in referenced else None

        headers = {uid: file.header for uid, file in referenced.items() if file.header}
        found = render_presentation_state(presentation_state, opened, rendering, headers=headers)
        return [encode(picture.image, media_type, rendering) for picture in found]
