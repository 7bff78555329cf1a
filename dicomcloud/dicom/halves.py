"""Work on large pictures by two threads at once: numpy and the codecs let the interpreter's lock go meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, TypeVar

Result = TypeVar("Result")

#: Pixels from which on two threads are faster than one, the way to the other one included.
LARGE: Final = 1 << 20

_IS_WORTH_IT: Final = (os.cpu_count() or 1) > 1


def in_halves(work: Callable[[int, int], Result], count: int, step: int = 1) -> list[Result]:
    """`work(first, end)` for both halves of 0 to `count`, in order; the first is the longer, a multiple of `step`.

    One call for the whole where the machine has one processor, or a half would be empty. Raises what `work` raises.
    """
    middle = -(-count // (2 * step)) * step
    if middle >= count or not _IS_WORTH_IT:
        return [work(0, count)]
    future = _threads().submit(work, 0, middle)
    try:
        second = work(middle, count)
    finally:
        if not future.cancel():  # not begun, since others keep the threads busy: it is done here
            future.exception()
    return [work(0, middle) if future.cancelled() else future.result(), second]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="halves")
