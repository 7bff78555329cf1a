"""Damages bytes at random, in the ways in which files and requests are forged."""

from __future__ import annotations

import random
from collections.abc import Sequence

_LENGTHS = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff", b"\xfe\xff\xff\xff", b"\x01\0\0\0")


def mutate(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` with one to six damages. The same `chance` gives the same result."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(damaged))
        match chance.randrange(7):
            case 0:
                damaged[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                damaged[at : at + 4] = chance.choice(_LENGTHS)
            case 2:
                del damaged[at : at + chance.choice((1, 2, 8, 64, 1000))]
            case 3:
                damaged[at:at] = chance.choice(words)
            case 4:
                damaged[at:at] = chance.choice(words) * chance.choice((2, 10, 200))
            case 5:
                start = chance.randint(0, len(damaged))
                damaged[at:at] = damaged[start : start + chance.choice((4, 40, 400))]
            case _:
                del damaged[at:]
    return bytes(damaged)
