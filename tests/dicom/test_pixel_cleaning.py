"""Clean Pixel Data: what the rules say is black, the rest is as it was, and a risk without a rule is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless, SecondaryCaptureImageStorage, UltrasoundImageStorage

from dicomcloud.dicom.deidentification import CannotDeidentify, Deidentifier, Option
from dicomcloud.dicom.pixel_cleaning import CannotClean, Image, is_at_risk, matching_rule, parse_pixel_rules
from tests.data import make_dataset, make_file

KEY = b"a key of these tests, and no other"
RULES = """
[[rule]]
modality = "US"
manufacturer = "acme*"
rows = 16
regions = [[0, 0, 16, 4], [12, 12, 100, 100]]

[[rule]]
modality = "OT"
regions = []
"""


def cleaned(file: bytes, rules: str = RULES) -> pydicom.Dataset:
    target = io.BytesIO()
    deidentifier = Deidentifier([Option.CleanPixelData], KEY, pixel_rules=parse_pixel_rules(rules))
    report = deidentifier.deidentify(io.BytesIO(file), target)
    dataset = pydicom.dcmread(io.BytesIO(target.getvalue()))
    assert report.pixel_data_cleaned == (dataset.get("BurnedInAnnotation") == "NO")
    return dataset


def ultrasound(**attributes: Any) -> pydicom.Dataset:
    return make_dataset(SOPClassUID=UltrasoundImageStorage, Modality="US", Manufacturer="ACME Sono", **attributes)


def test_the_regions_are_black_and_all_else_is_untouched() -> None:
    before = ultrasound(NumberOfFrames=2, PixelData=np.arange(1, 513, dtype="<u2").tobytes())
    after = cleaned(make_file(before))
    expected = np.arange(1, 513, dtype="<u2").reshape(2, 16, 16)
    expected[:, :4] = 0
    expected[:, 12:, 12:] = 0
    assert np.array_equal(np.frombuffer(after.PixelData, "<u2").reshape(2, 16, 16), expected)
    codes = [item.CodeValue for item in after.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101"]


@pytest.mark.parametrize("planes", [0, 1])
def test_colour_pixels_are_black_in_every_sample(planes: int) -> None:
    colours = {"SamplesPerPixel": 3, "PlanarConfiguration": planes, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    for photometric, black in (("RGB", (0, 0, 0)), ("YBR_FULL", (0, 128, 128))):
        dataset = ultrasound(**colours, PhotometricInterpretation=photometric, PixelData=b"\x37" * 768)
        raw = np.frombuffer(cleaned(make_file(dataset)).PixelData, "u1")
        pixels = raw.reshape(3, 16, 16).transpose(1, 2, 0) if planes else raw.reshape(16, 16, 3)
        assert (pixels[:4] == black).all()
        assert (pixels[4:12] == 0x37).all()


def test_subsampled_and_inverted_pixels_are_black_in_their_way() -> None:
    half = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    dataset = ultrasound(**half, PhotometricInterpretation="YBR_FULL_422", PixelData=b"\x37" * 512)
    pairs = np.frombuffer(cleaned(make_file(dataset)).PixelData, "u1").reshape(16, 8, 4)
    assert (pairs[:4] == (0, 0, 128, 128)).all()
    assert (pairs[4:12] == 0x37).all()
    inverted = cleaned(make_file(ultrasound(PhotometricInterpretation="MONOCHROME1")))
    assert (np.frombuffer(inverted.PixelData, "<u2")[:64] == 4095).all()
    signed = cleaned(make_file(ultrasound(PixelRepresentation=1)))
    assert (np.frombuffer(signed.PixelData, "<i2")[:64] == -2048).all()


def test_compressed_pixels_are_decoded_and_then_cleaned() -> None:
    dataset = ultrasound(PixelData=np.arange(1, 257, dtype="<u2").tobytes())
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    after = cleaned(file.getvalue())
    assert after.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    pixels = pixel_array(after)
    assert (pixels[:4] == 0).all()
    assert np.array_equal(pixels[4:12].ravel(), np.arange(65, 193))


@pytest.mark.parametrize(
    "attributes",
    [
        {"SOPClassUID": UltrasoundImageStorage, "Modality": "US"},
        {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "CT"},
        {"BurnedInAnnotation": "YES"},
    ],
)
def test_a_risk_without_a_rule_is_refused_when_clean_pixels_are_demanded(attributes: dict[str, Any]) -> None:
    file = make_file(make_dataset(**attributes))
    with pytest.raises(CannotDeidentify, match="no rule says where"):
        cleaned(file)
    Deidentifier([], KEY).deidentify(io.BytesIO(file), io.BytesIO())


def test_pixels_without_a_risk_or_a_region_stay_as_they_are() -> None:
    plain, ruled = make_dataset(), make_dataset(Modality="OT", SOPClassUID=SecondaryCaptureImageStorage)
    assert cleaned(make_file(plain)).PixelData == plain.PixelData
    after = cleaned(make_file(ruled))
    assert after.PixelData == ruled.PixelData
    assert after.BurnedInAnnotation == "NO"
    with pytest.raises(ValueError, match="whole file"):
        Deidentifier([Option.CleanPixelData], KEY).apply(plain)


@pytest.mark.parametrize(
    "attributes", [{"PixelData": bytes(100)}, {"Rows": None}, {"BitsAllocated": 1}, {"BitsStored": 77}, {"Rows": 0}]
)
def test_an_image_that_contradicts_itself_is_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(CannotDeidentify):
        cleaned(make_file(ultrasound(**attributes)), '[[rule]]\nmodality = "US"\nregions = [[0, 0, 9, 9]]')


def test_the_first_rule_that_matches_counts() -> None:
    rules = parse_pixel_rules(RULES)
    image = {"modality": "US", "manufacturer": "ACME", "rows": "16"}
    assert matching_rule(rules, image) is rules[0]
    assert matching_rule(rules, {**image, "rows": "17"}) is None
    assert not is_at_risk({**image, "burned_in": "NO"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[rule]", "not valid TOML"),
        ("[[rule]]\nmodality = 'US'", "rule 1: it has no regions"),
        ("[[rule]]\nregions = [[0, 0, 1]]", r"\[left, top, width, height\]"),
        ("[[rule]]\nregions = [[0, 0, -1, 1]]", r"\[left, top, width, height\]"),
        ("[[rule]]\nregions = []\nmodel = 3", "model is not a text"),
        ("[[rule]]\nregions = []\nmodell = 'x'", "modell is unknown"),
        ("[[rule]]\nregions = []\nrows = 'x'", "rows is not a whole number"),
        ("rules = 1", r"other than \[\[rule\]\]"),
    ],
)
def test_a_faulty_rules_file_is_refused_with_the_fault(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_pixel_rules(text)


def test_an_absurdly_large_image_is_refused() -> None:
    sizes = {0x00280010: "65535", 0x00280011: "65535", 0x00280100: "32"}
    with pytest.raises(CannotClean, match="too many"):
        Image.of(lambda tag: sizes.get(tag, ""), True)
