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
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import HEVCMP51, MPEG2MPML, MPEG4HP41, ExplicitVRLittleEndian, generate_uid

from tests.data import make_dataset, make_file, pydicom_files
from tests.dicom.test_pixel_data import image_file

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


PICTURES = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG", "image/gif": b"GIF8", "image/jp2": b"\0\0\0\x0cjP"}


def picture_of(result: Any) -> bytes:
    """The client gives a single part as a list of one."""
    (picture,) = result if isinstance(result, list) else [result]
    return picture


@pytest.mark.parametrize(
    ("method", "media_type"),
    [
        ("retrieveInstanceRendered", "image/gif"),
        ("retrieveInstanceFramesRendered", None),
        ("retrieveInstanceFramesRendered", "image/png"),
        ("retrieveInstanceThumbnail", None),
        ("retrieveInstanceThumbnail", "image/jp2"),
        ("retrieveInstanceFramesThumbnail", None),
        ("retrieveInstanceFramesThumbnail", "image/jpeg"),
    ],
)
def test_pictures_and_thumbnails_come_as_asked_for(
    call: Call, native: pydicom.Dataset, method: str, media_type: str | None
) -> None:
    options: dict[str, Any] = {"frameNumbers": [1], "queryParams": {"viewport": "64,50"}, **uids(native)}
    if media_type is not None:
        options["mediaTypes"] = [{"mediaType": media_type}]
    picture = picture_of(call(method, **options))
    assert picture.startswith(PICTURES[media_type or "image/jpeg"])
    with Image.open(BytesIO(picture)) as found:
        assert found.size == (50, 50)


def test_a_window_and_a_quality_reach_the_picture(call: Call, native: pydicom.Dataset) -> None:
    def picture(method: str, media_type: str, **asked: Any) -> bytes:
        types = [{"mediaType": media_type}]
        return picture_of(call(method, frameNumbers=[1], mediaTypes=types, queryParams=asked, **uids(native)))

    narrow, wide = (
        picture("retrieveInstanceFramesRendered", "image/png", window=f"1000,{width},linear") for width in (10, 4000)
    )
    with Image.open(BytesIO(narrow)) as hard, Image.open(BytesIO(wide)) as soft:
        assert len(hard.getcolors() or ()) < len(soft.getcolors() or ())
    low, high = (picture("retrieveInstanceRendered", "image/jpeg", quality=quality) for quality in (5, 95))
    assert len(low) < len(high)


@pytest.mark.parametrize(
    ("syntax", "media_type"),
    [
        (MPEG2MPML, "video/mpeg"),
        (MPEG4HP41, "video/mp4"),
        (HEVCMP51, "video/H265"),
        (MPEG4HP41, "video/*"),
    ],
)
def test_a_film_comes_as_it_is_stored(server: Any, call: Call, tmp_path: Path, syntax: str, media_type: str) -> None:
    film = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8
    made = make_dataset(PatientID="FILM")
    own = {name: made[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    pixel = {"SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}
    pixel["PhotometricInterpretation"], pixel["NumberOfFrames"] = "YBR_PARTIAL_420", 50
    (tmp_path / "1.dcm").write_bytes(image_file(syntax, [film], **own, **pixel))
    dataset = _stored(server, tmp_path / "1.dcm")
    assert picture_of(call("retrieveInstanceRendered", mediaTypes=[{"mediaType": media_type}], **uids(dataset))) == film
    (metadata,) = call("retrieveInstanceMetadata", **uids(dataset))
    assert call("retrieveBulkData", BulkDataURI=metadata["7FE00010"]["BulkDataURI"]) == [film]


def test_frames_of_a_film_are_refused_with_the_reason(server: Any, node: Call) -> None:
    made = make_dataset()
    own = {name: made[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    file = image_file(MPEG2MPML, [bytes(512)], **own, NumberOfFrames=50)
    requests.post(f"{server.root}/studies", data=file, headers={"Content-Type": "application/dicom"}, timeout=60)
    asked = [{"mediaType": "video/mpeg2", "transferSyntaxUID": MPEG2MPML}]
    outcome = node(server.root, "retrieveInstanceFrames", frameNumbers=[1], mediaTypes=asked, **uids(made))
    assert outcome["status"] == 400
    path = "studies/{StudyInstanceUID}/series/{SeriesInstanceUID}/instances/{SOPInstanceUID}".format(**own)
    accept = {"Accept": outcome["sent"][0]["accept"]}
    answer = requests.get(f"{server.root}/{path}/bulkdata/7FE00010", headers=accept, timeout=60)
    assert (answer.status_code, b"video/mpeg; transfer-syntax" in answer.content) == (200, True)


def test_a_report_comes_as_a_page_and_as_text(server: Any, call: Call) -> None:
    report = _stored(server, bundled("reportsi.dcm"))
    for media_type, beginning in (("text/html", b"<!"), ("text/plain", b"")):
        page = picture_of(call("retrieveInstanceRendered", mediaTypes=[{"mediaType": media_type}], **uids(report)))
        assert page.lower().startswith(beginning)
        assert b"<" in page if media_type == "text/html" else b"</" not in page


def test_an_instance_is_had_by_the_wado_uri_that_the_client_builds(
    server: Any, node: Call, compressed: pydicom.Dataset
) -> None:
    def url(**options: Any) -> str:
        origin, settings = server.root.rpartition("/")[0], {"wadoURIPrefix": "wado", "wadoURLPrefix": "wado"}
        return node(origin, "buildInstanceWadoURIUrl", client=settings, **options, **uids(compressed))["result"]

    answer = requests.get(url(), timeout=60)
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, "application/dicom")
    assert answer.content == bundled("JPEG2000.dcm").read_bytes()
    picture = requests.get(url(contentType="image/jpeg").replace("&transferSyntax=*", ""), timeout=60)
    assert picture.content.startswith(PICTURES["image/jpeg"])


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "image/jls"),
        ("MR_small_jpeg_ls_lossless.dcm", "image/x-jls"),
        ("MR_small_RLE.dcm", "image/x-dicom-rle"),
        ("SC_rgb_jpeg_gdcm.dcm", "image/jpeg"),
    ],
)
def test_frames_come_as_stored_under_the_names_that_the_client_has(
    server: Any, call: Call, tmp_path: Path, file: str, media_type: str
) -> None:
    dataset = pydicom.dcmread(bundled(file))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()  # some files share theirs
    dataset.save_as(tmp_path / "1.dcm")
    _stored(server, tmp_path / "1.dcm")
    frame = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1))))
    asked = [{"mediaType": media_type, "transferSyntaxUID": dataset.file_meta.TransferSyntaxUID}]
    assert call("retrieveInstanceFrames", frameNumbers=[1], mediaTypes=asked, **uids(dataset)) == [frame]
    mixed = [*asked, {"mediaType": "application/octet-stream"}]
    assert call("retrieveInstanceFrames", frameNumbers=[1], mediaTypes=mixed, **uids(dataset)) == [frame]
