"""Every sample through a running server with dicomweb-client: stored, found, fetched bit for bit, deleted."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.filebase import DicomBytesIO

from tests.conformance.values import differences
from tests.data import data_set_bytes, pydicom_files, sample_files

EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
FILES = sample_files() or pydicom_files()
HTTP = requests.Session()


def post(root: str, file: bytes) -> requests.Response:
    return HTTP.post(f"{root}/studies", data=file, headers={"Content-Type": "application/dicom"}, timeout=60)


def identity(file: bytes) -> tuple[str, str, str] | None:
    """The UIDs that pydicom reads, None where they cannot be read or are no UIDs."""
    try:
        dataset = pydicom.dcmread(BytesIO(file), force=True, stop_before_pixels=True)
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    except Exception:
        return None
    return uids if all(uid and set(uid) <= set("0123456789.") for uid in uids) else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_sample_is_stored_found_fetched_and_deleted_or_refused_with_a_reason(server: Any, path: Path) -> None:
    file = path.read_bytes()
    answer = post(server.root, file)
    if answer.status_code not in (200, 202):
        assert answer.status_code == 409, answer.text
        faults = answer.json().get("00081198", answer.json().get("0008119A"))["Value"]
        assert faults[0]["00081197"]["Value"][0] in (0x0110, 0xA900, 0xC000)
        assert answer.headers["Warning"]
        damaged = "malformed" in path.parts or "truncated" in path.stem
        assert damaged or identity(file) is None, answer.headers["Warning"]
        return
    uids = identity(file)
    assert uids is not None
    study, series, instance = uids
    resource = f"{server.root}/studies/{study}/series/{series}/instances/{instance}"
    try:
        check_found(server.root, study, series, instance)
        check_fetched(resource, file)
        check_metadata(resource, file)
        check_client(server.root, uids, file)
    finally:
        assert HTTP.delete(f"{server.root}/studies/{study}", timeout=60).status_code == 204
    assert HTTP.get(resource, timeout=60).status_code == 410
    assert HTTP.get(f"{server.root}/instances", params={"SOPInstanceUID": instance}, timeout=60).json() == []


def check_found(root: str, study: str, series: str, instance: str) -> None:
    client = DICOMwebClient(root)
    for found in (
        client.search_for_studies(search_filters={"StudyInstanceUID": study}),
        client.search_for_series(study, search_filters={"SeriesInstanceUID": series}),
        client.search_for_instances(study, series, search_filters={"SOPInstanceUID": instance}),
        client.search_for_instances(search_filters={"SOPInstanceUID": instance}, fields=["all"]),
    ):
        assert len(found) == 1
        assert found[0]["0020000D"]["Value"] == [study]


def check_fetched(resource: str, file: bytes) -> None:
    answer = HTTP.get(resource, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=60)
    assert answer.status_code == 200, answer.text
    stored = answer.content
    syntax = answer.headers["Content-Type"].partition("transfer-syntax=")[2]
    assert stored[128:132] == b"DICM"
    assert syntax not in (IMPLICIT, BIG_ENDIAN)
    assert pydicom.dcmread(BytesIO(stored)).file_meta.TransferSyntaxUID == syntax
    sent = pydicom.dcmread(BytesIO(file), force=True)
    if sent.file_meta.get("TransferSyntaxUID") == syntax:
        assert file.endswith(data_set_bytes(stored))
    else:  # converted from Implicit VR or Big Endian, or sent without File Meta Information
        received = pydicom.dcmread(BytesIO(stored))
        pixels = {"PixelData"} & set(sent.dir())
        for name in pixels:
            assert len(received[name].value) == len(sent[name].value)
        if not sent.is_implicit_VR or not sent.is_little_endian:
            assert [str(e.tag) for e in received] == [str(e.tag) for e in sent if e.tag.element]


def check_client(root: str, uids: tuple[str, str, str], file: bytes) -> None:
    """dicomweb-client gets the instance, its series, its study, its metadata and its first frame."""
    client, sent = DICOMwebClient(root), pydicom.dcmread(BytesIO(file), force=True)
    as_stored = (("application/dicom", "*"),)
    instance = client.retrieve_instance(*uids, media_types=as_stored)
    (of_series,) = client.retrieve_series(*uids[:2], media_types=as_stored)
    (of_study,) = client.iter_study(uids[0], media_types=as_stored)
    for received in (instance, of_series, of_study):
        assert [str(element.tag) for element in received if element.tag.element] == [
            str(element.tag) for element in sent if element.tag.element
        ]
    (metadata,) = client.retrieve_study_metadata(uids[0])
    assert metadata["00080018"]["Value"] == [uids[2]]
    stored = client.retrieve_instance(*uids, media_types=as_stored)
    if "PixelData" in stored and stored.file_meta.TransferSyntaxUID == EXPLICIT:
        length = frame_length(stored)
        if length:
            (frame,) = client.retrieve_instance_frames(*uids, frame_numbers=[1])
            assert frame == stored.PixelData[:length]


def frame_length(dataset: pydicom.Dataset) -> int:
    """Bytes of a native frame; 0 where the attributes do not tell, or it does not end with a byte."""
    bits = 1
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"):
        bits *= dataset.get(keyword) or 0
    return bits // 8 if bits % 8 == 0 and len(dataset.PixelData) >= bits // 8 else 0


def fetch_octets(uri: str) -> bytes:
    answer = HTTP.get(uri, headers={"Accept": "application/octet-stream"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def check_metadata(resource: str, file: bytes) -> None:
    """Every attribute that pydicom reads, with its values, no other, in order; and every bulk value can be had."""
    (metadata,) = HTTP.get(f"{resource}/metadata", timeout=60).json()
    dataset = pydicom.dcmread(BytesIO(file), force=True)
    expected = {f"{int(tag):08X}" for tag in dataset.keys() if int(tag) & 0xFFFF}  # noqa: SIM118
    assert set(metadata) - {"00080016"} == expected - {"00080016"}
    assert list(metadata) == sorted(metadata)
    assert differences(metadata, dataset, fetch_octets) == []
    for attribute in metadata.values():
        if uri := attribute.get("BulkDataURI"):
            assert uri.startswith(f"{resource}/bulkdata/")
            assert HTTP.get(uri, timeout=60).status_code == 200


def test_dicomweb_client_stores_and_retrieves_a_study(server: Any) -> None:
    client = DICOMwebClient(server.root)
    paths = [path for path in pydicom_files() if "CT_small" in path.name or "MR_small.dcm" in path.name]
    datasets = [pydicom.dcmread(path) for path in paths]
    answer = client.store_instances(datasets)
    assert len(answer.ReferencedSOPSequence) == len(datasets) == 2
    for dataset in datasets:
        study, series, instance = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
        assert client.retrieve_instance(study, series, instance) == dataset
        assert client.retrieve_series(study, series) == [dataset]
        assert list(client.iter_study(study)) == [dataset]
        (frame,) = client.retrieve_instance_frames(study, series, instance, [1])
        assert frame == dataset.PixelData
        metadata = client.retrieve_instance_metadata(study, series, instance)
        assert metadata["00100010"]["Value"][0]["Alphabetic"] == str(dataset.PatientName)
        (pixels,) = client.retrieve_bulkdata(metadata["7FE00010"]["BulkDataURI"])
        assert pixels == dataset.PixelData
        client.delete_study(study)


def test_a_data_set_that_was_not_read_from_a_file_is_stored(server: Any) -> None:
    from tests.data import make_dataset

    dataset = make_dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    client = DICOMwebClient(server.root)
    client.store_instances([dataset])
    fetched = client.retrieve_instance(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    assert fetched == dataset
    without = DicomBytesIO()
    pydicom.dcmwrite(without, make_dataset(), implicit_vr=False, little_endian=True)
    assert post(server.root, without.getvalue()).status_code == 200
