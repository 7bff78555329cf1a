"""The JavaScript dicomweb-client, as viewers use it, driven from Node against a running server."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian

from tests.data import make_dataset, make_file, pydicom_files

HERE = Path(__file__).resolve().parent / "npm"

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def node(installed: Path) -> Call:
    """`node(root, method, **options)`: the outcome of a method of the client, {result | error, status, sent}."""

    def call(root: str, method: str, **options: Any) -> dict[str, Any]:
        done = subprocess.run(
            [str(shutil.which("node")), str(HERE / "call.js"), root, method],
            cwd=installed,
            input=json.dumps(options),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, object_hook=_binary)

    return call


def _binary(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if list(value) == ["base64"] else value


@pytest.fixture(scope="module")
def call(server: Any, node: Call) -> Call:
    """`call(method, **options)`: the result of a method of the client on the server."""

    def result(method: str, **options: Any) -> Any:
        outcome = node(server.root, method, **options)
        assert "error" not in outcome, outcome
        return outcome["result"]

    return result


def bundled(name: str) -> Path:
    return next(path for path in pydicom_files() if path.name == name)


def uids(dataset: pydicom.Dataset) -> dict[str, str]:
    return {
        "studyInstanceUID": dataset.StudyInstanceUID,
        "seriesInstanceUID": dataset.SeriesInstanceUID,
        "sopInstanceUID": dataset.SOPInstanceUID,
    }


@pytest.fixture(scope="module")
def native(server: Any) -> pydicom.Dataset:
    """An uncompressed CT image that the server has."""
    return _stored(server, bundled("CT_small.dcm"))


@pytest.fixture(scope="module")
def compressed(server: Any) -> pydicom.Dataset:
    """JPEG 2000 pixel data that the server has."""
    return _stored(server, bundled("JPEG2000.dcm"))


def _stored(server: Any, path: Path) -> pydicom.Dataset:
    headers = {"Content-Type": "application/dicom"}
    answer = requests.post(f"{server.root}/studies", data=path.read_bytes(), headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return pydicom.dcmread(path)


def test_instances_are_stored_without_an_accept_header(server: Any, node: Call, tmp_path: Path) -> None:
    dataset = make_dataset()
    second = make_dataset(StudyInstanceUID=dataset.StudyInstanceUID, SeriesInstanceUID=dataset.SeriesInstanceUID)
    files = [tmp_path / "1.dcm", tmp_path / "2.dcm"]
    for path, each in zip(files, (dataset, second), strict=True):
        path.write_bytes(make_file(each))
    outcome = node(server.root, "storeInstances", files=[str(path) for path in files])
    assert [{name.lower() for name in headers} & {"accept"} for headers in outcome["sent"]] == [set()]
    module = json.loads(outcome["result"])
    assert [item["00081155"]["Value"][0] for item in module["00081199"]["Value"]] == [
        dataset.SOPInstanceUID,
        second.SOPInstanceUID,
    ]
    found = node(server.root, "retrieveSeries", **uids(dataset))["result"]
    assert sorted(found) == sorted(path.read_bytes() for path in files)


def test_an_instance_of_another_study_is_refused(server: Any, node: Call, tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(make_file())
    outcome = node(server.root, "storeInstances", files=[str(tmp_path / "1.dcm")], studyInstanceUID="1.2.3")
    assert outcome["status"] == 409


def test_studies_series_and_instances_are_found(call: Call, native: pydicom.Dataset) -> None:
    study = {"studyInstanceUID": native.StudyInstanceUID}
    (found,) = call("searchForStudies", queryParams={"PatientID": native.PatientID, "includefield": "00081030"})
    assert found["0020000D"]["Value"] == [native.StudyInstanceUID]
    assert found["00100010"]["Value"] == [{"Alphabetic": str(native.PatientName)}]
    (found,) = call("searchForSeries", queryParams={"Modality": "CT"}, **study)
    assert found["0020000E"]["Value"] == [native.SeriesInstanceUID]
    (found,) = call("searchForInstances", queryParams={"SOPInstanceUID": native.SOPInstanceUID})
    assert found["00080018"]["Value"] == [native.SOPInstanceUID]
    assert call("searchForStudies", queryParams={"PatientID": "nobody"}) == []


def test_metadata_is_the_same_at_every_level(call: Call, native: pydicom.Dataset) -> None:
    levels = uids(native)
    (instance,) = call("retrieveInstanceMetadata", **levels)
    assert [instance] == call("retrieveSeriesMetadata", **levels) == call("retrieveStudyMetadata", **levels)
    assert instance["00280010"] == {"vr": "US", "Value": [native.Rows]}
    assert set(instance) == {f"{int(element.tag):08X}" for element in native}


def test_instances_come_back_bit_for_bit(call: Call, native: pydicom.Dataset) -> None:
    levels, file = uids(native), bundled("CT_small.dcm").read_bytes()
    assert call("retrieveInstance", **levels) == file
    assert call("retrieveSeries", **levels) == call("retrieveStudy", **levels) == [file]


def test_a_compressed_instance_comes_uncompressed(call: Call, compressed: pydicom.Dataset) -> None:
    """The client has no way to ask for another transfer syntax of an instance: it refuses its own option for that."""
    received = pydicom.dcmread(BytesIO(call("retrieveInstance", **uids(compressed))))
    assert received.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert received.PixelData == compressed.pixel_array.tobytes()


def test_frames_come_decoded_or_as_stored(call: Call, native: pydicom.Dataset, compressed: pydicom.Dataset) -> None:
    assert call("retrieveInstanceFrames", frameNumbers=[1], **uids(native)) == [native.PixelData]
    frame = next(generate_frames(compressed.PixelData, number_of_frames=1))
    jpeg_2000 = [{"mediaType": "image/jp2", "transferSyntaxUID": compressed.file_meta.TransferSyntaxUID}]
    assert call("retrieveInstanceFrames", frameNumbers=[1], mediaTypes=jpeg_2000, **uids(compressed)) == [frame]
    (pixels,) = call("retrieveInstanceFrames", frameNumbers=[1], **uids(compressed))
    assert pixels == compressed.pixel_array.tobytes()


def test_bulk_data_are_had_by_the_uri_of_the_metadata(call: Call, native: pydicom.Dataset) -> None:
    (metadata,) = call("retrieveInstanceMetadata", **uids(native))
    uri = metadata["7FE00010"]["BulkDataURI"]
    assert call("retrieveBulkData", BulkDataURI=uri) == [native.PixelData]
    alone = {"BulkDataURI": uri, "client": {"singlepart": "bulkdata"}}
    octets = {"Accept": "application/octet-stream"}
    assert call("retrieveBulkData", headers=octets, **alone) == [native.PixelData]
    assert call("retrieveBulkData", headers=octets | {"Range": "bytes=10-19"}, **alone) == [native.PixelData[10:20]]
    assert call("retrieveBulkData", **alone) == [native.PixelData]  # without an Accept header


def test_what_is_not_there_is_not_found(server: Any, node: Call) -> None:
    outcome = node(server.root, "retrieveStudyMetadata", studyInstanceUID="1.2.3")
    assert (outcome["status"], outcome["error"]) == (404, "Error: request failed")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("retrieveInstanceRendered", {}),
        ("retrieveInstanceRendered", {"mediaTypes": [{"mediaType": "image/jpeg"}]}),
    ],
)
def test_pictures_come_rendered(call: Call, native: pydicom.Dataset, method: str, more: dict[str, Any]) -> None:
    received = call(method, **more, **uids(native))
    picture = received[0] if isinstance(received, list) else received
    assert picture.startswith(b"\xff\xd8\xff")
