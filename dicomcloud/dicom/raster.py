"""PNG, GIF and other consumer images, decoded to the native pixels of an image object.

Pillow reads them, and imagecodecs PNGs with 16 bits in colour, which Pillow would cut. Both are imported when the
first such image comes. Sizes are known, and can be bounded, before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import PIL.Image

#: Media types that are never stored as they came.
MEDIA_TYPES: Final = frozenset({"image/png", "image/gif", "image/apng"})
_FORMATS: Final = ("PNG", "GIF", "JPEG")
_MAX_PIXELS: Final = 1 << 28
_MAX_FRAMES: Final = 100_000
_PROGRESSIVE_OR_ODD: Final = frozenset({0xC2, 0xC9, 0xCA})


@dataclass(frozen=True, slots=True)
class Image:
    """A consumer image. `shape` is rows, columns, samples (1 or 3) and bits of a sample (8 or 16), as decoded.

    `frame_time` is the time of each frame in milliseconds, 0 where they differ or none is given.
    """

    data: memoryview
    shape: tuple[int, int, int, int]
    frames: int
    frame_time: float
    has_alpha: bool

    def decode(self) -> Iterator[bytes]:
        """The pixels of each frame, colour by pixel, 16-bit samples little endian. Raises ValueError."""
        try:
            if _is_deep_colour(self.data):
                yield self._deep()
                return
            with _open(self.data) as image:
                for number in range(self.frames):
                    image.seek(number)
                    yield _native(image, self.shape)
        except Exception as error:  # what Pillow raises depends on what it finds
            raise ValueError(str(error) or type(error).__name__) from None

    def _deep(self) -> bytes:
        import imagecodecs
        import numpy

        pixels = imagecodecs.png_decode(bytes(self.data))
        if pixels.shape[:2] != self.shape[:2] or pixels.dtype != numpy.uint16:
            raise ValueError("its header and its pixels contradict each other")
        return bytes(pixels[..., : self.shape[2]].astype("<u2").tobytes())


def open_image(data: memoryview, *, grey: bool) -> Image:
    """What the headers of an image say. `grey`: the metadata say one sample per pixel, where a palette could be both.

    Raises ValueError for what is no PNG, GIF or JPEG, or is absurdly large.
    """
    try:
        with _open(data) as image:
            columns, rows = image.size
            if rows * columns > _MAX_PIXELS or not 0 < rows < 65536 or not 0 < columns < 65536:
                raise ValueError(f"{rows} × {columns} pixels are too many")
            if _is_deep_colour(data):
                colour_type = data[25]
                return Image(data, (rows, columns, 3 if colour_type & 2 else 1, 16), 1, 0.0, bool(colour_type & 4))
            frames = int(getattr(image, "n_frames", 1))
            if frames > _MAX_FRAMES:
                raise ValueError(f"{frames} frames are too many")
            alpha = "A" in image.getbands() or "transparency" in image.info
            samples, bits = _kind_of(image, grey or frames == 1)
            duration = image.info.get("duration") or 0
            return Image(data, (rows, columns, samples, bits), frames, float(duration), alpha)
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from None


def is_no_dicom_jpeg(streams: Sequence[memoryview]) -> bool:
    """Whether these JPEGs are what consumers have and no current transfer syntax allows: progressive, CMYK."""
    for data in streams:
        position = 2
        while position + 10 < len(data) and data[position] == 0xFF:
            marker = data[position + 1]
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                if marker in _PROGRESSIVE_OR_ODD or data[position + 9] == 4:
                    return True
                break
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _open(data: memoryview) -> PIL.Image.Image:
    import PIL.Image

    return PIL.Image.open(io.BytesIO(data), formats=_FORMATS)


def _is_deep_colour(data: memoryview) -> bool:
    """A PNG of 16 bits a sample that is more than grey (ISO/IEC 15948 11.2.2)."""
    return bytes(data[:8]) == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] != 0


def _kind_of(image: Any, may_be_grey: bool) -> tuple[int, int]:
    if image.mode.startswith("I"):
        return 1, 16
    if image.mode in ("1", "L", "LA"):
        return 1, 8
    if image.mode == "P" and may_be_grey and "transparency" not in image.info:
        palette = image.getpalette() or []
        if palette[0::3] == palette[1::3] == palette[2::3]:
            return 1, 8
    return 3, 8


def _native(image: Any, shape: tuple[int, int, int, int]) -> bytes:
    import numpy

    rows, columns, samples, bits = shape
    if image.size != (columns, rows):
        raise ValueError("its frames have different sizes")
    if bits == 16:
        return bytes(numpy.asarray(image).astype("<u2").tobytes())
    if "A" in image.getbands() or "transparency" in image.info:
        import PIL.Image

        opaque = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = PIL.Image.alpha_composite(ground, opaque)
    return bytes(image.convert("RGB" if samples == 3 else "L").tobytes())
