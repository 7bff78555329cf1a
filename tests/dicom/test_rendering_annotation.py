"""Annotations burned into images: legible in every script and size, and what they say."""

from __future__ import annotations

import io
import json
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from dicomcloud.dicom import annotation, values
from dicomcloud.dicom.annotation import draw_text, patient_lines, technique_lines
from dicomcloud.dicom.header import scan
from dicomcloud.dicom.rendering import CannotRender, Rendering, Viewport, Window, read_header, render_frame
from dicomcloud.dicom.stored_image import StoredImage
from dicomcloud.dicom.visual_order import in_visual_order
from dicomcloud.errors import BadRequest
from tests.data import make_file, sample_files

Array = NDArray[Any]


def lines_of(**attributes: Any) -> list[str]:
    return patient_lines(scan(make_file(**attributes)).attributes)


def technique_of(window: Window | None = None, **attributes: Any) -> str:
    return " | ".join(technique_lines(StoredImage(io.BytesIO(make_file(**attributes))), 1, window))


def marked(kinds: set[str], size: int = 256, **attributes: Any) -> Array:
    """Where annotation changed an image."""
    file = make_file(**attributes)
    viewport = Viewport(size, size)
    plain, burned = (
        np.asarray(render_frame(io.BytesIO(file), 1, Rendering(viewport, annotation=frozenset(chosen)))).astype(int)
        for chosen in (set[str](), kinds)
    )
    return np.abs(plain - burned)


def test_the_patient_is_named_by_name_number_birth_date_and_sex() -> None:
    assert lines_of() == ["Doe, Jane", "ID P1  *1970-01-31  F"]


def test_a_name_is_written_in_every_script_it_has() -> None:
    assert lines_of(PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう")[:3] == [
        "Yamada, Tarou", "山田, 太郎", "やまだ, たろう",
    ]  # fmt: skip
    assert lines_of(PatientName="Adams^John Robert Quincy^^Rev.^B.A. M.Div.")[0] == (
        "Adams, John Robert Quincy Rev. B.A. M.Div."
    )


def test_empty_attributes_are_left_out() -> None:
    assert lines_of(PatientName="", PatientBirthDate="", PatientSex="") == ["ID P1"]
    assert lines_of(PatientName="", PatientBirthDate="", PatientSex="", PatientID="") == ["Patient not named"]


def test_the_technique_tells_modality_time_exposure_place_and_window() -> None:
    found = technique_of(
        Window(40, 400), KVP="120", XRayTubeCurrent="200", SliceThickness="1.25", BodyPartExamined="CHEST"
    )
    assert found == "CT  2025-01-02  10:15 | Axial  CHEST | 120 kV  200 mA | ST 1.25 mm | Se 1 Im 1  C 40 W 400"


def test_the_technique_of_enhanced_objects_is_found_in_their_functional_groups() -> None:
    from pydicom.dataset import Dataset

    timing, group = Dataset(), Dataset()
    timing.RepetitionTime = 500.0
    group.MRTimingAndRelatedParametersSequence = [timing]
    assert "TR 500" in technique_of(Modality="MR", SharedFunctionalGroupsSequence=[group])


def test_the_patient_stands_above_and_the_technique_below() -> None:
    patient = np.argwhere(marked({"patient"}))
    technique = np.argwhere(marked({"technique"}))
    assert patient.max(0)[0] < 64
    assert technique.min(0)[0] > 160
    assert marked(set()).max() == 0


@pytest.mark.parametrize("level", [0, 0x800, 0xFFF])
def test_letters_stand_out_from_black_grey_and_white(level: int) -> None:
    pixels = np.full(256, level, "<u2").tobytes()
    changed = marked({"patient"}, PixelData=pixels, WindowCenter="2048", WindowWidth="4096")
    assert (changed > 100).sum() > 200


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33, 64, 100, 128, 200, 512, 1024])
def test_annotations_fit_into_pictures_of_any_size(size: int) -> None:
    name = "Wolfeschlegelsteinhausenbergerdorff^Hubert Blaine^^Dr.^Sr."
    picture = render_frame(
        io.BytesIO(make_file(PatientName=name)),
        1,
        Rendering(Viewport(size, size), annotation=frozenset({"patient", "technique"})),
    )
    assert picture.size == (size, size)
    if size >= 64:
        assert marked({"patient"}, size, PatientName=name).max() > 100


def test_small_letters_are_still_nine_pixels_high() -> None:
    changed = marked({"patient"}, 64, PatientName="X", PatientID="", PatientBirthDate="", PatientSex="")
    assert np.ptp(np.argwhere(changed > 100)[:, 0]) >= 5  # a capital letter of nine pixels


SCRIPTS = {
    "Latin": "Äöüß Łódź İğne Ñandú Őrség",
    "Greek": "Διονυσιος",
    "Cyrillic": "Люксембург Ђорђе",
    "Arabic": "قباني لنزار",
    "Hebrew": "שרון דבורה",
    "Thai": "นามสกุล",
    "Japanese": "山田 太郎 やまだ ヤマダ ﾔﾏﾀﾞ",
    "Korean": "김희중 金喜中",
    "Chinese": "王小东 王小東 㐂",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_character_set_of_dicom_has_a_font(script: str) -> None:
    text = SCRIPTS[script]
    faces = [(annotation._WESTERN, 0), annotation._east_asian_face(text, "")]
    for character in text:
        assert any(annotation._has(face, character) for face in faces), f"no glyph for {character!r}"


def test_chinese_characters_have_the_form_their_readers_know() -> None:
    pictures = []
    for character_set in ("ISO 2022 IR 87", "ISO 2022 IR 58"):
        picture = Image.new("L", (60, 40))
        draw_text(picture, ["直骨"], (0, 0, 60, 40), size=24, character_set=character_set)
        pictures.append(picture.tobytes())
    assert pictures[0] != pictures[1]


def test_arabic_letters_are_joined() -> None:
    def width(text: str) -> int:
        picture = Image.new("L", (400, 60))
        draw_text(picture, [text], (0, 0, 400, 60), size=32)
        box = picture.getbbox()
        assert box
        return box[2] - box[0]

    assert width("ببب") < width("\u200c".join("ببب"))


ORDERS = {  # as Raqm draws them
    "plain": "plain",
    "שרון 12-34, Doe": "Doe ,12-34 ןורש",
    "ID P1 *1970-01-31 שרון": "ID P1 *1970-01-31 ןורש",
    "אב 50% ג": "ג 50% בא",
    "A (שרון) b": "A (ןורש) b",
    "שרון (A) b": "b (A) ןורש",
    "שלום (אב": "בא) םולש",
    "שרון  ": "  ןורש",
    "قباني": "\ufef2\ufee7\ufe8e\ufe92\ufed7",
    "سلام لا": "\ufefb \u0645\ufefc\ufeb3",
    "Doe محمد 123": "Doe 123 \ufeaa\ufee4\ufea4\ufee3",
    "محمد ١٢٣/٤٥": "١٢٣/٤٥ \ufeaa\ufee4\ufea4\ufee3",
    "Name: محمد (أحمد)": "Name: (\ufeaa\ufee4\ufea3\u0623) \ufeaa\ufee4\ufea4\ufee3",
}


@pytest.mark.parametrize("text", ORDERS)
def test_text_is_put_in_the_order_in_which_it_is_seen(text: str) -> None:
    assert in_visual_order(text) == ORDERS[text]


def test_arabic_is_joined_and_ordered_without_raqm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(text: str) -> Array:
        picture = Image.new("L", (400, 60))
        draw_text(picture, [text], (0, 0, 400, 60), size=32)
        return np.asarray(picture) > 128

    def forget() -> None:
        annotation._font.cache_clear()
        annotation._has_raqm.cache_clear()

    with_raqm = drawn("Doe محمد")
    had_raqm = features.check("raqm")
    forget()
    monkeypatch.setattr(features, "check", lambda _: False)  # as with Pillow on Windows
    try:
        without = drawn("Doe محمد")
    finally:
        forget()
    assert without.sum() > 200
    if had_raqm:
        assert (with_raqm & without).sum() > 0.9 * (with_raqm | without).sum()


def test_control_characters_and_unknown_ones_do_no_harm() -> None:
    picture = Image.new("RGB", (200, 100))
    draw_text(picture, ["a\0b\x1b[31m\r\n\u202e\ud800x\U0010fffd", ""], (0, 0, 200, 100))
    assert picture.getbbox() is not None


def test_a_text_without_end_takes_no_time() -> None:
    picture = Image.new("L", (300, 300))
    started = time.process_time()
    for text in ("x" * 1_000_000, "y " * 1_000_000, "i" * 1000):
        assert draw_text(picture, [text] * 1000, (0, 0, 300, 300)) <= 300
    assert time.process_time() - started < 5


@pytest.mark.parametrize("path", [path for path in sample_files() if path.parent.name == "charset"], ids=str)
def test_names_of_the_samples_are_drawn(path: Any) -> None:
    try:
        file = path.read_bytes()
        picture = render_frame(io.BytesIO(file), 1, Rendering(Viewport(256, 256), annotation=frozenset({"patient"})))
    except CannotRender as error:
        pytest.skip(str(error))
    plain = render_frame(io.BytesIO(file), 1, Rendering(Viewport(256, 256)))
    assert picture.tobytes() != plain.tobytes()


# ---------------------------------------------------------------------------------------------------------------------
# Whatever stands in the attributes


def strange_value(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    numbers = [0, 1, -1, 2, 90, 255, 65535, -32768, 1e308, 1e-300, 0.5, 10**30, 2**63, 16]
    terms = ["INVERSE", "CIRCULAR", "POLYGONAL", "PALETTE COLOR", "SIGMOID", "COLOR", "NaN", "", None, "１", {"a": "b"}]
    kind = rng.random()
    if kind < 0.5:
        return {"vr": "DS", "Value": [rng.choice(numbers) for _ in range(rng.choice((1, 2, 3, 6)))]}
    if kind < 0.7:
        return {"vr": "CS", "Value": [rng.choice(terms) for _ in range(rng.choice((1, 2, 3)))]}
    if kind < 0.8:
        return {"vr": "OW", "InlineBinary": rng.choice(("", "AA==", "AAECAw==", "A" * 512))}
    if kind < 0.85:
        return {"vr": "OW", "BulkDataURI": "/7FE00010"}
    if depth > 2:
        return {"vr": "UN"}
    items = [{rng.choice(STRANGE): strange_value(rng, depth + 1) for _ in range(4)} for _ in range(2)]
    return {"vr": "SQ", "Value": items}


STRANGE_KEYWORDS = """
    PatientName PatientBirthDate StudyTime KVP PixelSpacing PixelAspectRatio WindowCenter WindowWidth RescaleSlope
    RescaleIntercept VOILUTFunction VOILUTSequence ModalityLUTSequence LUTDescriptor LUTData PixelPaddingValue
    PixelPaddingRangeLimit PresentationLUTShape PixelPresentation ShutterShape CenterOfCircularShutter
    RadiusOfCircularShutter VerticesOfThePolygonalShutter ShutterLeftVerticalEdge ShutterPresentationValue
    ShutterPresentationColorCIELabValue RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData ICCProfile SharedFunctionalGroupsSequence FrameVOILUTSequence
    PerFrameFunctionalGroupsSequence PixelMeasuresSequence SOPClassUID SegmentSequence SegmentNumber
    OverlayRows OverlayColumns OverlayOrigin OverlayData OverlayBitPosition NumberOfFramesInOverlay
"""
STRANGE = [values.key_of(keyword) for keyword in STRANGE_KEYWORDS.split()]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_stands_in_the_attributes_an_image_is_rendered_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    file = make_file(WindowCenter="100", WindowWidth="200")
    header = read_header(io.BytesIO(file))
    asked = Rendering(Viewport(32, 32), annotation=frozenset({"patient", "technique"}), icc_profile="yes")
    rendered = 0
    for _ in range(25):
        attributes = json.loads(json.dumps(header.attributes))
        attributes.update({rng.choice(STRANGE): strange_value(rng) for _ in range(rng.choice((1, 3, 10)))})
        try:
            picture = render_frame(io.BytesIO(file), 1, asked, header=replace(header, attributes=attributes))
        except (CannotRender, BadRequest):
            continue
        assert picture.mode == "RGB"
        rendered += 1
    assert rendered > 10
