"""Pixel data and documents as they come in a store request → what their module in the data set must say.

Each kind of pixel data derives the attributes of the Image Pixel Module (PS3.3 C.7.6.3) that are missing from the
headers of its bit streams, checks those that are there, and writes the elements of group 7FE0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import uuid4

from ..errors import FailureReason, InvalidInstance
from . import codestream, raster
from .codestream import Stream
from .encoding import BYTE_VRS, fail, first, label, whole_number
from .pixel_data import MAX_NATIVE_LENGTH, TRANSFER_SYNTAXES

OCTET_STREAM: Final = "application/octet-stream"
EXPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
PIXEL_DATA: Final = "7FE00010"
FLOAT: Final = "7FE00008"
DOUBLE: Final = "7FE00009"
_OFFSETS: Final = "7FE00001"  # Extended Offset Table
_LENGTHS: Final = "7FE00002"  # and Lengths

Piece = bytes | memoryview | Callable[[], Iterator[bytes]]


class Writer(Protocol):
    """Where pixel data are written to."""

    def uid(self, key: str) -> str | None: ...

    def write_long(self, key: str, tag: int, vr: str, length: int, pieces: Iterable[Piece], pad: bytes = ...) -> None:
        """An element whose value comes in pieces of `length` bytes together."""

    def write_fragments(self, offsets: Sequence[int], frames: Sequence[memoryview]) -> None:
        """Pixel Data of these frames, each a fragment, behind a Basic Offset Table (empty without offsets)."""


class Pixels:
    """Pixel data of one kind: derives and checks attributes when it is made, and writes its elements."""

    transfer_syntax = EXPLICIT_LITTLE_ENDIAN
    keys: frozenset[str] = frozenset({PIXEL_DATA})
    rendered = False  # a consumer image: what the server can know of its object, it adds
    video = False
    discarded: tuple[str, ...] = ()

    def write(self, key: str, vr: str, writer: Writer) -> None:
        raise NotImplementedError


class NativePixels(Pixels):
    def __init__(self, attributes: dict[str, Any], key: str, data: Sequence[memoryview]) -> None:
        self.keys = frozenset({key})
        self._data = data
        self._length = sum(map(len, data))
        bits = {FLOAT: 32, DOUBLE: 64}.get(key) or whole_number(attributes, "00280100")
        rows, columns = whole_number(attributes, "00280010"), whole_number(attributes, "00280011")
        if rows is None or columns is None or bits is None:
            return  # said of the stored instance: it does not match its SOP class
        samples, frames = whole_number(attributes, "00280002") or 1, whole_number(attributes, "00280008") or 1
        sizes = {(rows * columns * samples * bits * frames + 7) // 8}
        if samples == 3 and first(attributes, "00280004") in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            sizes.add((rows * columns * 2 * bits * frames + 7) // 8)
        if not any(self._length in (size, size + (size & 1)) for size in sizes):
            fail(
                key,
                f"{self._length} bytes contradict Rows {rows}, Columns {columns}, SamplesPerPixel {samples}, "
                f"BitsAllocated {bits} and NumberOfFrames {frames}, which make {max(sizes)}",
            )

    def write(self, key: str, vr: str, writer: Writer) -> None:
        if vr not in BYTE_VRS - {"UN"}:
            vr = {FLOAT: "OF", DOUBLE: "OD"}.get(key, "OW")
        writer.write_long(key, int(key, 16), vr, self._length, self._data)


class EncapsulatedPixels(Pixels):
    def __init__(
        self, attributes: dict[str, Any], media_type: str, data: Sequence[memoryview], syntax: str, given: bool
    ) -> None:
        self._frames: Sequence[memoryview] = data
        self.transfer_syntax = syntax
        self._extended = _OFFSETS in attributes
        if self._extended:
            self.keys = frozenset({PIXEL_DATA, _OFFSETS, _LENGTHS})
            attributes.setdefault(_LENGTHS, {"vr": "OV"})
            sort_keys(attributes)
        if media_type in codestream.media_types():
            self._describe(attributes, media_type, data, given)
        if max(map(len, self._frames)) > MAX_NATIVE_LENGTH:
            fail(PIXEL_DATA, "a frame is longer than a fragment can be")
        count = whole_number(attributes, "00280008")
        if not self.video and len(data) != (count or 1):
            if count is not None:
                fail("00280008", f"{count} contradicts the number of parts with pixel data, {len(data)}")
            _supply(attributes, {"00280008": {"vr": "IS", "Value": [len(data)]}})
        self.rendered = not given and (self.video or media_type == "image/jpeg")

    def _describe(self, attributes: dict[str, Any], media_type: str, data: Sequence[memoryview], given: bool) -> None:
        streams = []
        for number, frame in enumerate(data, 1):
            try:
                streams.append(codestream.describe(media_type, frame))
            except ValueError as error:
                fail(PIXEL_DATA, f"frame {number} is no {media_type}: {error}")
        if not given:  # a JP2 file's codestream; the sender who knows its transfer syntax knows what it sends
            self._frames = [memoryview(stream.data) for stream in streams]
        syntaxes = {stream.transfer_syntax for stream in streams}
        lossy = [stream for stream in streams if stream.lossy_method]
        if not self.transfer_syntax:
            if len(syntaxes) > 1:
                syntaxes = {_LOSSY_FORM.get(syntax, syntax) for syntax in syntaxes}
            if len(syntaxes) > 1:
                fail(PIXEL_DATA, "its frames would need different transfer syntaxes, " + ", ".join(sorted(syntaxes)))
            self.transfer_syntax = syntaxes.pop()
        row = TRANSFER_SYNTAXES.get(self.transfer_syntax)
        self.video = row is not None and row.video
        if self.video and len(data) > 1:
            fail(PIXEL_DATA, "a video is one part")
        leading = streams[0]
        for number, stream in enumerate(streams, 1):
            _check(attributes, stream, f"frame {number}" if len(streams) > 1 else "the bit stream")
            if (stream.rows, stream.columns, stream.samples) != (leading.rows, leading.columns, leading.samples):
                fail(PIXEL_DATA, f"frame {number} is {stream.rows} × {stream.columns}, the first {leading.rows} × "
                                    f"{leading.columns}")  # fmt: skip
        _supply(attributes, _image_pixel(leading, leading.frames if self.video else len(data)))
        if lossy and not given and "00282110" not in attributes:
            ratio = _ratio(attributes, data)
            _supply(attributes, {
                "00282110": {"vr": "CS", "Value": ["01"]},
                **({"00282112": {"vr": "DS", "Value": [ratio]}} if ratio else {}),
                "00282114": {"vr": "CS", "Value": [lossy[0].lossy_method]},
            })  # fmt: skip

    def write(self, key: str, vr: str, writer: Writer) -> None:
        offsets, position = [], 0
        for frame in self._frames:
            offsets.append(position)
            position += 8 + len(frame) + (len(frame) & 1)
        count = len(self._frames)
        if key == _OFFSETS:
            writer.write_long(key, 0x7FE00001, "OV", 8 * count, [struct.pack(f"<{count}Q", *offsets)])
        elif key == _LENGTHS:
            writer.write_long(key, 0x7FE00002, "OV", 8 * count, [struct.pack(f"<{count}Q", *map(len, self._frames))])
        else:
            table = not self._extended and not self.video and offsets[-1] <= 0xFFFFFFFF
            writer.write_fragments(offsets if table else (), self._frames)


class RasterPixels(Pixels):
    """PNG, GIF and the JPEGs that no transfer syntax allows: decoded, as they are written."""

    rendered = True

    def __init__(self, attributes: dict[str, Any], media_type: str, data: Sequence[memoryview], limit: int) -> None:
        grey = whole_number(attributes, "00280002") == 1
        try:
            self._images = [raster.open_image(each, grey=grey) for each in data]
        except ValueError as error:
            fail(PIXEL_DATA, f"it is no {media_type} that can be read: {error}")
        leading = self._images[0]
        shapes = {image.shape for image in self._images}
        if len(shapes) > 1:
            fail(PIXEL_DATA, "its parts are images of different size or kind")
        frames = sum(image.frames for image in self._images)
        rows, columns, samples, bits = leading.shape
        self._length = rows * columns * samples * bits // 8 * frames
        if self._length > min(limit, MAX_NATIVE_LENGTH):
            fail(PIXEL_DATA, f"decoded it would have {self._length} bytes, more than this server accepts")
        photometric = "RGB" if samples == 3 else "MONOCHROME2"
        stream = Stream(EXPLICIT_LITTLE_ENDIAN, b"", rows, columns, samples, bits, photometric=photometric)
        _check(attributes, stream, "the image")
        stated = whole_number(attributes, "00280100")
        if stated not in (None, bits):
            fail("00280100", f"{stated} contradicts the image, which has {bits}")
        stated = whole_number(attributes, "00280008")
        if stated not in (None, frames):
            fail("00280008", f"{stated} contradicts the image, which has {frames}")
        for key in ("00280004", "00280006"):  # these describe what is written, not what came
            if first(attributes, key) is not None and samples == 3:
                attributes.pop(key)
        _supply(attributes, _image_pixel(stream, frames))
        if frames > 1 and leading.frame_time:
            _supply(attributes, _timing(leading.frame_time))
        if leading.has_alpha:
            self.discarded = ("the transparency of the image",)
        if media_type == "image/jpeg" and "00282110" not in attributes:
            _supply(attributes, {"00282110": {"vr": "CS", "Value": ["01"]},
                                 "00282114": {"vr": "CS", "Value": ["ISO_10918_1"]}})  # fmt: skip
        self._bits = bits

    def write(self, key: str, vr: str, writer: Writer) -> None:
        pieces = [self._decoded(image, writer) for image in self._images]
        writer.write_long(key, 0x7FE00010, "OW" if self._bits > 8 else "OB", self._length, pieces)

    def _decoded(self, image: raster.Image, writer: Writer) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            try:
                yield from image.decode()
            except ValueError as error:
                raise InvalidInstance(
                    FailureReason.CANNOT_UNDERSTAND,
                    f"{label(0x7FE00010)}: the image cannot be decoded: {error}",
                    sop_class_uid=writer.uid("00080016"),
                    sop_instance_uid=writer.uid("00080018"),
                ) from None

        return pieces


def sort_keys(attributes: dict[str, Any]) -> None:
    in_order = sorted(attributes.items())
    attributes.clear()
    attributes.update(in_order)


def _supply(attributes: dict[str, Any], derived: Mapping[str, Any]) -> None:
    """Put in what is missing or empty."""
    for key, attribute in derived.items():
        if first(attributes, key) in (None, ""):
            attributes[key] = attribute
    sort_keys(attributes)


def _check(attributes: Mapping[str, Any], stream: Stream, what: str) -> None:
    """Hold the attributes that are there against the stream. Raises Fault naming the one that contradicts it."""
    for key, found in (("00280010", stream.rows), ("00280011", stream.columns), ("00280002", stream.samples)):
        stated = whole_number(attributes, key)
        if found and stated is not None and stated != found:
            fail(key, f"{stated} contradicts {what}, which has {found}")
    allocated = whole_number(attributes, "00280100")
    if stream.precision and allocated is not None and allocated < stream.precision:
        fail("00280100", f"{allocated} contradicts {what}, whose samples have {stream.precision} bits")
    photometric = first(attributes, "00280004")
    single = isinstance(photometric, str) and photometric.strip() in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if stream.samples and photometric and single != (stream.samples == 1):
        fail("00280004", f"{str(photometric)[:20]} contradicts {what}, which has {stream.samples} samples per pixel")


def _image_pixel(stream: Stream, frames: int) -> dict[str, Any]:
    """The attributes of the Image Pixel Module (PS3.3 C.7.6.3) that the stream tells."""
    attributes: dict[str, Any] = {}

    def put(key: str, vr: str, value: Any) -> None:
        attributes[key] = {"vr": vr, "Value": [value]}

    if stream.rows and stream.columns:
        put("00280010", "US", stream.rows)
        put("00280011", "US", stream.columns)
    if stream.samples:
        put("00280002", "US", stream.samples)
        if stream.samples > 1:
            put("00280006", "US", 0)
    if stream.photometric:
        put("00280004", "CS", stream.photometric)
    if stream.precision:
        put("00280100", "US", 8 if stream.precision <= 8 else 16 if stream.precision <= 16 else 32)
        put("00280101", "US", stream.precision)
        put("00280102", "US", stream.precision - 1)
        put("00280103", "US", int(stream.signed))
    if frames > 1:
        put("00280008", "IS", frames)
    if stream.frame_time and frames > 1:
        attributes |= _timing(stream.frame_time)
    return attributes


def _timing(milliseconds: float) -> dict[str, Any]:
    """The Cine Module (PS3.3 C.7.6.5) of frames at equal distances."""
    return {
        "00181063": {"vr": "DS", "Value": [f"{milliseconds:.10g}"]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},
    }


def _ratio(attributes: Mapping[str, Any], data: Sequence[memoryview]) -> str:
    numbers = [whole_number(attributes, key) for key in ("00280010", "00280011", "00280002", "00280100")]
    rows, columns, samples, bits = (number or 0 for number in numbers)
    frames = whole_number(attributes, "00280008") or len(data)
    ratio = rows * columns * samples * bits // 8 * frames / max(1, sum(map(len, data)))
    return f"{ratio:.2f}" if ratio > 1 else ""


# ---------------------------------------------------------------------------------------------------------------------
# Consumer images and documents

ALIASES: Final = {
    "image/jpg": "image/jpeg",
    "image/x-jls": "image/jls",
    "image/j2c": "image/jp2",
    "image/x-dicom-rle": "image/dicom-rle",
    "video/mpeg2": "video/mpeg",
    "application/xml": "text/xml",
    "application/sla": "model/stl",
    "application/vnd.ms-pki.stl": "model/stl",
    "application/x-pdf": "application/pdf",
}
_FAMILIES: Final = {"image/jph": "image/jp2", "image/jphc": "image/jp2", "image/jpx": "image/jp2"}
_LOSSY_FORM: Final = {
    "1.2.840.10008.1.2.4.70": "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80": "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90": "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201": "1.2.840.10008.1.2.4.203",
}  # the syntax that allows all that the other does

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
DOCUMENT_CLASSES: Final = {
    "application/pdf": _STORAGE + "104.1",
    "text/xml": _STORAGE + "104.2",  # CDA
    "model/stl": _STORAGE + "104.3",
    "model/obj": _STORAGE + "104.4",
    "model/mtl": _STORAGE + "104.5",
}
# Attributes of the Encapsulated Document and SC Equipment Modules that must be there (PS3.3 A.45, C.24.2, C.8.6.1).
DOCUMENT_ATTRIBUTES: Final[Mapping[str, Any]] = {
    "00080060": {"vr": "CS", "Value": ["DOC"]},
    "00080064": {"vr": "CS", "Value": ["WSD"]},
    "00080023": {"vr": "DA"},
    "00080033": {"vr": "TM"},
    "0008002A": {"vr": "DT"},
    "00280301": {"vr": "CS", "Value": ["YES"]},
    "00420010": {"vr": "ST"},
    "0040A043": {"vr": "SQ"},
}
# Type 2 attributes of the patient, study, series and instance (PS3.3 C.7.1.1, C.7.2.1, C.7.3.1, C.7.6.1).
_TYPE_2: Final[Mapping[str, str]] = {
    "00100010": "PN", "00100020": "LO", "00100030": "DA", "00100040": "CS", "00080020": "DA", "00080030": "TM",
    "00080050": "SH", "00080090": "PN", "00200010": "SH", "00200011": "IS", "00200013": "IS",
}  # fmt: skip


def complete(attributes: dict[str, Any], video: bool, study_uid: str | None) -> None:
    """What a consumer image or document lacks to be an object: a SOP class and what its modules demand, UIDs.

    An object whose SOP Class UID the sender gave gets nothing but UIDs.
    """
    derived: dict[str, Any] = {}
    document = "00420011" in attributes
    if document or first(attributes, "00080016") in (None, ""):
        if not document:
            derived["00080016"] = {"vr": "UI", "Value": [_image_class(attributes, video)]}
            derived["00080060"] = {"vr": "CS", "Value": ["XC" if video else "OT"]}
            if not video:
                derived["00080064"] = {"vr": "CS", "Value": ["WSD"]}
        for key, vr in _TYPE_2.items():
            attributes.setdefault(key, {"vr": vr})
    for key in ("00080018", "0020000E"):
        derived[key] = {"vr": "UI", "Value": [_new_uid()]}
    derived["0020000D"] = {"vr": "UI", "Value": [study_uid or _new_uid()]}
    _supply(attributes, derived)


def _image_class(attributes: Mapping[str, Any], video: bool) -> str:
    """Video Photographic Image, or the Secondary Capture that fits (PS3.3 A.8)."""
    if video:
        return _STORAGE + "77.1.4.1"
    if (whole_number(attributes, "00280008") or 1) == 1:
        return _STORAGE + "7"
    if whole_number(attributes, "00280002") == 3:
        return _STORAGE + "7.4"
    return _STORAGE + ("7.2" if (whole_number(attributes, "00280100") or 8) <= 8 else "7.3")


def _new_uid() -> str:
    """PS3.5 B.2"""
    return f"2.25.{uuid4().int}"


def carries(syntax: str, media_type: str) -> bool:
    """Whether a part of this media type can hold frames in this transfer syntax."""
    row = TRANSFER_SYNTAXES.get(syntax)
    if row is None:
        return False
    family = _FAMILIES.get(row.media_type, row.media_type)
    return media_type == OCTET_STREAM or _FAMILIES.get(media_type, media_type) == family
