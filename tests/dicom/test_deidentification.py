"""De-identification: what must be gone is gone, what may stay is intact, and the same key gives the same again."""

from __future__ import annotations

import io
import logging
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary, generate_uid

from dicomcloud.dicom.confidentiality_profile import Option, profile, safe_private, structured_content
from dicomcloud.dicom.deidentification import CannotDeidentify, Deidentifier, edition, parse_options
from dicomcloud.dicom.pixel_data import to_explicit_little_endian
from dicomcloud.setting_kinds import ANONYMIZER_OPTIONS
from tests.data import data_set_bytes, make_dataset, make_file, pydicom_files, sample_files

KEY = b"a key of these tests, and no other"
CLEANING = ("CleanDesc", "CleanStructdCont", "CleanGraph")
EVERYTHING = (*CLEANING, "RetainLongModifDates", "RetainSafePrivate", "RetainPatientChars", "RetainDeviceIdent")
FILES = [*pydicom_files(), *sample_files()]

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it repeats, value by value, what is wrong in real files
pytestmark = pytest.mark.filterwarnings("ignore")


def deidentifier(*options: str, key: bytes = KEY) -> Deidentifier:
    return Deidentifier(parse_options(options), key)


def deidentified(file: bytes, *options: str) -> bytes:
    target = io.BytesIO()
    deidentifier(*options).deidentify(io.BytesIO(file), target)
    return target.getvalue()


def applied(*options: str, **attributes: object) -> Dataset:
    dataset = make_dataset(**attributes)
    deidentifier(*options).apply(dataset)
    return dataset


def read(file: bytes, **how: bool) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file), **how)


def copies(*options: str) -> Iterator[tuple[Path, bytes, bytes]]:
    """Every file that can be de-identified at all, with its copy."""
    for path in FILES:
        try:
            yield path, path.read_bytes(), deidentified(path.read_bytes(), *options)
        except CannotDeidentify:
            continue


# The tables


def test_the_tables_are_whole_and_of_one_edition() -> None:
    assert edition() == "2026c"
    assert (len(profile()), len(structured_content()), len(safe_private())) == (652, 214 + 205, 479)


def test_every_row_of_the_basic_profile_agrees_with_an_independent_reading_of_it() -> None:
    import dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c as other

    theirs = {
        f"{tag[0]:04X}{tag[1]:04X}": code
        for name, code in {
            **{f"{code}_TAGS": code for code in "XZDU"},
            **{"Z_D_TAGS": "Z/D", "X_Z_TAGS": "X/Z", "X_D_TAGS": "X/D", "X_Z_D_TAGS": "X/Z/D"},
            "X_Z_U_STAR_TAGS": "X/Z/U*",
        }.items()
        for tag in getattr(other, name)
    }
    table = Path(__file__).parents[2] / "dicomcloud" / "dicom" / "confidentiality_profile.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[3:]]
    ours = {row[0]: row[1] for row in rows}
    families = {"50xxxxxx": "50000000", "60xx3000": "60003000", "60xx4000": "60004000"}
    assert ours.pop("private") == "X"
    assert {families.get(tag, tag): code for tag, code in ours.items()} == theirs
    assert len(rows) == 656
    assert {len(row) for row in rows} == {12}


def test_the_settings_know_the_options_of_the_engine() -> None:
    assert set(ANONYMIZER_OPTIONS) == {option.name for option in Option}
    with pytest.raises(ValueError, match="RetainEverything"):
        parse_options(["RetainEverything"])


# What must be gone

# Words that identify somebody in one file and are the Standard's own vocabulary in the same file.
VOCABULARY = {"jpeg", "name", "text", "test", "patient", "removed", "anonymized", "annotation", "study"}


def identifying(dataset: Dataset) -> set[str]:
    """Names, IDs, dates and UIDs anywhere in the data set, but for what private sequences hold."""
    found: set[str] = set()
    for element in dataset:
        values = element.value if isinstance(element.value, (list, pydicom.multival.MultiValue)) else [element.value]
        if element.tag.is_private:
            continue
        if element.VR == "SQ":
            found.update(*(identifying(item) for item in element.value))
        elif element.VR == "PN":
            found.update(part for value in values for part in (str(value), *re.split(r"[\^= ]", str(value))))
        elif element.keyword in ("PatientID", "AccessionNumber", "OtherPatientIDs"):
            found.update(map(str, values))
        elif element.VR in ("DA", "DT"):
            found.update(str(value)[:8] for value in values if len(str(value)) >= 8)
        elif element.VR == "UI" and not re.search("Class|Transfer|Scheme|Context|CreatorVersion", element.keyword):
            found.update(str(value) for value in values if value and value not in UID_dictionary)
    dummies = VOCABULARY | {"19000101"}
    return {value for value in found if len(value) > 3 and value.lower() not in dummies}


@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["basic profile", "with options"])
def test_no_name_identifier_date_or_uid_of_any_file_is_left_in_its_copy(options: tuple[str, ...]) -> None:
    searched = 0
    for path, original, copy in copies(*options):
        dataset = pydicom.dcmread(io.BytesIO(original), force=True, stop_before_pixels=True)
        head = copy[: len(copy) - len(pixel_data(copy))].lower()
        for value in identifying(dataset):
            assert value.encode("utf-8", "replace").lower() not in head, (path.name, value)
            assert value.encode("latin-1", "replace").lower() not in head or "?" in value, (path.name, value)
            searched += 1
    assert searched > 400


def pixel_data(file: bytes) -> bytes:
    dataset = read(file)
    return bytes(dataset.get("PixelData", b"") or b"")


def test_pixel_data_come_through_bit_for_bit() -> None:
    compared = 0
    for path, original, copy in copies():
        before = pydicom.dcmread(io.BytesIO(original), force=True)
        after = read(copy)
        if "PixelData" in before:
            assert after.PixelData == before.PixelData, path.name
            assert after["PixelData"].VR == before["PixelData"].VR or before.is_implicit_VR
            compared += 1
    assert compared > 20


def test_file_meta_information_and_preamble_are_new() -> None:
    original = bytearray(make_file())
    original[:16] = b"SMITH^JOHN  1234"
    dataset = read(bytes(original))
    dataset.file_meta.SourceApplicationEntityTitle = "SMITHS_AE"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"JOHN"
    source = io.BytesIO()
    dataset.save_as(source)
    copy = deidentified(source.getvalue())
    assert copy[:132] == bytes(128) + b"DICM"
    meta = read(copy).file_meta
    assert {element.tag.element for element in meta} == {0, 1, 2, 3, 0x10, 0x12, 0x13}
    assert meta.MediaStorageSOPInstanceUID == read(copy).SOPInstanceUID != dataset.SOPInstanceUID
    assert meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID


def test_texts_that_repeat_the_patient_are_cleaned_of_it_wherever_they_are() -> None:
    item = Dataset()
    item.CodeMeaning = "Knee of Doe"
    dataset = applied(PatientName="Doe^Jane", PatientID="PAT-77", StationName="x", Manufacturer="ACME PAT-77 2.0")
    assert dataset.Manufacturer == "ACME   2.0".strip()
    again = applied(PatientName="Doe^Jane", AnatomicRegionSequence=[item], SoftwareVersions="1.2.3 20250102")
    assert again.AnatomicRegionSequence[0].CodeMeaning == "Knee of"
    assert again.SoftwareVersions == "1.2.3"


def test_private_stray_and_unknown_elements_go() -> None:
    dataset = make_dataset()
    dataset.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "Doe")
    for tag in (0x00080001, 0x00041130, 0x50000010, 0x00189FFE, 0x60003000):
        dataset.add_new(tag, "OW" if tag == 0x60003000 else "LO", b"x" * 2 if tag == 0x60003000 else "Doe")
    item = Dataset()
    item.add_new(0x00091001, "LO", "Doe")
    dataset.AnatomicRegionSequence = [item]
    deidentifier().apply(dataset)
    assert not [element for element in dataset if element.tag.is_private]
    assert not {0x00041130, 0x50000010, 0x00189FFE, 0x60003000} & {
        int(tag) for tag in [element.tag for element in dataset]
    }
    assert not list(dataset.AnatomicRegionSequence[0])


def test_attributes_outside_the_table_are_judged_by_their_vr() -> None:
    dataset = applied(EvaluatorName="Roe^Rita", SecondaryReviewDate="20250203", TargetFrameOfReferenceUID="1.2.3.4.5")
    assert dataset.EvaluatorName == "Removed"
    assert dataset.SecondaryReviewDate == "19000101"
    assert dataset.TargetFrameOfReferenceUID == deidentifier().uid("1.2.3.4.5")


def test_a_vr_that_hides_a_text_in_bytes_does_not_save_it() -> None:
    dataset = make_dataset()
    dataset.add_new("InstitutionName", "UN", b"Hospital of Doe ")
    dataset.add_new("EvaluatorName", "UN", b"Roe^Rita")
    copy = deidentified(make_file(dataset))
    assert b"Doe" not in copy
    assert b"Roe" not in copy
    wrong = make_dataset()
    wrong.add_new("ReferencedSeriesSequence", "OB", b"\xfe\xff\x00\xe0\x00\x00\x00\x00")
    with pytest.raises(CannotDeidentify, match="sequence is not encoded as one"):
        deidentified(make_file(wrong))


# UIDs, pseudonyms, references


def test_the_same_key_gives_the_same_copy_and_another_key_another() -> None:
    file = make_file()
    assert deidentified(file, *EVERYTHING) == deidentified(file, *EVERYTHING)
    other = io.BytesIO()
    deidentifier(key=b"another key of sufficient length").deidentify(io.BytesIO(file), other)
    assert read(other.getvalue()).SOPInstanceUID != read(deidentified(file)).SOPInstanceUID
    assert deidentifier().uid("1.2.840.113619.2.1") == "2.25.266286817535033754979730967925415047279"


def test_a_short_key_and_contradicting_options_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        deidentifier(key=b"short")
    with pytest.raises(ValueError, match="exclude each other"):
        deidentifier("RetainLongFullDates", "RetainLongModifDates")


@given(st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,6}", fullmatch=True))
def test_a_new_uid_is_a_valid_one_that_belongs_to_its_original_alone(uid: str) -> None:
    new = deidentifier().uid(uid)
    if uid not in UID_dictionary:
        assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", new)
        assert new != deidentifier().uid(uid + ".1")
    assert deidentifier("RetainUIDs").uid(uid) == uid


def test_references_between_instances_still_lead_to_them() -> None:
    image, report = make_dataset(), make_dataset()
    reference, series, study = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = image.SeriesInstanceUID, [reference]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = image.StudyInstanceUID, [series]
    report.CurrentRequestedProcedureEvidenceSequence = [study]
    report.SourceImageSequence = [reference]
    for dataset in (image, report):
        deidentifier().apply(dataset)
    found = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert found.StudyInstanceUID == image.StudyInstanceUID
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID
    nested = found.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert nested.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert nested.ReferencedSOPClassUID == image.SOPClassUID == pydicom.uid.CTImageStorage
    assert report.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_patients_stay_apart_and_the_same_patient_stays_one() -> None:
    first, second = applied(PatientID="P1"), applied(PatientID="P1")
    other, elsewhere = applied(PatientID="P2"), applied(PatientID="P1", IssuerOfPatientID="Elsewhere")
    assert first.PatientID == first.PatientName == second.PatientID
    assert len({first.PatientID, other.PatientID, elsewhere.PatientID}) == 3
    assert re.fullmatch("ANON-[A-Z2-7]{16}", first.PatientID)
    nameless = applied(PatientID="", PatientName="")
    assert (nameless.PatientID, nameless.PatientName) == ("", "")


# Dates


def test_shifted_dates_keep_their_distances_and_their_times() -> None:
    option = "RetainLongModifDates"
    first = applied(option, StudyDate="20240229", StudyTime="101500.5", AcquisitionDateTime="20240301120000.5+0100")
    second = applied(option, StudyDate="20240330", SeriesDate="2024", PatientBirthDate="19700101")
    shift = (pydicom.valuerep.DA("20240229") - pydicom.valuerep.DA(first.StudyDate)).days
    assert 1 <= shift <= 3652
    assert (pydicom.valuerep.DA(second.StudyDate) - pydicom.valuerep.DA(first.StudyDate)).days == 30
    assert first.StudyTime == "101500.5"
    assert first.AcquisitionDateTime.endswith("120000.5+0100")
    assert first.LongitudinalTemporalInformationModified == "MODIFIED"
    assert len(second.SeriesDate) == 4
    assert second.PatientBirthDate == ""


def test_dates_are_kept_or_removed_as_the_options_say() -> None:
    kept, gone = applied("RetainLongFullDates", SeriesDate="20250102"), applied(SeriesDate="20250102")
    assert (kept.StudyDate, kept.SeriesDate, kept.PatientBirthDate) == ("20250102", "20250102", "")
    assert kept.LongitudinalTemporalInformationModified == "UNMODIFIED"
    assert (gone.StudyDate, gone.SeriesDate) == ("", "19000101")
    assert gone.LongitudinalTemporalInformationModified == "REMOVED"


@given(st.text(alphabet="0123456789.-+ ", max_size=26))
def test_no_date_however_damaged_survives_a_shift_as_it_was(text: str) -> None:
    dataset = make_dataset()
    dataset.add_new("AcquisitionDateTime", "DT", text)
    deidentifier("RetainLongModifDates").apply(dataset)
    left = str(dataset.AcquisitionDateTime or "")
    assert not text.strip() or left != text.strip()
    assert re.fullmatch(r"|\d{4,14}(\.\d{1,6})?([+-]\d{4})?", left)


# The options


def test_what_was_done_is_told_by_the_codes_of_the_standard() -> None:
    dataset = applied("RetainUIDs", "RetainLongFullDates", "RetainPatientChars")
    codes = {(item.CodeValue, item.CodingSchemeDesignator) for item in dataset.DeidentificationMethodCodeSequence}
    assert codes == {(code, "DCM") for code in ("113100", "113106", "113108", "113110")}
    assert dataset.PatientIdentityRemoved == "YES"
    assert "2026c" in dataset.DeidentificationMethod[1]
    assert "BurnedInAnnotation" not in dataset
    assert dataset.PatientSex == "F"


def test_codes_of_an_earlier_deidentification_stay() -> None:
    dataset = make_dataset()
    deidentifier("CleanGraph").apply(dataset)
    deidentifier("CleanDesc").apply(dataset)
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113103", "113105"]


def test_descriptors_are_cleaned_of_names_dates_and_ages_and_keep_the_rest() -> None:
    dataset = applied(
        "CleanDesc",
        PatientName="Doe^Jane",
        StudyDescription="CT chest abdomen pelvis - 55F Dr. Smith",
        SeriesDescription="Axial DOE 12.03.2025 thin",
        ImageComments="Call jane@example.org, 030 1234567",
        ProtocolName="Jane Doe",
    )
    assert dataset.StudyDescription == "CT chest abdomen pelvis"
    assert dataset.SeriesDescription == "Axial thin"
    assert dataset.ImageComments == "Call"
    assert dataset.ProtocolName == "REMOVED"
    assert applied(StudyDescription="CT").get("StudyDescription") is None


def test_texts_of_other_character_sets_are_cleaned_in_them() -> None:
    dataset = make_dataset(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Änne")
    dataset.SeriesDescription = "Schädel MÜLLER groß"
    copy = read(deidentified(make_file(dataset), "CleanDesc"))
    assert copy.SeriesDescription == "Schädel groß"


def test_device_and_institution_are_kept_when_asked_for() -> None:
    attributes = {"DeviceSerialNumber": "SN1", "StationName": "CT1", "InstitutionName": "H", "RetrieveAETitle": "DOE"}
    device, institution = applied("RetainDeviceIdent", **attributes), applied("RetainInstitutionIdent", **attributes)
    assert (device.DeviceSerialNumber, device.StationName) == ("SN1", "CT1")
    assert re.fullmatch("AE[A-Z2-7]{10}", device.RetrieveAETitle)
    assert device.InstitutionName != "H"
    assert institution.InstitutionName == "H"
    assert institution.DeviceSerialNumber != "SN1"


def test_safe_private_attributes_stay_with_their_creators_and_others_go() -> None:
    dataset = make_dataset()
    safe = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
    safe.add_new(0x23, "DS", "5.0")
    safe.add_new(0x01, "LO", "Doe")
    dataset.private_block(0x0021, "ACME", create=True).add_new(0x23, "LO", "Doe")
    copy = read(deidentified(make_file(dataset), "RetainSafePrivate"))
    private = [(int(element.tag), str(element.value)) for element in copy if element.tag.is_private]
    assert private == [(0x00190010, "GEMS_ACQU_01"), (0x00191023, "5.0")]


def test_a_safe_private_text_is_cleaned_of_the_patient_in_implicit_vr_too() -> None:
    dataset = make_dataset(PatientName="Quux^Jane")
    dataset.private_block(0x0019, "GEMS_ACQU_01", create=True).add_new(0x9E, "LO", "EFGRE3D QUUX")
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    copy = deidentified(file.getvalue(), "RetainSafePrivate")
    assert b"EFGRE3D" in copy
    assert b"QUUX" not in copy


def content_item(value_type: str, concept: tuple[str, str], **values: object) -> Dataset:
    item, name = Dataset(), Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = (*concept, "Concept")
    item.RelationshipType, item.ValueType, item.ConceptNameCodeSequence = "CONTAINS", value_type, [name]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def report(**extra: object) -> Dataset:
    sex = Dataset()
    sex.CodeValue, sex.CodingSchemeDesignator, sex.CodeMeaning = "F", "DCM", "Female"
    finding = content_item("TEXT", ("121071", "DCM"), TextValue="Nodule in Doe, stable")
    section = content_item("CONTAINER", ("121070", "DCM"), ContentSequence=[finding])
    return make_dataset(
        ContentSequence=[
            content_item("PNAME", ("121008", "DCM"), PersonName="Roe^Richard"),
            content_item("CODE", ("121032", "DCM"), ConceptCodeSequence=[sex]),
            content_item("TEXT", ("F-00001", "99LOCAL"), TextValue="Seen by Roe"),
            section,
        ],
        **extra,
    )


def test_structured_content_is_replaced_but_keeps_its_form() -> None:
    dataset = report()
    deidentifier().apply(dataset)
    text = str(dataset)
    assert not re.search("Roe|Doe|Female|Nodule", text)
    assert [item.ValueType for item in dataset.ContentSequence] == ["PNAME", "CODE", "TEXT", "CONTAINER"]
    assert dataset.ContentSequence[3].ContentSequence[0].TextValue == "REMOVED"
    assert dataset.ContentSequence[0].ConceptNameCodeSequence[0].CodeValue == "121008"


def test_cleaned_structured_content_keeps_what_identifies_nobody() -> None:
    dataset = report()
    deidentifier("CleanStructdCont", "CleanDesc").apply(dataset)
    concepts = [item.ConceptNameCodeSequence[0].CodeValue for item in dataset.ContentSequence]
    assert "121032" not in concepts  # the patient's sex
    assert not re.search("Roe|Doe|Female", str(dataset))
    assert dataset.ContentSequence[-1].ContentSequence[0].TextValue == "Nodule in , stable"


def test_items_that_others_point_to_by_position_are_emptied_and_not_removed() -> None:
    pointer = Dataset()
    pointer.RelationshipType, pointer.ReferencedContentItemIdentifier = "SELECTED FROM", [1, 4, 1]
    dataset = report()
    dataset.ContentSequence.append(pointer)
    deidentifier("CleanStructdCont").apply(dataset)
    assert len(dataset.ContentSequence) == 5
    assert not re.search("Roe|Doe|Female", str(dataset))


def test_graphics_are_replaced_or_cleaned() -> None:
    text, graphic, annotation = Dataset(), Dataset(), Dataset()
    text.UnformattedTextValue = "Doe 4 cm"
    graphic.GraphicData, graphic.NumberOfGraphicPoints, graphic.GraphicType = [1.0, 2.0, 3.0, 4.0], 2, "POLYLINE"
    annotation.TextObjectSequence, annotation.GraphicObjectSequence = [text], [graphic]
    dataset = make_dataset(GraphicAnnotationSequence=[annotation])
    kept = pydicom.Dataset.from_json(dataset.to_json())
    deidentifier().apply(dataset)
    item = dataset.GraphicAnnotationSequence[0]
    assert item.TextObjectSequence[0].UnformattedTextValue == "REMOVED"
    assert item.GraphicObjectSequence[0].GraphicType == "POINT"
    deidentifier("CleanGraph").apply(kept)
    item = kept.GraphicAnnotationSequence[0]
    assert item.TextObjectSequence[0].UnformattedTextValue == "4 cm"
    assert item.GraphicObjectSequence[0].GraphicType == "POLYLINE"


def overlay(dataset: Dataset, kind: str, *, position: int = 0) -> Dataset:
    for element, vr, value in (
        (0x10, "US", 16),
        (0x11, "US", 16),
        (0x40, "CS", kind),
        (0x100, "US", 1 if position == 0 else 16),
        (0x102, "US", position),
    ):
        dataset.add_new(0x60000000 + element, vr, value)
    if position == 0:
        dataset.add_new(0x60003000, "OW", bytes(32))
    return dataset


def test_an_overlay_goes_as_a_whole_but_a_region_may_be_kept() -> None:
    groups = {}
    for kind in "GR":
        for options in ((), ("CleanGraph",)):
            copy = read(deidentified(make_file(overlay(make_dataset(), kind)), *options))
            groups[kind, options] = any(tag.group == 0x6000 for tag in [element.tag for element in copy])
    assert groups == {("G", ()): False, ("R", ()): False, ("G", ("CleanGraph",)): False, ("R", ("CleanGraph",)): True}


def test_an_overlay_in_unused_bits_is_wiped_from_the_pixels() -> None:
    pixels = np.arange(256, dtype="<u2") | 0x8000
    dataset = overlay(make_dataset(PixelData=pixels.tobytes()), "G", position=15)
    copy = read(deidentified(make_file(dataset)))
    assert np.array_equal(np.frombuffer(copy.PixelData, "<u2"), np.arange(256))
    with pytest.raises(CannotDeidentify, match="unused bits"):
        deidentifier().apply(dataset)


def test_an_encapsulated_document_is_replaced_by_an_empty_one() -> None:
    dataset = make_dataset(
        PixelData=None, EncapsulatedDocument=b"%PDF Doe", MIMETypeOfEncapsulatedDocument="application/pdf"
    )
    copy = read(deidentified(make_file(dataset)))
    assert copy.EncapsulatedDocument.startswith(b"%PDF-1.4")
    assert b"Doe" not in copy.EncapsulatedDocument
    assert copy.MIMETypeOfEncapsulatedDocument == "application/pdf"


# Transfer syntaxes


def test_the_transfer_syntax_stays_but_a_deflated_data_set_is_inflated() -> None:
    for path, original, copy in copies():
        before = pydicom.dcmread(io.BytesIO(original), force=True, stop_before_pixels=True)
        syntax = before.file_meta.get("TransferSyntaxUID")
        if syntax is not None:
            expected = syntax.removesuffix(".99")  # Deflated
            assert read(copy, stop_before_pixels=True).file_meta.TransferSyntaxUID == expected, path.name


# Held against others


def test_other_attributes_stay_as_they_were() -> None:
    kept = make_dataset(
        KVP="120", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], SliceThickness="1.5", WindowCenter=["40"]
    )
    copy = read(deidentified(make_file(kept)))
    for keyword in (
        "KVP",
        "ImageType",
        "SliceThickness",
        "WindowCenter",
        "Rows",
        "BitsStored",
        "Modality",
        "SOPClassUID",
    ):
        assert copy[keyword] == kept[keyword]


# Attribute, what happens here, what dicom-anonymizer does. Where the profile allows both, ours keeps patients apart,
# keeps Type 1 attributes, removes what belongs to an overlay, and removes what is X.
DIFFERENCES = {
    ("changed", "empty"): {"PatientName"},
    ("empty", "sequence"): {"AcquisitionContextSequence", "IssuerOfTheContainerIdentifierSequence"},
    ("changed", "removed"): {"PresentationCreationTime", "PresentationCreationDate"},
    ("empty", "removed"): {"ResponsibleOrganization", "ResponsiblePerson"},
    ("removed", "sequence"): {"ReferencedStudySequence"},
    ("changed", "kept"): {"DeidentificationMethod", "EncapsulatedDocumentLength", "PatientIdentityRemoved"}
    | {"LongitudinalTemporalInformationModified", "DeidentificationMethodCodeSequence"}
    | {"Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DocumentTitle"},  # they repeat a patient's name
}


def fate(before: object, after: Dataset, tag: int) -> str:
    if tag not in after:
        return "removed"
    element = after[tag]
    if element.VR == "SQ":
        return "sequence" if len(element.value) else "empty"
    return "empty" if element.is_empty else "kept" if element.value == before else "changed"


def test_the_basic_profile_does_what_dicom_anonymizer_does_but_for_known_differences() -> None:
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions

    compared, different = 0, Counter[tuple[str, str, str]]()
    for path in FILES:
        if path.suffix != ".dcm":
            continue
        original, ours, theirs = (pydicom.dcmread(path, stop_before_pixels=True, force=True) for _ in range(3))
        try:
            deidentifier().apply(ours)
        except CannotDeidentify:
            continue
        anonymize_dataset(theirs, base_rules_gen=lambda: initialize_actions("dicomfields_2026c"))
        for element in original:
            if element.tag.element == 0 or element.tag.group & 0xFF00 == 0x6000 or element.is_empty:
                continue
            fates = fate(element.value, ours, element.tag), fate(element.value, theirs, element.tag)
            compared += 1
            # Theirs leaves a dummy of every date that is to be removed or emptied.
            removed_date = fates in (("removed", "changed"), ("empty", "changed")) and element.VR in ("DA", "TM")
            dummy_before = fates == ("kept", "changed") and element.value in ("19000101", "000000")
            expected = removed_date or dummy_before or element.keyword in DIFFERENCES.get(fates, ())
            if fates[0] != fates[1] and not expected:
                different[(*fates, element.keyword)] += 1
    assert compared > 500
    assert not different


def faults(path: Path) -> Counter[str]:
    """The errors that dciodvfy finds, without the values in them."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    return Counter(re.sub(r"(?<=UID )[\d.]+|[\d.]{9,}", "", line) for line in lines if line.startswith("Error"))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["basic profile", "with options"])
def test_dciodvfy_finds_no_error_that_the_original_had_not(tmp_path: Path, options: tuple[str, ...]) -> None:
    checked = 0
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    for path, original, copy in copies(*options):
        before.write_bytes(original)
        if read(original, force=True, stop_before_pixels=True).file_meta.get("TransferSyntaxUID", "").endswith(".1.99"):
            with before.open("wb") as file:  # dciodvfy does not inflate
                to_explicit_little_endian(io.BytesIO(original), file)
        after.write_bytes(copy)
        new = faults(after) - faults(before)
        assert not new, (path.name, new)
        checked += 1
    assert checked > 10


# Hostile data


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def nested(depth: int) -> bytes:
    start = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return start * depth + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth


HEAD = element(0x00080018, b"UI", b"1.2.3.4.")
HOSTILE = {
    "nested 100 deep": HEAD + nested(100),
    "nested 5000 deep": HEAD + nested(5000),
    "value longer than the file": HEAD + struct.pack("<HH2sHI", 0x0008, 0x1030, b"UT", 0, 0xFFFFFFF0) + b"Doe",
    "unknown VR": HEAD + element(0x00081030, b"?!", b"Doe "),
    "end of an item where none began": HEAD + b"\xfe\xff\x0d\xe0\0\0\0\0" + element(0x00100010, b"PN", b"Doe "),
    "cut pixel data": HEAD + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 100) + b"Doe",
    "cut fragments": HEAD + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\x10\0\0\0",
    "no SOP Instance UID": element(0x00100010, b"PN", b"Doe "),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_data_are_refused_without_repeating_them(fault: str) -> None:
    file = make_file()
    start = len(file) - len(data_set_bytes(file))
    target = io.BytesIO()
    with pytest.raises(CannotDeidentify) as raised:
        deidentifier(*CLEANING).deidentify(io.BytesIO(file[:start] + HOSTILE[fault]), target)
    assert "Doe" not in str(raised.value)
    assert target.getvalue() == b""


def test_a_deflate_bomb_is_not_inflated() -> None:
    file = make_file()
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(data_set_bytes(file) + bytes(50_000_000)) + packer.flush()
    meta = file[: len(file) - len(data_set_bytes(file))].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    meta = re.sub(rb"UI\x14\0(?=1\.2\.840\.10008\.1\.2\.1\.99)", b"UI\x16\0", meta)
    careful = Deidentifier((), KEY, max_inflated=1 << 20)
    with pytest.raises(CannotDeidentify, match="larger than"):
        careful.deidentify(io.BytesIO(meta + bomb), io.BytesIO())


def test_a_huge_text_is_given_up_and_a_dicomdir_refused() -> None:
    dataset = make_dataset()
    dataset.add_new("TextValue", "UT", "Doe " * 1_000_000)
    deidentifier().apply(dataset)
    assert dataset.TextValue == "REMOVED"
    directory = make_file(SOPClassUID="1.2.840.10008.1.3.10")
    with pytest.raises(CannotDeidentify, match="DICOMDIR"):
        deidentified(directory)


@given(st.binary(max_size=200), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_random_damage_either_works_or_is_refused(noise: bytes, position: int) -> None:
    file = bytearray(make_file())
    position = min(132 + position, len(file) - 1)
    file[position : position + len(noise)] = noise
    try:
        copy = deidentified(bytes(file), "CleanDesc", "CleanStructdCont")
    except CannotDeidentify:
        return
    assert copy[128:132] == b"DICM"


SEQUENCES = ("ReferencedImageSequence", "AnatomicRegionSequence", "ContentSequence", "GraphicAnnotationSequence")
SEQUENCES += ("RequestAttributesSequence", "ReferencedStudySequence", "AcquisitionContextSequence")
LEAVES = st.fixed_dictionaries(
    {},
    optional={
        "PatientName": st.just("Quux^Quentin"),
        "PersonName": st.just("Quux^Quentin"),
        "TextValue": st.just("about Quentin Quux"),
        "CodeMeaning": st.just("sign of Quux"),
        "ImageComments": st.just("QUUX, 20250102"),
        "ReferencedSOPInstanceUID": st.just("1.2.3.4.5.6.7.8.999"),
        "ReferencedSOPClassUID": st.just(str(pydicom.uid.CTImageStorage)),
        "StudyDate": st.just("20250102"),
        "AccessionNumber": st.just("ACC-4711"),
    },
)
TREES = st.recursive(
    LEAVES,
    lambda below: st.tuples(
        LEAVES, st.dictionaries(st.sampled_from(SEQUENCES), st.lists(below, max_size=2), max_size=2)
    ),
    max_leaves=12,
)


def build(tree: object) -> Dataset:
    leaves, branches = tree if isinstance(tree, tuple) else (tree, {})
    dataset = Dataset()
    for keyword, value in leaves.items():
        setattr(dataset, keyword, value)
    for keyword, items in branches.items():
        setattr(dataset, keyword, [build(item) for item in items])
    return dataset


@given(TREES, st.sampled_from([(), CLEANING, EVERYTHING]))
@settings(max_examples=150, deadline=None)
def test_nothing_identifying_is_left_however_sequences_are_nested(tree: object, options: tuple[str, ...]) -> None:
    dataset = make_dataset(PatientName="Quux^Quentin", AccessionNumber="ACC-4711", PatientID="MRN-0815")
    dataset.ReferencedSeriesSequence = [build(tree)]
    copy = deidentified(make_file(dataset), *options).lower()
    for value in (b"quux", b"quentin", b"acc-4711", b"mrn-0815", b"20250102", b"1.2.3.4.5.6.7.8.999"):
        assert value not in copy
    again = read(deidentified(make_file(dataset), *options))
    assert str(again)  # every element can be read


def test_a_uid_in_a_text_becomes_the_new_one() -> None:
    uid = generate_uid()
    dataset = applied("CleanDesc", SOPInstanceUID=uid, DeviceUID=uid, LossyImageCompressionMethod="ISO_10918_1")
    assert dataset.SOPInstanceUID == dataset.DeviceUID == deidentifier().uid(uid)
