"""Frames decoded and encoded: compressed bit streams ↔ native little endian samples.

    decode       any syntax that TRANSFER_SYNTAXES calls decodable
    encode       those of ENCODINGS, the table of what each of them takes here and how it is set
    encoded      what an image is once it is encoded: its Photometric Interpretation and Planar Configuration

Frames are decoded through pydicom's decoders, to which imagecodecs is added as one more plug-in: it decodes 12-bit and
lossless JPEG and does not hold the interpreter lock. Those that pydicom does not know go to the codec directly.
All codecs have permissive licences.
"""

from __future__ import annotations

import functools
import logging
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from .codestreams import jpeg_2000_header, jpeg_header, jpeg_xl_size
from .transfer_syntaxes import TRANSFER_SYNTAXES, CannotDecode, CannotEncode, TransferSyntax

if TYPE_CHECKING:
    import numpy

    Samples = numpy.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ImagePixel:
    """The attributes of the Image Pixel Module (PS3.3 C.7.6.3) that say how to read frames."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def frame_bits(self) -> int:
        """The length of one native frame in bits (PS3.5 8.1, 8.2); no whole number of bytes for 1-bit pixels."""
        bits = self.pixels * self.samples * self.bits_allocated
        if self.samples == 3 and self.photometric in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            return bits * 2 // 3
        return bits // 2 if self.samples == 3 and self.photometric == "YBR_PARTIAL_420" else bits


_IMAGE_TAGS: Final = frozenset({0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011}) | frozenset(
    range(0x00280100, 0x00280104)
)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding

# The plug-ins of pydicom that may decode a syntax, best first. Only these: what else is installed must not decide
# what comes out. imagecodecs lets other threads run; openjpeg, rle and pyjpegls hold the interpreter lock.
_PLUGINS: Final[Mapping[str, tuple[str, ...]]] = {
    "jpeg": ("imagecodecs", "pillow"),
    "jpeg-lossless": ("imagecodecs",),
    "jpeg-ls": ("imagecodecs", "pyjpegls"),
    "jpeg-2000": ("imagecodecs", "pylibjpeg"),
    "rle": ("pylibjpeg", "pydicom"),
}
DECODER_DEPENDENCIES: Final[Mapping[str, tuple[str, ...]]] = {  # by this name pydicom asks for it
    uid: ("numpy", "imagecodecs")
    for uid, syntax in TRANSFER_SYNTAXES.items()
    if "imagecodecs" in _PLUGINS.get(syntax.codec, ())
}
_SUBSAMPLED: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"})
_JPEG_2000_THREADS: Final = min(os.cpu_count() or 1, 2)  # of one frame: the blocks of a codestream are independent
_INTERRUPTS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
_registration = threading.Lock()


def is_available(uid: str) -> bool:
    """Whether `decode_with_imagecodecs` can be used for a transfer syntax; pydicom asks this of its plug-ins."""
    if uid not in DECODER_DEPENDENCIES:
        return False
    try:
        import imagecodecs

        return bool(imagecodecs.JPEG8.available and imagecodecs.JPEG2K.available)
    except ImportError:
        return False


@functools.cache
def _registered() -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    # A frame that a codec refuses becomes a CannotDecode; pydicom would log a traceback for each.
    logging.getLogger("pydicom.pixels.decoders.base").setLevel(logging.CRITICAL)
    for uid in DECODER_DEPENDENCIES:
        try:
            get_decoder(uid).add_plugin("imagecodecs", (__name__, "decode_with_imagecodecs"))
        except (NotImplementedError, ValueError):
            continue  # pydicom does not know the syntax, or has the plug-in already
    return True


def get_codecs_ready() -> None:
    """Load the codecs, which takes 0.4 s, so that the first image that is decoded does not wait for them."""
    import imagecodecs
    import numpy

    for uid, syntax in TRANSFER_SYNTAXES.items():
        if syntax.encapsulated and syntax.decodable and (decoder := _decoder(uid)) is not None:
            _ = decoder.available_plugins  # imports them
    _ = imagecodecs.JPEG2K.available, numpy.empty(0)


def _decoder(uid: str) -> Any:
    """pydicom's decoder of a transfer syntax, imagecodecs among its plug-ins; None if pydicom does not know it."""
    from pydicom.pixels.decoders.base import get_decoder

    with _registration:
        _registered()
    try:
        return get_decoder(uid)
    except NotImplementedError:
        return None


def decode_with_imagecodecs(src: bytes, runner: Any) -> bytes:
    """Decode a frame for pydicom (its plug-in interface): little endian samples, colour-by-pixel."""
    pixels, photometric = _imagecodecs(
        TRANSFER_SYNTAXES[runner.transfer_syntax], bytes(src), str(runner.photometric_interpretation)
    )
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("photometric_interpretation", photometric)
    if pixels.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return pixels.tobytes()


def _imagecodecs(syntax: TransferSyntax, data: bytes, photometric: str) -> tuple[Samples, str]:
    """The samples of a frame and their photometric interpretation."""
    import imagecodecs

    if syntax.codec == "jpeg":
        header = jpeg_header(data)
        if header.samples != 3:
            return imagecodecs.jpeg8_decode(data), photometric
        is_rgb = photometric == "RGB" if header.is_rgb is None else header.is_rgb
        return imagecodecs.jpeg8_decode(data, colorspace="RGB" if is_rgb else "YCbCr", outcolorspace="RGB"), "RGB"
    if syntax.codec == "jpeg-lossless":
        colour = "RGB" if jpeg_header(data).samples == 3 else None
        return imagecodecs.jpeg8_decode(data, colorspace=colour, outcolorspace=colour), photometric
    if syntax.codec == "jpeg-ls":
        return imagecodecs.jpegls_decode(data), photometric
    if syntax.codec == "jpeg-xl":
        pixels = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True)
        is_kept = pixels.ndim == 2 or (syntax.lossless and photometric != "XYB")
        return pixels, photometric if is_kept else "RGB"
    if photometric in ("YBR_ICT", "YBR_RCT"):
        photometric = "RGB"
    # Not htj2k_decode, though it is twice as fast: its OpenJPH lets values out of range wrap round, and an error in
    # the codestream is lost on the way (imagecodecs 2026.3.6): what comes back then is memory that nobody filled.
    return imagecodecs.jpeg2k_decode(data, numthreads=_JPEG_2000_THREADS), photometric


def decode(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, ImagePixel]:
    """One frame decoded: native little endian bytes, and the image as it then is. Raises CannotDecode only."""
    try:
        return _decode_unguarded(syntax, data, image)
    except (CannotDecode, *_INTERRUPTS):
        raise
    except BaseException as error:  # a codec may raise anything; the panics of those in Rust are no Exception
        reason = " ".join(str(error).split())[:200]
        raise CannotDecode(f"The {syntax.name} frame cannot be decoded: {reason or type(error).__name__}.") from error


def recompressed_jpeg(data: bytes, image: ImagePixel) -> bytes | None:
    """The JPEG stream that a JPEG XL codestream was made from, bit for bit (ISO/IEC 18181-2).

    None if it was not made from one, or not from JPEG Baseline of this image.
    """
    import imagecodecs

    try:
        stream = bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1))
        header = jpeg_header(stream)
    except (ValueError, RuntimeError, IndexError, struct.error):
        return None
    is_it = (header.rows, header.columns, header.samples) == (image.rows, image.columns, image.samples)
    return stream if is_it and header.is_baseline else None


def _decode_unguarded(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, ImagePixel]:
    length = -(-image.frame_bits // 8)
    if syntax.codec in ("none", "deflate"):
        if syntax.codec == "deflate":
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length)
        if len(data) < length:
            raise ValueError("the frame is too short")
        return data[:length], image
    data, precision = _checked_codestream(syntax, data, image)
    if syntax.codec == "rle" and image.bits_allocated == 1:
        return _bits_of_rle(data, length), image
    pixels, photometric = _samples(syntax, data, image)
    if photometric in _SUBSAMPLED and syntax.codec != "rle":
        photometric = "YBR_FULL"  # what comes out has all its samples, whatever the data set says
    # A codestream of Bits Stored bits has no room for a High Bit above them.
    is_exact = syntax.codec not in ("rle", "jpeg-xl") and precision == image.bits_stored
    high_bit = image.bits_stored - 1 if is_exact else image.high_bit
    if image.signed and high_bit == image.bits_stored - 1 and syntax.codec != "rle":
        pixels = _sign_filled(pixels, image.bits_stored)
    decoded = replace(image, photometric=photometric, planar=0, high_bit=high_bit)
    if image.bits_allocated == 1:
        import numpy

        return numpy.packbits(pixels.reshape(-1) != 0, bitorder="little").tobytes(), decoded
    return pixels.tobytes(), decoded


def _checked_codestream(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[bytes, int]:
    """The codestream and its precision, after comparing what it claims with the image."""
    if syntax.codec == "rle":
        # A pair of bytes stands for 128 at most (PS3.5 G.3.1).
        if image.frame_bits // 8 > len(data) * 64:
            raise ValueError("the frame is too short")
        return data, image.bits_stored
    if syntax.codec == "jpeg-xl":
        rows, columns = jpeg_xl_size(data)
        samples, precision = image.samples, image.bits_stored
    else:
        read = jpeg_2000_header if syntax.codec == "jpeg-2000" else jpeg_header
        rows, columns, samples, precision, data, *_ = read(data)
    if (rows, columns, samples) != (image.rows, image.columns, image.samples):
        raise CannotDecode(
            f"The {syntax.name} frame is {columns} × {rows} with {samples} samples per pixel, "
            f"the data set says {image.columns} × {image.rows} with {image.samples}."
        )
    if precision > image.bits_allocated:
        raise CannotDecode(
            f"The {syntax.name} frame has {precision} bits per sample, {image.bits_allocated} allocated."
        )
    return data, precision


def _bits_of_rle(data: bytes, length: int) -> bytes:
    """A frame of 1-bit pixels: one segment (PS3.5 G.2) that holds them packed."""
    from rle.utils import decode_segment  # type: ignore[attr-defined]

    count, offset = struct.unpack_from("<II", data)
    if count != 1 or offset != 64:
        raise ValueError("a segment too many")
    frame = bytes(decode_segment(data[offset:]))
    if len(frame) not in (length, length + length % 2):
        raise ValueError("the frame has the wrong length")
    return frame[:length]


def _samples(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[Samples, str]:
    """The samples of a frame in cells of Bits Allocated, colour-by-pixel, little endian."""
    import numpy

    decoder = _decoder(syntax.uid)
    if decoder is None:
        pixels, photometric = _imagecodecs(syntax, data, image.photometric)
        shape = (image.rows, image.columns) if image.samples == 1 else (image.rows, image.columns, image.samples)
        kind = numpy.dtype(f"<u{max(image.bits_allocated // 8, 1)}")
        if pixels.shape != shape or pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > kind.itemsize:
            raise ValueError("its size or sample type is not that of the data set")
        return pixels.astype(kind), photometric
    if syntax.codec == "jpeg-2000" and (found := _jpeg_2000(syntax, data, image)) is not None:
        return found
    item = b"\xfe\xff\x00\xe0"
    pad = b"\0" * (len(data) % 2)
    buffer = b"".join((item, bytes(4), item, struct.pack("<I", len(data) + len(pad)), data, pad))
    failure: BaseException = ValueError("no codec for it is installed")
    for plugin in _PLUGINS[syntax.codec]:
        if plugin not in decoder.available_plugins:
            continue
        try:
            pixels, properties = decoder.as_array(
                buffer,
                index=0,
                validate=False,
                decoding_plugin=plugin,
                # Colours are converted where the codec would anyway or loses anyway; reversible codecs give what
                # was put in, YBR_FULL too.
                raw=syntax.codec != "jpeg",
                correct_unused_bits=False,  # see `_sign_filled`; whatever else is there is kept
                rows=image.rows,
                columns=image.columns,
                samples_per_pixel=image.samples,
                number_of_frames=1,
                bits_allocated=image.bits_allocated,
                bits_stored=image.bits_stored,
                pixel_representation=int(image.signed),
                photometric_interpretation=image.photometric,
                planar_configuration=image.planar,
                pixel_keyword="PixelData",
            )
        except _INTERRUPTS:
            raise
        except BaseException as error:  # see `decode`; the next plug-in may do better
            failure = error
            continue
        return pixels, str(properties["photometric_interpretation"])
    raise failure


def _jpeg_2000(syntax: TransferSyntax, data: bytes, image: ImagePixel) -> tuple[Samples, str] | None:
    """`_samples` where the cells that the codec gives are those of the data set: less than the way through pydicom.

    None for other images, damaged ones too.
    """
    if not is_available(syntax.uid):
        return None
    try:
        pixels, photometric = _imagecodecs(syntax, data, image.photometric)
    except _INTERRUPTS:
        raise
    except BaseException:  # the other decoders are tried, and say what is wrong
        return None
    shape = (image.rows, image.columns) if image.samples == 1 else (image.rows, image.columns, image.samples)
    size = pixels.dtype.itemsize
    if pixels.shape != shape or pixels.dtype.kind not in "iu" or size * 8 != image.bits_allocated:
        return None
    return pixels.view(f"<{'i' if image.signed else 'u'}{size}"), photometric


def _sign_filled(pixels: Samples, bits: int) -> Samples:
    """Signed samples of `bits` bits with their sign in the bits above, where those are all zero; else as they are."""
    size = pixels.dtype.itemsize
    unused = size * 8 - bits
    if unused <= 0 or pixels.view(f"u{size}").max() >= 1 << bits:
        return pixels
    filled: Samples = pixels.view(f"i{size}") << unused >> unused
    return filled


# ---------------------------------------------------------------------------------------------------------------------
# Encoding

JPEG_QUALITY: Final = 90
NEAR_LOSSLESS_ERROR: Final = 2
JPEG_2000_RATIO: Final = 10
_JPEG_2000_HEADERS: Final = 256  # bytes that are left out of the ratio, else they were all there is of a small image

_GREY: Final = {"MONOCHROME1": "MONOCHROME1", "MONOCHROME2": "MONOCHROME2"}
_COLOUR: Final = {"RGB": "RGB", "YBR_FULL": "YBR_FULL", "YBR_FULL_422": "YBR_FULL"}
_ANY: Final = {**_GREY, "PALETTE COLOR": "PALETTE COLOR", **_COLOUR}


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the encoder of a transfer syntax takes here, and how it is set."""

    photometric: Mapping[str, str]  # Photometric Interpretation of the image → of the encoded image
    bits_allocated: tuple[int, ...] = (8, 16)
    bits_stored: tuple[int, int] = (1, 16)  # least and most
    signed: bool = True  # takes Pixel Representation 1 too
    planar: int = 0  # Planar Configuration of the encoded image (PS3.5 8.2)
    method: str = ""  # Lossy Image Compression Method (PS3.3 C.7.6.1.1.5.1); "" where nothing is lost
    settings: str = ""  # of a lossy encoder, in words
    least_side: int = 1  # rows and columns


#: By Transfer Syntax UID. Colour has 3 samples per pixel, everything else 1. YBR_FULL_422 that is not compressed gets
#: the chroma samples it lacks by repetition.
ENCODINGS: Final[Mapping[str, Encoding]] = {
    "1.2.840.10008.1.2.5": Encoding(_ANY, planar=1),
    "1.2.840.10008.1.2.4.50": Encoding(
        {**_GREY, **dict.fromkeys(_COLOUR, "YBR_FULL_422")},
        bits_allocated=(8,),
        bits_stored=(8, 8),
        signed=False,
        method="ISO_10918_1",
        settings=f"quality {JPEG_QUALITY}, chroma 4:2:2",
    ),
    "1.2.840.10008.1.2.4.70": Encoding(_ANY),
    "1.2.840.10008.1.2.4.80": Encoding(_ANY),
    "1.2.840.10008.1.2.4.81": Encoding(
        {**_GREY, **_COLOUR},
        bits_stored=(3, 16),
        method="ISO_14495_1",
        settings=f"error of at most {NEAR_LOSSLESS_ERROR}",
    ),
    "1.2.840.10008.1.2.4.90": Encoding({**_ANY, "RGB": "YBR_RCT"}),
    "1.2.840.10008.1.2.4.91": Encoding(
        {**_GREY, **_COLOUR, "RGB": "YBR_ICT"},
        bits_stored=(3, 16),
        method="ISO_15444_1",
        settings=f"ratio {JPEG_2000_RATIO}:1",
        least_side=32,  # OpenJPEG's five decompositions need them; a ratio makes no sense for less
    ),
    "1.2.840.10008.1.2.4.201": Encoding({**_ANY, "RGB": "YBR_RCT"}),
}


def encoded(syntax: TransferSyntax, image: ImagePixel) -> ImagePixel:
    """The image as it is once encoded. Raises CannotEncode for one that the transfer syntax does not take here."""
    encoding = ENCODINGS.get(syntax.uid)
    if encoding is None:
        raise CannotEncode(f"This server does not encode {syntax.name}.")
    least, most = encoding.bits_stored
    photometric = encoding.photometric.get(image.photometric)
    fault = ""
    if image.bits_allocated not in encoding.bits_allocated:
        fault = f"{' or '.join(map(str, encoding.bits_allocated))} bits allocated, not {image.bits_allocated}"
    elif not least <= image.bits_stored <= most:
        fault = f"{least if least == most else f'{least} to {most}'} bits stored, not {image.bits_stored}"
    elif image.signed and not encoding.signed:
        fault = "unsigned pixels, not signed ones"
    elif photometric is None:
        fault = f"{', '.join(encoding.photometric)}, not {image.photometric or 'an unknown Photometric Interpretation'}"
    elif image.samples != (3 if image.photometric in _COLOUR else 1):
        fault = f"no {image.photometric} with {image.samples} samples per pixel"
    elif min(image.rows, image.columns) < encoding.least_side:
        fault = f"{encoding.least_side} rows and columns at least, not {image.rows} and {image.columns}"
    elif image.photometric == "YBR_FULL_422" and image.columns % 2:
        fault = "no YBR_FULL_422 with an odd number of columns"
    if fault or photometric is None:
        raise CannotEncode(f"{syntax.name} takes {fault}.")
    planar = encoding.planar if image.samples == 3 else image.planar
    return replace(image, photometric=photometric, planar=planar)


def encode(syntax: TransferSyntax, frame: bytes, image: ImagePixel) -> bytes:
    """The bit stream of one native little endian frame of `image`. Raises CannotEncode only.

    Lossless encodings hold every bit of the pixel cells: in Bits Stored bits, or if anything but a sign is above those
    (overlays of old), in Bits Allocated. Lossy ones are refused then.
    """
    encoded(syntax, image)
    try:
        return _encode_unguarded(syntax, frame, image)
    except (CannotEncode, *_INTERRUPTS):
        raise
    except BaseException as error:  # see `decode`
        reason = " ".join(str(error).split())[:200]
        raise CannotEncode(
            f"The frame cannot be encoded in {syntax.name}: {reason or type(error).__name__}."
        ) from error


def _encode_unguarded(syntax: TransferSyntax, frame: bytes, image: ImagePixel) -> bytes:
    pixels = _pixels(frame, image)
    if syntax.codec == "rle":
        return _encode_rle(pixels, image)
    pixels, bits = _fitted(pixels, image)
    if ENCODINGS[syntax.uid].method and bits != image.bits_stored:
        raise CannotEncode(f"{syntax.name} would spoil what the image has in the bits that are not for pixels.")
    is_rgb = image.photometric == "RGB"
    if syntax.codec == "jpeg-2000":
        return _encode_jpeg_2000(syntax, pixels, bits, is_rgb)
    error = 0 if syntax.lossless else NEAR_LOSSLESS_ERROR
    if image.signed:  # the others know no sign: two's complement of `bits` bits
        # There the greatest number is next to the least: an error must not lead across (PS3.5 8.2.3).
        if pixels.max() > (1 << bits - 1) - 1 - error or pixels.min() < error - (1 << bits - 1):
            error = 0
        pixels = pixels.view(f"u{pixels.dtype.itemsize}") & ((1 << bits) - 1)
    if syntax.codec == "jpeg-ls":
        return _encode_jpeg_ls(pixels, bits, error)
    if syntax.codec == "jpeg-lossless":
        return _encode_jpeg_lossless(pixels, bits, is_rgb)
    import imagecodecs

    if image.samples == 1:
        return bytes(imagecodecs.jpeg8_encode(pixels, JPEG_QUALITY))
    space = "RGB" if is_rgb else "YCbCr"
    return bytes(
        imagecodecs.jpeg8_encode(pixels, JPEG_QUALITY, colorspace=space, outcolorspace="YCbCr", subsampling="422")
    )


def _pixels(frame: bytes, image: ImagePixel) -> Samples:
    """The samples of a native frame, colour-by-pixel, all chroma samples there."""
    import numpy

    samples: Samples = numpy.frombuffer(frame, f"<{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    if image.samples == 1:
        return samples.reshape(image.rows, image.columns)
    if image.photometric == "YBR_FULL_422":  # Y1 Y2 Cb Cr for each two pixels (PS3.3 C.7.6.3.1.2)
        return samples.reshape(-1, 4)[:, [0, 2, 3, 1, 2, 3]].reshape(image.rows, image.columns, 3)
    if image.planar:
        return numpy.ascontiguousarray(samples.reshape(3, image.rows, image.columns).transpose(1, 2, 0))
    return samples.reshape(image.rows, image.columns, 3)


def _fitted(pixels: Samples, image: ImagePixel) -> tuple[Samples, int]:
    """The samples for an encoder, and how many bits they use: Bits Stored, or if those do not do, Bits Allocated."""
    bits = image.bits_stored
    if bits < image.bits_allocated:
        filled = _sign_filled(pixels, bits) if image.signed else pixels
        least, most = (-1 << bits - 1, (1 << bits - 1) - 1) if image.signed else (0, (1 << bits) - 1)
        if image.high_bit != bits - 1 or filled.min() < least or filled.max() > most:
            return pixels, image.bits_allocated
        pixels = filled
    if bits <= 8:
        pixels = pixels.astype("i1" if image.signed else "u1")
    return pixels, bits


def _encode_rle(pixels: Samples, image: ImagePixel) -> bytes:
    """PS3.5 Annex G, whole pixel cells."""
    from rle.utils import encode_pixel_data

    return encode_pixel_data(
        pixels.tobytes(),
        byteorder="<",
        rows=image.rows,
        columns=image.columns,
        samples_per_pixel=image.samples,
        bits_allocated=image.bits_allocated,
    )


def _encode_jpeg_lossless(pixels: Samples, bits: int, is_rgb: bool) -> bytes:
    """JPEG Lossless with first-order prediction of unsigned samples of `bits` bits; colours are not converted."""
    import imagecodecs

    space = "RGB" if pixels.ndim == 3 else None
    stream = bytearray(
        imagecodecs.jpeg8_encode(
            pixels, lossless=True, predictor=1, bitspersample=max(bits, 2), colorspace=space, outcolorspace=space
        )
    )
    if pixels.ndim == 3 and not is_rgb:
        # Called YCbCr from the start, libjpeg-turbo 3.1 codes chroma with a Huffman table that the scan header does
        # not name. So the marks of RGB are taken away afterwards: the Adobe marker, and R, G, B as component names.
        del stream[2:18]
        frame_header, scan_header = stream.index(b"\xff\xc3"), stream.index(b"\xff\xda")
        for component in range(3):
            stream[frame_header + 10 + 3 * component] = stream[scan_header + 5 + 2 * component] = component + 1
    return bytes(stream)


def _encode_jpeg_ls(pixels: Samples, bits: int, error: int) -> bytes:
    """JPEG-LS of unsigned samples of `bits` bits.

    imagecodecs knows the precisions 8 and 16 only. pyjpegls knows all, but gives up on what does not get smaller (a
    handful of pixels): without an error, 8 or 16 bits are no harm then.
    """
    import imagecodecs

    if bits not in (8, 16):
        from jpeg_ls import encode_buffer  # type: ignore[import-untyped]

        samples = pixels.shape[2] if pixels.ndim == 3 else 1
        try:
            return bytes(
                encode_buffer(
                    pixels.tobytes(),
                    rows=pixels.shape[0],
                    columns=pixels.shape[1],
                    samples_per_pixel=samples,
                    bits_stored=max(bits, 2),
                    lossy_error=error,
                    interleave_mode=2 if samples == 3 else None,
                )
            )
        except RuntimeError:
            if error:
                raise
    stream = bytes(imagecodecs.jpegls_encode(pixels, level=error))
    return stream[:2] + stream[stream.index(b"\xff\xf7") :]  # without the SPIFF header, which is none of DICOM's


def _encode_jpeg_2000(syntax: TransferSyntax, pixels: Samples, bits: int, is_rgb: bool) -> bytes:
    import imagecodecs

    if syntax.uid == "1.2.840.10008.1.2.4.91":  # imagecodecs offers a signal-to-noise ratio only
        from openjpeg.utils import encode_array

        ratio = pixels.nbytes / (pixels.nbytes / JPEG_2000_RATIO + _JPEG_2000_HEADERS)
        return encode_array(
            pixels, bits, photometric_interpretation=int(is_rgb), use_mct=is_rgb, compression_ratios=[ratio]
        )
    if syntax.uid == "1.2.840.10008.1.2.4.90":
        return bytes(
            imagecodecs.jpeg2k_encode(
                pixels, level=0, codecformat="j2k", reversible=True, bitspersample=bits, mct=is_rgb
            )
        )
    # OpenJPH knows the precisions 8 and 16 only. The one place where the precision of a reversible codestream counts is
    # the level shift of unsigned samples (ISO/IEC 15444-1 G.1.2): that is done here, the samples go in as signed ones,
    # and SIZ gets the sign and precision that the image has.
    is_signed = pixels.dtype.kind == "i"
    if not is_signed:
        pixels = (pixels.astype("i4") - (1 << bits - 1)).astype(f"i{pixels.dtype.itemsize}")
    codestream = bytearray(imagecodecs.htj2k_encode(pixels, reversible=True, rgb=is_rgb))
    for component in range(pixels.shape[2] if pixels.ndim == 3 else 1):
        codestream[42 + 3 * component] = bits - 1 | (0x80 if is_signed else 0)
    return bytes(codestream)
