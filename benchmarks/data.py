"""The fixed set of data, made in code: the same bytes on every run (the seeds are fixed)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
)

ROWS = COLUMNS = 512
SLICES = 300
STUDIES = 2_000
MULTI_FRAMES = 120
RADIOGRAPH_ROWS, RADIOGRAPH_COLUMNS = 3056, 2464  # 7.5 megapixels
J2K_SLICES = 100

_FAMILY = (
    "Abendroth", "Becker", "Castellano", "Dubois", "Eriksson", "Ferreira", "Gallagher", "Hashimoto",
    "Ivanova", "Jankowski", "Kowalczyk", "Lindqvist", "Matsumoto", "Nakagawa", "Oyelaran", "Petrescu",
    "Quintero", "Rasmussen", "Szymanski", "Takahashi", "Underwood", "Vandermeer", "Wojciechowska", "Yamamoto",
    "Zimmermann"
)  # fmt: skip
_GIVEN = (
    "Ada", "Bruno", "Clara", "Dmitri", "Elena", "Femi", "Greta", "Hiro", "Ines", "Jonas", "Keiko", "Luis",
    "Maren", "Noor", "Otto", "Priya"
)  # fmt: skip
_MODALITIES = ("CT", "MR", "CR", "US", "DX", "MG", "XA", "NM")


def uid(name: str) -> str:
    """A UID of 42 characters, the same for the same name. All are as long, so that one can be written over another."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    return f"2.25.{number % (9 * 10**36) + 10**36}"


@dataclass(frozen=True, slots=True)
class Instance:
    """A file as it is stored, and the ids under which it is found."""

    study_uid: str
    series_uid: str
    sop_uid: str
    file: bytes

    def path(self, level: str = "instance") -> str:
        """The resource below the DICOMweb root."""
        study = f"/studies/{self.study_uid}"
        if level == "study":
            return study
        series = f"{study}/series/{self.series_uid}"
        return series if level == "series" else f"{series}/instances/{self.sop_uid}"

    def renamed(self, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
        """The same object under other UIDs."""
        file = self.file
        for old, new in ((self.study_uid, study_uid), (self.series_uid, series_uid), (self.sop_uid, sop_uid)):
            file = file.replace(old.encode(), new.encode())
        return Instance(study_uid, series_uid, sop_uid, file)


@dataclass(frozen=True, slots=True)
class Study:
    """What a search for one of the small studies has to find."""

    uid: str
    patient_id: str
    patient_name: str
    date: str
    modality: str
    accession_number: str


def _file(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(uid("benchmark implementation"))
    meta.ImplementationVersionName = "BENCHMARK"
    dataset.file_meta = meta
    target = BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return target.getvalue()


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    return item


def ct_pixels(number: int) -> NDArray[np.uint16]:
    """One axial slice, 512 × 512, 12 bits in 16: table, body, lungs, spine, and noise as a scanner makes it."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j].astype(np.float32)
    image = np.full((ROWS, COLUMNS), 24.0, np.float32)  # air, stored value = HU + 1024
    body = (x / 0.78) ** 2 + (y / 0.56) ** 2 < 1
    image[body] = 1064
    size = 0.30 + 0.05 * np.sin(number / 40)
    for side in (-0.36, 0.36):
        image[((x - side) / 0.24) ** 2 + ((y + 0.05) / size) ** 2 < 1] = 180
    image[((x - 0.06) / 0.14) ** 2 + ((y + 0.02) / 0.12) ** 2 < 1] = 1070
    image[(x / 0.08) ** 2 + ((y - 0.34) / 0.08) ** 2 < 1] = 1700
    image[np.abs(y - 0.72) < 0.02] = 400
    image += random.standard_normal((ROWS, COLUMNS), dtype=np.float32) * (8 + 10 * body)
    return np.clip(np.rint(image), 0, 4095).astype("<u2")


def _ct_dataset(study: str, number: int) -> Dataset:
    """A slice with about 150 elements, sequences and private ones counted, as scanners of today send."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    ds.InstanceCreationDate, ds.InstanceCreationTime = "20240311", f"1012{number % 60:02d}.{number:06d}"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid(f"{study} instance {number}")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20240311"
    ds.StudyTime, ds.SeriesTime = "100930.125000", "101145.437000"
    ds.AcquisitionTime, ds.ContentTime = f"1011{number % 60:02d}.015000", f"1012{number % 60:02d}.437000"
    ds.AcquisitionDateTime = f"202403111011{number % 60:02d}.015000"
    ds.AccessionNumber, ds.Modality = "A20240311", "CT"
    ds.Manufacturer, ds.InstitutionName = "Example Scanners", "Sankt-Jürgen-Klinik"
    ds.InstitutionAddress = "Hauptstraße 1\r\n12345 Musterstadt"
    ds.ReferringPhysicianName, ds.StationName = "Überall^Jörg^^Dr.", "CT54321"
    ds.StudyDescription, ds.SeriesDescription = "Thorax mit KM (Erwachsener)", "Thorax  1.0  B70f  Lunge"
    ds.ProcedureCodeSequence = Sequence([_code("CTTHX", "99LOCAL", "CT Thorax")])
    ds.InstitutionalDepartmentName = "Radiologie"
    ds.PerformingPhysicianName, ds.OperatorsName = "Arzt^Anna", "Technik^Timo"
    ds.ManufacturerModelName = "Sensation 64"
    ds.ReferencedStudySequence = Sequence([_reference("1.2.840.10008.3.1.2.3.1", uid(f"{study} referenced"))])
    ds.ReferencedImageSequence = Sequence(
        [_reference(CTImageStorage, uid(f"{study} localizer {side}")) for side in ("a", "b")]
    )
    ds.IrradiationEventUID = uid(f"{study} irradiation")
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Musterfrau^Ännchen", "CT-300", "KIS"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19580229", "F", "066Y"
    ds.PatientSize, ds.PatientWeight, ds.PregnancyStatus = "1.68", "71.5", 4
    ds.PatientComments = "Kontrolle nach Therapie"
    ds.BodyPartExamined, ds.ScanOptions = "CHEST", "SPIRAL MODE"
    ds.SliceThickness, ds.KVP, ds.DataCollectionDiameter = "1.0", "120", "500"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "54321", ["syngo CT 2007A", "patch 3"]
    ds.ProtocolName, ds.ReconstructionDiameter = "ThorRoutine", "340"
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = "1040", "570"
    ds.GantryDetectorTilt, ds.TableHeight, ds.RotationDirection = "0", "154", "CW"
    ds.ExposureTime, ds.XRayTubeCurrent, ds.Exposure, ds.FilterType = 500, 171, 95, "WEDGE_3"
    ds.GeneratorPower, ds.FocalSpots = 60, "1.2"
    ds.DateOfLastCalibration, ds.TimeOfLastCalibration = "20240311", "070211.000000"
    ds.ConvolutionKernel, ds.PatientPosition = "B70f", "HFS"
    ds.ExposureModulationType, ds.EstimatedDoseSaving = "Z_EC", 31.25
    ds.SingleCollimationWidth, ds.TotalCollimationWidth = 0.6, 19.2
    ds.TableSpeed, ds.TableFeedPerRotation, ds.SpiralPitchFactor = 46.0, 23.0, 1.2
    ds.CTDIvol = 6.41
    ds.CTDIPhantomTypeCodeSequence = Sequence([_code("113691", "DCM", "IEC Body Dosimetry Phantom")])
    block = ds.private_block(0x0019, "EXAMPLE SCANNERS CT VA0 COAD", create=True)
    for offset in range(0x10):
        block.add_new(0x80 + offset, "DS", f"{offset * 1.25 + number:.4f}")
    block.add_new(0xA0, "OB", bytes((number + k) % 256 for k in range(64)))
    block.add_new(0xB0, "FD", [0.5 * number, 1.5, 2.5])
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, uid(f"{study} series")
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", 3, 2
    ds.InstanceNumber = number
    ds.ImagePositionPatient = ["-170.166", "-322.166", f"{-48.5 - number:.1f}"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(f"{study} frame of reference"), "SN"
    ds.SliceLocation, ds.ImageComments = f"{-48.5 - number:.1f}", "mit Kontrastmittel, venöse Phase"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns, ds.PixelSpacing = ROWS, COLUMNS, ["0.6640625", "0.6640625"]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 0, 4095
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.WindowCenter, ds.WindowWidth = ["-600", "40"], ["1200", "400"]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.WindowCenterWidthExplanation = ["LUNGE", "WEICHTEIL"]
    ds.RequestingPhysician, ds.RequestedProcedureDescription = "Überall^Jörg", "CT Thorax"
    ds.PerformedProcedureStepStartDate, ds.PerformedProcedureStepStartTime = "20240311", "100930.125000"
    ds.PerformedProcedureStepID, ds.PerformedProcedureStepDescription = "P4711", "Thorax Routine"
    request = Dataset()
    request.ScheduledProcedureStepDescription, request.ScheduledProcedureStepID = "CT Thorax", "S4711"
    request.RequestedProcedureID = "R4711"
    request.ScheduledProtocolCodeSequence = Sequence([_code("CTTHX", "99LOCAL", "CT Thorax")])
    ds.RequestAttributesSequence = Sequence([request])
    block = ds.private_block(0x0029, "EXAMPLE SCANNERS CSA HEADER", create=True)
    block.add_new(0x08, "CS", "SOM 5")
    block.add_new(0x09, "LO", "VA10A 971201")
    block.add_new(0x10, "OB", bytes(k * 7 % 256 for k in range(512)))
    block.add_new(0x31, "LO", "Release 5")
    history = Dataset()
    history.add_new(0x00290010, "LO", "EXAMPLE SCANNERS CSA HEADER")
    history.add_new(0x00291041, "IS", str(number))
    block.add_new(0x40, "SQ", Sequence([history]))
    return ds


def _large_study(name: str, patient_id: str, accession_number: str) -> Study:
    return Study(uid(name), patient_id, "Musterfrau^Ännchen", "20240311", "CT", accession_number)


def elements(dataset: Dataset) -> int:
    """Elements of a data set, those in items of sequences counted."""
    return sum(1 for _ in dataset.iterall())


class Data:
    """Everything that is stored, made when it is first asked for.

    `run` makes the series and instances that the store operations send differ between runs, so that a peer which
    keeps its data is not sent the same instance twice.
    """

    def __init__(self, run: str = "", *, slices: int = SLICES, studies: int = STUDIES) -> None:
        self.run, self.number_of_slices, self.number_of_studies = run, slices, studies
        self._sent = 0

    @cached_property
    def slices(self) -> tuple[Instance, ...]:
        """One study, one series of CT slices, in the order of Instance Number."""
        study = uid("large CT study")
        made = []
        for number in range(1, self.number_of_slices + 1):
            ds = _ct_dataset(study, number)
            ds.PixelData = ct_pixels(number).tobytes()
            ds["PixelData"].VR = "OW"
            made.append(Instance(study, ds.SeriesInstanceUID, ds.SOPInstanceUID, _file(ds)))
        return tuple(made)

    @cached_property
    def slice_elements(self) -> int:
        return elements(_ct_dataset(uid("any"), 1)) + 1

    @cached_property
    def slice_metadata(self) -> dict[str, dict[str, Any]]:
        """DICOM JSON of each slice by SOP Instance UID, without its pixel data, as pydicom reads the file."""
        files = (dcmread(BytesIO(slice_.file), stop_before_pixels=True) for slice_ in self.slices)
        return {ds.SOPInstanceUID: ds.to_json_dict(bulk_data_threshold=1 << 20) for ds in files}

    @cached_property
    def studies(self) -> tuple[Study, ...]:
        random = np.random.default_rng(2000)
        made = []
        for number in range(self.number_of_studies):
            patient = number * 4 // 5  # every fourth patient has two studies
            name = f"{_FAMILY[patient * 7 % 25]}{patient // 80:02d}^{_GIVEN[patient % 16]}"
            day = int(random.integers(0, 5 * 365))
            year, month, date = 2019 + day // 365, day % 365 // 31 + 1, day % 28 + 1
            made.append(
                Study(
                    uid(f"study {number}"),
                    f"P{patient:06d}",
                    name,
                    f"{year}{month:02d}{date:02d}",
                    _MODALITIES[int(random.integers(0, len(_MODALITIES)))],
                    f"ACC{number:07d}",
                )
            )
        return tuple(made)

    @cached_property
    def all_studies(self) -> tuple[Study, ...]:
        """Those that are stored before anything is measured."""
        return (
            *self.studies,
            _large_study("large CT study", "CT-300", "A20240311"),
            _large_study("multi-frame CT study", "multi-frame CT s", "EXTRA"),
            _large_study("J2K CT study", "J2K CT study", "EXTRA"),
            replace(_large_study("radiograph study", "radiograph study", "EXTRA"), modality="DX"),
        )

    @cached_property
    def sent_study(self) -> Study:
        """The one into which the store operations send."""
        return _large_study("sent", "CT-300", "A20240311")

    def small_instances(self) -> Iterator[Instance]:
        """One image of each of the small studies: 64 × 64 pixels under the header of a CT slice."""
        ds = _ct_dataset(uid("any"), 1)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID = SecondaryCaptureImageStorage
        ds.Rows = ds.Columns = 64
        for number, study in enumerate(self.studies):
            ds.SOPInstanceUID = uid(f"{study.uid} instance")
            ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = study.date
            ds.StudyTime = ds.SeriesTime = ds.ContentTime = f"{number % 24:02d}{number % 60:02d}00"
            ds.AccessionNumber, ds.Modality = study.accession_number, study.modality
            ds.ReferringPhysicianName, ds.StudyID = f"{_FAMILY[number % 25]}^Dr", str(number)
            ds.StudyDescription = f"Study {study.modality} {number}"
            ds.PatientName, ds.PatientID = study.patient_name, study.patient_id
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study.uid, uid(f"{study.uid} series")
            ds.FrameOfReferenceUID = uid(f"{study.uid} frame of reference")
            ds.PixelData = bytes((number + k) % 251 for k in range(64)) * 128
            ds["PixelData"].VR = "OW"
            yield Instance(study.uid, ds.SeriesInstanceUID, ds.SOPInstanceUID, _file(ds))

    @cached_property
    def multi_frame(self) -> Instance:
        """An Enhanced CT of 120 native frames of 512 × 512 × 16 (63 MB)."""
        ds = self._derived("multi-frame CT study", EnhancedCTImageStorage)
        ds.NumberOfFrames = MULTI_FRAMES
        first = ct_pixels(1)
        ds.PixelData = b"".join(np.roll(first, number, axis=1).tobytes() for number in range(MULTI_FRAMES))
        ds["PixelData"].VR = "OW"
        return Instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, _file(ds))

    def frame_of_multi_frame(self, number: int) -> bytes:
        """The native frame, 1-based."""
        size = ROWS * COLUMNS * 2
        start = len(self.multi_frame.file) - size * (MULTI_FRAMES - number + 1)
        return self.multi_frame.file[start : start + size]

    @cached_property
    def jpeg_2000(self) -> tuple[Instance, bytes]:
        """A slice compressed losslessly with JPEG 2000, and its code stream."""
        from openjpeg.utils import encode_array

        stream = bytes(encode_array(ct_pixels(1), photometric_interpretation=2, bits_stored=12))
        ds = self._derived("J2K CT study", CTImageStorage)
        ds.PixelData = encapsulate([stream])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        file = _file(ds, JPEG2000Lossless)
        return Instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, file), stream

    @cached_property
    def jpeg_2000_slices(self) -> tuple[Instance, ...]:
        """The same slice under other SOP Instance UIDs, so that each can be asked for once."""
        one, _ = self.jpeg_2000
        uids = (uid(f"J2K instance {number}") for number in range(J2K_SLICES))
        return tuple(one.renamed(one.study_uid, one.series_uid, new) for new in uids)

    @cached_property
    def radiograph(self) -> Instance:
        """A chest radiograph for presentation: 3056 × 2464 pixels of 12 bits in 16 (15 MB)."""
        random = np.random.default_rng(75)
        y, x = np.mgrid[-1 : 1 : RADIOGRAPH_ROWS * 1j, -1 : 1 : RADIOGRAPH_COLUMNS * 1j].astype(np.float32)
        image = 3300 - 2200 * np.exp(-(x**2) * 3 - y**2 * 0.6)
        for side in (-0.42, 0.42):
            image += 1500 * np.exp(-(((x - side) / 0.26) ** 4) - ((y + 0.1) / 0.55) ** 4)
        image -= 180 * (np.sin(y * 34 + np.abs(x) * 9) > 0.7)
        image += random.standard_normal(image.shape, dtype=np.float32) * 12
        ds = self._derived("radiograph study", DigitalXRayImageStorageForPresentation)
        ds.Modality, ds.PresentationIntentType = "DX", "FOR PRESENTATION"
        ds.Rows, ds.Columns = image.shape
        ds.WindowCenter, ds.WindowWidth = "2048", "4096"
        del ds.WindowCenterWidthExplanation
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
        ds.PixelData = np.clip(np.rint(image), 0, 4095).astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        return Instance(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, _file(ds))

    @staticmethod
    def _derived(name: str, sop_class: str) -> Dataset:
        ds = _ct_dataset(uid(name), 1)
        ds.SOPClassUID, ds.PatientID, ds.AccessionNumber = sop_class, name[:16], "EXTRA"
        return ds

    def new_instances(self, count: int, *, same_series: bool = False) -> list[Instance]:
        """CT slices that no server has: `count` of a new series, or of the one that grows with each call."""
        study = self.sent_study.uid
        series = uid(f"sent series {self.run} {'' if same_series else self._sent}")
        made = []
        for _ in range(count):
            slice_ = self.slices[self._sent % len(self.slices)]
            made.append(slice_.renamed(study, series, uid(f"sent {self.run} {self._sent}")))
            self._sent += 1
        return made
