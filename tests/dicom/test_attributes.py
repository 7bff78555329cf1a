"""dicomcloud.dicom.attributes: dictionary, levels, UIDs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dicomcloud.dicom.attributes import (
    AMBIGUOUS_VR,
    INDEXED_ATTRIBUTES,
    VR_BY_TAG,
    Level,
    is_multi_valued,
    is_uid,
    json_key,
    keyword_of,
    level_of,
    tag_of,
    vr_of,
)


@pytest.mark.parametrize(
    ("identifier", "tag"),
    [
        ("PatientName", 0x00100010),
        ("00100010", 0x00100010),
        ("7fe00010", 0x7FE00010),
        ("7FE00010", 0x7FE00010),
        ("00091001", 0x00091001),
        ("OverlayRows", 0x60000010),
        ("patientname", None),
        ("PatientNames", None),
        ("0010001", None),
        ("0010,0010", None),
        ("", None),
    ],
)
def test_an_identifier_is_a_keyword_or_eight_hexadecimal_digits(identifier: str, tag: int | None) -> None:
    assert tag_of(identifier) == tag


@pytest.mark.parametrize(
    ("tag", "vr"),
    [
        (0x00100010, "PN"),
        (0x00280106, "US"),  # US or SS
        (0x7FE00010, "OW"),  # OB or OW
        (0x60023000, "OW"),  # repeating group
        (0x60020010, "US"),
        (0x00090010, "LO"),  # private creator
        (0x00091001, "UN"),
        (0x00080000, "UL"),  # group length
        (0x00089999, "UN"),
    ],
)
def test_every_tag_has_one_usable_vr(tag: int, vr: str) -> None:
    assert vr_of(tag) == vr


def test_the_table_for_the_scanner_has_only_single_vrs() -> None:
    assert len(VR_BY_TAG) > 4000
    assert {len(vr) for vr in VR_BY_TAG.values()} == {2}
    assert AMBIGUOUS_VR[0x00280106] == "US or SS"


def test_the_dictionary_agrees_with_pydicom() -> None:
    from pydicom.datadict import dictionary_VR, keyword_dict

    for keyword, tag in keyword_dict.items():
        if keyword:
            assert tag_of(keyword) == tag
            assert keyword_of(tag) == keyword
            assert vr_of(tag) in dictionary_VR(tag) or dictionary_VR(tag) == "NONE"


def test_pydicom_is_not_imported() -> None:
    code = "import sys, dicomcloud.dicom.query; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("keyword", "level"),
    [
        ("PatientName", Level.STUDY),
        ("PatientComments", Level.STUDY),
        ("PatientIdentityRemoved", Level.STUDY),
        ("StudyDescription", Level.STUDY),
        ("StudyInstanceUID", Level.STUDY),
        ("Modality", Level.SERIES),
        ("AnatomicalOrientationType", Level.SERIES),
        ("ClinicalTrialSeriesID", Level.SERIES),
        ("InstitutionName", Level.SERIES),
        ("RequestAttributesSequence", Level.SERIES),
        ("FrameOfReferenceUID", Level.SERIES),
        ("SOPInstanceUID", Level.INSTANCE),
        ("Rows", Level.INSTANCE),
        ("00091001", Level.INSTANCE),
        ("00020010", None),
        ("FFFEE000", None),
    ],
)
def test_the_level_follows_the_module(keyword: str, level: Level | None) -> None:
    tag = tag_of(keyword)
    assert tag is not None
    assert level_of(tag) == level


@pytest.mark.parametrize("text", ["1.2.840.10008.1.2", "0", "1.02.3", "1" * 64])
def test_uids(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", "1..2", ".1", "1.", "1.2a", "1.2 ", "1.2\n", "1" * 65, "1.٣", "../1"])
def test_no_uids(text: str) -> None:
    assert not is_uid(text)


def test_json_keys_and_multiplicity() -> None:
    assert json_key(0x7FE00010) == "7FE00010"
    assert is_multi_valued(tag_of("ImageType") or 0)
    assert not is_multi_valued(tag_of("PatientID") or 0)


def test_the_required_keys_of_the_standard_are_in_the_table() -> None:
    matching = {(row.level, row.keyword) for row in INDEXED_ATTRIBUTES if row.matching}
    assert {keyword for level, keyword in matching if level is Level.STUDY} == {
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ModalitiesInStudy",
        "ReferringPhysicianName",
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "StudyID",
    }
    assert (Level.SERIES, "RequestAttributesSequence") in matching
    assert (Level.INSTANCE, "SOPClassUID") in matching
    assert all(row.vr != "UN" for row in INDEXED_ATTRIBUTES)
