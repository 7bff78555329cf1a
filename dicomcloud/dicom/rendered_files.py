"""Renderings as bytes, of stored files by their path: what a codec process can do and a cache can keep.

Every function takes and returns what can be pickled, and raises CannotRender, BadRequest or NotAcceptable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

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


def frame_image(path: str, number: int, rendering: Rendering, media_type: str, state_path: str | None = None) -> bytes:
    """Frame `number` (from 1) as an image file; with the presentation state that lies at `state_path`."""
    with open(path, "rb") as source:
        if state_path is None:
            return encode(render_frame(source, number, rendering), media_type, rendering)
        with open(state_path, "rb") as state:
            picture = render_frame(source, number, rendering, presentation_state=state)
            return encode(picture, media_type, rendering)


def animation(path: str, rendering: Rendering, media_type: str) -> bytes:
    """All frames as one image/gif or image/webp that moves."""
    with open(path, "rb") as source:
        header = read_header(source)
        pictures = render_frames(source, None, rendering, header=header)
        return encode_animation(pictures, media_type, frame_milliseconds(header.attributes))


def thumbnail_image(path: str, number: int, viewport: Viewport | None, media_type: str) -> bytes:
    """A small image file of frame `number`, with nothing drawn upon it."""
    with open(path, "rb") as source:
        return encode(thumbnail(source, number, viewport), media_type)


def presented_images(
    state_path: str, referenced: Mapping[str, str], rendering: Rendering, media_type: str
) -> list[bytes]:
    """What a presentation state shows, an image file for each frame; `referenced`: SOP Instance UID → path."""
    with open(state_path, "rb") as state:

        def opened(uid: str) -> BinaryIO | None:
            return open(referenced[uid], "rb") if uid in referenced else None

        found = render_presentation_state(state, opened, rendering)
        return [encode(picture.image, media_type, rendering) for picture in found]
