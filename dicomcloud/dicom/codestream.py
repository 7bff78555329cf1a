"""What an image or a video says of itself: size, samples, and the transfer syntax in which DICOM carries it.

    describe(media_type, data)    a part of a store request → Stream

Only headers are read; nothing is decoded. Every parser raises ValueError (with words for people) for bytes that are
not what their media type says, whatever they hold.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

Data = bytes | memoryview

_ROOT: Final = "1.2.840.10008.1.2."
RLE: Final = _ROOT + "5"
JPEG_PROGRESSIVE: Final = _ROOT + "4.55"
_HIGHEST_H264_41: Final = 41  # level_idc of Level 4.1


@dataclass(frozen=True, slots=True)
class Stream:
    """One bit stream. 0 or "" where its headers do not tell (`rows` and `columns` of RLE, say).

    `data` is what DICOM carries: the stream itself, of a JP2 file its codestream (PS3.5 A.4.4).
    `lossy_method` is the Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1), "" for lossless streams.
    `frames` is 1 but for videos; `frame_time` is in milliseconds.
    """

    transfer_syntax: str
    data: Data
    rows: int = 0
    columns: int = 0
    samples: int = 0
    precision: int = 0
    signed: bool = False
    photometric: str = ""
    lossy_method: str = ""
    frames: int = 1
    frame_time: float = 0.0


def describe(media_type: str, data: Data) -> Stream:
    """What the stream says of itself. Raises ValueError; KeyError for a media type that is no image or video."""
    try:
        return _READERS[media_type](memoryview(data))
    except (IndexError, struct.error):
        raise ValueError(f"the {media_type} stream ends within its headers") from None


def media_types() -> frozenset[str]:
    """The media types that `describe` knows."""
    return frozenset(_READERS)


# ---------------------------------------------------------------------------------------------------------------------
# JPEG and JPEG-LS (ISO/IEC 10918-1 B.2, 14495-1 C.2)

_NO_SEGMENT: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_JPEG_SYNTAX: Final = {0xC0: "4.50", 0xC1: "4.51", 0xC2: "4.55"}


def _segments(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Marker and content of each segment up to the first scan header, which is the last."""
    if bytes(data[:2]) != b"\xff\xd8":
        raise ValueError("it does not begin as a JPEG stream does")
    position = 2
    while True:
        while data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0xD8, 0xD9):
            raise ValueError("its markers do not follow one another as in a JPEG stream")
        if marker in _NO_SEGMENT:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if length < 2 or position + 2 + length > len(data):
            raise ValueError("a marker segment of the JPEG stream reaches beyond its end")
        yield marker, data[position + 4 : position + 2 + length]
        if marker == 0xDA:
            return
        position += 2 + length


def _jpeg(data: memoryview) -> Stream:
    process, frame, adobe, jfif, scan = 0, b"", -1, False, b""
    for marker, segment in _segments(data):
        if marker in _FRAME_HEADERS:
            process, frame = marker, bytes(segment)
        elif marker == 0xEE and bytes(segment[:5]) == b"Adobe" and len(segment) >= 12:
            adobe = segment[11]
        elif marker == 0xE0 and bytes(segment[:4]) == b"JFIF":
            jfif = True
        elif marker == 0xDA:
            scan = bytes(segment)
    precision, rows, columns, samples = struct.unpack_from(">BHHB", frame)
    if not rows or not columns or not samples or len(frame) < 6 + 3 * samples:
        raise ValueError("the frame header of the JPEG stream makes no sense")
    parameter = scan[1 + 2 * scan[0]]  # Ss: the predictor of lossless JPEG, NEAR of JPEG-LS
    if process == 0xC3:
        syntax, method = "4.70" if parameter == 1 else "4.57", ""
    elif process == 0xF7:
        syntax, method = ("4.81", "ISO_14495_1") if parameter else ("4.80", "")
    elif process in _JPEG_SYNTAX:
        syntax, method = _JPEG_SYNTAX[process], "ISO_10918_1"
    else:
        raise ValueError(f"JPEG streams with frame header FF{process:02X} have no transfer syntax")
    return Stream(
        _ROOT + syntax,
        data,
        rows,
        columns,
        samples,
        precision,
        photometric=_jpeg_colours(process, frame, samples, adobe, jfif),
        lossy_method=method,
    )


def _jpeg_colours(process: int, frame: bytes, samples: int, adobe: int, jfif: bool) -> str:
    """By sub-sampling (nobody sub-samples green), the Adobe marker, the component names, then by custom."""
    if samples == 1:
        return "MONOCHROME2"
    if samples != 3:
        return ""
    if process in (0xC3, 0xF7):
        return "RGB"
    identifiers = bytes(frame[6 + 3 * index] for index in range(3))
    subsampled = len({frame[7 + 3 * index] for index in range(3)}) > 1
    if not subsampled and (adobe == 0 or (adobe < 0 and not jfif and identifiers in (b"RGB", b"rgb"))):
        return "RGB"
    return "YBR_FULL_422" if subsampled else "YBR_FULL"


# ---------------------------------------------------------------------------------------------------------------------
# JPEG 2000 (ISO/IEC 15444-1 A) and High-Throughput JPEG 2000 (15444-15)


def _boxes(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of the content of each box of a JP2, MP4 or JPEG XL file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        kind = bytes(data[start + 4 : start + 8])
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = end if size == 0 else start + size
        if stop < start + header or stop > end:
            raise ValueError("a box of the file reaches beyond its end")
        yield kind, start + header, stop
        start = stop


def _jpeg_2000(data: memoryview) -> Stream:
    if bytes(data[4:8]) == b"jP  ":
        found = next(((begin, end) for kind, begin, end in _boxes(data) if kind == b"jp2c"), None)
        if found is None:
            raise ValueError("the JP2 file holds no codestream")
        data = data[found[0] : found[1]]
    if bytes(data[:4]) != b"\xff\x4f\xff\x51":
        raise ValueError("it does not begin as a JPEG 2000 codestream does")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, 8)
    samples, size = struct.unpack_from(">HB", data, 40)
    if x1 <= x0 or y1 <= y0 or not samples:
        raise ValueError("the image size of the JPEG 2000 codestream makes no sense")
    high_throughput, reversible, transformed = False, False, False
    position = 4 + struct.unpack_from(">H", data, 4)[0]
    while True:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFF50:  # CAP: Part 15 sets bit 17 (counted from the highest, which is 1)
            high_throughput = bool(struct.unpack_from(">I", data, position + 4)[0] >> 17 & 1)
        elif marker == 0xFF52:  # COD
            transformed = data[position + 8] == 1
            reversible = data[position + 13] == 1
        elif marker in (0xFF90, 0xFFD9) or marker < 0xFF4F or length < 2:
            break
        position += 2 + length
    kinds = ("4.201", "4.203") if high_throughput else ("4.90", "4.91")
    colours = ("YBR_RCT" if reversible else "YBR_ICT") if transformed else "RGB"
    method = "ISO_15444_15" if high_throughput else "ISO_15444_1"
    return Stream(
        _ROOT + kinds[0 if reversible else 1],
        data,
        y1 - y0,
        x1 - x0,
        samples,
        (size & 0x7F) + 1,
        signed=bool(size & 0x80),
        photometric="MONOCHROME2" if samples == 1 else colours if samples == 3 else "",
        lossy_method="" if reversible else method,
    )


def _rle(data: memoryview) -> Stream:
    """PS3.5 Annex G: the header tells no more than the number of byte planes."""
    if len(data) < 64:
        raise ValueError("it is shorter than the header of an RLE frame")
    segments, *offsets = struct.unpack_from("<16I", data)
    if not 1 <= segments <= 15 or offsets[0] != 64 or any(offset >= len(data) for offset in offsets[:segments]):
        raise ValueError("it does not begin as an RLE frame does (PS3.5 G.5)")
    return Stream(RLE, data)


# ---------------------------------------------------------------------------------------------------------------------
# Video: MP4 files (ISO/IEC 14496-12, -15), MPEG-2 (ISO/IEC 13818-1, -2), H.264 and H.265 byte streams

_MPEG2_RATES: Final = (0.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0)
_MPEG2_SEQUENCE: Final = re.compile(rb"\x00\x00\x01\xb3([\x00-\xff]{8})")
_MPEG2_EXTENSION: Final = re.compile(rb"\x00\x00\x01\xb5([\x10-\x1f][\x00-\xff])")
_PICTURE_START: Final = re.compile(rb"\x00\x00\x01\x00")
_FIRST: Final = 4 << 20  # bytes of a stream in which its first headers must be
_CONTAINERS: Final = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}


def _mp4(data: memoryview) -> Stream:
    if bytes(data[4:8]) != b"ftyp":
        syntax = _h264_syntax(data)
        return Stream(_ROOT + syntax, data, samples=3, precision=8, lossy_method=_method(syntax), frames=0)
    for track in _video_tracks(data, 0, len(data), 0):
        return _mp4_stream(data, track)
    raise ValueError("the MP4 file has no video track that DICOM can carry (H.264 or H.265)")


def _video_tracks(data: memoryview, start: int, end: int, depth: int) -> Iterator[dict[bytes, tuple[int, int]]]:
    """Of each track with video: where its boxes mdhd, stsd, stsz and stts are."""
    for kind, begin, stop in _boxes(data, start, end):
        if kind == b"moov":
            yield from _video_tracks(data, begin, stop, depth + 1)
        elif kind == b"trak":
            found: dict[bytes, tuple[int, int]] = {}
            _leaves(data, begin, stop, found)
            if {b"mdhd", b"stsd"} <= set(found) and bytes(data[slice(*found.get(b"hdlr", (0, 0)))][8:12]) == b"vide":
                yield found


def _leaves(data: memoryview, start: int, end: int, found: dict[bytes, tuple[int, int]]) -> None:
    for kind, begin, stop in _boxes(data, start, end):
        if kind in _CONTAINERS:
            _leaves(data, begin, stop, found)
        else:
            found.setdefault(kind, (begin, stop))


def _mp4_stream(data: memoryview, track: dict[bytes, tuple[int, int]]) -> Stream:
    entry, end = track[b"stsd"][0] + 8, track[b"stsd"][1]
    kind = bytes(data[entry + 4 : entry + 8])
    columns, rows = struct.unpack_from(">HH", data, entry + 32)
    precision = 8
    extensions = {name: begin for name, begin, _ in _boxes(data, entry + 86, end)}
    if kind in (b"avc1", b"avc3") and b"avcC" in extensions:
        begin = extensions[b"avcC"]
        syntax = _h264_level(data[begin + 3])
    elif kind in (b"hvc1", b"hev1") and b"hvcC" in extensions:
        main_10 = data[extensions[b"hvcC"] + 1] & 0x1F == 2
        syntax, precision = ("4.108", 10) if main_10 else ("4.107", 8)
    else:
        raise ValueError(f"the MP4 file holds {kind.decode('latin-1')!r}, not H.264 or H.265")
    frames = struct.unpack_from(">I", data, track[b"stsz"][0] + 8)[0] if b"stsz" in track else 0
    begin = track[b"mdhd"][0]
    scale, duration = struct.unpack_from(
        ">IQ" if data[begin] == 1 else ">II", data, begin + (20 if data[begin] else 12)
    )
    time = 1000.0 * duration / scale / frames if scale and frames else 0.0
    return Stream(
        _ROOT + syntax,
        data,
        rows,
        columns,
        3,
        precision,
        photometric="YBR_PARTIAL_420",
        lossy_method=_method(syntax),
        frames=frames,
        frame_time=round(time, 6),
    )


def _h264_level(level: int) -> str:
    return "4.102" if level <= _HIGHEST_H264_41 else "4.104"


def _method(syntax: str) -> str:
    return "ISO_13818_2" if syntax < "4.102" else "ISO_23008_2" if syntax in ("4.107", "4.108") else "ISO_14496_10"


_NAL_UNIT: Final = re.compile(rb"\x00\x00\x01([\x00-\xff])([\x00-\xff]{3})")


def _h264_syntax(data: memoryview) -> str:
    """Of a byte stream, bare or in an MPEG-2 Transport Stream: by the level of its first sequence parameter set."""
    for found in _NAL_UNIT.finditer(data[:_FIRST]):
        if found[1][0] & 0x9F == 7:
            return _h264_level(found[2][2])
    raise ValueError("it is neither an MP4 file nor an H.264 byte stream")


def _h265(data: memoryview) -> Stream:
    if bytes(data[4:8]) == b"ftyp":
        return _mp4(data)
    if not _NAL_UNIT.search(data[:_FIRST]):
        raise ValueError("it is neither an MP4 file nor an H.265 byte stream")
    return Stream(_ROOT + "4.107", data, samples=3, precision=8, lossy_method="ISO_23008_2", frames=0)


def _mpeg(data: memoryview) -> Stream:
    sequence = _MPEG2_SEQUENCE.search(data[:_FIRST])
    if sequence is None:
        raise ValueError("it holds no MPEG-2 sequence header")
    columns, rows = sequence[1][0] << 4 | sequence[1][1] >> 4, (sequence[1][1] & 0xF) << 8 | sequence[1][2]
    rate_code = sequence[1][3] & 0xF
    rate = _MPEG2_RATES[rate_code] if rate_code < len(_MPEG2_RATES) else 0.0
    extension = _MPEG2_EXTENSION.search(data[:_FIRST], sequence.end())
    level = extension[1][1] >> 4 if extension else 8
    syntax = "4.101" if level in (4, 6) else "4.100"
    packets = bytes(data[:4]) == b"\x00\x00\x01\xba" or data[0] == 0x47  # a system stream may cut a start code in two
    frames = 0 if packets else sum(1 for _ in _PICTURE_START.finditer(data))
    return Stream(
        _ROOT + syntax,
        data,
        rows,
        columns,
        3,
        8,
        photometric="YBR_PARTIAL_420",
        lossy_method="ISO_13818_2",
        frames=frames,
        frame_time=round(1000 / rate, 6) if rate else 0.0,
    )


_READERS: Final = {
    "image/jpeg": _jpeg,
    "image/jls": _jpeg,
    "image/jp2": _jpeg_2000,
    "image/jpx": _jpeg_2000,
    "image/jph": _jpeg_2000,
    "image/jphc": _jpeg_2000,
    "image/dicom-rle": _rle,
    "video/mpeg": _mpeg,
    "video/mpeg2": _mpeg,
    "video/mp4": _mp4,
    "video/h265": _h265,
}
