"""Renderings as bytes, of stored files: what a codec process can do and a cache can keep.

An `ImageFile` brings what the index knows of the file, so that nothing of its header is read again. Every function
takes and returns what can be pickled, and raises CannotRender, BadRequest or NotAcceptable.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import BinaryIO, Final

import orjson

from .frames import Frames, unpack_bulk_data
from .header import Header
from .rendering import (
    MAX_PIXELS,
    encode,
    encode_animation,
    frame_milliseconds,
    render_frame,
    render_frames,
    thumbnail,
)
from .rendering_parameters import Rendering, Viewport
from .transfer_syntaxes import TRANSFER_SYNTAXES
from .values import Attributes, number

#: Pixels above which a picture is drawn in a codec process, so that few large ones are in memory at a time.
LARGE: Final = 16_000_000

_KEPT_HEADERS: Final = 8
_KEPT_DOCUMENT: Final = 2 << 20  # bytes of JSON; parsed they take ten times as much


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A stored file, with its header as the index keeps it.

    `document` is the DICOM JSON text as zlib compressed it, in which bulk data are named below `resource`; `frames`
    and `bulk_data` are packed (`Frames`, `pack_bulk_data`). A `key` names what never changes.
    """

    key: str
    open: Callable[[], BinaryIO] = field(repr=False, compare=False)
    is_local: bool = field(repr=False, compare=False)
    transfer_syntax: str
    resource: str = field(repr=False, compare=False)
    document: bytes = field(repr=False, compare=False)
    frames: bytes | None = field(repr=False, compare=False)
    bulk_data: bytes = field(repr=False, compare=False)

    def header(self) -> Header:
        """The header as the scanner gave it; of the last files it is kept."""
        with _lock:
            if (kept := _headers.get(self.key)) is not None:
                _headers.move_to_end(self.key)
                return kept
        document = zlib.decompress(self.document)
        bulk_data = f'"BulkDataURI":"{self.resource}/bulkdata/'.encode()
        syntax = TRANSFER_SYNTAXES.get(self.transfer_syntax)
        header = Header(
            transfer_syntax=self.transfer_syntax,
            dataset_offset=0,
            file_meta=None,
            attributes=orjson.loads(document.replace(bulk_data, b'"BulkDataURI":"/')),
            bulk_data=tuple(unpack_bulk_data(self.bulk_data)),
            frames=Frames.unpack(self.frames) if self.frames else None,
            prefix=b"",
            deflated=syntax is not None and syntax.deflated,
        )
        if len(document) <= _KEPT_DOCUMENT:
            with _lock:
                _headers[self.key] = header
                if len(_headers) > _KEPT_HEADERS:
                    _headers.popitem(last=False)
        return header

    @property
    def attributes(self) -> Attributes:
        """The data set in the DICOM JSON Model; not to be changed."""
        return self.header().attributes

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return int((number(self.attributes, "Rows") or 0) * (number(self.attributes, "Columns") or 0))


def holds_up(file: ImageFile, render: Callable[..., bytes], arguments: Sequence[object]) -> bool:
    """Whether a rendering would hold up others in its process: Pillow keeps the interpreter's lock while it writes
    JPEG 2000, animations take long, and large pictures much memory."""
    asked = (getattr(argument, "viewport", argument) for argument in arguments)
    box = next((viewport for viewport in asked if isinstance(viewport, Viewport)), Viewport())
    pixels = max(file.pixels, (box.width or 0) * (box.height or 0))
    return render is animation or "image/jp2" in arguments or pixels > LARGE


_headers: OrderedDict[str, Header] = OrderedDict()
_lock = Lock()


def frame_image(
    file: ImageFile,
    number: int,
    rendering: Rendering,
    media_type: str,
    state: ImageFile | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """Frame `number` (from 1) as an image file; with a presentation state where one is given."""
    with file.open() as source:
        if state is None:
            picture = render_frame(source, number, rendering, max_pixels=max_pixels, header=file.header())
        else:
            with state.open() as opened:
                picture = render_frame(
                    source,
                    number,
                    rendering,
                    presentation_state=opened,
                    state_header=state.header(),
                    max_pixels=max_pixels,
                    header=file.header(),
                )
        return encode(picture, media_type, rendering)


def animation(file: ImageFile, rendering: Rendering, media_type: str, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """All frames as one image/gif or image/webp that moves; together they have 4 × `max_pixels` at most."""
    with file.open() as source:
        pictures = render_frames(source, None, rendering, max_pixels=max_pixels, header=file.header())
        milliseconds = frame_milliseconds(file.attributes)
        return encode_animation(pictures, media_type, milliseconds, max_pixels=4 * max_pixels)


def thumbnail_image(
    file: ImageFile, number: int, viewport: Viewport | None, media_type: str, *, max_pixels: int = MAX_PIXELS
) -> bytes:
    """A small image file of frame `number`, with nothing drawn upon it."""
    with file.open() as source:
        return encode(thumbnail(source, number, viewport, max_pixels=max_pixels, header=file.header()), media_type)
