from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence

from dicomcloud.dicom import pixel_data
from dicomcloud.dicom.pixel_data import (
    TRANSFER_SYNTAXES,
    CannotDecode,
    PixelData,
    decode_frame,
    leaves_as_stored,
    to_explicit_little_endian,
)

ROOT = "1.2.840.10008.1.2"
BIG_ENDIAN = ROOT + ".2"
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples"

# Files that cannot be given in Explicit VR Little Endian, and why. Everything else must convert.
NO_FILE_META = "has no File Meta Information"
CANNOT = {
    # pydicom's own files
    "ExplVR_BigEndNoMeta.dcm": NO_FILE_META,
    "ExplVR_LitEndNoMeta.dcm": NO_FILE_META,
    "no_meta.dcm": NO_FILE_META,
    "rtstruct.dcm": NO_FILE_META,
    "zipMR.gz": NO_FILE_META,
    "meta_missing_tsyntax.dcm": "transfer syntax (none given) is not known",
    "rtplan_truncated.dcm": "too long",
    "JPEG2000-embedded-sequence-delimiter.dcm": "JPEG 2000 frame cannot be decoded",  # cut off, no pydicom plug-in can
    # others
    "datadoc1_test_synthetic.dcm": NO_FILE_META,
    "pydata_JLSL_RGB_ILV0.dcm": NO_FILE_META,
    "pydata_JLSL_RGB_ILV2.dcm": NO_FILE_META,
    "derived_public-video-h264.dcm": "cannot decode MPEG-4",
    "derived_public-video-mpeg2.dcm": "cannot decode MPEG2",
}
# A decoder of pydicom's own for each codec: what it returns is the reference.
REFERENCE_PLUGIN = {"jpeg": "pillow", "jpeg-ls": "pyjpegls", "jpeg-2000": "pylibjpeg", "rle": "pylibjpeg"}
# No lossy decoder here differs from the reference: libjpeg-turbo, CharLS and OpenJPEG are below both.
ALLOWED_DIFFERENCE = 0


def all_files() -> list[Path]:
    bundled = [Path(name) for name in get_testdata_files() if Path(name).suffix != ".py"]
    files = [path for path in bundled if path.suffix in (".dcm", ".gz", "") and path.is_file()]
    if (SAMPLES / "inventory.csv").is_file():
        with (SAMPLES / "inventory.csv").open() as rows:
            files += [SAMPLES / row["file"] for row in csv.DictReader(rows)]
    return sorted({path for path in files if not path.name.startswith("README")})


def converted(data: bytes) -> bytes:
    target = io.BytesIO()
    to_explicit_little_endian(io.BytesIO(data), target)
    return target.getvalue()


def image_file(syntax: str, frames: list[bytes], **attributes: object) -> bytes:
    """A file with the given frames: joined for a native syntax, else one fragment each."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.NumberOfFrames = 8, 16, 1, len(frames)
    ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 16
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    if "HighBit" not in attributes:
        ds.HighBit = ds.BitsStored - 1
    encapsulated = TRANSFER_SYNTAXES[syntax].encapsulated
    data = encapsulate(frames) if encapsulated else b"".join(frames)
    ds.add_new(0x7FE00010, "OB" if encapsulated or ds.BitsAllocated <= 8 else "OW", data + b"\0" * (len(data) % 2))
    ds["PixelData"].is_undefined_length = encapsulated
    return written(ds, syntax)


def written(ds: Dataset, syntax: str) -> bytes:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    # pydicom writes no syntax it does not know; those are all Explicit VR Little Endian apart from the frames.
    known = syntax in pydicom.uid.AllTransferSyntaxes
    target = io.BytesIO()
    if not known:
        ds.file_meta.TransferSyntaxUID = ROOT + ".4.90"
    ds.save_as(target, enforce_file_format=True)
    if known:
        return target.getvalue()
    old = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + (ROOT + ".4.90").encode()
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    assert old in target.getvalue()
    return target.getvalue().replace(old, struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid)


def picture(shape: tuple[int, ...] = (8, 16), kind: str = "u2", top: int = 4096) -> np.ndarray:
    return np.random.default_rng(7).integers(0, top, shape).astype(kind)


# ---------------------------------------------------------------------------------------------------------------------
# The table


@pytest.mark.parametrize(
    ("media_type", "tails"),
    [
        ("application/octet-stream", "1 1.99 2 1.98"),
        ("image/jpeg", "4.50 4.51 4.57 4.70"),
        ("image/jls", "4.80 4.81"),
        ("image/jp2", "4.90 4.91"),
        ("image/jpx", "4.92 4.93"),
        ("image/jphc", "4.201 4.202 4.203"),
        ("image/jxl", "4.110 4.111 4.112"),
        ("image/dicom-rle", "5"),
        ("video/mpeg", "4.100 4.101"),
        ("video/mp4", "4.102 4.103 4.104 4.105 4.106"),
        ("video/H265", "4.107 4.108"),
    ],
)
def test_frames_have_the_media_type_of_their_transfer_syntax(media_type, tails):
    assert {TRANSFER_SYNTAXES[f"{ROOT}.{tail}"].media_type for tail in tails.split()} == {media_type}


def test_the_table_agrees_with_pydicom():
    unknown = set()
    for uid, syntax in TRANSFER_SYNTAXES.items():
        reference = pydicom.uid.UID(uid)
        if reference not in pydicom.uid.UID_dictionary:
            unknown.add(uid.removeprefix(ROOT))
            continue
        assert syntax.encapsulated == reference.is_encapsulated, uid
        assert syntax.explicit != reference.is_implicit_VR, uid
        assert syntax.little_endian == reference.is_little_endian, uid
        assert syntax.deflated == reference.is_deflated, uid
        assert syntax.uid == uid
    assert unknown <= {".4.110", ".4.111", ".4.112", ".8.1"}


def test_every_decoder_of_pydicom_is_in_the_table():
    from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS

    assert {uid for uid in _PIXEL_DATA_DECODERS if not TRANSFER_SYNTAXES[uid].decodable} == set()
    assert not any(syntax.decodable for syntax in TRANSFER_SYNTAXES.values() if syntax.video)


def test_only_implicit_and_big_endian_never_leave():
    assert [uid for uid in TRANSFER_SYNTAXES if not leaves_as_stored(uid)] == [ROOT, ROOT + ".2"]


def test_the_table_needs_no_pydicom():
    code = "import sys, dicomcloud.dicom.pixel_data; sys.exit('pydicom' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Real files


@pytest.mark.parametrize("path", all_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_real_files_come_out_with_the_same_elements_and_pixels(path):
    data = path.read_bytes()
    reason = CANNOT.get(path.name.removeprefix("pydicom_"))
    if reason is not None:
        with pytest.raises(CannotDecode) as caught:
            converted(data)
        assert reason in str(caught.value)
        return
    result = converted(data)
    before, after = pydicom.dcmread(io.BytesIO(data), force=True), pydicom.dcmread(io.BytesIO(result))
    if before.file_meta.TransferSyntaxUID == ROOT + ".1":
        assert result == data
        return
    assert after.file_meta.TransferSyntaxUID == ROOT + ".1"
    assert result[:128] == data[:128]
    assert_same(before.file_meta, after.file_meta, {0x00020000, 0x00020010})
    encapsulated = TRANSFER_SYNTAXES[before.file_meta.TransferSyntaxUID].encapsulated
    assert_same(
        before, after, {0x7FE00010, 0x7FE00001, 0x7FE00002} | ({0x00280004, 0x00280006} if encapsulated else set())
    )
    if "PixelData" in before and "Rows" in before:
        assert_same_pixels(data, result)


def assert_same(before: Dataset, after: Dataset, except_tags: set[int]) -> None:
    tags = {tag for tag in before.keys() if tag.element} - except_tags  # noqa: SIM118 (iterating gives elements)
    assert tags == {tag for tag in after.keys() if tag.element} - except_tags  # noqa: SIM118
    for tag in tags:
        try:
            old = before[tag]
        except Exception:
            continue  # pydicom cannot make sense of it: there is nothing to compare with
        new = after[tag]
        if isinstance(old.value, Sequence) and isinstance(new.value, Sequence):
            assert len(old.value) == len(new.value), tag
            for old_item, new_item in zip(old.value, new.value, strict=True):
                assert_same(old_item, new_item, set())
        else:
            assert old.value == new.value, tag


def assert_same_pixels(data: bytes, result: bytes) -> None:
    pixels = PixelData(io.BytesIO(data))
    codec = pixels.syntax.codec
    ours = pixel_array(io.BytesIO(result))
    decoded_frames = b"".join(pixels.frame(number) for number in range(1, pixels.image.frames + 1))
    stored = pydicom.dcmread(io.BytesIO(result)).PixelData
    if pixels.decoded.frame_bits % 8 == 0:
        assert stored == decoded_frames + b"\0" * (len(decoded_frames) % 2)
    if codec and (codec not in REFERENCE_PLUGIN or pixels.syntax.uid == ROOT + ".4.55"):
        return  # no decoder but ours: see the tests of each codec
    if codec == "jpeg" and pixels.image.bits_stored > 8 or (codec == "rle" and pixels.image.bits_allocated == 1):
        return
    theirs = pixel_array(pydicom.dcmread(io.BytesIO(data)), decoding_plugin=REFERENCE_PLUGIN.get(codec, ""))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max() <= ALLOWED_DIFFERENCE


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not beside this checkout")
def test_the_same_ct_image_decodes_equally_from_every_lossless_syntax():
    names = [
        "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
        "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
        "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
        "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
    ]
    frames = {decode_frame((SAMPLES / "mono" / f"cs3d_CTImage.dcm_{name}.dcm").open("rb"), 1) for name in names}
    assert len(frames) == 1


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not beside this checkout")
@pytest.mark.parametrize("name", ["deflate.dcm", "j2k.dcm", "rle.dcm"])
def test_one_bit_frames_that_fill_no_whole_bytes_are_joined_bit_by_bit(name):
    path = next(SAMPLES.rglob(f"pydata_liver_nonbyte_aligned_{name}"))
    reference = pydicom.dcmread(SAMPLES / "nonimage" / "pydata_liver_nonbyte_aligned.dcm")
    result = pydicom.dcmread(io.BytesIO(converted(path.read_bytes())))
    assert result.PixelData == reference.PixelData


# ---------------------------------------------------------------------------------------------------------------------
# Uncompressed syntaxes


def everything() -> Dataset:
    """A data set with a value of every VR that has a byte order, and nested ones."""
    ds = Dataset()
    ds.SOPInstanceUID, ds.FrameIncrementPointer = "1.2.3", [0x00181063, 0x00181065]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored = 2, 2, 1, 16, 16
    ds.PixelRepresentation, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.SmallestImagePixelValue = -5
    ds.ReferencePixelX0, ds.SelectorULValue = -70000, [1, 4000000000]
    ds.RecommendedDisplayFrameRateInFloat, ds.RealWorldValueSlope = 1.5, 2.25
    ds.SelectorSVValue, ds.SelectorUVValue = [-(2**60)], [2**63]
    ds.TrackPointIndexList, ds.DoublePointCoordinatesData = struct.pack("<2I", 1, 2), struct.pack("<d", 0.5)
    ds.PointCoordinatesData, ds.ExtendedOffsetTable = struct.pack("<2f", 1, 2), struct.pack("<Q", 8)
    item, inner = Dataset(), Dataset()
    inner.ReferencedFrameNumber, inner.SimpleFrameList = 3, [7, 70000]
    inner.LUTDescriptor, inner.LUTData = [2, -3, 16], struct.pack("<2H", 1, 515)
    inner["LUTData"].VR = "OW"
    item.ReferencedImageSequence, item.BitsAllocated, item.PixelData = Sequence([inner]), 8, b"\1\2\3\4"
    item["PixelData"].VR = "OW"
    ds.IconImageSequence = Sequence([item, Dataset()])
    ds.PixelData = struct.pack("<4h", 1, -2, 3, -400)
    ds["PixelData"].VR = "OW"
    return ds


def swap_binary(ds: Dataset) -> Dataset:
    """pydicom turns numbers round when it writes big endian, but leaves the bytes of OB, OW and the like."""
    width = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
    for element in ds.iterall():
        if element.VR in width:
            words = np.frombuffer(element.value, f"u{width[element.VR]}")
            element.value = words.byteswap().tobytes()
    return ds


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ROOT, ROOT + ".2"])
def test_every_vr_is_turned_round_at_every_depth(syntax, undefined):
    ds = everything()
    for element in ds.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    expected = everything()
    data = written(swap_binary(ds) if syntax == BIG_ENDIAN else ds, syntax)
    result = pydicom.dcmread(io.BytesIO(converted(data)))
    for old, new in zip(expected.iterall(), result.iterall(), strict=True):
        assert (old.tag, old.value) == (new.tag, new.value) or old.VR == "SQ"
    assert result["SmallestImagePixelValue"].VR == "SS"
    assert result.IconImageSequence[0].ReferencedImageSequence[0]["LUTDescriptor"].VR == "SS"


def test_values_are_not_judged():
    values = {(0x08, 0x18): (b"UI", b"1.02.x "), (0x18, 0x50): (b"DS", b"1,5mm "), (0x20, 0x13): (b"IS", b"1A")}
    implicit = b"".join(struct.pack("<HHI", *tag, len(value)) + value for tag, (_, value) in values.items())
    explicit = b"".join(struct.pack("<HH2sH", *tag, vr, len(value)) + value for tag, (vr, value) in values.items())
    assert converted(written(Dataset(), ROOT) + implicit).endswith(explicit)


def test_private_and_unknown_elements_become_un_with_their_bytes():
    ds = Dataset()
    ds.add_new(0x00091010, "OB", b"\1\2\3\4")
    ds.add_new(0x00090010, "LO", "SOMEBODY")
    ds.add_new(0x00080666, "OB", b"\7\0")
    result = pydicom.dcmread(io.BytesIO(converted(written(ds, ROOT))))
    raw = {tag: result.get_item(tag) for tag in (0x00091010, 0x00090010, 0x00080666)}
    assert [(raw[tag].VR, raw[tag].value) for tag in raw] == [("UN", b"\1\2\3\4"), ("LO", b"SOMEBODY"), ("UN", b"\7\0")]


def test_a_private_sequence_of_undefined_length_stays_a_sequence():
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 8 + 4) + struct.pack("<HHI", 9, 0x1011, 4) + b"abcd"
    ending = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    private = struct.pack("<HHI", 9, 0x1010, 0xFFFFFFFF) + item + ending
    result = pydicom.dcmread(io.BytesIO(converted(written(Dataset(), ROOT) + private)))
    assert result[0x00091010].VR == "SQ"
    assert result[0x00091010].value[0].get_item(0x00091011).value == b"abcd"


def test_un_of_undefined_length_in_big_endian_is_an_implicit_little_endian_sequence():
    inside = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHIH", 0x28, 0x10, 2, 258)
    ending = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack(">HH2sHI", 9, 0x1010, b"UN", 0, 0xFFFFFFFF) + inside + ending
    result = pydicom.dcmread(io.BytesIO(converted(written(Dataset(), BIG_ENDIAN) + unknown)))
    assert result[0x00091010].value[0].Rows == 258


def test_a_value_too_long_for_a_16_bit_length_becomes_un():
    ds = Dataset()
    ds.add_new(0x00080068, "LO", "FOR PRESENTATION")
    ds.add_new(0x0040A30A, "DS", b"1\\" * 40000)
    ds.add_new(0x0040A160, "UT", "x" * 80000)
    result = pydicom.dcmread(io.BytesIO(converted(written(ds, ROOT))))
    assert [result.get_item(tag).VR for tag in (0x00080068, 0x0040A30A, 0x0040A160)] == ["CS", "UN", "UT"]
    assert result.get_item(0x0040A30A).value == b"1\\" * 40000


def test_big_endian_pixels_are_copied_in_pieces(tmp_path):
    size = 24 << 20
    head = image_file(ROOT + ".2", [], Rows=4096, Columns=3072, NumberOfFrames=1)[:-4]
    (tmp_path / "in.dcm").write_bytes(head + struct.pack(">I", size) + bytes(range(256)) * (size // 256))
    tracemalloc.start()
    with (tmp_path / "in.dcm").open("rb") as source, (tmp_path / "out.dcm").open("wb") as target:
        to_explicit_little_endian(source, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert (tmp_path / "out.dcm").read_bytes()[-size:][:6] == b"\1\0\3\2\5\4"


def test_group_lengths_are_left_out_and_private_file_meta_is_kept():
    ds = Dataset()
    ds.PatientName = "A^B"
    data = bytearray(written(ds, ROOT))
    meta_length = struct.unpack_from("<I", data, 140)[0]
    data[144 + meta_length : 144 + meta_length] = struct.pack("<HHII", 0x10, 0, 4, 12)
    extra = struct.pack("<HH2sH", 2, 0x16, b"AE", 4) + b"HERE"
    data[144 + meta_length : 144 + meta_length] = extra
    struct.pack_into("<I", data, 140, meta_length + len(extra))
    data[:5] = b"title"
    result = converted(bytes(data))
    reread = pydicom.dcmread(io.BytesIO(result))
    assert (reread.preamble[:5], reread.file_meta.SourceApplicationEntityTitle) == (b"title", "HERE")
    assert list(reread.keys()) == [0x00100010]


def test_an_implicit_data_set_under_an_explicit_file_meta_is_recognised():
    data = image_file(ROOT, [picture().tobytes()])
    ds = pydicom.dcmread(io.BytesIO(data))
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    lying = written(Dataset(), ROOT + ".1") + data[start:]
    result = pydicom.dcmread(io.BytesIO(converted(lying)))
    assert result.PixelData == ds.PixelData
    assert result["PixelData"].VR == "OW"


def test_a_deflated_data_set_is_inflated_up_to_the_limit():
    data = image_file(ROOT + ".1.99", [picture().tobytes()], Rows=8)
    plain = converted(data)
    assert pydicom.dcmread(io.BytesIO(plain)).PixelData == picture().tobytes()
    assert decode_frame(io.BytesIO(data), 1) == picture().tobytes()
    with pytest.raises(CannotDecode, match="larger than 100 bytes"):
        to_explicit_little_endian(io.BytesIO(data), io.BytesIO(), max_inflated=100)
    with pytest.raises(CannotDecode, match="ends early"):
        converted(data[:-200])


@pytest.mark.parametrize("cut", [1, 9, 100])
@pytest.mark.parametrize("syntax", [ROOT, ROOT + ".2"])
def test_a_truncated_file_cannot_be_converted(syntax, cut):
    with pytest.raises(CannotDecode):
        converted(image_file(syntax, [picture().tobytes()])[:-cut])


def test_endless_nesting_is_refused():
    opening = struct.pack("<HHIHHI", 0x40, 0xA730, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(CannotDecode, match="nested"):
        converted(written(Dataset(), ROOT) + opening * 5000)


# ---------------------------------------------------------------------------------------------------------------------
# Compressed syntaxes


def rle(frame: np.ndarray) -> bytes:
    """One segment per byte, the high one first (PS3.5 G.2), of literal runs and, where all is equal, replicate runs."""

    def packed(plane: bytes) -> bytes:
        rows = (plane[at : at + 16] for at in range(0, len(plane), 16))
        return b"".join(bytes((241, row[0])) if len(set(row)) == 1 else bytes((15,)) + row for row in rows)

    data = frame.astype("<u2").tobytes()
    segments = [packed(data[1::2]), packed(data[::2])]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    return struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def without_colour_marks(stream: bytes) -> bytes:
    """A JPEG stream that no longer says it is RGB: no Adobe marker, components called 0, 1, 2."""
    if stream[2:4] == b"\xff\xee":
        stream = stream[:2] + stream[18:]
    frame_header = stream.index(b"R\x11\x00G\x11\x00B\x11\x00")
    scan_header = stream.index(b"\xff\xda") + 5
    out = bytearray(stream)
    for component in range(3):
        out[frame_header + 3 * component] = out[scan_header + 2 * component] = component
    return bytes(out)


LOSSLESS = {
    ".4.57": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=4),
    ".4.70": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1),
    ".4.80": imagecodecs.jpegls_encode,
    ".4.90": lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k"),
    ".4.201": imagecodecs.htj2k_encode,
    ".4.110": lambda a: imagecodecs.jpegxl_encode(a, lossless=True),
    ".5": rle,
    ".8.1": lambda a: deflate(a.tobytes()),
    ".1.98": lambda a: a.tobytes(),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("tail", LOSSLESS)
def test_lossless_frames_come_back_bit_for_bit(tail, signed):
    pictures = [picture((8, 16), "u2", 65536), picture((8, 16), "u2", 300)]
    data = image_file(ROOT + tail, [LOSSLESS[tail](each) for each in pictures], PixelRepresentation=int(signed))
    result = pydicom.dcmread(io.BytesIO(converted(data)))
    assert result.PixelData == b"".join(each.tobytes() for each in pictures)
    assert (result["PixelData"].VR, result.PixelRepresentation, result.HighBit) == ("OW", int(signed), 15)
    assert decode_frame(io.BytesIO(data), 2) == pictures[1].tobytes()


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("tail", [tail for tail in LOSSLESS if tail not in (".5",)])
def test_reversible_codecs_keep_the_colours_they_were_given(tail, photometric):
    colours = picture((8, 16, 3), "u1", 256)
    frame = LOSSLESS[tail](colours)
    if tail in (".4.57", ".4.70"):
        frame = without_colour_marks(frame)
    data = image_file(
        ROOT + tail,
        [frame],
        SamplesPerPixel=3,
        BitsAllocated=8,
        BitsStored=8,
        PlanarConfiguration=0,
        PhotometricInterpretation=photometric,
    )
    result = pydicom.dcmread(io.BytesIO(converted(data)))
    assert result.PixelData == colours.tobytes()
    assert (result.PhotometricInterpretation, result.PlanarConfiguration, result["PixelData"].VR) == (
        photometric,
        0,
        "OB",
    )


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])
def test_a_colour_jpeg_is_rgb_and_says_so(photometric):
    colours = np.full((16, 16, 3), (200, 40, 90), "u1")
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "JPEG", quality=95, subsampling=1)  # YCbCr, with a JFIF marker
    data = image_file(
        ROOT + ".4.50",
        [stream.getvalue()],
        Rows=16,
        SamplesPerPixel=3,
        BitsAllocated=8,
        BitsStored=8,
        PlanarConfiguration=1,
        LossyImageCompression="01",
        PhotometricInterpretation=photometric,
    )
    result = pydicom.dcmread(io.BytesIO(converted(data)))
    assert (result.PhotometricInterpretation, result.PlanarConfiguration) == ("RGB", 0)
    assert result.LossyImageCompression == "01"
    assert np.abs(np.frombuffer(result.PixelData, "u1").astype(int).reshape(colours.shape) - colours).max() <= 3


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_a_subsampled_jpeg_is_ybr_whatever_else_is_said(photometric):
    colours = np.full((16, 16, 3), (200, 40, 90), "u1")
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "JPEG", quality=95, subsampling=1)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\0"
    frame = b"\xff\xd8" + adobe + stream.getvalue()[20:]  # in place of the JFIF marker
    image = {"Rows": 16, "SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}
    data = image_file(ROOT + ".4.50", [frame], PhotometricInterpretation=photometric, **image)
    decoded = np.frombuffer(decode_frame(io.BytesIO(data), 1), "u1").reshape(colours.shape)
    assert np.abs(decoded.astype(int) - colours).max() <= 3


def test_bits_above_bits_stored_survive_rle():
    # retired overlays live there
    pixels = picture(top=65536)
    data = image_file(ROOT + ".5", [rle(pixels)], BitsStored=12, PixelRepresentation=1)
    assert decode_frame(io.BytesIO(data), 1) == pixels.tobytes()


def test_a_jpeg_without_colour_markers_is_what_the_data_set_says():
    colours = np.full((8, 16, 3), (200, 40, 90), "u1")
    stream = imagecodecs.jpeg8_encode(colours, 95, colorspace="RGB", outcolorspace="RGB", subsampling="444")
    bare = without_colour_marks(stream)
    image = {"SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}
    rgb = decode_frame(io.BytesIO(image_file(ROOT + ".4.50", [bare], PhotometricInterpretation="RGB", **image)), 1)
    ybr = decode_frame(io.BytesIO(image_file(ROOT + ".4.50", [bare], PhotometricInterpretation="YBR_FULL", **image)), 1)
    assert np.abs(np.frombuffer(rgb, "u1").reshape(colours.shape).astype(int) - colours).max() <= 3
    assert np.abs(np.frombuffer(ybr, "u1").reshape(colours.shape).astype(int) - colours).max() > 50


def test_twelve_bit_jpeg_is_decoded():
    smooth = (np.add.outer(np.arange(8), np.arange(16)) * 100).astype("u2")
    stream = imagecodecs.jpeg8_encode(smooth, 98, bitspersample=12)
    data = image_file(ROOT + ".4.51", [stream], BitsStored=12, HighBit=11)
    assert (
        np.abs(np.frombuffer(decode_frame(io.BytesIO(data), 1), "u2").reshape(8, 16).astype(int) - smooth).max() <= 16
    )


@pytest.mark.parametrize(("signed", "expected"), [(True, -2000), (False, 2096)])
def test_jpeg_2000_whose_sign_contradicts_the_data_set_is_put_right(signed, expected):
    # 12-bit two's complement of -2000 is 2096: written unsigned, read with the sign the data set names.
    values = np.full((8, 16), 2096, "u2")
    stream = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", bitspersample=12)
    data = image_file(ROOT + ".4.90", [stream], BitsStored=12, PixelRepresentation=int(signed))
    assert set(np.frombuffer(decode_frame(io.BytesIO(data), 1), "i2")) == {expected}


def test_high_bit_follows_a_codestream_of_bits_stored_bits():
    stream = imagecodecs.jpeg2k_encode(picture(), level=0, codecformat="j2k", bitspersample=12)
    data = image_file(ROOT + ".4.90", [stream], BitsStored=12, HighBit=15)
    assert pydicom.dcmread(io.BytesIO(converted(data))).HighBit == 11


def test_the_extended_offset_table_goes_with_the_fragments():
    frames = [rle(picture(top=top)) for top in (2, 4000, 60)]
    ds = pydicom.dcmread(io.BytesIO(image_file(ROOT + ".5", frames)))
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    trailing = Dataset()
    trailing.MACIDNumber = 5
    ds.add_new(0xFFFAFFFA, "SQ", [trailing])
    result = pydicom.dcmread(io.BytesIO(converted(written(ds, ROOT + ".5"))))
    assert result.PixelData == b"".join(picture(top=top).tobytes() for top in (2, 4000, 60))
    assert "ExtendedOffsetTable" not in result
    assert "ExtendedOffsetTableLengths" not in result
    assert result[0xFFFAFFFA].value[0].MACIDNumber == 5


@pytest.mark.parametrize("has_bot", [False, True])
def test_a_frame_may_lie_in_several_fragments(has_bot):
    encode = LOSSLESS[".4.80"]
    pictures = [picture(top=top) for top in (200, 4000, 60)]
    ds = pydicom.dcmread(io.BytesIO(image_file(ROOT + ".4.80", [encode(each) for each in pictures])))
    ds.PixelData = encapsulate([encode(each) for each in pictures], fragments_per_frame=2, has_bot=has_bot)
    data = written(ds, ROOT + ".4.80")
    assert [decode_frame(io.BytesIO(data), number) for number in (3, 1, 2)] == [
        pictures[i].tobytes() for i in (2, 0, 1)
    ]


def test_odd_lengths_are_padded():
    frames = [deflate(bytes(range(9))), deflate(bytes(range(9, 18))), deflate(bytes(range(18, 27)))]
    data = image_file(ROOT + ".8.1", frames, Rows=3, Columns=3, BitsAllocated=8, BitsStored=8)
    assert pydicom.dcmread(io.BytesIO(converted(data))).PixelData == bytes(range(27)) + b"\0"


def test_an_encapsulated_syntax_without_pixel_data_only_changes_its_name():
    ds = Dataset()
    ds.PatientName = "A^B"
    result = pydicom.dcmread(io.BytesIO(converted(written(ds, ROOT + ".4.70"))))
    assert (result.file_meta.TransferSyntaxUID, result.PatientName) == (ROOT + ".1", "A^B")
    with pytest.raises(LookupError):
        decode_frame(io.BytesIO(written(ds, ROOT + ".4.70")), 1)


# ---------------------------------------------------------------------------------------------------------------------
# Single frames


@pytest.mark.parametrize("syntax", [ROOT, ROOT + ".1", ROOT + ".2", ROOT + ".1.99"])
def test_a_native_frame_is_little_endian(syntax):
    pictures = [picture(top=top) for top in (200, 4000, 60)]
    stored = [each.byteswap() if syntax == BIG_ENDIAN else each for each in pictures]
    data = image_file(syntax, [each.tobytes() for each in stored])
    for number, expected in enumerate(pictures, 1):
        assert decode_frame(io.BytesIO(data), number) == expected.tobytes()


def test_odd_frames_of_big_endian_words_are_cut_after_swapping():
    # 8-bit pixels in OW: the words go across the border of the frames (PS3.5 8.2)
    swapped = np.frombuffer(bytes(range(28)), "u2").byteswap().tobytes()
    data = image_file(
        ROOT + ".2", [swapped[:9], swapped[9:18], swapped[18:]], Rows=3, Columns=3, BitsAllocated=8, BitsStored=8
    )
    data = data.replace(b"\x7f\xe0\x00\x10OB", b"\x7f\xe0\x00\x10OW")
    assert [decode_frame(io.BytesIO(data), n) for n in (1, 2, 3)] == [bytes(range(i, i + 9)) for i in (0, 9, 18)]


@pytest.mark.parametrize("syntax", [ROOT + ".1", ROOT + ".2"])
def test_one_bit_frames_begin_at_the_lowest_bit(syntax):
    masks = np.random.default_rng(3).integers(0, 2, (3, 5, 7)).astype("u1")
    packed = np.packbits(masks.reshape(-1), bitorder="little").tobytes()
    data = image_file(syntax, [packed], NumberOfFrames=3, Rows=5, Columns=7, BitsAllocated=1, BitsStored=1)
    for number in (1, 2, 3):
        expected = np.packbits(masks[number - 1].reshape(-1), bitorder="little").tobytes()
        assert decode_frame(io.BytesIO(data), number) == expected


@pytest.mark.parametrize("number", [0, -1, 3, 1000])
@pytest.mark.parametrize("tail", [".1", ".5"])
def test_a_frame_that_does_not_exist_is_a_lookup_error(tail, number):
    frame = rle(picture()) if tail == ".5" else picture().tobytes()
    with pytest.raises(LookupError):
        decode_frame(io.BytesIO(image_file(ROOT + tail, [frame, frame])), number)


def test_frames_promised_but_missing_cannot_be_decoded():
    native = image_file(ROOT + ".1", [picture().tobytes()], NumberOfFrames=2)
    compressed = image_file(ROOT + ".5", [rle(picture())], NumberOfFrames=2**31 - 1)
    for data in (native, compressed):
        assert decode_frame(io.BytesIO(data), 1) == picture().tobytes()
        with pytest.raises(CannotDecode):
            decode_frame(io.BytesIO(data), 2)
    with pytest.raises(CannotDecode, match="missing"):
        converted(compressed)


def test_decoded_tells_what_the_frames_have_become():
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    image = {"Rows": 16, "SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}
    data = image_file(ROOT + ".4.50", [stream.getvalue()], PhotometricInterpretation="YBR_FULL_422", **image)
    pixels = PixelData(io.BytesIO(data))
    assert (pixels.image.photometric, pixels.decoded.photometric) == ("YBR_FULL_422", "RGB")
    assert pixels.encoded_frame(1).rstrip(b"\0") == stream.getvalue().rstrip(b"\0")


# ---------------------------------------------------------------------------------------------------------------------
# Hostile files


@pytest.mark.parametrize("tail", [tail for tail in LOSSLESS if tail not in (".5", ".8.1", ".1.98")])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tail):
    large = LOSSLESS[tail](np.zeros((2000, 2048), "u2"))
    data = image_file(ROOT + tail, [large])
    decode_frame(io.BytesIO(image_file(ROOT + tail, [LOSSLESS[tail](picture())])), 1)  # codecs loaded
    tracemalloc.start()
    with pytest.raises(CannotDecode, match="2048 × 2000"):
        decode_frame(io.BytesIO(data), 1)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("tail", "frame"), [(".5", rle(picture())), (".8.1", deflate(b"ab"))])
def test_a_frame_far_too_short_for_its_image_is_refused(tail, frame):
    with pytest.raises(CannotDecode, match="too short"):
        decode_frame(io.BytesIO(image_file(ROOT + tail, [frame], Rows=16384, Columns=16383)), 1)
    with pytest.raises(CannotDecode, match="larger than"):
        decode_frame(io.BytesIO(image_file(ROOT + tail, [frame], Rows=65535, Columns=65535)), 1)


def test_an_image_too_large_for_native_pixel_data_cannot_be_decoded(monkeypatch):
    monkeypatch.setattr(pixel_data, "MAX_NATIVE_LENGTH", 511)
    assert converted(image_file(ROOT + ".5", [rle(picture())]))
    with pytest.raises(CannotDecode, match="too large"):
        converted(image_file(ROOT + ".5", [rle(picture())] * 2))


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("tail", LOSSLESS)
def test_a_truncated_frame_is_refused_and_not_filled_up(tail, keep):
    if tail == ".1.98":
        keep = 0.5
    stream = LOSSLESS[tail](picture((8, 16), "u2", 65536))
    with pytest.raises(CannotDecode):
        decode_frame(io.BytesIO(image_file(ROOT + tail, [stream[: int(len(stream) * keep) & ~1]])), 1)


def test_bits_the_data_set_has_no_room_for_are_refused():
    stream = LOSSLESS[".4.80"](picture((8, 16), "u2", 65536))
    with pytest.raises(CannotDecode, match="16 bits per sample"):
        decode_frame(io.BytesIO(image_file(ROOT + ".4.80", [stream], BitsAllocated=8, BitsStored=8)), 1)


def test_an_unknown_syntax_is_named():
    data = written(Dataset(), ROOT + ".4.90").replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.9.99")
    with pytest.raises(CannotDecode, match=r"1\.2\.840\.10008\.1\.2\.9\.99 is not known"):
        converted(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tail=st.sampled_from([*LOSSLESS, ".4.50"]),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.integers(0, 5000),
)
def test_mutated_codestreams_cannot_be_decoded_or_give_a_whole_frame(tail, changes, length):
    if tail == ".4.50":
        stream = bytearray(imagecodecs.jpeg8_encode(picture(kind="u1", top=256), 90))
    else:
        stream = bytearray(LOSSLESS[tail](picture()))
    for position, value in changes:
        stream[position % len(stream)] = value
    bits = 8 if tail == ".4.50" else 16
    frame = bytes(stream[: max(length % (3 * len(stream)), 2)])
    data = image_file(ROOT + tail, [frame], BitsAllocated=bits, BitsStored=bits)
    outcome = decoded_or_refused(data)
    assert TRANSFER_SYNTAXES[ROOT + tail].name in outcome if isinstance(outcome, str) else len(outcome) == 16 * bits


def decoded_or_refused(data: bytes) -> bytes | str:
    try:
        return decode_frame(io.BytesIO(data), 1)
    except CannotDecode as refusal:
        return str(refusal)


@settings(max_examples=150, deadline=None)
@given(
    syntax=st.sampled_from([ROOT, ROOT + ".2", ROOT + ".1.99"]),
    changes=st.lists(st.tuples(st.integers(132, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutated_files_cannot_be_decoded_or_are_converted(syntax, changes):
    data = bytearray(written(everything(), syntax))
    for position, value in changes:
        data[132 + position % (len(data) - 132)] = value
    outcome = converted_or_refused(bytes(data))
    assert outcome.endswith(".") if isinstance(outcome, str) else outcome[128:132] == b"DICM"


def converted_or_refused(data: bytes) -> bytes | str:
    try:
        return converted(data)
    except CannotDecode as refusal:
        return str(refusal)
