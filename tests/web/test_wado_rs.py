"""WADO-RS over HTTP: what was stored comes back, in the form that was asked for."""

from __future__ import annotations

import email
import shutil
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from flask.testing import FlaskClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from werkzeug.test import TestResponse

from dicomcloud.archive import Archive
from dicomcloud.errors import Gone
from tests.data import data_set_bytes, make_dataset, make_file

DICOM = 'multipart/related; type="application/dicom"'
OCTETS = 'multipart/related; type="application/octet-stream"'


def store(client: FlaskClient, *files: bytes) -> list[str]:
    """Store the files; return the URL of each instance."""
    urls = []
    for file in files:
        answer = client.post("/dicomweb/studies", data=file, content_type="application/dicom")
        assert answer.status_code == 200, answer.text
        urls.append(answer.json["00081199"]["Value"][0]["00081190"]["Value"][0].removeprefix("http://localhost"))
    return urls


def parts(answer: TestResponse) -> list[tuple[dict[str, str], bytes]]:
    """Headers and content of each part, by another parser than our own."""
    assert answer.status_code == 200, answer.text
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.data)
    found = []
    for part in message.get_payload():
        found.append((dict(part.items()), part.get_payload(decode=True)))
    return found


def raw_part(answer: TestResponse) -> bytes:
    """The content of the only part, cut out by its Content-Length."""
    head, _, rest = answer.data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    return rest[:length]


def make_large(**attributes: object) -> Dataset:
    """64 × 64 pixels: JPEG 2000 wants some room."""
    return make_dataset(Rows=64, Columns=64, PixelData=np.arange(4096, dtype="<u2").tobytes(), **attributes)


def encoded(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(syntax, generate_instance_uid=False)
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


@pytest.mark.parametrize("accept", [DICOM, "*/*", 'multipart/related; type="*/*"', DICOM.replace('"', ""), None])
def test_an_instance_comes_back_bit_for_bit(client: FlaskClient, accept: str | None) -> None:
    file = make_file()
    (url,) = store(client, file)
    answer = client.get(url, headers={"Accept": accept} if accept else {})
    assert raw_part(answer) == file
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    headers = parts(answer)[0][0]
    assert headers["Content-Type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    assert headers["Content-Location"] == "http://localhost" + url


def test_an_instance_comes_alone_when_that_is_asked(client: FlaskClient) -> None:
    file = make_file()
    (url,) = store(client, file)
    answer = client.get(url, headers={"Accept": "application/dicom"})
    assert answer.data == file
    assert answer.headers["Content-Type"].startswith("application/dicom")
    assert answer.headers["Content-Length"] == str(len(file))


def test_a_study_and_a_series_are_all_their_instances_in_order(client: FlaskClient) -> None:
    first = make_dataset(InstanceNumber=2)
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    files = [make_file(first), make_file(**uids, InstanceNumber=1), make_file(**uids, InstanceNumber=10)]
    url = store(client, *files)[0]
    study, series = url.partition("/series/")[0], url.partition("/instances/")[0]
    for resource in (study, series):
        answer = client.get(resource, headers={"Accept": DICOM})
        assert int(answer.headers["Content-Length"]) == len(answer.data)
        assert [pydicom.dcmread(BytesIO(body)).InstanceNumber for _, body in parts(answer)] == [1, 2, 10]


def test_a_study_is_never_sent_as_a_single_part(client: FlaskClient) -> None:
    url = store(client, make_file())[0].partition("/series/")[0]
    answer = client.get(url, headers={"Accept": "application/dicom"})
    assert answer.status_code == 406
    assert "multipart/related" in answer.json["message"]


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_instances_leave_as_stored_with_a_star_and_decoded_without(client: FlaskClient, syntax: str) -> None:
    file = encoded(make_large(), syntax)
    (url,) = store(client, file)
    assert raw_part(client.get(url, headers={"Accept": f"{DICOM}; transfer-syntax=*"})) == file
    assert raw_part(client.get(url, headers={"Accept": f'{DICOM}; transfer-syntax="{syntax}"'})) == file
    decoded = pydicom.dcmread(BytesIO(raw_part(client.get(url, headers={"Accept": DICOM}))))
    assert decoded.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(decoded.pixel_array, pydicom.dcmread(BytesIO(file)).pixel_array)


def test_head_answers_as_get_does_where_pixel_data_contradict_their_attributes(client: FlaskClient) -> None:
    dataset = make_large()
    encoded(dataset, JPEG2000Lossless)
    dataset.Rows = 63
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    (url,) = store(client, target.getvalue())
    for path, media_type in (("", "application/dicom"), ("/frames/1", "image/dicom-rle")):
        accept = {"Accept": f"{media_type}; transfer-syntax={RLELossless}"}
        assert client.get(url + path, headers=accept).status_code == 406
        assert client.head(url + path, headers=accept).status_code == 406
    (whole,) = store(client, encoded(make_large(), JPEG2000Lossless))
    accept = {"Accept": f"application/dicom; transfer-syntax={RLELossless}"}
    head, answer = client.head(whole, headers=accept), client.get(whole, headers=accept)
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"] == str(len(answer.data))


def test_implicit_vr_never_leaves(client: FlaskClient) -> None:
    dataset = make_dataset()
    target = BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(target, dataset, enforce_file_format=True)
    (url,) = store(client, target.getvalue())
    for accept in (DICOM, f"{DICOM}; transfer-syntax=*"):
        answer = client.get(url, headers={"Accept": accept})
        assert parts(answer)[0][0]["Content-Type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        assert data_set_bytes(raw_part(answer)) == data_set_bytes(make_file(dataset))


def test_a_transfer_syntax_that_is_not_available_is_not_acceptable(client: FlaskClient) -> None:
    (url,) = store(client, make_file())
    answer = client.get(url, headers={"Accept": f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.110"})
    assert answer.status_code == 406
    assert "1.2.840.10008.1.2.1" in answer.json["message"]


def test_the_same_representation_is_not_sent_twice(client: FlaskClient) -> None:
    (url,) = store(client, make_file())
    for resource in (url, f"{url}/metadata", f"{url}/frames/1", f"{url}/bulkdata/7FE00010"):
        etag = client.get(resource).headers["ETag"]
        answer = client.get(resource, headers={"If-None-Match": etag})
        assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", etag)


def test_the_etag_of_a_series_changes_with_its_instances(client: FlaskClient) -> None:
    dataset = make_dataset()
    uids = {"StudyInstanceUID": dataset.StudyInstanceUID, "SeriesInstanceUID": dataset.SeriesInstanceUID}
    url = store(client, make_file(dataset))[0].partition("/instances/")[0]
    before = [client.get(f"{url}{tail}").headers["ETag"] for tail in ("", "/metadata")]
    added = store(client, make_file(**uids, InstanceNumber=2))[0]
    between = [client.get(f"{url}{tail}").headers["ETag"] for tail in ("", "/metadata")]
    assert not set(before) & set(between)
    client.delete(added)
    assert client.get(f"{url}/metadata").headers["ETag"] not in (before[1], between[1])


@pytest.mark.parametrize("method", ["get", "head"])
def test_unknown_uids_are_not_found(client: FlaskClient, method: str) -> None:
    (url,) = store(client, make_file())
    study, series, instance = url.split("/")[3::2]
    for resource in ("1.2.3", f"{study}/series/1.2.3", f"{study}/series/1.2/instances/{instance}"):
        assert getattr(client, method)(f"/dicomweb/studies/{resource}").status_code == 404
    resource = f"/dicomweb/studies/{study}/series/{series}/instances/1.2.3"
    for tail in ("", "/metadata", "/frames/1", "/bulkdata/7FE00010"):
        assert getattr(client, method)(resource + tail).status_code == 404


def test_an_instance_is_not_found_below_another_study(client: FlaskClient) -> None:
    one, other = store(client, make_file(), make_file())
    mixed = other.partition("/series/")[0] + "/series/" + one.partition("/series/")[2]
    for tail in ("", "/metadata", "/frames/1", "/bulkdata/7FE00010"):
        assert client.get(mixed + tail).status_code == 404


def test_what_was_deleted_is_gone(client: FlaskClient) -> None:
    (url,) = store(client, make_file())
    client.delete(url)
    for tail in ("", "/metadata", "/frames/1", "/bulkdata/7FE00010"):
        answer = client.get(url + tail)
        assert answer.status_code == 410
        assert "deleted" in answer.json["message"]


@pytest.mark.parametrize("uid", ["1.2.x", "..", "1..2", "1" * 65, "%00", "1.2 ", "<script>"])
def test_a_path_segment_that_is_no_uid_is_refused_by_name(client: FlaskClient, uid: str) -> None:
    answer = client.get(f"/dicomweb/studies/{uid}/metadata")
    assert answer.status_code in (400, 404)
    if answer.status_code == 400:
        assert "study" in answer.json["message"]


def test_encoded_slashes_lead_nowhere(client: FlaskClient) -> None:
    for path in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e/%2e%2e/etc/passwd", "1.2%2F..%2F..%2F3"):
        assert client.get(f"/dicomweb/studies/{path}").status_code in (400, 404)


# Metadata


def test_metadata_names_bulk_data_by_a_url_that_works(client: FlaskClient) -> None:
    table = bytes(range(256)) * 8
    dataset = make_dataset()
    dataset.RedPaletteColorLookupTableData = table
    dataset.ICCProfile = b"profile "
    (url,) = store(client, make_file(dataset))
    (metadata,) = client.get(f"{url}/metadata").json
    assert metadata["00282000"] == {"vr": "OB", "InlineBinary": "cHJvZmlsZSA="}
    assert list(metadata) == sorted(metadata)
    for tag, content in (("00281201", table), ("7FE00010", dataset.PixelData)):
        bulk = metadata[tag]["BulkDataURI"]
        assert bulk == f"http://localhost{url}/bulkdata/{tag}"
        assert client.get(bulk, headers={"Accept": "application/octet-stream"}).data == content
        answer = client.get(bulk, headers={"Accept": OCTETS})
        assert raw_part(answer) == content
        assert parts(answer)[0][0]["Content-Location"] == bulk


def test_a_public_url_in_any_script_is_given_as_a_uri(make_app) -> None:  # type: ignore[no-untyped-def]
    client = make_app(public_url="https://pacs.klinik-münchen.example/büro").test_client()
    client.post("/dicomweb/studies", data=make_file(make_dataset()), content_type="application/dicom")
    root = "https://pacs.xn--klinik-mnchen-3ob.example/b%C3%BCro/dicomweb/studies/"
    (found,) = client.get("/dicomweb/instances").json
    url = found["00081190"]["Value"][0]
    assert url.startswith(root)
    answer = client.get(url.removeprefix("https://pacs.xn--klinik-mnchen-3ob.example/b%C3%BCro") + "/metadata")
    assert answer.headers["Content-Location"] == f"{url}/metadata"


def test_metadata_follows_the_public_url(make_app) -> None:  # type: ignore[no-untyped-def]
    client = make_app(public_url="https://pacs.example/images").test_client()
    answer = client.post("/dicomweb/studies", data=make_file(), content_type="application/dicom")
    url = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0]
    assert url.startswith("https://pacs.example/images/dicomweb/studies/")
    (metadata,) = client.get(url.removeprefix("https://pacs.example/images") + "/metadata").json
    assert metadata["7FE00010"]["BulkDataURI"] == f"{url}/bulkdata/7FE00010"


def test_forwarded_headers_count_from_trusted_proxies_only(make_app) -> None:  # type: ignore[no-untyped-def]
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pacs.example", "X-Forwarded-Prefix": "/x"}
    (url,) = store(make_app().test_client(), make_file())
    for trusted, base in (("", "http://localhost"), ("127.0.0.0/8", "https://pacs.example/x")):
        client = make_app(trusted_proxies=trusted, authentication="none").test_client()
        (metadata,) = client.get(f"{url}/metadata", headers=forwarded).json
        assert metadata["7FE00010"]["BulkDataURI"] == f"{base}{url}/bulkdata/7FE00010"


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://pacs:8000"),
        ({"X-Forwarded-For": "10.0.0.7"}, "http://pacs"),
        ({"Host": "pacs:81"}, "http://pacs:81"),
    ],
)
def test_a_host_without_its_port_gets_it_where_no_proxy_is_between(
    client: FlaskClient, headers: dict[str, str], base: str
) -> None:
    (url,) = store(client, make_file())
    answer = client.get(
        f"{url}/metadata", headers={"Host": "pacs", **headers}, environ_overrides={"SERVER_PORT": "8000"}
    )
    assert answer.json[0]["7FE00010"]["BulkDataURI"] == f"{base}{url}/bulkdata/7FE00010"


def test_text_that_looks_like_a_bulk_data_uri_stays_text(client: FlaskClient) -> None:
    text = '{"BulkDataURI":"/studies/1.2.3"}'
    (url,) = store(client, make_file(StudyDescription=text))
    (metadata,) = client.get(f"{url}/metadata").json
    assert metadata["00081030"] == {"vr": "LO", "Value": [text]}


def test_metadata_of_a_study_is_that_of_all_its_instances(client: FlaskClient) -> None:
    study = make_dataset().StudyInstanceUID
    files = [make_file(StudyInstanceUID=study, SeriesNumber=n, InstanceNumber=1) for n in (3, 1, 2)]
    url = store(client, *files)[0].partition("/series/")[0]
    metadata = client.get(f"{url}/metadata", headers={"Accept": "application/dicom+json, application/json"}).json
    assert [item["00200011"]["Value"] for item in metadata] == [[1], [2], [3]]


def test_metadata_is_not_to_be_had_as_an_image(client: FlaskClient) -> None:
    (url,) = store(client, make_file())
    assert client.get(f"{url}/metadata", headers={"Accept": "image/png"}).status_code == 406


# Frames


@pytest.fixture
def multiframe(client: FlaskClient) -> tuple[str, np.ndarray]:
    pixels = np.arange(5 * 16 * 16, dtype="<u2").reshape(5, 16, 16)
    dataset = make_dataset(NumberOfFrames=5, PixelData=pixels.tobytes())
    return store(client, make_file(dataset))[0], pixels


def test_frames_come_in_the_order_asked_for(client: FlaskClient, multiframe: tuple[str, np.ndarray]) -> None:
    url, pixels = multiframe
    answer = client.get(f"{url}/frames/3,1,5", headers={"Accept": OCTETS})
    found = parts(answer)
    assert [headers["Content-Location"].rpartition("/")[2] for headers, _ in found] == ["3", "1", "5"]
    assert {h["Content-Type"] for h, _ in found} == {"application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"}
    boundary = answer.headers["Content-Type"].partition('boundary="')[2][:-1].encode()
    bodies = [piece.partition(b"\r\n\r\n")[2][:512] for piece in answer.data.split(b"--" + boundary)[1:-1]]
    assert bodies == [pixels[n].tobytes() for n in (2, 0, 4)]


def test_one_frame_comes_alone_when_that_is_asked(client: FlaskClient, multiframe: tuple[str, np.ndarray]) -> None:
    url, pixels = multiframe
    assert client.get(f"{url}/frames/4", headers={"Accept": "application/octet-stream"}).data == pixels[3].tobytes()
    assert client.get(f"{url}/frames/4,5", headers={"Accept": "application/octet-stream"}).status_code == 406
    assert client.get(f"{url}/frames/4%2C5", headers={"Accept": OCTETS}).status_code == 200


@pytest.mark.parametrize(
    ("frames", "status"), [("6", 404), ("1,9", 404), ("0", 400), ("-1", 400), ("a", 400), ("1,", 400)]
)
def test_frames_that_do_not_exist(
    client: FlaskClient, multiframe: tuple[str, np.ndarray], frames: str, status: int
) -> None:
    answer = client.get(f"{multiframe[0]}/frames/{frames}")
    assert answer.status_code == status
    assert "frame" in answer.json["message"]


def test_compressed_frames_leave_as_stored_or_decoded(client: FlaskClient) -> None:
    dataset = make_large()
    pixels = dataset.PixelData
    file = encoded(dataset, JPEG2000Lossless)
    (url,) = store(client, file)
    stored = next(pydicom.encaps.generate_frames(pydicom.dcmread(BytesIO(file)).PixelData, number_of_frames=1))
    for accept in (
        f"{OCTETS}; transfer-syntax=*",
        f'{OCTETS}; transfer-syntax="*"',
        'multipart/related; type="image/jp2"',
    ):
        answer = client.get(f"{url}/frames/1", headers={"Accept": accept})
        assert raw_part(answer) == stored
        assert parts(answer)[0][0]["Content-Type"] == "image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90"
    assert client.get(f"{url}/frames/1", headers={"Accept": "image/jp2"}).data == stored
    assert raw_part(client.get(f"{url}/frames/1", headers={"Accept": OCTETS})) == pixels
    assert client.get(f"{url}/frames/1", headers={"Accept": 'multipart/related; type="image/jxl"'}).status_code == 406


def test_an_object_without_pixels_has_no_frames(client: FlaskClient) -> None:
    (url,) = store(client, make_file(PixelData=None, Rows=None, Columns=None))
    answer = client.get(f"{url}/frames/1")
    assert (answer.status_code, "no pixel data" in answer.json["message"]) == (404, True)


# Bulk data


@pytest.mark.parametrize(
    ("asked", "status", "slice_", "content_range"),
    [
        ("bytes=0-9", 206, slice(0, 10), "bytes 0-9/512"),
        ("bytes=500-", 206, slice(500, 512), "bytes 500-511/512"),
        ("bytes=-12", 206, slice(500, 512), "bytes 500-511/512"),
        ("bytes=0-9999", 206, slice(0, 512), "bytes 0-511/512"),
        ("bytes=600-", 416, None, "bytes */512"),
        ("lines=1-2", 200, slice(0, 512), None),
        ("bytes=0-1,4-5", 200, slice(0, 512), None),
    ],
)
def test_ranges_of_bulk_data(
    client: FlaskClient, asked: str, status: int, slice_: slice | None, content_range: str | None
) -> None:
    dataset = make_dataset()
    (url,) = store(client, make_file(dataset))
    answer = client.get(f"{url}/bulkdata/7FE00010", headers={"Accept": "application/octet-stream", "Range": asked})
    assert (answer.status_code, answer.headers.get("Content-Range")) == (status, content_range)
    if slice_ is not None:
        assert answer.data == dataset.PixelData[slice_]
        assert answer.headers["Accept-Ranges"] == "bytes"


def test_bulk_data_inside_a_sequence(client: FlaskClient) -> None:
    dataset, item = make_dataset(), Dataset()
    item.PixelData = bytes(range(256)) * 8
    item["PixelData"].VR = "OW"
    dataset.IconImageSequence = [item]
    (url,) = store(client, make_file(dataset))
    bulk = client.get(f"{url}/metadata").json[0]["00880200"]["Value"][0]["7FE00010"]["BulkDataURI"]
    assert bulk.endswith("/bulkdata/00880200/1/7FE00010")
    assert client.get(bulk, headers={"Accept": "application/octet-stream"}).data == item.PixelData


def test_compressed_bulk_pixel_data_is_a_part_for_each_frame(client: FlaskClient) -> None:
    file = encoded(make_dataset(NumberOfFrames=2, PixelData=bytes(1024)), RLELossless)
    (url,) = store(client, file)
    answer = client.get(f"{url}/bulkdata/7FE00010", headers={"Accept": f"{OCTETS}; transfer-syntax=*"})
    assert [headers["Content-Type"] for headers, _ in parts(answer)] == [
        "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"
    ] * 2


def test_bulk_data_that_does_not_exist(client: FlaskClient) -> None:
    (url,) = store(client, make_file())
    for path in ("00100010", "nonsense", "7FE00010/1", "00880200/1/7FE00010", "../7FE00010"):
        assert client.get(f"{url}/bulkdata/{path}").status_code == 404


# Pixel work


def is_idle(archive: Archive) -> bool:
    """Whether no codec process has been started."""
    return not archive._codecs._processes


def test_transcoded_frames_come_in_the_order_asked_for(client: FlaskClient) -> None:
    pixels = np.arange(6 * 64 * 64, dtype="<u2").reshape(6, 64, 64) % 4096
    dataset = make_dataset(Rows=64, Columns=64, NumberOfFrames=6, PixelData=pixels.tobytes())
    (url,) = store(client, encoded(dataset, RLELossless))
    order = [5, 1, 1, 6, 2, 4, 3]
    resource = f"{url}/frames/{','.join(map(str, order))}"
    for _ in range(2):  # made, then from the cache
        answer = client.get(resource, headers={"Accept": OCTETS})
        assert [bytes_ for _, bytes_ in split(answer)] == [pixels[number - 1].tobytes() for number in order]
    lossless = split(client.get(resource, headers={"Accept": 'multipart/related; type="image/jls"'}))
    assert [headers["Content-Location"].rpartition("/")[2] for headers, _ in lossless] == list(map(str, order))
    decoded = [imagecodecs.jpegls_decode(data) for _, data in lossless]
    assert all(np.array_equal(frame, pixels[number - 1]) for frame, number in zip(decoded, order, strict=True))


def split(answer: TestResponse) -> list[tuple[dict[str, str], bytes]]:
    """Headers and content of each part, cut by its Content-Length."""
    found, rest = [], answer.data
    while b"\r\n\r\n" in rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n")[1:])
        found.append((headers, rest[: int(headers["Content-Length"])]))
        rest = rest[int(headers["Content-Length"]) :]
    return found


def test_what_was_decoded_once_is_not_decoded_again(client: FlaskClient, archive: Archive) -> None:
    (url,) = store(client, encoded(make_large(), JPEG2000Lossless))
    asked = [
        (f"{url}/frames/1", "application/octet-stream"),
        (f"{url}/frames/1", "image/jls"),
        (url, "application/dicom"),
        (url, "application/dicom; transfer-syntax=1.2.840.10008.1.2.5"),
    ]
    first = [client.get(resource, headers={"Accept": accept}).data for resource, accept in asked]
    assert not is_idle(archive)
    archive._codecs.close()
    assert [client.get(resource, headers={"Accept": accept}).data for resource, accept in asked] == first
    assert is_idle(archive)


def test_without_a_cache_the_answers_are_the_same_and_leave_nothing_behind(make_app, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    client = make_app(cache_bytes="0").test_client()
    dataset = make_large()
    pixels = dataset.PixelData
    (url,) = store(client, encoded(dataset, JPEG2000Lossless))
    for _ in range(2):
        assert client.get(f"{url}/frames/1", headers={"Accept": "application/octet-stream"}).data == pixels
        assert pixels in client.get(url, headers={"Accept": "application/dicom"}).data
    assert [path for path in (tmp_path / "data" / "cache").rglob("*") if path.is_file()] == []


def test_head_of_a_series_does_no_pixel_work(client: FlaskClient, archive: Archive) -> None:
    first = make_large()
    second = make_large(StudyInstanceUID=first.StudyInstanceUID, SeriesInstanceUID=first.SeriesInstanceUID)
    (url, _) = store(client, encoded(first, JPEG2000Lossless), encoded(second, JPEG2000Lossless))
    series = url.partition("/instances/")[0]
    resources = (series, f"{series}/pixeldata")
    for resource in (*resources, f"{series}?accept=application/zip", f"{url}/metadata", f"{series}/metadata"):
        answer = client.head(resource)
        assert (answer.status_code, answer.data) == (200, b"")
        assert "ETag" in answer.headers
        assert answer.headers["Cache-Control"] == "private, no-cache"
    assert is_idle(archive)


def test_stored_and_native_pixels_need_no_codec_process(client: FlaskClient, archive: Archive) -> None:
    native, compressed = store(client, make_file(), encoded(make_large(), JPEG2000Lossless))
    client.get(f"{native}/frames/1")
    client.get(native)
    client.get(f"{compressed}/frames/1", headers={"Accept": f"{OCTETS}; transfer-syntax=*"})
    client.get(compressed, headers={"Accept": f"{DICOM}; transfer-syntax=*"})
    assert is_idle(archive)


def test_frames_of_single_bits_each_begin_with_a_byte(client: FlaskClient) -> None:
    bits = np.random.default_rng(1).integers(0, 2, (3, 5, 5), dtype="u1")  # PS3.5 8.1.1: packed across the frames
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    dataset = make_dataset(Rows=5, Columns=5, NumberOfFrames=3, BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = packed
    dataset["PixelData"].VR = "OB"
    (url,) = store(client, make_file(dataset))
    frames = [np.packbits(frame.ravel(), bitorder="little").tobytes() for frame in bits]
    assert [data for _, data in split(client.get(f"{url}/frames/3,1,2"))] == [frames[2], frames[0], frames[1]]
    assert client.get(f"{url}/bulkdata/7FE00010", headers={"Accept": "application/octet-stream"}).data[:10] == packed


def test_frames_are_decoded_where_the_cache_cannot_be_written(client: FlaskClient, tmp_path: Path) -> None:
    dataset = make_large()
    pixels = dataset.PixelData
    (url,) = store(client, encoded(dataset, JPEG2000Lossless))
    cache = tmp_path / "data" / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    cache.write_bytes(b"no folder")
    for _ in range(2):
        ((_, frame),) = split(client.get(f"{url}/frames/1"))
        assert frame == pixels


def test_decoded_frames_come_whole_alone_and_in_ranges_from_the_cache_too(client: FlaskClient) -> None:
    dataset = make_large(NumberOfFrames=3)
    dataset.PixelData = pixels = dataset.PixelData * 3
    (url,) = store(client, encoded(dataset, RLELossless))
    accept = {"Accept": "application/octet-stream"}
    for _ in range(2):
        assert b"".join(data for _, data in split(client.get(f"{url}/frames/1,2,3"))) == pixels
        assert client.get(f"{url}/frames/2", headers=accept).data == pixels[:8192]
        assert client.head(f"{url}/frames/2", headers=accept).headers["Content-Length"] == "8192"
        ranged = client.get(f"{url}/frames/2", headers={**accept, "Range": "bytes=10-19"})
        assert (ranged.status_code, ranged.data) == (206, pixels[10:20])


def test_a_file_that_was_deleted_since_the_index_was_asked_is_gone(client: FlaskClient, archive: Archive) -> None:
    (url,) = store(client, encoded(make_large(), JPEG2000Lossless))
    uids = url.split("/")[3::2]
    (row,), (_, frames) = archive.instances(*uids), archive.frames(*uids)
    client.delete(url)
    assert frames is not None
    for read in (
        lambda: archive.open_file(row),
        lambda: archive.read_frame(row, frames, 1),
        lambda: archive.open_frame_as(row, frames, 1, ExplicitVRLittleEndian),
        lambda: archive.open_as(row, RLELossless),
    ):
        with pytest.raises(Gone):
            read()


def test_nginx_is_told_which_file_to_send(make_app, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    client = make_app(accel_redirect="/stored").test_client()
    file = make_file()
    (url,) = store(client, file)
    answer = client.get(url, headers={"Accept": "application/dicom"})
    place = answer.headers["X-Accel-Redirect"]
    assert place.startswith("/stored/")
    assert (tmp_path / "data" / "storage" / place.removeprefix("/stored/")).read_bytes() == file
    assert (answer.data, answer.headers["Content-Type"]) == (
        b"",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.1",
    )
    etag = answer.headers["ETag"]
    assert client.get(url, headers={"Accept": "application/dicom", "If-None-Match": etag}).status_code == 304
    for resource, accept in (
        (url, DICOM),
        (f"{url}/frames/1", "*/*"),
        (url, "application/dicom; transfer-syntax=1.2.840.10008.1.2.5"),
    ):
        assert "X-Accel-Redirect" not in client.get(resource, headers={"Accept": accept}).headers


@pytest.mark.parametrize(
    ("syntax", "status"), [(RLELossless, 200), ("*", 200), ("1.2.840.10008.1.2.4.50", 406), ("1.2", 406)]
)
def test_wado_uri_has_the_transfer_syntaxes_too(client: FlaskClient, syntax: str, status: int) -> None:
    (url,) = store(client, make_file(make_large()))
    study, series, instance = url.split("/")[3::2]
    uri = (
        f"/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}&contentType=application/dicom"
    )
    answer = client.get(f"{uri}&transferSyntax={syntax}")
    assert answer.status_code == status
    if syntax == RLELossless:
        assert answer.headers["Content-Type"] == f"application/dicom; transfer-syntax={RLELossless}"
