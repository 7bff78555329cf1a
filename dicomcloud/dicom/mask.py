"""Masks: frames that are subtracted from others, as in angiography (PS3.3 C.7.6.10, C.11.13; PS3.4 N.2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from . import values
from .values import Attributes

_MAX_FRAMES: Final = 64  # that are read for one mask


@dataclass(frozen=True, slots=True)
class Mask:
    """The frames whose mean is subtracted from the mean of the contrast frames; numbers from 1.

    `shift` is how far the mask is moved before, in rows and columns of the image.
    """

    frames: tuple[int, ...]
    contrast: tuple[int, ...]
    shift: tuple[float, float] = (0.0, 0.0)


def wants_subtraction(attributes: Attributes) -> bool:
    """Whether an image is to be seen subtracted: by its Recommended Viewing Mode (0028,1090)."""
    return values.string(attributes, "RecommendedViewingMode") == "SUB"


def mask_of(attributes: Attributes, number: int, frames: int) -> Mask | None:
    """The mask of a frame, by the Mask Subtraction Sequence of an image or a presentation state; None if it has none.

    `frames`: how many the image has. AVG_SUB, TID and REV_TID are understood; other operations, and masks that are
    not among the frames, count as none.
    """
    for item in values.items(attributes, "MaskSubtractionSequence"):
        if not _applies(item, number):
            continue
        operation = values.string(item, "MaskOperation")
        offset = values.integer(item, "TIDOffset", 1)
        chosen: list[int] = []
        if operation == "AVG_SUB":
            chosen = [int(frame) for frame in values.numbers(item, "MaskFrameNumbers")][:_MAX_FRAMES]
        elif operation == "TID":
            chosen = [number - offset]
        elif operation == "REV_TID":
            first = next((start for start, end in _ranges(item) if start <= number <= end), 1)
            chosen = [first - offset - (number - first)]
        if not chosen or not all(1 <= frame <= frames for frame in chosen):
            return None
        shift = values.numbers(item, "MaskSubPixelShift")
        averaged = min(max(values.integer(item, "ContrastFrameAveraging", 1), 1), _MAX_FRAMES)
        return Mask(
            tuple(chosen),
            tuple(range(number, min(number + averaged - 1, frames) + 1)),
            (shift[0], shift[1]) if len(shift) == 2 and max(map(abs, shift)) <= 1000 else (0.0, 0.0),
        )
    return None


def _ranges(item: Attributes) -> list[tuple[int, int]]:
    numbers = [int(frame) for frame in values.numbers(item, "ApplicableFrameRange")]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _applies(item: Attributes, number: int) -> bool:
    """Without a range a mask is for all frames."""
    ranges = _ranges(item)
    return not ranges or any(first <= number <= last for first, last in ranges)
