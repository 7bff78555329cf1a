"""One gzip stream put together from parts that were compressed before (RFC 1951, RFC 1952).

A segment is compressed without a look at what is before it and ends on a byte. Any number of them, with plain bytes
between, make one gzip member: its check sum is worked out from those of the segments, and nothing is compressed again.
Several members one after the other would be legal, too, but browsers read the first only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import cache

_HEAD = struct.Struct("<LQ")  # CRC-32 and length of what a segment unpacks to
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_LAST_BLOCK = b"\x03\0"  # of a deflate stream, empty
_POLYNOMIAL = 0xEDB88320
_PIECE = 128 << 10


def pack_segment(texts: Iterable[bytes], level: int = 3) -> bytes:
    """The texts, one after the other, as a segment."""
    packer = zlib.compressobj(level, wbits=-zlib.MAX_WBITS)
    crc = length = 0
    pieces = [b""]
    for text in texts:
        crc = zlib.crc32(text, crc)
        length += len(text)
        pieces.append(packer.compress(text))
    pieces.append(packer.flush(zlib.Z_FULL_FLUSH))
    pieces[0] = _HEAD.pack(crc, length)
    return b"".join(pieces)


def unpack_segment(segment: bytes) -> Iterator[bytes]:
    """What the segment unpacks to, in pieces."""
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    data = segment[_HEAD.size :]
    while data:
        piece = unpacker.decompress(data, _PIECE)
        data = unpacker.unconsumed_tail
        if piece:
            yield piece
    if rest := unpacker.flush():
        yield rest


class GzipStream:
    """The pieces of one gzip stream: `start`, then `text` and `segment` in any order, then `end`."""

    def __init__(self) -> None:
        self._crc = self._length = 0

    def start(self) -> bytes:
        return _GZIP_HEADER

    def text(self, text: bytes) -> bytes:
        """A few bytes as they are (at most 65,535): a stored block."""
        self._crc = zlib.crc32(text, self._crc)
        self._length += len(text)
        return struct.pack("<BHH", 0, len(text), len(text) ^ 0xFFFF) + text

    def segment(self, segment: bytes) -> bytes:
        crc, length = _HEAD.unpack_from(segment)
        self._crc = _combined(self._crc, crc, length)
        self._length += length
        return segment[_HEAD.size :]

    def end(self) -> bytes:
        return _LAST_BLOCK + struct.pack("<LL", self._crc, self._length & 0xFFFFFFFF)


def _combined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two texts one after the other, from the CRC of each and the length of the second.

    `length` zero bytes behind the first multiply its CRC by x^(8·length) modulo the CRC's polynomial.
    """
    factor = 1 << 31  # x^0; the highest bit is the lowest power
    power = 3  # x^8 = x^(2^3)
    while length:
        if length & 1:
            factor = _product(_power(power), factor)
        length >>= 1
        power += 1
    return _product(factor, first) ^ second


@cache
def _power(exponent: int) -> int:
    """x^(2^exponent)."""
    value = 1 << 30  # x^1
    for _ in range(exponent):
        value = _product(value, value)
    return value


def _product(first: int, second: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return product
