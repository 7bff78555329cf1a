"""Test data: instances made in code, the files inside pydicom, and the samples where they lie beside the project."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SAMPLES = Path(__file__).resolve().parent.parent.parent / "shared" / "samples"


@cache
def sample_files() -> list[Path]:
    """Every file of ../shared/samples; none where that folder is missing."""
    return sorted(
        path for path in SAMPLES.rglob("*") if path.is_file() and path.name not in ("README.md", "inventory.csv")
    )


@cache
def pydicom_files() -> list[Path]:
    """The DICOM files that come with pydicom itself (its other test data would have to be fetched)."""
    return sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


def make_dataset(**attributes: Any) -> Dataset:
    """A small CT image, 16 × 16 × 16 bit, with its own UIDs; keywords override or (None) remove attributes."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.StudyDate = "20250102"
    dataset.StudyTime = "101500"
    dataset.AccessionNumber = "A1"
    dataset.Modality = "CT"
    dataset.StudyDescription = "Thorax"
    dataset.SeriesDescription = "Axial"
    dataset.ReferringPhysicianName = "Refer^Rita"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "P1"
    dataset.PatientBirthDate = "19700131"
    dataset.PatientSex = "F"
    dataset.StudyID = "S1"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.Rows = 16
    dataset.Columns = 16
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.arange(256, dtype="<u2").tobytes()
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def make_file(dataset: Dataset | None = None, **attributes: Any) -> bytes:
    """The bytes of a PS3.10 file in Explicit VR Little Endian."""
    dataset = dataset or make_dataset(**attributes)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return target.getvalue()


def data_set_bytes(file: bytes) -> bytes:
    """What follows the File Meta Information of a PS3.10 file."""
    assert file[128:132] == b"DICM"
    length = int.from_bytes(file[140:144], "little")
    return file[144 + length :]
