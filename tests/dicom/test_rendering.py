"""Rendered frames against a plain reference in numpy; where they are placed; how they are encoded; what is refused."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from dicomcloud.dicom.header import scan
from dicomcloud.dicom.rendering import (
    CannotRender,
    Rendering,
    Viewport,
    Window,
    encode,
    encode_animation,
    frame_milliseconds,
    read_header,
    render_frame,
    render_frames,
    thumbnail,
)
from dicomcloud.dicom.stored_image import StoredImage
from dicomcloud.errors import BadRequest, InvalidInstance, NotAcceptable
from tests.data import make_dataset, make_file, pydicom_files, sample_files

Array = NDArray[Any]


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def render(file: bytes, number: int = 1, **asked: Any) -> Image.Image:
    return render_frame(io.BytesIO(file), number, Rendering(**asked))


def levels(file: bytes, number: int = 1, **asked: Any) -> Array:
    """Rendered grey levels or colours as signed numbers, to be compared."""
    return np.asarray(render(file, number, **asked)).astype(int)


def near(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((np.abs(one - other) <= 1).all())


def ramp(values: Any, **attributes: Any) -> bytes:
    """A grayscale image of one row of values."""
    cells = np.asarray(values)
    bits = cells.dtype.itemsize * 8
    attributes = {
        "Rows": 1,
        "Columns": cells.size,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(cells.dtype.kind == "i"),
        "PixelData": cells.tobytes() + bytes(cells.nbytes % 2),
        **attributes,
    }
    return make_file(**attributes)


# ---------------------------------------------------------------------------------------------------------------------
# Real files against the formulas of the Standard, in plain numpy


def real_files() -> list[Path]:
    return [*pydicom_files(), *sample_files()]


def as_stored(path: Path) -> bytes | None:
    """The file as the archive keeps it; None if it would refuse it."""
    octets = path.read_bytes()
    try:
        header = scan(octets)
    except InvalidInstance:
        return None
    return header.prefix + octets[header.dataset_offset :] if header.prefix else octets


def group_value(dataset: Dataset, sequence: str, keyword: str) -> Any:
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in dataset.get(name, [])[:1]:
            for found in group.get(sequence, []):
                if keyword in found:
                    return found[keyword].value
    return dataset[keyword].value if keyword in dataset else None


def first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if isinstance(value, (list, pydicom.multival.MultiValue)) else float(value)


def expected_levels(dataset: Dataset, stored: Array) -> Array:
    """PS3.4 N.2 for a first frame, as simply as it can be written."""
    values = stored.astype(float)
    slope = first(group_value(dataset, "PixelValueTransformationSequence", "RescaleSlope")) or 1.0
    intercept = first(group_value(dataset, "PixelValueTransformationSequence", "RescaleIntercept")) or 0.0
    values = values * slope + intercept
    padding = np.zeros(stored.shape, bool)
    if "PixelPaddingValue" in dataset and dataset.get("SOPClassUID") != "1.2.840.10008.5.1.4.1.1.77.1.6":
        padding = stored.astype(int) % 65536 == int(dataset.PixelPaddingValue) % 65536
    center = first(group_value(dataset, "FrameVOILUTSequence", "WindowCenter"))
    width = first(group_value(dataset, "FrameVOILUTSequence", "WindowWidth"))
    if center is not None and width is not None and width >= 1:
        half = 0 if "FloatPixelData" in dataset else 0.5
        fractions = (values - (center - half)) / (width - 2 * half) + 0.5
    else:
        seen = values[~padding]
        low, high = (seen.min(), seen.max()) if seen.size else (0, 1)
        if low == high:
            top = 2**dataset.BitsStored - 1
            low, high = intercept, top * slope + intercept
        fractions = (values - low) / (high - low)
    found = np.clip(fractions, 0, 1) * 255
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        found = 255 - found
    found[padding] = 0
    return found


def expected_colours(dataset: Dataset, stored: Array) -> Array:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = pydicom.pixels.apply_color_lut(stored, dataset)
        bits = dataset.RedPaletteColorLookupTableDescriptor[2]
        return colours >> (8 if bits > 8 else 0)
    return stored >> max(dataset.BitsStored - 8, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_real_files_are_rendered_within_one_grey_level_of_the_plain_reference(path: Path) -> None:
    file = as_stored(path)
    if file is None:
        pytest.skip("The archive would refuse it")
    dataset = pydicom.dcmread(io.BytesIO(file))
    try:
        stored = pixel_array(io.BytesIO(file), index=0)
    except Exception as error:  # pydicom raises whatever comes
        pytest.skip(f"pydicom cannot decode it: {error}")
    image = StoredImage(io.BytesIO(file))
    if image.is_segmentation or image.sop_class == "1.2.840.10008.5.1.4.1.1.481.2":
        pytest.skip("Segmentations and doses have colours of our own choice")
    picture = np.asarray(image.picture(1)).astype(int)
    expected = expected_levels if image.is_grayscale else expected_colours
    assert np.abs(picture - expected(dataset, stored)).max() <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_any_real_file_is_rendered_or_refused_with_a_reason(path: Path) -> None:
    try:
        picture = render_frame(io.BytesIO(path.read_bytes()), 1, Rendering(viewport=Viewport(64, 64)))
    except CannotRender as error:
        pytest.skip(str(error))
    assert picture.mode in ("L", "RGB")
    assert max(picture.size) == 64
    assert Image.open(io.BytesIO(encode(picture, "image/png"))).size == picture.size


# ---------------------------------------------------------------------------------------------------------------------
# Pixel cells and the modality LUT


@pytest.mark.parametrize(
    ("kind", "stored", "high_bit"),
    [("u1", 8, 7), ("u1", 7, 6), ("i1", 8, 7), ("u2", 16, 15), ("u2", 12, 11), ("u2", 12, 15), ("u2", 10, 12)]
    + [("i2", 16, 15), ("i2", 12, 11), ("i2", 12, 13), ("u4", 32, 31), ("i4", 32, 31), ("u4", 20, 19), ("i4", 24, 27)],
)
def test_cells_of_any_kind_are_read_whatever_is_in_their_unused_bits(kind: str, stored: int, high_bit: int) -> None:
    rng = np.random.default_rng(stored)
    signed = kind[0] == "i"
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    values = rng.integers(low, high, 500)
    shift = high_bit + 1 - stored
    bits = int(kind[1]) * 8
    junk = rng.integers(0, 2**bits, 500, dtype=np.uint64) & ~np.uint64((2**stored - 1) << shift)
    cells = ((values % 2**stored).astype(np.uint64) << np.uint64(shift) | junk).astype(f"<u{kind[1]}")
    file = ramp(cells, BitsStored=stored, HighBit=high_bit, PixelRepresentation=int(signed))
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert near(levels(file)[0], expected)


def test_signed_values_are_rescaled_before_the_window() -> None:
    values = np.arange(-2000, 2000, 7, dtype="<i2")
    file = ramp(values, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="0", WindowWidth="3000")
    expected = np.clip(((values * 2.0 - 1000 + 0.5) / 2999 + 0.5) * 255, 0, 255)
    assert near(levels(file)[0], expected)


def test_a_modality_lut_sequence_takes_the_place_of_slope_and_intercept() -> None:
    table = (np.arange(256) ** 2 // 16).astype("<u2")
    sequence = Sequence([item(LUTDescriptor=[256, 10, 16], ModalityLUTType="US", LUTData=table.tobytes())])
    sequence[0]["LUTData"].VR = "OW"
    file = ramp(np.arange(300, dtype="<u2"), ModalityLUTSequence=sequence, WindowCenter="2000", WindowWidth="4000")
    values = table[np.clip(np.arange(300) - 10, 0, 255)].astype(float)
    assert near(levels(file)[0], np.clip(((values - 1999.5) / 3999 + 0.5) * 255, 0, 255))


def test_each_frame_has_its_own_functional_groups() -> None:
    def group(slope: str, center: str) -> Dataset:
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept="0", RescaleType="US")],
            FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth="100")],
        )

    values = np.arange(100, dtype="<u2")
    file = ramp(
        np.concatenate([values, values]),
        Columns=100,
        NumberOfFrames=2,
        PerFrameFunctionalGroupsSequence=[group("1", "50"), group("2", "100")],
    )
    assert near(levels(file, 1)[0], np.clip(((values - 49.5) / 99 + 0.5) * 255, 0, 255))
    assert near(levels(file, 2)[0], np.clip(((values * 2 - 99.5) / 99 + 0.5) * 255, 0, 255))


@pytest.mark.parametrize(("kind", "keyword"), [("<f4", "FloatPixelData"), ("<f8", "DoubleFloatPixelData")])
def test_floating_point_images_are_scaled_to_their_finite_values(kind: str, keyword: str) -> None:
    values = np.array([-1.5, 0.0, 2.5, np.nan, np.inf, -np.inf], kind)
    file = ramp(values, PixelData=None, PixelRepresentation=None, **{keyword: values.tobytes()})
    assert near(levels(file)[0], np.array([0, 95.6, 255, 0, 0, 0]))


def test_a_window_on_floating_point_values_is_exact() -> None:
    values = np.linspace(0, 1, 50, dtype="<f4")
    file = ramp(values, PixelData=None, FloatPixelData=values.tobytes(), WindowCenter="0.5", WindowWidth="1")
    assert near(levels(file)[0], values * 255)


def test_very_large_doubles_do_not_overflow() -> None:
    values = np.array([-1e308, 0, 1e308])
    file = ramp(values, PixelData=None, DoubleFloatPixelData=values.tobytes())
    assert near(levels(file)[0], np.array([0, 127.5, 255]))


def test_one_bit_frames_may_begin_within_a_byte() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (3, 5, 5))
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    file = make_file(Rows=5, Columns=5, NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed)
    for number in (1, 2, 3):
        assert (levels(file, number) == bits[number - 1] * 255).all()


def test_a_frame_of_one_value_is_shown_within_the_range_of_its_bits() -> None:
    assert levels(ramp(np.full(9, 51, "u1")))[0].tolist() == [51] * 9


# ---------------------------------------------------------------------------------------------------------------------
# VOI, presentation, padding


def expected_window(values: Array, center: float, width: float, function: str) -> Array:
    if function == "sigmoid":
        return 255 / (1 + np.exp(-4 * (values - center) / width))
    if function == "linear-exact":
        return np.clip((values - center) / width + 0.5, 0, 1) * 255
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1) * 255


@pytest.mark.parametrize("function", ["linear", "linear-exact", "sigmoid"])
def test_windows_have_the_three_functions_of_the_standard(function: str) -> None:
    values = np.arange(-1024, 3000, 3, dtype="<i2")
    expected = expected_window(values, 40, 400, function)
    asked = Window(40, 400, function)  # type: ignore[arg-type]
    assert near(levels(ramp(values), window=asked)[0], expected)
    name = function.upper().replace("-", "_")
    assert near(levels(ramp(values, WindowCenter="40", WindowWidth="400", VOILUTFunction=name))[0], expected)


def test_a_linear_window_of_width_one_is_a_threshold() -> None:
    found = levels(ramp(np.arange(10, dtype="u1")), window=Window(5, 1))[0]
    assert found.tolist() == [0] * 5 + [255] * 5


def test_a_window_asked_for_takes_the_place_of_the_images() -> None:
    values = np.arange(1000, dtype="<u2")
    file = ramp(values, WindowCenter="10", WindowWidth="20")
    assert near(levels(file, window=Window(500, 1000))[0], expected_window(values, 500, 1000, "linear"))


def test_the_first_window_that_makes_sense_is_taken() -> None:
    values = np.arange(1000, dtype="<u2")
    file = ramp(values, WindowCenter=["7", "500"], WindowWidth=["0", "1000"])
    assert near(levels(file)[0], expected_window(values, 500, 1000, "linear"))


@pytest.mark.parametrize(("center", "width"), [("", ""), ("1", "0"), ("1", "-5"), ("50", "")])
def test_absurd_windows_of_an_image_are_passed_over(center: str, width: str) -> None:
    file = ramp(np.array([0, 100, 200], "<u2"), WindowCenter=center, WindowWidth=width)
    assert near(levels(file)[0], np.array([0, 127.5, 255]))


def voi_lut(table: Array, first: int, bits: int) -> Sequence:
    sequence = Sequence([item(LUTDescriptor=[len(table), first, bits], LUTData=table.tobytes())])
    sequence[0]["LUTData"].VR = "OW"
    return sequence


@pytest.mark.parametrize("length", [100, 4096])  # the second one is bulk data to the header's scanner
def test_a_voi_lut_is_applied_where_there_is_no_window(length: int) -> None:
    table = np.linspace(1023, 0, length).astype("<u2")
    file = ramp(np.arange(0, length + 50, dtype="<u2"), VOILUTSequence=voi_lut(table, 20, 10))
    expected = table[np.clip(np.arange(length + 50) - 20, 0, length - 1)] / 1023 * 255
    assert near(levels(file)[0], expected)


def test_a_voi_lut_of_bytes_has_one_entry_in_each() -> None:
    table = np.arange(256, dtype="u1")[::-1]
    file = ramp(np.arange(256, dtype="u1"), VOILUTSequence=voi_lut(table, 0, 8))
    assert near(levels(file)[0], table.astype(int))


def test_a_voi_lut_of_65536_entries_has_a_zero_in_its_descriptor() -> None:
    table = np.arange(65536, dtype="<u2")
    sequence = voi_lut(table, 0, 16)
    sequence[0].LUTDescriptor = [0, 0, 16]
    values = np.arange(0, 65536, 97, dtype="<u2")
    assert near(levels(ramp(values, VOILUTSequence=sequence))[0], values / 257)


def test_a_window_is_preferred_to_a_voi_lut() -> None:
    values = np.arange(100, dtype="<u2")
    sequence = voi_lut(np.zeros(100, "<u2"), 0, 8)
    file = ramp(values, VOILUTSequence=sequence, WindowCenter="50", WindowWidth="100")
    assert near(levels(file)[0], expected_window(values, 50, 100, "linear"))


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_monochrome1_and_inverse_turn_black_into_white_once(photometric: str, shape: str, inverted: bool) -> None:
    attributes = {"PresentationLUTShape": shape} if shape else {}
    file = ramp(np.array([0, 255], "u1"), PhotometricInterpretation=photometric, **attributes)
    assert levels(file)[0].tolist() == ([255, 0] if inverted else [0, 255])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_as_a_value(photometric: str) -> None:
    file = ramp(np.array([-2000, 100, 200, 300], "<i2"), PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    expected = [0, 0, 127.5, 255] if photometric == "MONOCHROME2" else [0, 255, 127.5, 0]
    assert near(levels(file)[0], np.array(expected))


def test_a_range_of_padding_is_black() -> None:
    file = ramp(
        np.array([10, 11, 12, 13, 14, 20], "<u2"), PixelPaddingValue=10, PixelPaddingRangeLimit=12, WindowCenter="0",
        WindowWidth="1",
    )  # fmt: skip
    assert levels(file)[0].tolist() == [0, 0, 0, 255, 255, 255]


def test_padding_written_as_unsigned_is_found_in_a_signed_image() -> None:
    dataset = make_dataset(Rows=1, Columns=2, BitsStored=16, HighBit=15, PixelRepresentation=1)
    dataset.PixelData = np.array([-2000, 0], "<i2").tobytes()
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.PresentationLUTShape = "INVERSE"
    assert levels(make_file(dataset), window=Window(0, 10))[0].tolist()[0] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Colour


def colour_file(pixels: Array, photometric: str = "RGB", **attributes: Any) -> bytes:
    rows, columns = pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    attributes = {
        "Rows": rows, "Columns": columns, "SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": photometric,
        "PixelData": pixels.tobytes() + bytes(pixels.nbytes % 2), **attributes,
    }  # fmt: skip
    return make_file(**attributes)


@pytest.fixture
def colours() -> Array:
    return np.random.default_rng(3).integers(0, 256, (6, 8, 3)).astype("u1")


def test_rgb_is_shown_as_it_is_in_both_planar_configurations(colours: Array) -> None:
    assert (levels(colour_file(colours)) == colours).all()
    planes = np.moveaxis(colours, -1, 0)
    assert (levels(colour_file(colours, PlanarConfiguration=1, PixelData=planes.tobytes())) == colours).all()


def test_rgb_of_more_bits_is_shown_by_its_upper_eight(colours: Array) -> None:
    assert (levels(colour_file(colours.astype("<u2") * 256 + 17)) == colours).all()
    assert (levels(colour_file(colours.astype("<u4") << 24)) == colours).all()
    assert (levels(colour_file(colours.astype("<u2") << 4, BitsStored=12, HighBit=11)) == colours).all()


def expected_rgb(ybr: Array) -> Array:
    y, cb, cr = np.moveaxis(ybr.astype(float), -1, 0)
    rgb = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    return np.clip(np.stack(rgb, -1), 0, 255)


def test_ybr_full_becomes_rgb(colours: Array) -> None:
    assert near(levels(colour_file(colours, "YBR_FULL")), expected_rgb(colours))


def test_ybr_full_422_shares_colours_between_two_pixels(colours: Array) -> None:
    y, cb, cr = colours[..., 0], colours[:, ::2, 1], colours[:, ::2, 2]
    data = np.stack([y[:, ::2], y[:, 1::2], cb, cr], -1).tobytes()
    full = np.stack([y, cb.repeat(2, 1), cr.repeat(2, 1)], -1)
    assert near(levels(colour_file(colours, "YBR_FULL_422", PixelData=data)), expected_rgb(full))


def test_ybr_partial_422_has_headroom() -> None:
    data = bytes([16, 235, 128, 128] * 4)
    picture = levels(colour_file(np.zeros((2, 4, 3), "u1"), "YBR_PARTIAL_422", PixelData=data))
    assert picture[:, ::2].max() == 0
    assert picture[:, 1::2].min() == 255


def palette(bits: int, tables: list[Array], first: int = 0, length: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        found[f"{name}PaletteColorLookupTableDescriptor"] = [length or len(table), first, bits]
        found[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return found


@pytest.mark.parametrize("count", [16, 256, 4096])
def test_palettes_of_16_bits_are_shown_by_their_upper_eight(count: int) -> None:
    rng = np.random.default_rng(count)
    tables = [rng.integers(0, 65536, count).astype("<u2") for _ in range(3)]
    index = rng.integers(0, count + 10, 200).astype("<u2")
    file = ramp(index, PhotometricInterpretation="PALETTE COLOR", **palette(16, tables))
    expected = np.stack([table[np.minimum(index, count - 1)] >> 8 for table in tables], -1)
    assert (levels(file)[0] == expected).all()


def test_palettes_of_8_bits_and_a_first_value_are_applied() -> None:
    tables = [np.arange(100, 200, dtype="u1"), np.arange(100, dtype="u1"), np.arange(100, dtype="u1")[::-1].copy()]
    index = np.arange(0, 200, dtype="u1")
    file = ramp(index, PhotometricInterpretation="PALETTE COLOR", **palette(8, tables, first=50))
    expected = np.stack([table[np.clip(index.astype(int) - 50, 0, 99)] for table in tables], -1)
    assert (levels(file)[0] == expected).all()


def test_palettes_that_promise_16_bits_and_give_8_are_not_black() -> None:
    tables = [np.arange(256, dtype="<u2")] * 3
    file = ramp(np.arange(256, dtype="u1"), PhotometricInterpretation="PALETTE COLOR", **palette(16, tables))
    assert levels(file)[0, :, 0].tolist() == list(range(256))


def test_segmented_palettes_are_expanded() -> None:
    # Two values as they are, a line over four to 60000, then both segments again by reference to the first.
    words = np.array([0, 2, 0, 40000, 1, 4, 60000, 2, 2, 0, 0], "<u2")
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [12, 0, 16]
        attributes[f"Segmented{name}PaletteColorLookupTableData"] = words.tobytes()
    found = levels(ramp(np.arange(12, dtype="u1"), **attributes))[0, :, 1]
    once = [0, 40000, 45000, 50000, 55000, 60000]
    assert found.tolist() == [value >> 8 for value in once * 2]


@pytest.mark.parametrize(
    "words",
    [[0, 5, 1], [1, 5, 1], [2, 9, 0, 0], [0, 1, 7, 2, 65535, 4, 0], [9, 1, 1], [0, 0] * 9, [0, 1, 5, 2, 3, 6, 0]],
)
def test_damaged_segmented_palettes_are_refused(words: list[int]) -> None:
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [0, 0, 16]
        attributes[f"Segmented{name}PaletteColorLookupTableData"] = np.array(words, "<u2").tobytes()
    started = time.perf_counter()
    with pytest.raises(CannotRender, match="palette"):
        render(ramp(np.arange(4, dtype="u1"), **attributes))
    assert time.perf_counter() - started < 1


def test_a_supplemental_palette_colours_only_the_values_from_its_first_on() -> None:
    tables = [np.full(16, 65535, "<u2"), np.zeros(16, "<u2"), np.zeros(16, "<u2")]
    file = ramp(
        np.array([0, 100, 200, 205], "<u2"), PixelPresentation="COLOR", WindowCenter="100", WindowWidth="200",
        **palette(16, tables, first=200),
    )  # fmt: skip
    assert levels(file)[0].tolist()[2:] == [[255, 0, 0]] * 2
    assert levels(file)[0, 1].tolist() == [128] * 3


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_luts_and_overlays_are_read_in_any_encoding(syntax: str) -> None:
    table = np.linspace(0, 4095, 2000).astype("<u2")
    dataset = make_dataset(VOILUTSequence=voi_lut(table, 0, 12))
    dataset.PixelData = np.arange(0, 2560, 10, dtype="<u2").tobytes()
    overlay = np.eye(16, dtype="u1")
    for element, vr, value in ((0x10, "US", 16), (0x11, "US", 16), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
        dataset.add_new(0x60000000 | element, vr, value)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60003000, "OW", np.packbits(overlay, bitorder="little").tobytes())
    little = make_file(dataset)
    read = pydicom.dcmread(io.BytesIO(little))
    if syntax == ExplicitVRBigEndian:
        read.PixelData = np.frombuffer(read.PixelData, "<u2").byteswap().tobytes()
        lut = read.VOILUTSequence[0]
        lut.LUTData = np.frombuffer(lut.LUTData, "<u2").byteswap().tobytes()
        read[0x60003000].value = np.frombuffer(read[0x60003000].value, "<u2").byteswap().tobytes()
    read.file_meta.TransferSyntaxUID = syntax
    target = io.BytesIO()
    dcmwrite(target, read, enforce_file_format=True)
    assert (levels(target.getvalue()) == levels(little)).all()
    assert (levels(little)[overlay == 1] == 255).all()


# ---------------------------------------------------------------------------------------------------------------------
# Segmentations, doses


def test_a_segment_has_its_recommended_colour_on_black() -> None:
    segment = item(SegmentNumber=1, RecommendedDisplayCIELabValue=[34885, 53485, 50171])  # red
    bits = np.eye(16, dtype="u1")
    file = make_file(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", SegmentationType="BINARY", SegmentSequence=[segment],
        BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=np.packbits(bits, bitorder="little").tobytes(),
    )  # fmt: skip
    picture = levels(file)
    assert (picture[bits == 0] == 0).all()
    red, green, blue = picture[0, 0]
    assert red > 240
    assert max(green, blue) < 40


def test_a_fractional_segment_is_as_bright_as_it_is_probable() -> None:
    file = ramp(
        np.array([0, 50, 100], "u1"), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", SegmentationType="FRACTIONAL",
        MaximumFractionalValue=100, SegmentSequence=[item(SegmentNumber=1)],
    )  # fmt: skip
    none, half, whole = levels(file)[0]
    assert none.tolist() == [0, 0, 0]
    assert near(half * 2, whole)


def test_labels_of_a_label_map_have_different_colours_and_sharp_edges() -> None:
    file = ramp(
        np.array([0, 1, 2], "u1"), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.7", SegmentationType="LABELMAP",
        SegmentSequence=[item(SegmentNumber=1), item(SegmentNumber=2)],
    )  # fmt: skip
    found = {tuple(pixel) for pixel in levels(file, viewport=Viewport(300, 100))[0].tolist()}
    assert len(found) == 3
    assert (0, 0, 0) in found


def test_a_dose_is_washed_from_black_over_blue_to_red() -> None:
    file = ramp(
        np.array([0, 100, 500, 1000], "<u4"), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2", DoseGridScaling="0.001"
    )
    zero, low, _, high = levels(file)[0].tolist()
    assert zero == [0, 0, 0]
    assert low[2] > low[0]
    assert high == [255, 0, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Overlays and shutters


def test_overlays_are_drawn_white_at_their_origin() -> None:
    dataset = make_dataset(WindowCenter="8000", WindowWidth="2")
    for element, vr, value in ((0x10, "US", 2), (0x11, "US", 3), (0x50, "SS", [15, -1]), (0x100, "US", 1)):
        dataset.add_new(0x60020000 | element, vr, value)
    dataset.add_new(0x60023000, "OB", b"\x3f\x00")
    picture = levels(make_file(dataset))
    assert np.argwhere(picture).tolist() == [[14, 0], [15, 0]]  # two of its columns are left of the image


def test_an_overlay_in_unused_bits_of_the_pixels_is_drawn() -> None:
    plane = np.eye(16, dtype="<u2")
    dataset = make_dataset(WindowCenter="8000", WindowWidth="2", PixelData=(plane << 14).tobytes())
    for element, vr, value in ((0x10, "US", 16), (0x11, "US", 16), (0x50, "SS", [1, 1]), (0x100, "US", 16)):
        dataset.add_new(0x60000000 | element, vr, value)
    dataset.add_new(0x60000102, "US", 14)
    assert (levels(make_file(dataset)) == plane * 255).all()


def test_a_multi_frame_overlay_has_a_plane_for_each_frame() -> None:
    dataset = make_dataset(NumberOfFrames=2, WindowCenter="8000", WindowWidth="2", PixelData=bytes(1024))
    for element, vr, value in ((0x10, "US", 16), (0x11, "US", 16), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
        dataset.add_new(0x60000000 | element, vr, value)
    dataset.add_new(0x60000015, "IS", "2")
    dataset.add_new(0x60003000, "OW", bytes(32) + b"\xff" * 32)
    file = make_file(dataset)
    assert levels(file, 1).max() == 0
    assert levels(file, 2).min() == 255


@pytest.mark.parametrize("octets", [b"", b"\xff\xff"])
def test_an_overlay_that_ends_early_is_left_out(octets: bytes) -> None:
    dataset = make_dataset(WindowCenter="8000", WindowWidth="2")
    for element, vr, value in ((0x10, "US", 16), (0x11, "US", 16), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
        dataset.add_new(0x60000000 | element, vr, value)
    dataset.add_new(0x60003000, "OW", octets)
    assert levels(make_file(dataset)).max() == 0


def white(**attributes: Any) -> bytes:
    return make_file(PixelData=b"\xff\x0f" * 256, WindowCenter="1", WindowWidth="1", **attributes)


def test_a_rectangular_shutter_leaves_what_is_between_its_edges() -> None:
    edges = {"ShutterLeftVerticalEdge": 3, "ShutterRightVerticalEdge": 10}
    edges |= {"ShutterUpperHorizontalEdge": 2, "ShutterLowerHorizontalEdge": 5}
    picture = levels(white(ShutterShape="RECTANGULAR", ShutterPresentationValue=0x4000, **edges))
    assert (picture[1:5, 2:10] == 255).all()
    assert (picture == 255).sum() == 4 * 8
    assert picture[0, 0] == 0x40


def test_shutters_together_leave_what_all_of_them_leave() -> None:
    file = white(
        ShutterShape=["CIRCULAR", "POLYGONAL"], CenterOfCircularShutter=[8, 8], RadiusOfCircularShutter=4,
        VerticesOfThePolygonalShutter=[1, 1, 1, 16, 8, 16, 8, 1],
    )  # fmt: skip
    picture = levels(file)
    assert picture[7, 7] == 255
    assert picture[9, 7] == 0  # in the circle, below the polygon
    assert picture[0, 7] == 0  # in the polygon, above the circle


@pytest.mark.parametrize(
    "attributes",
    [
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [8, 8]},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1]},
        {"ShutterShape": "ROUND"},
    ],
)
def test_a_shutter_that_is_not_all_there_covers_nothing(attributes: dict[str, Any]) -> None:
    assert levels(white(**attributes)).min() == 255


# ---------------------------------------------------------------------------------------------------------------------
# Viewport, region, aspect


def quarters() -> bytes:
    """Black, dark; bright, white: 10 × 10 pixels each."""
    pixels = np.zeros((20, 20), "u1")
    pixels[:10, 10:], pixels[10:, :10], pixels[10:, 10:] = 85, 170, 255
    return ramp(pixels.reshape(-1), Rows=20, Columns=20)


def corners(picture: Image.Image) -> list[int]:
    """Grey levels near the four corners, by rows."""
    pixels = np.asarray(picture).astype(int)
    y, x = pixels.shape[0] // 8, pixels.shape[1] // 8
    return [int(pixels[row, column]) for row in (y, -y - 1) for column in (x, -x - 1)]


def test_an_image_fills_the_viewport_in_its_proportions() -> None:
    file = ramp(np.zeros(200, "u1"), Rows=10, Columns=20)
    assert render(file).size == (20, 10)
    assert render(file, viewport=Viewport(100, 100)).size == (100, 50)
    assert render(file, viewport=Viewport(5, 100)).size == (5, 2)
    assert render(file, viewport=Viewport(None, 30)).size == (60, 30)
    assert render(file, viewport=Viewport(1, 1)).size == (1, 1)


def test_a_part_of_the_image_fills_the_viewport() -> None:
    picture = render(quarters(), viewport=Viewport(40, 40, 10, 0, 10, 20))
    assert picture.size == (20, 40)
    assert corners(picture) == [85, 85, 255, 255]


def test_negative_source_sizes_mirror() -> None:
    file = quarters()
    assert corners(render(file)) == [0, 85, 170, 255]
    assert corners(render(file, viewport=Viewport(20, 20, 0, 0, -20, 20))) == [85, 0, 255, 170]
    assert corners(render(file, viewport=Viewport(20, 20, 0, 0, 20, -20))) == [170, 255, 0, 85]


@pytest.mark.parametrize("part", [(0, 0, 21, 20), (1, 0, 20, 20), (0, 5, 20, -16), (20, 0, None, None), (0, 99, 1, 1)])
def test_a_part_beyond_the_image_is_refused(part: tuple[float, float, float | None, float | None]) -> None:
    with pytest.raises(BadRequest, match="20 × 20"):
        render(quarters(), viewport=Viewport(20, 20, *part))


def test_a_region_is_given_in_fractions() -> None:
    picture = render(quarters(), region=(0.5, 0.0, 1.0, 0.5), viewport=Viewport(30, 30))
    assert picture.size == (30, 30)
    assert corners(picture) == [85] * 4
    assert render(quarters(), region=(0.0, 0.0, 0.5, 1.0)).size == (10, 20)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"PixelAspectRatio": ["2", "1"]}, (16, 32)),
        ({"PixelAspectRatio": ["1", "2"]}, (32, 16)),
        ({"PixelSpacing": ["0.3", "0.2"]}, (16, 24)),
        ({"ImagerPixelSpacing": ["0.2", "0.4"]}, (32, 16)),
        ({"PixelSpacing": ["0.2", "0.2001"]}, (16, 16)),
        ({"PixelSpacing": ["0", "0.2"]}, (16, 16)),
        ({"PixelAspectRatio": ["1000", "1"]}, (16, 16)),
    ],
)
def test_pixels_that_are_no_squares_become_ones(attributes: dict[str, Any], size: tuple[int, int]) -> None:
    assert render(make_file(**attributes)).size == size


def test_spacing_in_functional_groups_counts_too() -> None:
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=["2", "1"])])
    assert render(make_file(SharedFunctionalGroupsSequence=[shared])).size == (16, 32)


def test_reduced_images_are_the_means_of_what_they_show() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (256, 256)).astype("u1")
    small = np.asarray(render(ramp(pixels.reshape(-1), Rows=256, Columns=256), viewport=Viewport(16, 16)))
    expected = pixels.reshape(16, 16, 16, 16).mean((1, 3))
    assert np.abs(small - expected).mean() < 4


# ---------------------------------------------------------------------------------------------------------------------
# Frames and thumbnails


def test_several_frames_come_one_after_the_other() -> None:
    pixels = np.arange(5, dtype="u1").repeat(256) * 50
    file = ramp(pixels, Rows=16, Columns=16, NumberOfFrames=5, WindowCenter="128", WindowWidth="256")
    pictures = list(render_frames(io.BytesIO(file)))
    assert [np.asarray(picture)[0, 0] for picture in pictures] == [0, 50, 100, 150, 200]
    assert len(list(render_frames(io.BytesIO(file), (2, 4)))) == 2


def test_only_the_bytes_of_the_frame_are_read() -> None:
    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.count += len(found)
            return found

    file = ramp(np.zeros(1 << 20, "u1"), Rows=32, Columns=32, NumberOfFrames=1024)
    source = Counting(file)
    render_frame(source, 1000, header=read_header(io.BytesIO(file)))
    assert source.count < 8192


def test_thumbnails_show_the_whole_image_without_overlays_or_names() -> None:
    dataset = make_dataset(WindowCenter="8000", WindowWidth="2")
    for element, vr, value in ((0x10, "US", 16), (0x11, "US", 16), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
        dataset.add_new(0x60000000 | element, vr, value)
    dataset.add_new(0x60003000, "OW", b"\xff" * 32)
    file = make_file(dataset)
    picture = thumbnail(io.BytesIO(file))
    assert picture.size == (128, 128)
    assert np.asarray(picture).max() == 0
    assert thumbnail(io.BytesIO(file), 1, Viewport(40, 30)).size == (30, 30)
    with pytest.raises(BadRequest, match="thumbnail"):
        thumbnail(io.BytesIO(file), 1, Viewport(40, 30, 1, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


@pytest.fixture
def gradient() -> Image.Image:
    pixels = np.add.outer(np.arange(64), np.arange(48)).astype("u1")
    return Image.fromarray(np.stack([pixels, pixels[::-1], 255 - pixels], -1))


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/gif", "image/jp2", "image/webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_every_type_look_as_they_were(gradient: Image.Image, media_type: str, mode: str) -> None:
    picture = gradient.convert(mode)
    read = Image.open(io.BytesIO(encode(picture, media_type)))
    assert Image.MIME[read.format or ""] in (media_type, "image/jpx")
    difference = np.abs(np.asarray(read.convert(mode)).astype(int) - np.asarray(picture))
    assert difference.max() <= (0 if media_type in ("image/png", "image/jp2") else 24)


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/jp2", "image/webp"])
def test_a_lower_quality_makes_a_smaller_image(media_type: str) -> None:
    noise = Image.effect_noise((128, 128), 50)
    sizes = [len(encode(noise, media_type, Rendering(quality=quality))) for quality in (1, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


@pytest.mark.parametrize("side", [1, 2, 3, 5, 31])
@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/gif", "image/jp2", "image/webp"])
def test_the_smallest_images_can_be_encoded(media_type: str, side: int) -> None:
    picture = Image.new("RGB", (side, 1), (10, 20, 30))
    assert Image.open(io.BytesIO(encode(picture, media_type))).size == (side, 1)


def test_types_and_sizes_that_there_are_not_are_refused(gradient: Image.Image) -> None:
    with pytest.raises(NotAcceptable, match="image/tiff"):
        encode(gradient, "image/tiff")
    with pytest.raises(CannotRender, match="image/webp"):
        encode(Image.new("L", (16384, 1)), "image/webp")


@pytest.mark.parametrize("media_type", ["image/gif", "image/webp"])
def test_animations_have_all_frames_and_their_time(media_type: str) -> None:
    frames = [Image.new("L", (20, 10), shade) for shade in (0, 100, 200)]
    read: Any = Image.open(io.BytesIO(encode_animation(iter(frames), media_type, 50)))
    assert read.n_frames == 3
    shades = []
    for index in range(3):
        read.seek(index)
        shades.append(read.convert("L").getpixel((5, 5)))
        assert read.info["duration"] == 50
    assert np.abs(np.array(shades) - [0, 100, 200]).max() <= 2


def test_animations_without_end_are_refused() -> None:
    def endless() -> Iterator[Image.Image]:
        shade = 0
        while True:
            shade = (shade + 1) % 256
            yield Image.new("L", (100, 100), shade)

    with pytest.raises(CannotRender, match="500000"):
        encode_animation(endless(), "image/gif", 100, max_pixels=500_000)
    with pytest.raises(CannotRender):
        encode_animation([], "image/gif", 100)
    with pytest.raises(NotAcceptable):
        encode_animation(endless(), "image/png", 100)


def test_the_time_of_a_frame_is_found_in_the_attributes() -> None:
    def attributes(**values: Any) -> Any:
        return scan(make_file(**values)).attributes

    assert frame_milliseconds(attributes(FrameTime="33.3")) == 33
    assert frame_milliseconds(attributes(CineRate="20")) == 50
    assert frame_milliseconds(attributes(FrameTime="-1")) == 100
    assert frame_milliseconds(attributes()) == 100


# ---------------------------------------------------------------------------------------------------------------------
# Colour profiles


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/webp"])
def test_a_profile_that_is_wanted_is_in_the_image(colours: Array, media_type: str) -> None:
    file = colour_file(colours)
    for name, words in (("srgb", b"s\0R\0G\0B"), ("adobergb", b"Adobe RGB"), ("rommrgb", b"ROMM")):
        rendering = Rendering(icc_profile=name)  # type: ignore[arg-type]
        encoded = encode(render_frame(io.BytesIO(file), 1, rendering), media_type, rendering)
        assert words in Image.open(io.BytesIO(encoded)).info["icc_profile"]
    assert render(file, icc_profile="yes").info == render(file, icc_profile="srgb").info
    for rendering in (Rendering(icc_profile="no"), Rendering()):
        encoded = encode(render_frame(io.BytesIO(file), 1, rendering), media_type, rendering)
        assert "icc_profile" not in Image.open(io.BytesIO(encoded)).info


def test_colours_are_converted_into_the_space_that_is_wanted() -> None:
    file = colour_file(np.full((4, 4, 3), (255, 0, 0), "u1"))
    assert levels(file, icc_profile="srgb")[0, 0].tolist() == [255, 0, 0]
    red, green, blue = levels(file, icc_profile="adobergb")[0, 0].tolist()
    assert (red, green, blue) == pytest.approx((219, 0, 0), abs=3)  # sRGB's red in Adobe RGB (1998)
    red, green, blue = levels(file, icc_profile="rommrgb")[0, 0].tolist()
    assert (red, green, blue) == pytest.approx((179, 70, 26), abs=4)


def test_grey_images_become_rgb_only_for_a_profile_that_is_wanted() -> None:
    assert render(make_file()).mode == "L"
    assert render(make_file(), icc_profile="srgb").mode == "RGB"


def test_the_images_own_profile_is_kept_and_a_damaged_one_is_not(colours: Array) -> None:
    own = render(colour_file(colours), icc_profile="adobergb").info["icc_profile"]
    assert render(colour_file(colours, ICCProfile=own)).info["icc_profile"][:100] == own[:100]
    assert "icc_profile" not in render(colour_file(colours, ICCProfile=own[:300])).info
    assert "icc_profile" not in render(colour_file(colours, ICCProfile=b"\xff" * 4000)).info


@pytest.mark.parametrize("media_type", ["image/gif", "image/jp2"])
def test_a_type_without_profiles_takes_none(gradient: Image.Image, media_type: str) -> None:
    with pytest.raises(BadRequest, match="iccprofile"):
        encode(gradient, media_type, Rendering(icc_profile="yes"))
    assert encode(gradient, media_type, Rendering(icc_profile="no"))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be rendered


def test_an_object_without_pixels_is_refused() -> None:
    with pytest.raises(CannotRender, match="no pixel data"):
        render(make_file(PixelData=None))


def test_a_frame_that_there_is_not_is_refused() -> None:
    for number in (0, -1, 2, 10**9):
        with pytest.raises(CannotRender, match="no frame"):
            render(make_file(), number)


@pytest.mark.parametrize(
    "attributes",
    [
        {"Rows": 0},
        {"Columns": 0},
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 17},
        {"BitsAllocated": 24, "BitsStored": 24, "HighBit": 23},
        {"BitsAllocated": 0},
        {"SamplesPerPixel": 2},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ],
)
def test_images_that_contradict_themselves_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(CannotRender):
        render(make_file(**attributes))


def test_images_of_more_pixels_than_the_limit_are_refused_unread() -> None:
    with pytest.raises(CannotRender, match="255"):
        render_frame(io.BytesIO(make_file()), 1, max_pixels=255)
    assert render_frame(io.BytesIO(make_file()), 1, max_pixels=256).size == (16, 16)


def test_results_of_more_pixels_than_the_limit_are_refused() -> None:
    for viewport in (Viewport(65500, 65500), Viewport(65500, None)):
        with pytest.raises(BadRequest, match="65500"):
            render(make_file(), viewport=viewport)
    with pytest.raises(BadRequest, match="no side"):
        render(ramp(np.zeros(2000, "u1"), Rows=1000, Columns=2), viewport=Viewport(60000, None))


def test_what_is_no_dicom_is_refused() -> None:
    for octets in (b"", b"x" * 1000, make_file()[:200], make_file()[:-100]):
        with pytest.raises(CannotRender):
            render(octets)


def test_a_compressed_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = np.zeros((4, 4), "u1")
    target = io.BytesIO()
    Image.fromarray(bomb).save(target, "JPEG")
    stream = bytearray(target.getvalue())
    at = stream.index(b"\xff\xc0") + 5
    stream[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65500 × 65500
    dataset = make_dataset(BitsAllocated=8, BitsStored=8, HighBit=7, Rows=65500, Columns=65500)
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    read = pydicom.dcmread(io.BytesIO(make_file(make_dataset())))
    dataset.file_meta = read.file_meta
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    with pytest.raises(CannotRender):
        render_frame(file, 1)
