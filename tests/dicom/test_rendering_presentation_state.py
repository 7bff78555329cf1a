"""Softcopy presentation states: every step of the grayscale pipeline, places, graphics and texts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicomcloud.dicom.header import scan
from dicomcloud.dicom.presentation_state import referenced_images
from dicomcloud.dicom.rendering import (
    CannotRender,
    Rendering,
    Viewport,
    Window,
    render_frame,
    render_frames,
)
from dicomcloud.errors import BadRequest
from tests.data import SAMPLES, make_dataset, make_file

Array = NDArray[Any]
GRAYSCALE, COLOR, PSEUDO_COLOR = (f"1.2.840.10008.5.1.4.1.1.11.{number}" for number in (1, 2, 3))
IMAGE = "1.2.826.0.1.77.1"
PIXEL = [
    "Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PhotometricInterpretation",
]  # fmt: skip


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def state(*, image: str = IMAGE, frames: list[int] | None = None, kind: str = GRAYSCALE, **attributes: Any) -> bytes:
    reference = item(ReferencedSOPInstanceUID=image)
    if frames:
        reference.ReferencedFrameNumber = frames
    series = item(SeriesInstanceUID="1.2.3", ReferencedImageSequence=[reference])
    attributes = {
        "SOPClassUID": kind,
        "Modality": "PR",
        "ReferencedSeriesSequence": [series],
        **({} if "PresentationLUTSequence" in attributes or kind == COLOR else {"PresentationLUTShape": "IDENTITY"}),
        **dict.fromkeys(PIXEL),
        **attributes,
    }
    return make_file(**attributes)


def image(pixels: Array, **attributes: Any) -> bytes:
    """A grayscale image without any window."""
    bits = pixels.dtype.itemsize * 8
    attributes = {
        "SOPInstanceUID": IMAGE, "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "BitsAllocated": bits,
        "BitsStored": bits, "HighBit": bits - 1, "PixelData": pixels.tobytes(), **attributes,
    }  # fmt: skip
    return make_file(**attributes)


def render(file: bytes, presentation: bytes, number: int = 1, **asked: Any) -> Image.Image:
    return render_frame(io.BytesIO(file), number, Rendering(**asked), presentation_state=io.BytesIO(presentation))


def levels(file: bytes, presentation: bytes, **asked: Any) -> Array:
    return np.asarray(render(file, presentation, **asked)).astype(int)


@pytest.fixture
def ramp() -> bytes:
    return image(np.arange(256, dtype="u1").reshape(16, 16), WindowCenter="10", WindowWidth="5", RescaleSlope="9")


def flat(picture: Array) -> list[int]:
    return [int(value) for value in picture.reshape(-1)]


# ---------------------------------------------------------------------------------------------------------------------
# Grayscale


def test_the_images_own_transformations_do_not_count(ramp: bytes) -> None:
    assert flat(levels(ramp, state())) == list(range(256))


def test_monochrome1_is_shown_as_the_state_says() -> None:
    file = image(np.arange(256, dtype="u1").reshape(16, 16), PhotometricInterpretation="MONOCHROME1")
    assert flat(levels(file, state())) == list(range(256))
    assert flat(levels(file, state(PresentationLUTShape="INVERSE"))) == list(range(255, -1, -1))


def test_modality_voi_and_presentation_lut_follow_each_other(ramp: bytes) -> None:
    presentation = item(LUTDescriptor=[256, 0, 8], LUTData=bytes(255 - np.arange(256, dtype="u1") // 2))
    presentation["LUTData"].VR = "OW"
    found = levels(
        ramp,
        state(
            RescaleSlope="2",
            RescaleIntercept="-100",
            SoftcopyVOILUTSequence=[item(WindowCenter="100", WindowWidth="200")],
            PresentationLUTSequence=[presentation],
        ),
    )
    voi = np.clip((np.arange(256) * 2.0 - 100 - 99.5) / 199 + 0.5, 0, 1) * 255
    expected = 255 - np.rint(voi) // 2
    assert np.abs(found.reshape(-1) - expected).max() <= 1


def test_a_voi_lut_of_the_state_is_applied(ramp: bytes) -> None:
    table = item(LUTDescriptor=[256, 0, 16], LUTData=(np.arange(256, dtype="<u2")[::-1] * 257).tobytes())
    table["LUTData"].VR = "OW"
    presentation = state(SoftcopyVOILUTSequence=[item(VOILUTSequence=[table])])
    assert flat(levels(ramp, presentation)) == list(range(255, -1, -1))


def test_a_window_counts_for_the_images_it_names_only() -> None:
    frames = np.stack([np.full((4, 4), 60, "u1")] * 3)
    file = image(frames, NumberOfFrames=3)

    def window(center: str, frame: int) -> Dataset:
        reference = item(ReferencedSOPInstanceUID=IMAGE, ReferencedFrameNumber=[frame])
        return item(WindowCenter=center, WindowWidth="1", ReferencedImageSequence=[reference])

    presentation = io.BytesIO(state(SoftcopyVOILUTSequence=[window("61", 2), window("60", 3)]))
    pictures = render_frames(io.BytesIO(file), None, presentation_state=presentation)
    assert [np.asarray(picture)[0, 0] for picture in pictures] == [60, 0, 255]


def test_a_pseudo_color_state_paints_the_grey_levels(ramp: bytes) -> None:
    tables: dict[str, Any] = {}
    for name, table in (("Red", np.arange(256)), ("Green", np.zeros(256)), ("Blue", np.arange(256)[::-1])):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (table * 256).astype("<u2").tobytes()
    found = levels(ramp, state(kind=PSEUDO_COLOR, **tables))
    assert flat(found[..., 0]) == list(range(256))
    assert found[..., 1].max() == 0
    assert flat(found[..., 2]) == list(range(255, -1, -1))


def test_a_color_state_leaves_colours_and_places_them() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype("u1")
    file = make_file(
        SOPInstanceUID=IMAGE, Rows=4, Columns=6, SamplesPerPixel=3, PlanarConfiguration=0, BitsAllocated=8,
        BitsStored=8, HighBit=7, PhotometricInterpretation="RGB", PixelData=pixels.tobytes(),
    )  # fmt: skip
    found = levels(file, state(kind=COLOR, ImageRotation=180))
    assert (found == pixels[::-1, ::-1]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Place


def area(top_left: list[int], bottom_right: list[int], mode: str = "SCALE TO FIT", **attributes: Any) -> list[Dataset]:
    attributes = {"PresentationPixelAspectRatio": [1, 1], **attributes}
    return [
        item(
            DisplayedAreaTopLeftHandCorner=top_left,
            DisplayedAreaBottomRightHandCorner=bottom_right,
            PresentationSizeMode=mode,
            **attributes,
        )
    ]


@pytest.mark.parametrize(
    ("rotation", "flip", "turned"),
    [
        (0, "N", lambda pixels: pixels),
        (90, "N", lambda pixels: np.rot90(pixels, -1)),
        (180, "N", lambda pixels: np.rot90(pixels, 2)),
        (270, "N", lambda pixels: np.rot90(pixels, 1)),
        (0, "Y", lambda pixels: pixels[:, ::-1]),
        (90, "Y", lambda pixels: np.rot90(pixels, -1)[:, ::-1]),
        (270, "Y", lambda pixels: np.rot90(pixels, 1)[:, ::-1]),
    ],
)
def test_images_are_turned_clockwise_and_then_mirrored(rotation: int, flip: str, turned: Any) -> None:
    pixels = np.arange(160, dtype="u1").reshape(8, 20)
    presentation = state(ImageRotation=rotation, ImageHorizontalFlip=flip)
    assert (levels(image(pixels), presentation) == turned(pixels)).all()
    # A part: its left upper quarter as it is displayed.
    expected = turned(pixels)
    part = expected[: expected.shape[0] // 2, : expected.shape[1] // 2]
    assert (levels(image(pixels), presentation, region=(0.0, 0.0, 0.5, 0.5)) == part).all()


def test_the_displayed_area_is_shown_and_may_reach_beyond_the_image(ramp: bytes) -> None:
    whole = np.arange(256).reshape(16, 16)
    inside = state(DisplayedAreaSelectionSequence=area([3, 5], [10, 8]))
    assert (levels(ramp, inside) == whole[4:8, 2:10]).all()
    beyond = levels(ramp, state(DisplayedAreaSelectionSequence=area([-1, 1], [16, 17])))
    assert beyond.shape == (17, 18)
    assert (beyond[:16, 2:] == whole).all()
    assert beyond[:, :2].max() == 0
    assert beyond[16].max() == 0


@pytest.mark.parametrize("corners", [([5, 5], [5, 4000000]), ([1], [2]), ([], [])])
def test_a_displayed_area_that_makes_no_sense_is_the_whole_image(ramp: bytes, corners: Any) -> None:
    assert levels(ramp, state(DisplayedAreaSelectionSequence=area(*corners))).shape == (16, 16)


def test_the_displayed_area_fills_the_viewport(ramp: bytes) -> None:
    presentation = state(DisplayedAreaSelectionSequence=area([1, 1], [16, 8]))
    assert render(ramp, presentation, viewport=Viewport(64, 64)).size == (64, 32)
    assert render(ramp, presentation, viewport=Viewport(None, 16)).size == (32, 16)
    turned = state(DisplayedAreaSelectionSequence=area([1, 1], [16, 8]), ImageRotation=90)
    assert render(ramp, turned, viewport=Viewport(64, 64)).size == (32, 64)


def test_magnified_images_are_cut_to_the_viewport_not_scaled(ramp: bytes) -> None:
    selection = area([1, 1], [16, 16], "MAGNIFY", PresentationPixelMagnificationRatio=3.0)
    presentation = state(DisplayedAreaSelectionSequence=selection)
    assert render(ramp, presentation).size == (48, 48)
    cut = render(ramp, presentation, viewport=Viewport(24, 100))
    assert cut.size == (24, 48)
    middle = np.asarray(render(ramp, presentation))[:, 12:36].astype(int)
    assert np.abs(np.asarray(cut)[:, 4:-4].astype(int) - middle[:, 4:-4]).max() <= 2


def test_the_states_pixel_aspect_ratio_is_used(ramp: bytes) -> None:
    selection = area([1, 1], [16, 16], PresentationPixelAspectRatio=[2, 1])
    assert render(ramp, state(DisplayedAreaSelectionSequence=selection)).size == (16, 32)


# ---------------------------------------------------------------------------------------------------------------------
# Shutters, overlays


def with_overlay(dataset: Dataset, group: int, bitmap: Array, layer: str | None = None) -> Dataset:
    rows, columns = bitmap.shape
    for element, vr, value in ((0x10, "US", rows), (0x11, "US", columns), (0x50, "SS", [1, 1]), (0x100, "US", 1)):
        dataset.add_new(group << 16 | element, vr, value)
    dataset.add_new(group << 16 | 0x3000, "OW", np.packbits(bitmap, bitorder="little").tobytes())
    if layer:
        dataset.add_new(group << 16 | 0x1001, "CS", layer)
    return dataset


def test_overlays_of_the_image_are_shown_only_where_the_state_activates_them() -> None:
    bitmap = np.eye(16, dtype="u1")
    dataset = make_dataset(SOPInstanceUID=IMAGE, PixelData=bytes(512))
    with_overlay(dataset, 0x6000, bitmap)
    with_overlay(dataset, 0x6002, bitmap[::-1])
    presentation = make_dataset_of(state(GraphicLayerSequence=[item(GraphicLayer="A", GraphicLayerOrder=1)]))
    presentation.add_new(0x60021001, "CS", "A")
    assert (levels(make_file(dataset), make_file(presentation)) == bitmap[::-1] * 255).all()


def make_dataset_of(file: bytes) -> Dataset:
    import pydicom

    return pydicom.dcmread(io.BytesIO(file))


def test_an_overlay_of_the_state_is_drawn_in_the_colour_of_its_layer() -> None:
    layer = item(GraphicLayer="A", GraphicLayerOrder=1, GraphicLayerRecommendedDisplayGrayscaleValue=0x8000)
    bitmap = np.eye(16, dtype="u1")
    presentation = with_overlay(make_dataset_of(state(GraphicLayerSequence=[layer])), 0x6000, bitmap, "A")
    file = image(np.zeros((16, 16), "u1"))
    assert (levels(file, make_file(presentation)) == bitmap * 0x80).all()


def test_a_shutter_of_the_state_covers_with_its_own_grey() -> None:
    file = image(np.full((16, 16), 255, "u1"), ShutterShape="RECTANGULAR")
    presentation = state(
        ShutterShape="CIRCULAR", CenterOfCircularShutter=[8, 8], RadiusOfCircularShutter=3,
        ShutterPresentationValue=0x3000,
    )  # fmt: skip
    found = levels(file, presentation)
    assert found[7, 7] == 255
    assert found[0, 0] == 0x30


# ---------------------------------------------------------------------------------------------------------------------
# Graphics and texts


def black(side: int = 100) -> bytes:
    return image(np.zeros((side, side), "u1"))


def graphic(kind: str, data: list[float], units: str = "PIXEL", filled: str = "N") -> Dataset:
    return item(
        GraphicAnnotationUnits=units, GraphicDimensions=2, NumberOfGraphicPoints=len(data) // 2, GraphicData=data,
        GraphicType=kind, GraphicFilled=filled,
    )  # fmt: skip


def annotated(*graphics: Dataset, texts: list[Dataset] | None = None, **attributes: Any) -> bytes:
    annotation = item(GraphicLayer="A", GraphicObjectSequence=list(graphics))
    if texts:
        annotation.TextObjectSequence = texts
    return state(GraphicAnnotationSequence=[annotation], **attributes)


@pytest.mark.parametrize(
    ("drawn", "on", "off"),
    [
        (graphic("POLYLINE", [10, 20, 80, 20]), [(20, 40)], [(40, 40)]),
        (graphic("POINT", [50, 30]), [(30, 50)], [(50, 30)]),
        (graphic("CIRCLE", [50, 50, 70, 50]), [(50, 70), (30, 50)], [(50, 50)]),
        (graphic("CIRCLE", [50, 50, 70, 50], filled="Y"), [(50, 50)], [(20, 50)]),
        (graphic("ELLIPSE", [10, 50, 90, 50, 50, 40, 50, 60]), [(50, 10), (40, 50)], [(50, 50)]),
        (graphic("INTERPOLATED", [10, 10, 50, 50, 90, 10]), [(50, 50), (10, 10)], [(90, 50)]),
        (graphic("POLYLINE", [10, 10, 90, 10, 90, 90, 10, 90, 10, 10], filled="Y"), [(50, 50)], [(95, 95)]),
        (graphic("POLYLINE", [0.1, 0.5, 0.9, 0.5], units="DISPLAY"), [(50, 50)], [(20, 50)]),
    ],
)
def test_graphics_are_drawn_where_they_belong(drawn: Dataset, on: Any, off: Any) -> None:
    found = levels(black(), annotated(drawn))
    for row, column in on:
        assert found[row - 2 : row + 3, column - 2 : column + 3].max() == 255
    for row, column in off:
        assert found[row, column] == 0


def test_graphics_of_the_image_are_turned_with_it_and_those_of_the_display_are_not() -> None:
    line = [0.1, 0.2, 0.9, 0.2]
    pixels = graphic("POLYLINE", [10, 20, 90, 20])
    turned = levels(black(), annotated(pixels, ImageRotation=90))
    assert turned[50, 78:83].max() == 255
    still = levels(black(), annotated(graphic("POLYLINE", line, units="DISPLAY"), ImageRotation=90))
    assert still[18:23, 50].max() == 255


def test_a_layers_colour_makes_a_grey_image_a_coloured_one() -> None:
    layer = item(GraphicLayer="A", GraphicLayerOrder=1, GraphicLayerRecommendedDisplayCIELabValue=[34885, 53485, 50171])
    found = render(black(), annotated(graphic("POLYLINE", [10, 20, 80, 20]), GraphicLayerSequence=[layer]))
    assert found.mode == "RGB"
    red, green, blue = found.getpixel((40, 20))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_layers_are_drawn_in_their_order() -> None:
    def layer(name: str, order: int, grey: int) -> Dataset:
        return item(GraphicLayer=name, GraphicLayerOrder=order, GraphicLayerRecommendedDisplayGrayscaleValue=grey)

    disc = graphic("CIRCLE", [50, 50, 70, 50], filled="Y")
    annotations = [item(GraphicLayer=name, GraphicObjectSequence=[disc]) for name in ("TOP", "BELOW")]
    layers = [layer("TOP", 2, 0xFFFF), layer("BELOW", 1, 0x8000)]
    found = levels(black(), state(GraphicAnnotationSequence=annotations, GraphicLayerSequence=layers))
    assert found[50, 50] == 255


def text(value: str, **attributes: Any) -> Dataset:
    return item(UnformattedTextValue=value, **attributes)


def test_texts_are_drawn_at_their_box_or_anchor() -> None:
    box = text(
        "A finding", BoundingBoxAnnotationUnits="PIXEL", BoundingBoxTopLeftHandCorner=[20.0, 200.0],
        BoundingBoxBottomRightHandCorner=[180.0, 230.0], BoundingBoxTextHorizontalJustification="LEFT",
    )  # fmt: skip
    anchored = text("B", AnchorPoint=[0.5, 0.25], AnchorPointAnnotationUnits="DISPLAY", AnchorPointVisibility="N")
    found = levels(black(400), annotated(texts=[box, anchored]))
    assert found[200:235, 20:180].max() == 255
    assert found[100:125, 200:230].max() == 255
    found[195:240, 15:185] = found[95:130, 195:235] = 0
    assert found.max() == 0


def test_a_text_that_has_no_room_is_drawn_all_the_same() -> None:
    tiny = text(
        "Beyond the edge", BoundingBoxAnnotationUnits="PIXEL", BoundingBoxTopLeftHandCorner=[399.0, 399.0],
        BoundingBoxBottomRightHandCorner=[400.0, 400.0],
    )  # fmt: skip
    found = levels(black(400), annotated(texts=[tiny]))
    assert (found > 100).sum() > 50


@pytest.mark.parametrize(
    "drawn",
    [
        graphic("POLYLINE", [1.0]),
        graphic("ELLIPSE", [1.0, 2.0, 3.0, 4.0]),
        graphic("CIRCLE", []),
        graphic("CIRCLE", [0, 0, 1e30, 1e30]),
        graphic("POLYLINE", [-1e38, 1e38, 1e38, -1e38]),
        graphic("WORM", [1.0, 2.0, 3.0, 4.0]),
        graphic("POLYLINE", [float("nan"), 1.0, 2.0, 3.0]),
    ],
)
def test_graphics_that_make_no_sense_do_no_harm(drawn: Dataset) -> None:
    assert render(black(), annotated(drawn)).size == (100, 100)


# ---------------------------------------------------------------------------------------------------------------------
# Which images, what is refused


def test_the_images_a_state_refers_to_come_in_its_order() -> None:
    images = [
        item(ReferencedSOPInstanceUID="1.6", ReferencedFrameNumber=[2, 3]),
        item(ReferencedSOPInstanceUID="1.4"),
        item(),
    ]
    series = [item(ReferencedImageSequence=images), item(ReferencedImageSequence=images[1:])]
    attributes = scan(state(ReferencedSeriesSequence=series)).attributes
    assert list(referenced_images(attributes)) == [("1.6", (2, 3)), ("1.4", ()), ("1.4", ())]


def test_what_a_state_decides_cannot_be_asked_for(ramp: bytes) -> None:
    with pytest.raises(BadRequest, match="window"):
        render(ramp, state(), window=Window(1, 2))
    with pytest.raises(BadRequest, match="viewport"):
        render(ramp, state(), viewport=Viewport(5, 5, 1, 1))
    with pytest.raises(BadRequest, match="does not refer"):
        render(ramp, state(image="1.2.3"))
    with pytest.raises(BadRequest, match="does not refer"):
        render(ramp, state(frames=[2]))


def test_what_is_no_presentation_state_is_refused(ramp: bytes) -> None:
    for other in (ramp, state(kind="1.2.840.10008.5.1.4.1.1.11.4")):
        with pytest.raises(CannotRender, match="presentation state"):
            render(ramp, other)


def test_a_displayed_area_too_large_to_be_rendered_is_refused(ramp: bytes) -> None:
    selection = area([1, 1], [60000, 60000])
    with pytest.raises(BadRequest, match="pixels"):
        render(ramp, state(DisplayedAreaSelectionSequence=selection))


def test_a_real_state_is_rendered_over_its_image() -> None:
    path = SAMPLES / "nonimage" / "orthanc_PR000000.dcm"
    if not path.exists():
        pytest.skip("The samples are not here")
    pixels = np.tile(np.linspace(0, 4095, 2688).astype("<u2"), (2688, 1))
    presentation = path.read_bytes()
    ((uid, _),) = referenced_images(scan(presentation).attributes)
    found = render(image(pixels, SOPInstanceUID=uid), presentation, viewport=Viewport(512, 512))
    plain = np.asarray(render_frame(io.BytesIO(image(pixels)), 1, Rendering(Viewport(512, 512)))).astype(int)
    changed = np.argwhere(np.abs(np.asarray(found).astype(int) - plain) > 8)
    assert uid == "1.2.276.0.7230010.3.1.4.665618.6496.1546453790.314808"
    assert changed.min(0).tolist() == pytest.approx([117, 326], abs=3)  # the ellipse begins and the text ends
