"""Files and frames in another transfer syntax, decoded again by codecs that are not on the server's own path."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import struct
import tracemalloc
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicomcloud.dicom import header, pixel_data
from dicomcloud.dicom.codecs import ENCODINGS
from dicomcloud.dicom.pixel_data import (
    TRANSFER_SYNTAXES,
    CannotDecode,
    CannotEncode,
    CannotTranscode,
    PixelData,
    transcode,
    transcode_file,
    transcode_frame,
    transcode_frame_of_file,
)
from dicomcloud.errors import InvalidInstance
from tests.data import pydicom_files, sample_files

ROOT = "1.2.840.10008.1.2"
IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = ROOT, ROOT + ".1", ROOT + ".2", ROOT + ".1.99"
RLE, BASELINE, SV1, JPEG_LS, NEAR = (ROOT + tail for tail in (".5", ".4.50", ".4.70", ".4.80", ".4.81"))
J2K, J2K_LOSSY, HTJ2K = (ROOT + tail for tail in (".4.90", ".4.91", ".4.201"))
TARGETS = [uid for uid, syntax in TRANSFER_SYNTAXES.items() if syntax.encodable]
ENCAPSULATED = [uid for uid in TARGETS if TRANSFER_SYNTAXES[uid].encapsulated]
LOSSY = [BASELINE, NEAR, J2K_LOSSY]
# Plug-ins of pydicom that are not what encoded the frame, and mostly not what this server decodes with.
DECODER = {RLE: "pydicom", BASELINE: "pillow", JPEG_LS: "pyjpegls", NEAR: "pyjpegls"} | dict.fromkeys(
    (J2K, J2K_LOSSY, HTJ2K), "pylibjpeg"
)
REFERENCE = {"jpeg": "pillow", "jpeg-ls": "pyjpegls", "jpeg-2000": "pylibjpeg", "rle": "pylibjpeg"}
LARGE = 600_000  # samples of a file; such files go through some of the targets, chosen by their name


def transcoded(data: bytes, uid: str) -> bytes:
    target = io.BytesIO()
    transcode(io.BytesIO(data), target, uid)
    return target.getvalue()


def distinct_files() -> list[Path]:
    files = {sha256(path.read_bytes()).digest(): path for path in [*sample_files(), *pydicom_files()]}
    return sorted(files.values())


def decoded(data: bytes) -> np.ndarray:
    """All pixels of a transcoded file, colours as RGB, by pydicom; JPEG Lossless by a decoder of its own."""
    ds = pydicom.dcmread(io.BytesIO(data))
    uid = ds.file_meta.TransferSyntaxUID
    if uid != SV1:
        return pixel_array(ds, decoding_plugin=DECODER.get(uid, ""))
    count = int(ds.get("NumberOfFrames", 1) or 1)
    frames = [imagecodecs.jpegsof3_decode(frame) for frame in generate_frames(ds.PixelData, number_of_frames=count)]
    pixels = np.stack(frames) if count > 1 else frames[0]
    pixels = pixels.astype(f"u{ds.BitsAllocated // 8}")
    pixels = corrected(pixels, ds)
    return convert_color_space(pixels, "YBR_FULL", "RGB") if ds.PhotometricInterpretation == "YBR_FULL" else pixels


def corrected(pixels: np.ndarray, ds: Dataset) -> np.ndarray:
    """Without what is above Bits Stored, signed ones with their sign: as pydicom gives them."""
    unused = ds.BitsAllocated - ds.BitsStored
    return pixels.view(f"{'i' if ds.PixelRepresentation else 'u'}{ds.BitsAllocated // 8}") << unused >> unused


def source_pixels(data: bytes) -> np.ndarray:
    """The pixels of a source by pydicom; of what only this server decodes, of its uncompressed form."""
    codec = PixelData(io.BytesIO(data)).syntax.codec
    ds = pydicom.dcmread(io.BytesIO(data), force=True)
    own = codec and codec not in REFERENCE or codec == "jpeg" and ds.BitsStored > 8
    if own or ds.file_meta.TransferSyntaxUID == ROOT + ".4.55":
        return pixel_array(io.BytesIO(transcoded(data, EXPLICIT)))
    return pixel_array(ds, decoding_plugin=REFERENCE.get(codec, ""))


def error(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(before.astype(np.int64) - after.astype(np.int64))


def assert_close(before: np.ndarray, after: np.ndarray, uid: str, ds: Dataset) -> None:
    """Lossless: equal. Near-lossless: off by 2 at most (in YBR, by 8 once it is RGB). Others: a root mean square error
    of at most 2 % of the range; 7 % where chroma is subsampled and there is little but noise."""
    assert (before.shape, before.dtype.newbyteorder("=")) == (after.shape, after.dtype)
    off = error(before, after)
    if uid not in LOSSY:
        assert off.max() == 0
    elif uid == NEAR:
        assert off.max() <= (8 if ds.PhotometricInterpretation.startswith("YBR") else 2)
    else:
        is_subsampled = uid == BASELINE and ds.SamplesPerPixel == 3
        bound = (0.07 if is_subsampled else 0.02) * (1 << ds.BitsStored)
        assert np.sqrt((off.astype(float) ** 2).mean()) <= bound


# ---------------------------------------------------------------------------------------------------------------------
# Real files


@pytest.mark.parametrize("path", distinct_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_real_files_go_into_every_transfer_syntax_that_their_pixels_allow(path):
    data = path.read_bytes()
    try:
        plain = transcoded(data, EXPLICIT)
        pixels = PixelData(io.BytesIO(plain))
        before = source_pixels(data) if pixels.present and pixels.image.bits_allocated in (8, 16) else None
    except (CannotDecode, LookupError, AttributeError, ValueError):
        before, plain = None, b""
    if before is not None and before.size > LARGE:
        first = sum(path.name.encode()) % len(TARGETS)
        targets = [TARGETS[(first + step) % len(TARGETS)] for step in (0, 3, 6)]
    else:
        targets = TARGETS
    for uid in targets:
        result = transcoded_or_refused(data, uid)
        if isinstance(result, str):
            assert result.endswith(".")
            assert uid in ENCAPSULATED or not plain
            continue
        if PixelData(io.BytesIO(data)).syntax.uid == uid:
            assert result == data or uid == EXPLICIT
            continue
        if before is None:
            assert not TRANSFER_SYNTAXES[uid].encapsulated
            continue
        assert_described(data, result, uid)
        assert_close(before, decoded(result), uid, pydicom.dcmread(io.BytesIO(plain)))


def transcoded_or_refused(data: bytes, uid: str) -> bytes | str:
    try:
        return transcoded(data, uid)
    except CannotTranscode as refusal:
        return str(refusal)


def assert_described(data: bytes, result: bytes, uid: str) -> None:
    old = pydicom.dcmread(io.BytesIO(data), force=True)
    new = pydicom.dcmread(io.BytesIO(result))
    assert new.file_meta.TransferSyntaxUID == uid
    assert [new.get(k) for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")] == [
        old.get(k) for k in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
    ]
    assert (new.get("PixelRepresentation"), new.get("NumberOfFrames")) == (
        old.get("PixelRepresentation"),
        old.get("NumberOfFrames"),
    )
    assert new.get("PlanarConfiguration", 0) == (uid == RLE) or new.SamplesPerPixel == 1 or uid in (EXPLICIT, DEFLATED)
    assert (new.get("SOPInstanceUID") == old.get("SOPInstanceUID")) == (uid not in LOSSY)
    if uid in LOSSY:
        assert new.SOPInstanceUID == new.file_meta.MediaStorageSOPInstanceUID
    tags = {element.tag for element in new if element.tag.element and element.tag.group not in (0x0028, 0x7FE0, 0x0008)}
    assert tags == {tag for tag in old.keys() if tag.element and tag.group not in (0x0028, 0x7FE0, 0x0008)}  # noqa: SIM118
    try:
        count = header.scan(data).frames.count
    except InvalidInstance:
        return
    frames = header.scan(result).frames
    pixels = PixelData(io.BytesIO(result))
    assert frames.count == count
    for number in {1, count} if frames.encapsulated else ():
        located = b"".join(result[at : at + length] for at, length in frames.locate(number))
        assert pixels.encoded_frame(number).rstrip(b"\0") == located.rstrip(b"\0")


# ---------------------------------------------------------------------------------------------------------------------
# Every kind of pixels


def image(syntax: str, pixels: np.ndarray | bytes, **attributes: object) -> bytes:
    """A native file of 2 frames."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.4", "1.2.5"
    ds.PatientName, ds.Rows, ds.Columns, ds.NumberOfFrames = "Kind^Of", 40, 48, 2
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 16
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    if "HighBit" not in attributes and "FloatPixelData" not in attributes:
        ds.HighBit = ds.BitsStored - 1
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    if data:
        ds.add_new(0x7FE00010, "OB" if ds.BitsAllocated <= 8 else "OW", data + b"\0" * (len(data) % 2))
    return written(ds, syntax)


def written(ds: Dataset, syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    target = io.BytesIO()
    ds.save_as(target, enforce_file_format=True)
    return target.getvalue()


def scene(bits: int, signed: bool = False, samples: int = 1) -> np.ndarray:
    """Two frames, smooth with some noise, that use all values of `bits` bits."""
    rows, columns = np.mgrid[:40, :48]
    top = (1 << bits) - 1
    planes = []
    for plane in range(2 * samples):
        waves = np.sin(rows / (9 + plane)) * np.cos(columns / (7 + plane)) * 0.5 + 0.5
        planes.append(np.rint(waves * top))
    pixels = np.stack(planes).reshape(2, samples, 40, 48).transpose(0, 2, 3, 1)
    pixels[0, 0, :2, 0] = 0, top
    kind = f"u{1 if bits <= 8 else 2}"
    if signed:
        return (pixels - (1 << bits - 1)).astype(kind.replace("u", "i"))
    return pixels.astype(kind)


EIGHT = {"BitsAllocated": 8, "BitsStored": 8}
RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
KINDS = {
    "8 bits": (scene(8), EIGHT),
    "MONOCHROME1": (scene(8), EIGHT | {"PhotometricInterpretation": "MONOCHROME1"}),
    "signed 8 bits": (scene(8, signed=True), EIGHT | {"PixelRepresentation": 1}),
    "7 bits": (scene(7), EIGHT | {"BitsStored": 7}),
    "1 bit in 8": (scene(1), EIGHT | {"BitsStored": 1}),
    "8 bits in 16": (scene(8).astype("u2"), {"BitsStored": 8}),
    "signed 8 bits in 16": (scene(8, signed=True).astype("i2"), {"BitsStored": 8, "PixelRepresentation": 1}),
    "10 bits": (scene(10), {"BitsStored": 10}),
    "12 bits": (scene(12), {"BitsStored": 12}),
    "signed 12 bits": (scene(12, signed=True), {"BitsStored": 12, "PixelRepresentation": 1}),
    "16 bits": (scene(16), {}),
    "signed 16 bits": (scene(16, signed=True), {"PixelRepresentation": 1}),
    "overlay above 12 bits": (scene(12) | 0x4000, {"BitsStored": 12}),
    "overlay above signed 12 bits": (
        scene(12, signed=True) & 0x0FFF | 0x4000,
        {"BitsStored": 12, "PixelRepresentation": 1},
    ),
    "12 high bits": (scene(12) << 4, {"BitsStored": 12, "HighBit": 15}),
    "palette of 8 bits": (scene(8), EIGHT | {"PhotometricInterpretation": "PALETTE COLOR"}),
    "palette of 16 bits": (scene(16), {"PhotometricInterpretation": "PALETTE COLOR"}),
    "RGB": (scene(8, samples=3), EIGHT | RGB),
    "RGB by plane": (scene(8, samples=3).transpose(0, 3, 1, 2), EIGHT | RGB | {"PlanarConfiguration": 1}),
    "RGB of 16 bits": (scene(16, samples=3), RGB),
    "RGB of 12 bits": (scene(12, samples=3), RGB | {"BitsStored": 12}),
    "YBR_FULL": (scene(8, samples=3), EIGHT | RGB | {"PhotometricInterpretation": "YBR_FULL"}),
    "YBR_FULL_422": (scene(8, samples=2), EIGHT | RGB | {"PhotometricInterpretation": "YBR_FULL_422"}),
}
EIGHT_BIT_KINDS = {"8 bits", "MONOCHROME1", "RGB", "RGB by plane", "YBR_FULL", "YBR_FULL_422"}
NOT_FOR_PIXELS = {"overlay above 12 bits", "overlay above signed 12 bits", "12 high bits"}
REFUSED = {
    BASELINE: set(KINDS) - EIGHT_BIT_KINDS,
    NEAR: {"1 bit in 8", "palette of 8 bits", "palette of 16 bits"} | NOT_FOR_PIXELS,
    J2K_LOSSY: {"1 bit in 8", "palette of 8 bits", "palette of 16 bits"} | NOT_FOR_PIXELS,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uid", TARGETS)
def test_every_kind_of_pixels_is_held_or_refused(uid, kind):
    pixels, attributes = KINDS[kind]
    data = image(EXPLICIT, pixels, **attributes)
    if kind in REFUSED.get(uid, ()):
        with pytest.raises(CannotEncode, match=r"^JPEG.*\.$"):
            transcoded(data, uid)
        return
    result = transcoded(data, uid)
    old, new = pydicom.dcmread(io.BytesIO(data)), pydicom.dcmread(io.BytesIO(result))
    encoding = ENCODINGS.get(uid)
    expected = encoding.photometric[old.PhotometricInterpretation] if encoding else old.PhotometricInterpretation
    assert (new.PhotometricInterpretation, new.HighBit) == (expected, old.HighBit)
    if kind not in NOT_FOR_PIXELS and not kind.startswith("palette"):
        assert_close(pixel_array(old), decoded(result), uid, old)
    if uid in LOSSY or kind in ("RGB by plane", "YBR_FULL_422"):
        return
    frames = PixelData(io.BytesIO(result))
    assert [frames.frame(number) for number in (1, 2)] == [frame.tobytes() for frame in pixels]


@pytest.mark.parametrize("uid", [SV1, JPEG_LS, J2K, HTJ2K])
@pytest.mark.parametrize(("kind", "bits"), [("10 bits", 10), ("signed 12 bits", 12), ("overlay above 12 bits", 16)])
def test_codestreams_have_the_precision_of_bits_stored_unless_more_is_there(uid, kind, bits):
    pixels, attributes = KINDS[kind]
    frame = transcode_frame(io.BytesIO(image(EXPLICIT, pixels, **attributes)), 1, uid)
    if uid in (J2K, HTJ2K):
        assert frame[42] == (bits - 1 | (0x80 if "signed" in kind else 0))
    else:
        at = frame.index(b"\xff\xf7" if uid == JPEG_LS else b"\xff\xc3")
        assert frame[at + 4] == bits


@pytest.mark.parametrize("uid", [SV1, JPEG_LS, J2K, HTJ2K, RLE])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5)])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_noise_and_tiny_frames_are_held(uid, shape, bits):
    pixels = np.random.default_rng(5).integers(0, 1 << bits, (2, *shape)).astype(f"u{1 if bits == 8 else 2}")
    cells = {"BitsAllocated": 8 if bits == 8 else 16, "BitsStored": bits, "Rows": shape[0], "Columns": shape[1]}
    frames = PixelData(io.BytesIO(transcoded(image(EXPLICIT, pixels, **cells), uid)))
    assert [frames.frame(number) for number in (1, 2)] == [frame.tobytes() for frame in pixels]


def test_signed_cells_with_zeros_above_bits_stored_mean_the_same_numbers():
    pixels, attributes = KINDS["signed 12 bits"]
    data = image(EXPLICIT, pixels & 0x0FFF, **attributes)
    for uid in (SV1, JPEG_LS, J2K, HTJ2K):
        assert (decoded(transcoded(data, uid)) == pixels[..., 0]).all()


# ---------------------------------------------------------------------------------------------------------------------
# What is written around the frames


def test_the_table_of_encodings_is_that_of_the_encodable_syntaxes():
    assert set(ENCODINGS) == set(ENCAPSULATED)
    assert {uid for uid, encoding in ENCODINGS.items() if encoding.method} == set(LOSSY)
    assert set(TARGETS) - set(ENCAPSULATED) == {EXPLICIT, DEFLATED}


@pytest.mark.parametrize(
    ("uid", "method", "settings"),
    [
        (BASELINE, "ISO_10918_1", "quality 90, chroma 4:2:2"),
        (NEAR, "ISO_14495_1", "error of at most 2"),
        (J2K_LOSSY, "ISO_15444_1", "ratio 10:1"),
    ],
)
def test_a_lossy_image_is_derived_from_the_stored_one(uid, method, settings):
    data = image(EXPLICIT, scene(8), **EIGHT, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    new = pydicom.dcmread(io.BytesIO(transcoded(data, uid)))
    assert list(new.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert (new.LossyImageCompression, new.LossyImageCompressionMethod) == ("01", method)
    size = sum(len(frame) for frame in generate_frames(new.PixelData, number_of_frames=2))
    assert float(new.LossyImageCompressionRatio) == pytest.approx(2 * 40 * 48 / size, rel=0.01)
    assert settings in new.DerivationDescription
    source = new.SourceImageSequence[0]
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (new.SOPClassUID, "1.2.3")
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121320"
    assert UID(new.SOPInstanceUID).is_valid
    assert new.SOPInstanceUID.startswith("2.25.")
    assert new.SOPInstanceUID == new.file_meta.MediaStorageSOPInstanceUID
    assert transcoded(data, uid) == transcoded(data, uid)


def test_each_way_of_losing_gives_another_instance():
    first, second = (image(EXPLICIT, scene(8), **EIGHT, SOPInstanceUID=uid) for uid in ("1.2.3", "1.2.30"))
    results = [transcoded(data, uid) for data in (first, second) for uid in LOSSY]
    assert len({pydicom.dcmread(io.BytesIO(result)).SOPInstanceUID for result in results}) == 6


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("undefined", [False, True])
def test_what_was_lost_before_is_kept(syntax, undefined):
    earlier = Dataset()
    earlier.ReferencedSOPClassUID, earlier.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.9"
    data = image(
        syntax,
        scene(8),
        **EIGHT,
        LossyImageCompression="01",
        LossyImageCompressionRatio=["4.5", "2"],
        LossyImageCompressionMethod="ISO_10918_1",
        DerivationDescription="Cropped",
        SourceImageSequence=Sequence([earlier]),
    )
    if undefined:
        ds = pydicom.dcmread(io.BytesIO(data))
        ds["SourceImageSequence"].is_undefined_length = True
        data = written(ds, syntax)
    new = pydicom.dcmread(io.BytesIO(transcoded(data, NEAR)))
    assert list(new.LossyImageCompressionMethod) == ["ISO_10918_1", "", "ISO_14495_1"]
    assert list(new.LossyImageCompressionRatio)[:2] == [4.5, 2]
    assert new.DerivationDescription.startswith("Cropped; JPEG-LS")
    assert [item.ReferencedSOPInstanceUID for item in new.SourceImageSequence] == ["1.2.9", "1.2.3"]
    assert new.SourceImageSequence[1].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_a_description_that_would_be_too_long_stays_as_it_is():
    data = image(EXPLICIT, scene(8), **EIGHT, DerivationDescription="x" * 1000)
    assert pydicom.dcmread(io.BytesIO(transcoded(data, NEAR))).DerivationDescription == "x" * 1000


def test_a_basic_offset_table_leads_to_every_frame():
    result = transcoded(image(EXPLICIT, scene(12), BitsStored=12), JPEG_LS)
    ds = pydicom.dcmread(io.BytesIO(result))
    assert struct.unpack_from("<I", ds.PixelData, 4)[0] == 8
    first, second = struct.unpack_from("<2I", ds.PixelData, 8)
    assert first == 0
    assert ds.PixelData[16 + second :][:4] == b"\xfe\xff\x00\xe0"
    assert "ExtendedOffsetTable" not in ds


def test_an_extended_offset_table_is_written_where_32_bits_do_not_suffice(monkeypatch):
    monkeypatch.setattr(pixel_data, "MAX_BASIC_OFFSET", 100)
    data = image(EXPLICIT, scene(12), BitsStored=12)
    result = transcoded(data, JPEG_LS)
    ds = pydicom.dcmread(io.BytesIO(result))
    offsets, lengths = struct.unpack("<2Q", ds.ExtendedOffsetTable), struct.unpack("<2Q", ds.ExtendedOffsetTableLengths)
    assert struct.unpack_from("<I", ds.PixelData, 4)[0] == 0
    for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True), 1):
        frame = ds.PixelData[8 + offset + 8 :][:length]
        assert frame == transcode_frame(io.BytesIO(data), number, JPEG_LS)
    assert (decoded(result) == scene(12)[..., 0]).all()
    again = pydicom.dcmread(io.BytesIO(transcoded(result, EXPLICIT)))
    assert "ExtendedOffsetTable" not in again


@pytest.mark.parametrize("source", ENCAPSULATED)
@pytest.mark.parametrize("uid", TARGETS)
def test_compressed_goes_into_compressed_through_its_pixels(source, uid):
    data = transcoded(image(EXPLICIT, scene(8, samples=3), **EIGHT, **RGB), source)
    result = transcoded(data, uid)
    if source == uid:
        assert result == data
        return
    ds = pydicom.dcmread(io.BytesIO(data))
    assert_close(decoded(data), decoded(result), uid, pydicom.dcmread(io.BytesIO(transcoded(data, EXPLICIT))))
    assert pydicom.dcmread(io.BytesIO(result)).PatientName == ds.PatientName


def test_a_deflated_data_set_has_an_even_length_and_is_whole():
    for extra in range(8):
        data = image(IMPLICIT, scene(12), BitsStored=12, PatientID="x" * extra)
        result = transcoded(data, DEFLATED)
        meta = 144 + struct.unpack_from("<I", result, 140)[0]
        assert (len(result) - meta) % 2 == 0
        assert transcoded(data, EXPLICIT).endswith(zlib.decompress(result[meta:], -15))
        assert pydicom.dcmread(io.BytesIO(result)).PixelData == scene(12).tobytes()
        assert transcoded(result, JPEG_LS) == transcoded(data, JPEG_LS)


@pytest.mark.parametrize("uid", TARGETS)
def test_an_object_without_pixel_data_only_changes_its_encoding(uid):
    data = image(IMPLICIT, b"")
    if uid in ENCAPSULATED:
        with pytest.raises(CannotEncode, match="no pixel data"):
            transcoded(data, uid)
    else:
        new = pydicom.dcmread(io.BytesIO(transcoded(data, uid)))
        assert (new.file_meta.TransferSyntaxUID, new.PatientName) == (uid, "Kind^Of")


@pytest.mark.parametrize("uid", ENCAPSULATED)
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BitsAllocated": 1, "BitsStored": 1}, "bits allocated, not 1"),
        ({"BitsAllocated": 32, "BitsStored": 32, "NumberOfFrames": 1}, "bits allocated, not 32"),
        ({"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK", **EIGHT, "NumberOfFrames": 1}, "not CMYK"),
        ({"PhotometricInterpretation": "RGB", **EIGHT}, "1 samples per pixel"),
    ],
)
def test_pixels_that_no_encoder_takes_are_refused_with_the_reason(uid, attributes, reason):
    with pytest.raises(CannotEncode, match=reason):
        transcoded(image(EXPLICIT, bytes(40 * 48 * 4), **attributes), uid)


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"])
def test_segments_are_not_blurred(sop_class):
    data = image(EXPLICIT, scene(8), **EIGHT, SOPClassUID=sop_class)
    for uid in LOSSY:
        with pytest.raises(CannotEncode, match="segmentation"):
            transcoded(data, uid)
        with pytest.raises(CannotEncode, match="segmentation"):
            transcode_frame(io.BytesIO(data), 1, uid)
    assert transcoded(data, HTJ2K)


def test_floating_point_pixels_are_refused():
    data = image(EXPLICIT, b"", BitsAllocated=32, FloatPixelData=bytes(40 * 48 * 8))
    for uid in ENCAPSULATED:
        with pytest.raises(CannotEncode, match="floating point"):
            transcoded(data, uid)
        with pytest.raises(CannotEncode, match="floating point"):
            transcode_frame(io.BytesIO(data), 1, uid)
    assert transcode_frame(io.BytesIO(data), 2, EXPLICIT) == bytes(40 * 48 * 4)


@pytest.mark.parametrize("uid", [IMPLICIT, BIG_ENDIAN, ROOT + ".4.51", ROOT + ".4.102", "1.2.3"])
def test_what_is_not_written_here_is_refused_by_name(uid):
    name = TRANSFER_SYNTAXES[uid].name if uid in TRANSFER_SYNTAXES else uid
    for call in (lambda data: transcoded(data, uid), lambda data: transcode_frame(io.BytesIO(data), 1, uid)):
        with pytest.raises(CannotEncode) as caught:
            call(image(EXPLICIT, scene(8), **EIGHT))
        assert name in str(caught.value)


def test_a_video_cannot_be_transcoded():
    video = transcoded(image(EXPLICIT, scene(12), BitsStored=12), HTJ2K)
    video = video.replace(HTJ2K.encode() + b"\0", (ROOT + ".4.102").encode() + b"\0")
    for uid in TARGETS:
        with pytest.raises(CannotDecode, match="cannot decode MPEG-4"):
            transcoded(video, uid)


def test_a_file_that_is_in_the_syntax_already_is_copied():
    damaged = transcoded(image(EXPLICIT, scene(8), **EIGHT), JPEG_LS)[:-40]
    assert transcoded(damaged, JPEG_LS) == damaged


# ---------------------------------------------------------------------------------------------------------------------
# Single frames


@pytest.mark.parametrize("uid", ENCAPSULATED)
def test_a_frame_is_the_fragment_of_the_whole_file(uid):
    data = image(IMPLICIT, scene(8), **EIGHT)
    whole = PixelData(io.BytesIO(transcoded(data, uid)))
    for number in (2, 1):
        frame = transcode_frame(io.BytesIO(data), number, uid)
        assert whole.encoded_frame(number) == frame + b"\0" * (len(frame) % 2)
    with pytest.raises(LookupError, match="no frame 3"):
        transcode_frame(io.BytesIO(data), 3, uid)


@pytest.mark.parametrize("uid", [EXPLICIT, DEFLATED, RLE])
def test_the_frames_of_the_header_scan_lead_to_the_same_pixels(uid):
    data = transcoded(image(EXPLICIT, scene(12), BitsStored=12), JPEG_LS)
    frames = header.scan(data).frames
    for number in (1, 2):
        expected = transcode_frame(io.BytesIO(data), number, uid)
        assert transcode_frame(io.BytesIO(data), number, uid, frames=frames) == expected
    with pytest.raises(LookupError):
        transcode_frame(io.BytesIO(data), 3, uid, frames=frames)


def test_a_frame_that_is_in_the_syntax_already_is_not_decoded():
    data = transcoded(image(EXPLICIT, scene(8), **EIGHT), JPEG_LS)
    frame = PixelData(io.BytesIO(data)).encoded_frame(1)
    broken = data.replace(frame, frame[:20] + bytes(len(frame) - 20))
    assert transcode_frame(io.BytesIO(broken), 1, JPEG_LS) == frame[:20] + bytes(len(frame) - 20)
    with pytest.raises(CannotDecode):
        transcode_frame(io.BytesIO(broken), 1, RLE)


# ---------------------------------------------------------------------------------------------------------------------
# Worker processes, memory


def test_a_worker_process_transcodes_a_file_and_says_what_is_wrong(tmp_path):
    data = image(EXPLICIT, scene(12), BitsStored=12)
    (tmp_path / "in.dcm").write_bytes(data)
    source, target = partial(open, tmp_path / "in.dcm", "rb"), str(tmp_path / "out.dcm")
    frames = header.scan(data).frames.pack()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(transcode_file, source, target, HTJ2K).result()
        assert Path(target).read_bytes() == transcoded(data, HTJ2K)
        frame = pool.submit(transcode_frame_of_file, source, 2, EXPLICIT, frames).result()
        assert frame == scene(12)[1].tobytes()
        with pytest.raises(CannotEncode, match="takes 8 bits allocated, not 16"):
            pool.submit(transcode_file, source, target, BASELINE).result()
        assert not Path(target).exists()
        with pytest.raises(LookupError, match="no frame 3"):
            pool.submit(transcode_frame_of_file, source, 3, RLE).result()


@pytest.mark.parametrize("kind", [CannotDecode, CannotEncode, CannotTranscode])
def test_refusals_can_be_sent_between_processes(kind):
    sent = pickle.loads(pickle.dumps(kind("This cannot be.")))
    assert (type(sent), str(sent)) == (kind, "This cannot be.")
    assert issubclass(kind, CannotTranscode)


def test_one_frame_after_the_other_is_in_memory(tmp_path):
    frame = np.random.default_rng(1).integers(0, 65536, (1024, 1024)).astype("u2").tobytes()
    head = image(EXPLICIT, b"", Rows=1024, Columns=1024, NumberOfFrames=24)
    value = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 24 * len(frame))
    with (tmp_path / "in.dcm").open("wb") as file:
        file.write(head + value)
        for _ in range(24):
            file.write(frame)
    transcode_frame_of_file(partial(open, tmp_path / "in.dcm", "rb"), 1, HTJ2K)  # codecs loaded
    tracemalloc.start()
    transcode_file(partial(open, tmp_path / "in.dcm", "rb"), str(tmp_path / "out.dcm"), HTJ2K)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20 + 8 * len(frame)  # the spool, and what a codec needs for one frame
    assert header.scan((tmp_path / "out.dcm").read_bytes()).frames.count == 24
