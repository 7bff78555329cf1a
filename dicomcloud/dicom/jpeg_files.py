"""Pictures as JPEG files: large grey ones in strips, by two threads at once that do not hold the interpreter's lock."""

from __future__ import annotations

import io
from typing import Final

import numpy
from numpy.typing import NDArray
from PIL import Image

from .halves import LARGE, in_halves

_BLOCK: Final = 8  # rows and columns that are coded together
_MOST_BLOCKS: Final = 0xFFFF  # of a restart interval (ISO 10918-1 B.2.4.4)
_START_OF_FRAME, _START_OF_SCAN = 0xC0, 0xDA
_END: Final = b"\xff\xd9"
_LEVELS: Final = "_shared_levels"


def grey_picture(levels: NDArray[numpy.uint8]) -> Image.Image:
    """An image of (rows, columns) grey levels, which it shares: `jpeg_file` need not copy them."""
    image = Image.frombuffer("L", levels.shape[::-1], levels, "raw", "L", 0, 1)
    vars(image)[_LEVELS] = levels
    return image


def _levels(image: Image.Image) -> NDArray[numpy.uint8]:
    shared: NDArray[numpy.uint8] | None = vars(image).get(_LEVELS)
    if shared is not None and image.readonly:  # until something is drawn upon it, for which Pillow makes a copy
        return shared
    return numpy.asarray(image)


def jpeg_file(image: Image.Image, quality: int, icc_profile: bytes | None) -> bytes:
    """A baseline JPEG file. Quality: the encoder's scale of 1 to 100; colours are subsampled below 90."""
    if image.mode == "L" and not icc_profile and image.width * image.height >= LARGE:
        return _in_strips(image, quality)
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, icc_profile=icc_profile)
    return target.getvalue()


def _in_strips(image: Image.Image, quality: int) -> bytes:
    """Each strip becomes a restart interval. The pixels are those of a file made at once: blocks do not overlap."""
    import imagecodecs

    levels = _levels(image)
    block_rows, blocks_of_a_row = -(-image.height // _BLOCK), -(-image.width // _BLOCK)
    block_rows_of_a_strip = min(-(-block_rows // 2), _MOST_BLOCKS // blocks_of_a_row)
    strips = -(-block_rows // block_rows_of_a_strip)
    step = block_rows_of_a_strip * _BLOCK

    def encoded(first: int, end: int) -> list[bytes]:
        parts = (levels[strip * step : (strip + 1) * step] for strip in range(first, end))
        return [bytes(imagecodecs.jpeg8_encode(part, level=quality)) for part in parts]

    files = [file for half in in_halves(encoded, strips) for file in half]
    return _joined(files, image.height, block_rows_of_a_strip * blocks_of_a_row)


def _joined(strips: list[bytes], height: int, interval: int) -> bytes:
    """One file of several that differ in their rows only; all but the last have `interval` blocks."""
    first = strips[0]
    frame, scan = _segment(first, _START_OF_FRAME), _segment(first, _START_OF_SCAN)
    begin = scan + 2 + int.from_bytes(first[scan + 2 : scan + 4], "big")
    pieces = [first[: frame + 5], height.to_bytes(2, "big"), first[frame + 7 : scan]]
    pieces += [b"\xff\xdd\0\x04", interval.to_bytes(2, "big"), first[scan:begin]]  # Define Restart Interval
    for number, strip in enumerate(strips):
        if number:
            pieces.append(bytes((0xFF, 0xD0 + (number - 1) % 8)))
        pieces.append(strip[begin : -len(_END)])
    return b"".join((*pieces, _END))


def _segment(file: bytes, marker: int) -> int:
    """Where the first marker segment of this kind begins."""
    at = 2
    while file[at + 1] != marker:
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return at
