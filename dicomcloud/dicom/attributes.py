"""The data dictionary (PS3.6), the level of each attribute (PS3.3), and the attributes that QIDO-RS knows by name.

pydicom's generated dictionary is loaded as a file of its own: importing the package `pydicom` costs 0.3 s and 40 MB,
and nothing that only searches or sends stored bytes needs it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Final


class Level(IntEnum):
    """Levels of the Study Root Information Model (PS3.4 C.6.2); patient attributes count as STUDY."""

    STUDY = 1
    SERIES = 2
    INSTANCE = 3


def _load_dictionary() -> ModuleType:
    package = importlib.util.find_spec("pydicom")
    if package is None or package.origin is None:
        raise ImportError("pydicom is not installed")
    spec = importlib.util.spec_from_file_location(
        "dicomcloud.dicom._dictionary", Path(package.origin).with_name("_dicom_dict.py")
    )
    if spec is None or spec.loader is None:
        raise ImportError("pydicom's data dictionary cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_DICTIONARY = _load_dictionary()

# The VR to take where PS3.6 offers several and nothing else is known. Implicit VR Pixel Data is OW (PS3.5 A.1).
_RESOLVED: Final = {"OB or OW": "OW", "US or OW": "OW", "US or SS": "US", "US or SS or OW": "US", "NONE": "UN"}

#: Value representation of every attribute of PS3.6 with a tag of its own (repeating groups: `vr_of`).
VR_BY_TAG: Final[Mapping[int, str]] = {
    tag: _RESOLVED.get(entry[0], entry[0]) for tag, entry in _DICTIONARY.DicomDictionary.items()
}
#: The attributes whose VR depends on others, with what PS3.6 offers, e.g. "US or SS" (Pixel Representation decides).
AMBIGUOUS_VR: Final[Mapping[int, str]] = {
    tag: entry[0] for tag, entry in _DICTIONARY.DicomDictionary.items() if " or " in entry[0]
}
_KEYWORD_BY_TAG: Final[dict[int, str]] = {
    tag: entry[4] for tag, entry in _DICTIONARY.DicomDictionary.items() if entry[4]
}
_TAG_BY_KEYWORD: Final[dict[str, int]] = {keyword: tag for tag, keyword in _KEYWORD_BY_TAG.items()}
_MULTIPLE: Final = frozenset(tag for tag, entry in _DICTIONARY.DicomDictionary.items() if entry[1] != "1")

# Repeating groups: (mask, value under the mask) → (VR, keyword), PS3.6 notes to chapter 6.
_REPEATERS: Final[tuple[tuple[int, int, str, str], ...]] = tuple(
    (
        int("".join("0" if digit == "x" else "F" for digit in mask), 16),
        int(mask.replace("x", "0"), 16),
        _RESOLVED.get(entry[0], entry[0]),
        entry[4],
    )
    for mask, entry in _DICTIONARY.RepeatersDictionary.items()
)
for _mask, _first, _vr, _keyword in _REPEATERS:
    if _keyword:
        _TAG_BY_KEYWORD.setdefault(_keyword, _first)

_HEX_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")


def _repeater(tag: int) -> tuple[int, int, str, str] | None:
    if (tag >> 16) & 1:
        return None
    return next((row for row in _REPEATERS if tag & row[0] == row[1]), None)


def tag_of(identifier: str) -> int | None:
    """The tag of a keyword of PS3.6 (case sensitive) or of 8 hexadecimal digits (either case); None if it is neither.

    Any 8 hexadecimal digits are a tag, private and unknown ones too. A repeating group's keyword gives its first tag.
    """
    tag = _TAG_BY_KEYWORD.get(identifier)
    if tag is None and _HEX_TAG.fullmatch(identifier):
        tag = int(identifier, 16)
    return tag


def vr_of(tag: int) -> str:
    """The VR of a tag, always a single one; 'UN' if unknown, LO for private creators, UL for group lengths."""
    vr = VR_BY_TAG.get(tag)
    if vr is not None:
        return vr
    element = tag & 0xFFFF
    if element == 0:
        return "UL"
    if (tag >> 16) & 1:
        return "LO" if 0x10 <= element <= 0xFF else "UN"
    repeater = _repeater(tag)
    return repeater[2] if repeater else "UN"


def keyword_of(tag: int) -> str:
    """The keyword of a tag in PS3.6; '' if it has none."""
    keyword = _KEYWORD_BY_TAG.get(tag)
    if keyword is not None:
        return keyword
    repeater = _repeater(tag)
    return repeater[3] if repeater else ""


def attribute_names() -> dict[str, str]:
    """The name of each attribute of PS3.6 by its JSON key, e.g. {"00100010": "Patient's Name"}."""
    return {f"{tag:08X}": entry[2] for tag, entry in _DICTIONARY.DicomDictionary.items() if entry[2]}


def is_multi_valued(tag: int) -> bool:
    """Whether PS3.6 lets the attribute have more than one value."""
    return tag in _MULTIPLE


def json_key(tag: int) -> str:
    """The key of a tag in the DICOM JSON Model: 8 upper-case hexadecimal digits (PS3.18 F.2.2)."""
    return f"{tag:08X}"


def is_uid(text: str) -> bool:
    """Whether the text can be a UID: 1 to 64 digits and single dots. Leading zeros pass: real files have them."""
    return _UID.fullmatch(text) is not None


# ---------------------------------------------------------------------------------------------------------------------
# Levels (PS3.3). Attributes outside these tables belong to the instance.

_STUDY_KEYWORDS = """
    StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence ModalitiesInStudy SOPClassesInStudy
    AnatomicRegionsInStudyCodeSequence ReferringPhysicianName ReferringPhysicianAddress
    ReferringPhysicianTelephoneNumbers ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    ConsultingPhysicianIdentificationSequence StudyDescription ProcedureCodeSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence
    ReferencedStudySequence ReferencedPatientSequence StudyInstanceUID StudyID OtherStudyNumbers
    NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries NumberOfPatientRelatedInstances
    NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances ReasonForPerformedProcedureCodeSequence
    RequestedProcedureID
"""
_SERIES_KEYWORDS = """
    Modality ModalitiesInSeries SeriesInstanceUID SeriesNumber Laterality SeriesDate SeriesTime
    PerformingPhysicianName PerformingPhysicianIdentificationSequence ProtocolName SeriesDescription
    SeriesDescriptionCodeSequence OperatorsName OperatorIdentificationSequence
    ReferencedPerformedProcedureStepSequence RelatedSeriesSequence BodyPartExamined PatientPosition
    SmallestPixelValueInSeries LargestPixelValueInSeries RequestAttributesSequence PerformedStationAETitle
    PerformedStationName PerformedLocation PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedProcedureStepEndDate PerformedProcedureStepEndTime PerformedProcedureStepStatus
    PerformedProcedureStepID PerformedProcedureStepDescription PerformedProcedureTypeDescription
    PerformedProtocolCodeSequence CommentsOnThePerformedProcedureStep AnatomicalOrientationType
    NumberOfSeriesRelatedInstances PresentationIntentType TreatmentSessionUID
    Manufacturer InstitutionName InstitutionAddress InstitutionCodeSequence StationName InstitutionalDepartmentName
    InstitutionalDepartmentTypeCodeSequence ManufacturerModelName ManufacturerDeviceClassUID DeviceSerialNumber
    DeviceUID DeviceID GantryID UDISequence SoftwareVersions SpatialResolution DateOfLastCalibration
    TimeOfLastCalibration DateTimeOfLastCalibration DateOfManufacture DateOfInstallation
    FrameOfReferenceUID PositionReferenceIndicator SynchronizationFrameOfReferenceUID
    ClinicalTrialCoordinatingCenterName ClinicalTrialSeriesID ClinicalTrialSeriesDescription
    IssuerOfClinicalTrialSeriesID SeriesType Units CountsSource ReprojectionMethod
"""


def _level_table() -> dict[int, Level]:
    table: dict[int, Level] = {}
    for keywords, level in ((_STUDY_KEYWORDS, Level.STUDY), (_SERIES_KEYWORDS, Level.SERIES)):
        for keyword in keywords.split():
            tag = _TAG_BY_KEYWORD.get(keyword)
            if tag is not None:  # a keyword newer than the installed dictionary
                table[tag] = level
    return table


_LEVELS: Final = _level_table()
# Patient, Patient Study; Clinical Trial Subject and Study; Requesting; Visit (PS3.3 C.7.1, C.7.2, C.3, C.4).
_STUDY_GROUPS: Final = frozenset({0x0010, 0x0012, 0x0032, 0x0038})

#: Attributes of the SOP Common Module that are answered at every level (PS3.18 Tables 10.6.3-3 to -5).
EVERY_LEVEL: Final = frozenset({0x00080005, 0x00080201})


def level_of(tag: int) -> Level | None:
    """The level an attribute belongs to; None for what is in no stored data set (groups 0000 to 0006, delimiters).

    `EVERY_LEVEL` names the two exceptions that are kept at each level; here they count as INSTANCE.
    """
    level = _LEVELS.get(tag)
    if level is not None:
        return level
    group = tag >> 16
    if group in _STUDY_GROUPS:
        return Level.STUDY
    if group < 0x0008 or group == 0xFFFE:
        return None
    return Level.INSTANCE


# ---------------------------------------------------------------------------------------------------------------------
# The attributes that the index keeps in columns


@dataclass(frozen=True, slots=True)
class IndexedAttribute:
    """One attribute that QIDO-RS knows by name (PS3.18 10.6.1.2, 10.6.3.3, Tables 10.6.1-5 and 10.6.3-3 to -5).

    `column` is its column in the table of its level, None when it is answered otherwise; `matching`: a required
    matching key; `returned`: in every result of its level; `conditional`: in a result only when it has been stored.
    """

    tag: int
    level: Level
    column: str | None = None
    matching: bool = False
    returned: bool = False
    conditional: bool = False

    @property
    def keyword(self) -> str:
        return keyword_of(self.tag)

    @property
    def vr(self) -> str:
        return vr_of(self.tag)


INDEXED_ATTRIBUTES: Final[tuple[IndexedAttribute, ...]] = (
    IndexedAttribute(0x00080005, Level.STUDY, returned=True, conditional=True),
    IndexedAttribute(0x00080020, Level.STUDY, "study_datetime", matching=True, returned=True),
    IndexedAttribute(0x00080030, Level.STUDY, "study_time", matching=True, returned=True),
    IndexedAttribute(0x00080050, Level.STUDY, "accession_number", matching=True, returned=True),
    IndexedAttribute(0x00080056, Level.STUDY, returned=True),
    IndexedAttribute(0x00080061, Level.STUDY, "modalities", matching=True, returned=True, conditional=True),
    IndexedAttribute(0x00080090, Level.STUDY, "referring_physician_name", matching=True, returned=True),
    IndexedAttribute(0x00080201, Level.STUDY, returned=True, conditional=True),
    IndexedAttribute(0x00081030, Level.STUDY, "study_description"),
    IndexedAttribute(0x00100010, Level.STUDY, "patient_name", matching=True, returned=True),
    IndexedAttribute(0x00100020, Level.STUDY, "patient_id", matching=True, returned=True),
    IndexedAttribute(0x00100021, Level.STUDY, "issuer_of_patient_id"),
    IndexedAttribute(0x00100030, Level.STUDY, "patient_birth_date", returned=True),
    IndexedAttribute(0x00100040, Level.STUDY, "patient_sex", returned=True),
    IndexedAttribute(0x0020000D, Level.STUDY, "uid", matching=True, returned=True),
    IndexedAttribute(0x00200010, Level.STUDY, "study_id", matching=True, returned=True),
    IndexedAttribute(0x00201206, Level.STUDY, "number_of_series", returned=True),
    IndexedAttribute(0x00201208, Level.STUDY, "number_of_instances", returned=True),
    IndexedAttribute(0x00080005, Level.SERIES, returned=True, conditional=True),
    IndexedAttribute(0x00080060, Level.SERIES, "modality", matching=True, returned=True),
    IndexedAttribute(0x00080201, Level.SERIES, returned=True, conditional=True),
    IndexedAttribute(0x0008103E, Level.SERIES, returned=True, conditional=True),
    IndexedAttribute(0x0020000E, Level.SERIES, "uid", matching=True, returned=True),
    IndexedAttribute(0x00200011, Level.SERIES, "number", matching=True, returned=True),
    IndexedAttribute(0x00201209, Level.SERIES, "number_of_instances", returned=True),
    IndexedAttribute(0x00400244, Level.SERIES, "performed_start", matching=True, returned=True, conditional=True),
    IndexedAttribute(0x00400245, Level.SERIES, None, matching=True, returned=True, conditional=True),
    IndexedAttribute(0x00400275, Level.SERIES, None, matching=True, returned=True, conditional=True),
    IndexedAttribute(0x00080005, Level.INSTANCE, returned=True, conditional=True),
    IndexedAttribute(0x00080016, Level.INSTANCE, "sop_class_uid", matching=True, returned=True),
    IndexedAttribute(0x00080018, Level.INSTANCE, "uid", matching=True, returned=True),
    IndexedAttribute(0x00080056, Level.INSTANCE, returned=True),
    IndexedAttribute(0x00080201, Level.INSTANCE, returned=True, conditional=True),
    IndexedAttribute(0x00200013, Level.INSTANCE, "number", matching=True, returned=True),
    IndexedAttribute(0x00280008, Level.INSTANCE, "number_of_frames", returned=True, conditional=True),
    IndexedAttribute(0x00280010, Level.INSTANCE, None, returned=True, conditional=True),
    IndexedAttribute(0x00280011, Level.INSTANCE, None, returned=True, conditional=True),
    IndexedAttribute(0x00280100, Level.INSTANCE, None, returned=True, conditional=True),
)

#: (sequence, attribute) pairs inside RequestAttributesSequence that are required matching keys (PS3.18 Table 10.6.1-5).
REQUEST_ATTRIBUTES: Final = ((0x00400275, 0x00400009), (0x00400275, 0x00401001))
