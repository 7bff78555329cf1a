"""application/zip: what is in it, its names, and a DICOMDIR that readers accept."""

from __future__ import annotations

import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pydicom
import pytest
from flask.testing import FlaskClient
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import EncapsulatedPDFStorage, RLELossless

from tests.data import make_dataset, make_file, sample_files
from tests.web.test_wado_rs import encoded, make_large, store

ZIP = {"Accept": "application/zip"}


@pytest.fixture
def study(client: FlaskClient) -> tuple[str, dict[str, bytes]]:
    """A study of three images and a document in two series: its URL and the files by SOP Instance UID."""
    image = make_large(PatientName="Müller^Jörg=山田^太郎")
    uid, series = image.StudyInstanceUID, image.SeriesInstanceUID
    same = {"StudyInstanceUID": uid, "SeriesInstanceUID": series, "PatientName": image.PatientName}
    pdf = make_dataset(
        PixelData=None,
        Rows=None,
        Columns=None,
        SOPClassUID=EncapsulatedPDFStorage,
        SeriesNumber=2,
        StudyInstanceUID=uid,
    )
    pdf.PatientName = image.PatientName
    pdf.EncapsulatedDocument = b"%PDF"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "18748-4", "LN", "Befund für Ärzte"
    pdf.ConceptNameCodeSequence = [title]
    datasets = [image, make_large(**same, InstanceNumber=2), make_large(**same, InstanceNumber=3), pdf]
    files = [make_file(datasets[0]), encoded(datasets[1], RLELossless), make_file(datasets[2]), make_file(pdf)]
    url = store(client, *files)[0].partition("/series/")[0]
    return url, {ds.SOPInstanceUID: file for ds, file in zip(datasets, files, strict=True)}


def unpacked(body: bytes, folder: Path) -> list[str]:
    with ZipFile(BytesIO(body)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
        return archive.namelist()


def test_a_study_as_zip_has_every_instance_under_a_plain_name(
    client: FlaskClient, study: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    url, files = study
    answer = client.get(url, headers={"Accept": "application/zip; transfer-syntax=*"})
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="dicom.zip"'
    names = unpacked(answer.data, tmp_path)
    folder = "DICOM/S00000"
    assert names == [f"{folder}1/I000001", f"{folder}1/I000002", f"{folder}1/I000003", f"{folder}2/I000001"]
    assert all(re.fullmatch("[A-Z0-9_]{1,8}", part) for name in names for part in name.split("/"))  # PS3.10 8.5
    assert [(tmp_path / name).read_bytes() for name in names] == list(files.values())


def test_a_zip_is_uncompressed_dicom_unless_another_syntax_is_asked_for(
    client: FlaskClient, study: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    url, _ = study
    for number, (accept, syntaxes, count, status) in enumerate(
        [
            (ZIP["Accept"], {"1.2.840.10008.1.2.1"}, 4, 200),
            ("application/zip; transfer-syntax=1.2.840.10008.1.2.4.80", {"1.2.840.10008.1.2.4.80"}, 3, 206),
        ]
    ):
        answer = client.get(url, headers={"Accept": accept})
        assert answer.status_code == status
        names = unpacked(answer.data, tmp_path / str(number))
        files = [pydicom.dcmread(tmp_path / str(number) / name) for name in names]
        assert {file.file_meta.TransferSyntaxUID for file in files} == syntaxes
        assert len(files) == count
        assert np.array_equal(files[1].pixel_array, np.arange(4096).reshape(64, 64))


@pytest.mark.parametrize("accept", ["application/zip", "application/zip; transfer-syntax=*"])
def test_the_dicomdir_leads_to_every_file(
    client: FlaskClient, study: tuple[str, dict[str, bytes]], tmp_path: Path, accept: str
) -> None:
    url, files = study
    names = unpacked(client.get(f"{url}?dicomdir=yes", headers={"Accept": accept}).data, tmp_path)
    assert names[-1] == "DICOMDIR"
    directory = FileSet(tmp_path / "DICOMDIR")
    assert {instance.SOPInstanceUID for instance in directory} == set(files)
    for instance in directory:
        loaded = instance.load()
        assert loaded.SOPInstanceUID == instance.SOPInstanceUID
        assert loaded.file_meta.TransferSyntaxUID == instance.ReferencedTransferSyntaxUIDInFile
    records = pydicom.dcmread(tmp_path / "DICOMDIR").DirectoryRecordSequence
    kinds = [record.DirectoryRecordType for record in records]
    assert kinds == ["PATIENT", "STUDY", "SERIES", "IMAGE", "IMAGE", "IMAGE", "SERIES", "ENCAP DOC"]
    assert records[0].PatientName == "Müller^Jörg=山田^太郎"
    assert records[-1].ConceptNameCodeSequence[0].CodeMeaning == "Befund für Ärzte"
    for record in records:
        tags = [element.tag for element in record]
        assert tags == sorted(tags)


def test_a_lossy_instance_is_listed_under_its_new_uid(client: FlaskClient, tmp_path: Path) -> None:
    pixels = np.arange(4096, dtype="u1").tobytes()
    dataset = make_dataset(Rows=64, Columns=64, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels)
    (url,) = store(client, make_file(dataset))
    accept = {"Accept": "application/zip; transfer-syntax=1.2.840.10008.1.2.4.50"}
    unpacked(client.get(f"{url}?dicomdir=yes", headers=accept).data, tmp_path)
    (instance,) = FileSet(tmp_path / "DICOMDIR")
    assert instance.load().SOPInstanceUID == instance.SOPInstanceUID != dataset.SOPInstanceUID


def test_the_parameter_is_yes_or_no(client: FlaskClient, study: tuple[str, dict[str, bytes]]) -> None:
    assert client.get(f"{study[0]}?dicomdir=perhaps", headers=ZIP).status_code == 400
    assert client.get(f"{study[0]}?dicomdir=no&accept=application/zip").status_code == 200


def test_head_of_a_zip_has_no_body(client: FlaskClient, study: tuple[str, dict[str, bytes]]) -> None:
    answer = client.head(study[0], headers=ZIP)
    assert (answer.status_code, answer.data, answer.headers["Content-Type"]) == (200, b"", "application/zip")


@pytest.mark.skipif(not sample_files(), reason="the samples are not here")
def test_a_dicomdir_of_real_files_is_read_by_pydicom_and_dcmtk(client: FlaskClient, tmp_path: Path) -> None:
    from dicomcloud.dicom.dicomdir import FileReference, dicomdir

    listed = []
    for path in sample_files():
        answer = client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
        if answer.status_code == 200:
            url = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0]
            attributes = client.get(f"{url}/metadata").json[0]
            reference = FileReference(("DICOM", f"I{len(listed):06}"), "1.2.840.10008.1.2.1", url.rpartition("/")[2])
            listed.append((attributes, reference))
    target = tmp_path / "DICOMDIR"
    target.write_bytes(dicomdir(listed))
    (tmp_path / "DICOM").mkdir()
    for _, reference in listed:
        tmp_path.joinpath(*reference.name).touch()  # pydicom leaves out what is not there
    assert len(FileSet(target)) == len({reference.sop_instance_uid for _, reference in listed})
    if shutil.which("dcmdump"):
        dump = subprocess.run(["dcmdump", str(target)], capture_output=True, text=True, errors="replace", check=False)
        assert (dump.returncode, dump.stderr) == (0, "")
