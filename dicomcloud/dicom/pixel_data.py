"""The pixel data of stored files: single frames, and whole files in another transfer syntax.

    PixelData, decode_frame      frames, decoded if they are compressed
    transcode_frame              the bit stream of one frame in another transfer syntax
    transcode                    a whole file in another transfer syntax
    to_explicit_little_endian    the same, in Explicit VR Little Endian

`transcode_file` and `transcode_frame_to_file` take paths: what a worker process is given. One frame after the other is
in memory; encoded frames wait in a temporary file until their lengths and the compression ratio are known.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final

from . import codecs, recode
from .codecs import ImagePixel
from .frames import Frames
from .recode import PIXEL_DATA, UNDEFINED, DicomFile, Recoder, explicit_element
from .stored_pixels import MAX_INFLATED, PixelData
from .transfer_syntaxes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_BASELINE,
    JPEG_XL_RECOMPRESSION,
    TRANSFER_SYNTAXES,
    CannotDecode,
    CannotEncode,
    CannotTranscode,
    TransferSyntax,
    leaves_as_stored,
)

__all__ = [
    "DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN",
    "EXPLICIT_VR_BIG_ENDIAN",
    "EXPLICIT_VR_LITTLE_ENDIAN",
    "IMPLICIT_VR_LITTLE_ENDIAN",
    "TRANSFER_SYNTAXES",
    "CannotDecode",
    "CannotEncode",
    "CannotTranscode",
    "JPEG_BASELINE",
    "JPEG_XL_RECOMPRESSION",
    "ImagePixel",
    "PixelData",
    "TransferSyntax",
    "decode_frame",
    "leaves_as_stored",
    "to_explicit_little_endian",
    "transcode",
    "transcode_file",
    "transcode_frame",
    "transcode_frame_of_file",
    "transcode_frame_to_file",
]

#: The longest value a native Pixel Data element can hold (PS3.5 7.1.1: an even 32-bit length).
MAX_NATIVE_LENGTH: Final = 2**32 - 2
#: The largest offset of a Basic Offset Table (PS3.5 A.4); beyond it an Extended Offset Table is written.
MAX_BASIC_OFFSET: Final = 2**32 - 1
_IN_MEMORY: Final = 1 << 24

_SOP_CLASS_UID, _SOP_INSTANCE_UID, _IMAGE_TYPE = 0x00080016, 0x00080018, 0x00080008
_DERIVATION_DESCRIPTION, _SOURCE_IMAGE_SEQUENCE = 0x00082111, 0x00082112
_PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION, _HIGH_BIT = 0x00280004, 0x00280006, 0x00280102
_LOSSY_IMAGE_COMPRESSION, _LOSSY_RATIO, _LOSSY_METHOD = 0x00282110, 0x00282112, 0x00282114
_EXTENDED_OFFSET_TABLE, _EXTENDED_OFFSET_TABLE_LENGTHS = 0x7FE00001, 0x7FE00002
# With Encapsulated Pixel Data Value Total Length: only for encapsulated pixel data, and only for these.
_ONLY_ENCAPSULATED: Final = frozenset({_EXTENDED_OFFSET_TABLE, _EXTENDED_OFFSET_TABLE_LENGTHS, 0x7FE00003})
_MAX_DESCRIPTION: Final = 1024  # of an ST (PS3.5 6.2)


# ---------------------------------------------------------------------------------------------------------------------
# Frames


def decode_frame(source: BinaryIO, number: int, *, frames: Frames | None = None) -> bytes:
    """One native little endian frame of a stored PS3.10 file of any transfer syntax, numbered from 1.

    Exactly Rows × Columns × Samples per Pixel × Bits Allocated / 8 bytes; multi-sample frames that were compressed come
    colour-by-pixel. Raises LookupError if there is no such frame or no pixel data, CannotDecode. `PixelData` tells the
    photometric interpretation of what comes out, and serves several frames of one file for less.
    """
    return PixelData(source, frames=frames).frame(number)


def transcode_frame(
    source: BinaryIO,
    number: int,
    transfer_syntax: str,
    *,
    frames: Frames | None = None,
    max_inflated: int = MAX_INFLATED,
) -> bytes:
    """The bit stream of one frame (from 1) of a stored PS3.10 file in another transfer syntax (PS3.18 8.7.3.3).

    For an encapsulated one what the fragments of the frame hold, for a native one what `decode_frame` returns. A frame
    that is in the syntax already comes as it is, and so does the JPEG stream that JPEG XL only packs. `frames`, if the
    header scan is at hand, spares walking through all fragments. Raises LookupError if there is no such frame or no
    pixel data, CannotDecode, CannotEncode.
    """
    pixels = PixelData(source, frames=frames, max_inflated=max_inflated)
    if pixels.syntax.encapsulated and pixels.syntax.uid == transfer_syntax:
        return pixels.encoded_frame(number)
    wanted = _encodable(transfer_syntax)
    if pixels.syntax.uid == JPEG_XL_RECOMPRESSION and wanted.uid == JPEG_BASELINE:
        original = codecs.recompressed_jpeg(pixels.encoded_frame(number), pixels.image)
        if original is not None:
            return original
    frame = pixels.frame(number)
    if not wanted.encapsulated:
        return frame
    pixels.require_encodable(wanted)
    return codecs.encode(wanted, frame, pixels.decoded)


def transcode_frame_of_file(
    open_source: Callable[[], BinaryIO],
    number: int,
    transfer_syntax: str,
    frames: bytes | None = None,
    max_inflated: int = MAX_INFLATED,
) -> bytes:
    """`transcode_frame` for a worker process: `frames` is a packed `Frames`."""
    with open_source() as source:
        unpacked = None if frames is None else Frames.unpack(frames)
        return transcode_frame(source, number, transfer_syntax, frames=unpacked, max_inflated=max_inflated)


def transcode_frame_to_file(
    open_source: Callable[[], BinaryIO],
    target_path: str,
    number: int,
    transfer_syntax: str,
    frames: bytes,
    max_inflated: int = MAX_INFLATED,
) -> None:
    """`transcode_frame_of_file` into a file. Where it fails it leaves none."""
    frame = transcode_frame_of_file(open_source, number, transfer_syntax, frames, max_inflated)
    with _new_file(target_path) as target:
        target.write(frame)


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


def to_explicit_little_endian(source: BinaryIO, target: BinaryIO, *, max_inflated: int = MAX_INFLATED) -> None:
    """Write the PS3.10 file `source` to `target` in Explicit VR Little Endian: see `transcode`."""
    transcode(source, target, EXPLICIT_VR_LITTLE_ENDIAN, max_inflated=max_inflated)


def transcode(source: BinaryIO, target: BinaryIO, transfer_syntax: str, *, max_inflated: int = MAX_INFLATED) -> None:
    """Write the PS3.10 file `source` to `target` in an encodable transfer syntax.

    A file that is in this transfer syntax already is copied byte for byte. Otherwise
    - Implicit VR and Big Endian are re-encoded (group lengths are left out, they would be wrong): private elements of
      Implicit VR become UN with the bytes they had, so does a value too long for a 16-bit length (PS3.18 8.7.3.4
      note 3);
    - a deflated data set is inflated, to at most `max_inflated` bytes;
    - pixel data are decoded and encoded frame by frame, and what says how to read them follows. Native pixel data are
      OB or OW (PS3.5 A.2), encapsulated ones have a fragment for each frame, and with several frames a Basic Offset
      Table, or where its 32 bits do not suffice an Extended one (PS3.5 A.4);
    - an image that loses something becomes a derived one (PS3.3 C.7.6.1.1.3, C.7.6.1.1.5): it gets a new SOP Instance
      UID, which is the same each time, Lossy Image Compression with Ratio and Method, Derivation Description and a
      Source Image Sequence.

    `source` must be seekable; `target` is only written to. Raises CannotDecode, CannotEncode (also for an encapsulated
    transfer syntax where there is no pixel data), then `target` may hold a part.
    """
    file = recode.open_file(source)
    if file.syntax.uid == transfer_syntax and (file.encoding.explicit or file.syntax.uid != EXPLICIT_VR_LITTLE_ENDIAN):
        file.reader.seek(0)
        for piece in file.reader.pieces(file.reader.size):
            target.write(piece)
        return
    wanted = _encodable(transfer_syntax)
    if wanted.encapsulated:
        _write_encapsulated(file, wanted, target, max_inflated)
    elif wanted.deflated:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        length = 0

        def deflate(data: bytes) -> None:
            nonlocal length
            length += target.write(packer.compress(data))

        _write_native(file, wanted, target.write, deflate, max_inflated)
        length += target.write(packer.flush())
        target.write(b"\0" * (length % 2))  # PS3.5 A.5
    else:
        _write_native(file, wanted, target.write, target.write, max_inflated)


def transcode_file(
    open_source: Callable[[], BinaryIO], target_path: str, transfer_syntax: str, max_inflated: int = MAX_INFLATED
) -> None:
    """`transcode` for a worker process. Where it fails it leaves no file at `target_path`."""
    with open_source() as source, _new_file(target_path) as target:
        transcode(source, target, transfer_syntax, max_inflated=max_inflated)


@contextmanager
def _new_file(path: str) -> Iterator[BinaryIO]:
    try:
        with open(path, "wb") as file:
            yield file
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


Write = Callable[[bytes], object]


def _encodable(uid: str) -> TransferSyntax:
    syntax = TRANSFER_SYNTAXES.get(uid)
    if syntax is None or not syntax.encodable:
        raise CannotEncode(f"This server does not write {syntax.name if syntax else f'the transfer syntax {uid}'}.")
    return syntax


def _write_native(file: DicomFile, wanted: TransferSyntax, write_meta: Write, write: Write, max_inflated: int) -> None:
    """A whole file whose pixel data, if any, come out native; `write` takes the data set."""
    reader = file.reader
    if file.syntax.encapsulated:
        _write_decoded(file, wanted, write_meta, write, max_inflated)
        return
    write_meta(file.meta_for(wanted.uid))
    if file.syntax.deflated:
        for piece in recode.inflate(file, max_inflated):
            write(piece)
    elif file.encoding.explicit and file.encoding.little:
        for piece in reader.pieces(reader.size - reader.position):
            write(piece)
    else:
        Recoder(reader, write).data_set(file.encoding, reader.size, {}, 0)


def _write_decoded(file: DicomFile, wanted: TransferSyntax, write_meta: Write, write: Write, max_inflated: int) -> None:
    pixels = PixelData.of_file(file, max_inflated)
    changes: dict[int, bytes] = {}
    first, length = b"", 0
    if pixels.present:
        pixels.require_frames()
        first = pixels.frame(1)
        length = -(-pixels.decoded.frame_bits * pixels.image.frames // 8)
        if length + length % 2 > MAX_NATIVE_LENGTH:
            raise CannotDecode(f"The {file.syntax.name} pixel data are too large to be decoded into one element.")
        changes = _image_changes(pixels.image, pixels.decoded)
    write_meta(file.meta_for(wanted.uid))
    _write_elements(pixels, changes, write, lambda: _write_native_pixels(pixels, first, length, write))


def _write_elements(
    pixels: PixelData, changes: dict[int, bytes], write: Write, write_pixel_data: Callable[[], None]
) -> None:
    """The elements of a data set in Explicit VR Little Endian, those of `changes` in place of what they were."""
    reader, encoding = pixels.file.reader, pixels.file.encoding
    recoder, numbers = Recoder(reader, write), dict[int, int]()
    ahead = sorted(changes, reverse=True)
    for element, start, end in pixels.elements:
        while ahead and ahead[-1] <= element.tag:
            write(changes[ahead.pop()])
        if element.tag == PIXEL_DATA:
            write_pixel_data()
        elif element.tag & 0xFFFF == 0 or element.tag in changes or element.tag in _ONLY_ENCAPSULATED:
            continue
        elif encoding.explicit and encoding.little:
            reader.seek(start)
            for piece in reader.pieces(end - start):
                write(piece)
        else:
            reader.seek(start)
            recoder.data_set(encoding, end, numbers, 0)


def _image_changes(stored: ImagePixel, new: ImagePixel) -> dict[int, bytes]:
    """The elements of the Image Pixel Module that are others than in the stored data set, whole."""
    changes: dict[int, bytes] = {}
    if new.photometric != stored.photometric:
        changes[_PHOTOMETRIC_INTERPRETATION] = explicit_element(_PHOTOMETRIC_INTERPRETATION, "CS", new.photometric)
    if new.samples > 1:
        changes[_PLANAR_CONFIGURATION] = explicit_element(_PLANAR_CONFIGURATION, "US", new.planar)
    if new.high_bit != stored.high_bit:
        changes[_HIGH_BIT] = explicit_element(_HIGH_BIT, "US", new.high_bit)
    return changes


def _write_native_pixels(pixels: PixelData, first: bytes, length: int, write: Write) -> None:
    """Pixel Data of known length, frame by frame; 1-bit frames follow each other without padding (PS3.5 8.1.1)."""
    image = pixels.image
    write(recode.element_header(PIXEL_DATA, "OW" if image.bits_allocated > 8 else "OB", length + length % 2))
    kind = pixels.decoded
    bits = kind.frame_bits
    pending, pending_bits = 0, 0
    for number in range(1, image.frames + 1):
        frame = first if number == 1 else pixels.frame_like(kind, number)
        if bits % 8 == 0:
            write(frame)
            continue
        pending |= int.from_bytes(frame, "little") << pending_bits
        whole, pending_bits = divmod(pending_bits + bits, 8)
        write((pending & (1 << whole * 8) - 1).to_bytes(whole, "little"))
        pending >>= whole * 8
    if pending_bits:
        write(pending.to_bytes(1, "little"))
    write(b"\0" * (length % 2))


# ---------------------------------------------------------------------------------------------------------------------
# Whole files with encapsulated pixel data


def _write_encapsulated(file: DicomFile, wanted: TransferSyntax, target: BinaryIO, max_inflated: int) -> None:
    if file.syntax.deflated:
        file = file.inflated(max_inflated)
    pixels = PixelData.of_file(file, max_inflated)
    if not pixels.present:
        raise CannotEncode(f"The object has no pixel data: it cannot be in {wanted.name}.")
    pixels.require_encodable(wanted)
    pixels.require_frames()
    kind = pixels.decoded
    changes = _image_changes(pixels.image, codecs.encoded(wanted, kind))
    sop_instance = None
    with SpooledTemporaryFile(max_size=_IN_MEMORY) as encoded:
        lengths = array("Q")
        for number in range(1, kind.frames + 1):
            frame = codecs.encode(wanted, pixels.frame_like(kind, number), kind)
            lengths.append(len(frame))
            encoded.write(frame + b"\0" * (len(frame) % 2))
        if codecs.ENCODINGS[wanted.uid].method:
            ratio = kind.pixels * kind.samples * kind.bits_allocated * kind.frames / 8 / sum(lengths)
            sop_instance = _derived_uid(pixels, wanted)
            changes |= _derivation(pixels, wanted, ratio, sop_instance)
        table, extended = _offset_tables(lengths)
        changes |= extended
        encoded.seek(0)

        def write_pixel_data() -> None:
            target.write(recode.element_header(PIXEL_DATA, "OB", UNDEFINED))
            target.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table)
            for length in lengths:
                length += length % 2
                target.write(struct.pack("<HHI", 0xFFFE, 0xE000, length))
                target.write(encoded.read(length))
            target.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

        target.write(file.meta_for(wanted.uid, sop_instance))
        _write_elements(pixels, changes, target.write, write_pixel_data)


def _offset_tables(lengths: array[int]) -> tuple[bytes, dict[int, bytes]]:
    """The Basic Offset Table, or (then it is empty) the elements of the Extended one: where each frame's item begins.

    PS3.5 A.4, PS3.3 C.7.6.3.1.8: the extended lengths are those of the frames, without the byte that makes them even.
    """
    if len(lengths) == 1:
        return b"", {}
    offsets = [0, *accumulate(length + length % 2 + 8 for length in lengths)][:-1]
    if offsets[-1] <= MAX_BASIC_OFFSET:
        return struct.pack(f"<{len(offsets)}L", *offsets), {}
    values = {_EXTENDED_OFFSET_TABLE: offsets, _EXTENDED_OFFSET_TABLE_LENGTHS: lengths}
    return b"", {
        tag: explicit_element(tag, "OV", struct.pack(f"<{len(numbers)}Q", *numbers)) for tag, numbers in values.items()
    }


def _derived_uid(pixels: PixelData, wanted: TransferSyntax) -> str:
    """The SOP Instance UID of what is derived from an instance in one way (PS3.5 B.2): always the same."""
    derivation = f"{pixels.sop_instance} {wanted.uid} {codecs.ENCODINGS[wanted.uid].settings}"
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, derivation).int}"


def _derivation(pixels: PixelData, wanted: TransferSyntax, ratio: float, sop_instance: str) -> dict[int, bytes]:
    """The elements that make an instance a lossy derivation of itself (PS3.3 C.7.6.1.1.3 to C.7.6.1.1.5)."""
    encoding = codecs.ENCODINGS[wanted.uid]
    kind, *rest = pixels.text(_IMAGE_TYPE).split("\\")
    ratios, methods = (
        [part.strip() for part in text.split("\\")] if (text := pixels.text(tag)) else []
        for tag in (_LOSSY_RATIO, _LOSSY_METHOD)
    )
    steps = max(len(ratios), len(methods))  # each ratio belongs to the method at its place
    ratios = [*ratios, *[""] * (steps - len(ratios)), f"{ratio:.2f}"]
    methods = [*methods, *[""] * (steps - len(methods)), encoding.method]
    changes = {
        _IMAGE_TYPE: explicit_element(_IMAGE_TYPE, "CS", "\\".join(["DERIVED", *(rest or ["PRIMARY"])])),
        _SOP_INSTANCE_UID: explicit_element(_SOP_INSTANCE_UID, "UI", sop_instance),
        _SOURCE_IMAGE_SEQUENCE: _source_images(pixels),
        _LOSSY_IMAGE_COMPRESSION: explicit_element(_LOSSY_IMAGE_COMPRESSION, "CS", "01"),
        _LOSSY_RATIO: explicit_element(_LOSSY_RATIO, "DS", "\\".join(ratios)),
        _LOSSY_METHOD: explicit_element(_LOSSY_METHOD, "CS", "\\".join(methods)),
    }
    description = f"{wanted.name}, {encoding.settings}, {ratio:.2f}:1"
    if earlier := pixels.text(_DERIVATION_DESCRIPTION):
        description = f"{earlier}; {description}"
    if len(description) <= _MAX_DESCRIPTION:
        changes[_DERIVATION_DESCRIPTION] = explicit_element(_DERIVATION_DESCRIPTION, "ST", description)
    return changes


def _source_images(pixels: PixelData) -> bytes:
    """The Source Image Sequence with one item more: the stored instance (PS3.3 C.7.6.1.1.4, PS3.16 CID 7202)."""
    was_lossy = pixels.text(_LOSSY_IMAGE_COMPRESSION) == "01" or not pixels.syntax.lossless
    code, meaning = (
        ("121322", "Source image for image processing operation")
        if was_lossy
        else ("121320", "Uncompressed predecessor")
    )
    purpose = (
        explicit_element(0x00080100, "SH", code)
        + explicit_element(0x00080102, "SH", "DCM")
        + explicit_element(0x00080104, "LO", meaning)
    )
    item = (
        explicit_element(0x00081150, "UI", pixels.text(_SOP_CLASS_UID))
        + explicit_element(0x00081155, "UI", pixels.sop_instance)
        + explicit_element(0x0040A170, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(purpose)) + purpose)
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    earlier = pixels.recoded(_SOURCE_IMAGE_SEQUENCE)
    if not earlier.endswith(end):  # there is none, or it is no sequence
        earlier = recode.element_header(_SOURCE_IMAGE_SEQUENCE, "SQ", UNDEFINED) + end
    return earlier.removesuffix(end) + struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item + end
