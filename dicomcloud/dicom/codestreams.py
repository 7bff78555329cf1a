"""What a codestream claims to be, read from its headers before a codec believes it.

A few bytes could otherwise make a codec allocate gigabytes, or decode what is not the image of the data set. The
functions raise ValueError, IndexError or struct.error for what is no proper codestream.
"""

from __future__ import annotations

import struct
from typing import NamedTuple


class Codestream(NamedTuple):
    rows: int
    columns: int
    samples: int
    precision: int
    data: bytes  # the codestream proper, without a JP2 wrapper
    is_rgb: bool | None = None  # JPEG with three components: what its markers say; None if they say nothing
    is_baseline: bool = False  # JPEG: Baseline (process 1)


def jpeg_header(data: bytes) -> Codestream:
    """Frame header and colour markers of a JPEG or JPEG-LS stream (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no SOI")
    position = 2
    adobe: int | None = None
    jfif = False
    while True:
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        if data[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[position + 1]
        if marker == 1 or 0xD0 <= marker <= 0xD7:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2 or marker in (0xD8, 0xD9, 0xDA):
            raise ValueError("no frame header")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
        jfif = jfif or (marker == 0xE0 and segment.startswith(b"JFIF"))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            break
        position += 2 + length
    if data.rfind(b"\xff\xd9", position) < 0:
        raise ValueError("it ends early")  # libjpeg would fill the rest with grey and say nothing
    precision, rows, columns, samples = struct.unpack_from(">BHHB", segment)
    ids = bytes(segment[6 + 3 * index] for index in range(samples))
    subsampled = len({segment[7 + 3 * index] for index in range(samples)}) > 1
    is_rgb: bool | None = None
    if subsampled:
        is_rgb = False  # nobody subsamples green
    elif adobe is not None:
        is_rgb = adobe == 0
    elif ids in (b"RGB", b"rgb"):
        is_rgb = True
    elif jfif:
        is_rgb = False
    return Codestream(rows, columns, samples, precision, data, is_rgb, marker == 0xC0)


def jpeg_2000_header(data: bytes) -> Codestream:
    """SIZ of a JPEG 2000 codestream (ISO/IEC 15444-1 A.5.1), taken out of a JP2 file if it is in one.

    DICOM wants the bare codestream (PS3.5 A.4.4); a JP2 file's palette could multiply its size.
    """
    if data[4:8] == b"jP  ":
        position = 0
        while data[position + 4 : position + 8] != b"jp2c":
            length, header = int.from_bytes(data[position : position + 4], "big"), 8
            if length == 1:
                length, header = int.from_bytes(data[position + 8 : position + 16], "big"), 16
            if length < header:
                raise ValueError("no codestream in the JP2 file")
            position += length
            if position >= len(data):
                raise ValueError("no codestream in the JP2 file")
        data = data[position + (16 if data[position : position + 4] == b"\0\0\0\1" else 8) :]
    if data[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no SOC and SIZ")
    x1, y1, x0, y0, tile_x, tile_y = struct.unpack_from(">6I", data, 8)
    (samples,) = struct.unpack_from(">H", data, 40)
    sizes = set()
    for index in range(min(samples, 16)):
        _, dx, dy = struct.unpack_from("3B", data, 42 + 3 * index)
        sizes.add((-(-y1 // dy) - -(-y0 // dy), -(-x1 // dx) - -(-x0 // dx)))
    rows, columns = max(sizes)
    if (y1 - y0, x1 - x0) != (rows, columns) or -(-x1 // tile_x) * -(-y1 // tile_y) > 65535:
        raise ValueError("an image or tile size that makes no sense")
    return Codestream(rows, columns, samples, (data[42] & 0x7F) + 1, data)


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Rows and columns from the SizeHeader of a JPEG XL codestream or file (ISO/IEC 18181-1 D.2)."""
    if data[4:8] == b"JXL ":
        position = 0
        while data[position + 4 : position + 8] not in (b"jxlc", b"jxlp"):
            length = int.from_bytes(data[position : position + 4], "big")
            if length < 8 or position + length >= len(data):
                raise ValueError("no codestream in the JPEG XL file")
            position += length
        data = data[position + (8 if data[position + 4 : position + 8] == b"jxlc" else 12) :]
    if data[:2] != b"\xff\x0a":
        raise ValueError("no JPEG XL signature")
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & (1 << count) - 1
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows = side()
    ratio = take(3)
    if ratio == 0:
        return rows, side()
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return rows, rows * numerator // denominator
