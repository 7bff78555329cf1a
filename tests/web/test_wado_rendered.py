"""Rendered resources, thumbnails and WADO-URI pictures over HTTP (PS3.18 8.3.5, 10.4.1.1.3, 10.4.1.2, 9.5)."""

from __future__ import annotations

import email
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from flask.testing import FlaskClient
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from werkzeug.test import TestResponse

from tests.data import SAMPLES, make_dataset, make_file, pydicom_files


def store(client: FlaskClient, *files: bytes) -> list[str]:
    urls = []
    for file in files:
        answer = client.post("/dicomweb/studies", data=file, content_type="application/dicom")
        assert answer.status_code == 200, answer.text
        urls.append(answer.json["00081199"]["Value"][0]["00081190"]["Value"][0].removeprefix("http://localhost"))
    return urls


def gradient(frames: int = 1, **attributes: Any) -> Dataset:
    """64 × 32 pixels, brighter to the right; each frame brighter than the one before."""
    row = np.arange(64, dtype="<u2") * 16
    pixels = np.stack([np.tile(row, (32, 1)) + 100 * number for number in range(frames)])
    dataset = make_dataset(Rows=32, Columns=64, PixelData=pixels.astype("<u2").tobytes(), **attributes)
    dataset.WindowCenter, dataset.WindowWidth = 512, 1024
    if frames > 1:
        dataset.NumberOfFrames = frames
    return dataset


def picture(answer: TestResponse) -> Image.Image:
    assert answer.status_code == 200, answer.text
    image = Image.open(BytesIO(answer.data))
    image.load()
    return image


def parts(answer: TestResponse) -> list[tuple[str, bytes]]:
    assert answer.status_code == 200, answer.text
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.data)
    return [(part.get_content_type(), part.get_payload(decode=True)) for part in message.get_payload()]


@pytest.mark.parametrize(
    ("accept", "kind", "format_"),
    [
        ("*/*", "image/jpeg", "JPEG"),
        ("image/png", "image/png", "PNG"),
        ("image/gif", "image/gif", "GIF"),
        ("image/jp2", "image/jp2", "JPEG2000"),
        ("image/webp", "image/webp", "WEBP"),
        ("text/html,image/avif,image/png;q=0.9,*/*;q=0.8", "image/png", "PNG"),
    ],
)
def test_an_image_is_rendered_in_the_type_asked_for(client: FlaskClient, accept: str, kind: str, format_: str) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(f"{url}/rendered", headers={"Accept": accept})
    image = picture(answer)
    assert (answer.mimetype, image.format, image.size) == (kind, format_, (64, 32))
    levels = np.asarray(image.convert("L")).astype(int)
    assert levels[:, 0].max() < 12
    assert levels[:, -1].min() > 240
    assert answer.headers["Content-Location"].endswith("/rendered")


def test_what_is_not_an_image_type_of_the_object_is_not_acceptable(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(f"{url}/rendered", headers={"Accept": "video/mp4"})
    assert answer.status_code == 406
    assert "image/jpeg" in answer.json["message"]


def test_a_window_moves_the_grey_levels(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    for window, dark in (("100,2,linear", 7), ("900,2,linear", 57), ("512.5,1,linear-exact", 33)):
        image = picture(client.get(f"{url}/rendered?window={window}", headers={"Accept": "image/png"}))
        assert list(np.asarray(image)[0]).index(255) == dark


@pytest.mark.parametrize(
    ("viewport", "size"),
    [("32,32", (32, 16)), ("128,128", (128, 64)), ("20,100,,,20,20", (20, 20)), ("64,32,0,0,-64,32", (64, 32))],
)
def test_a_viewport_scales_crops_and_mirrors(client: FlaskClient, viewport: str, size: tuple[int, int]) -> None:
    (url,) = store(client, make_file(gradient()))
    image = picture(client.get(f"{url}/rendered?viewport={viewport}", headers={"Accept": "image/png"}))
    assert image.size == size
    levels = np.asarray(image).astype(int)
    assert (levels[0, 0] > levels[0, -1]) == ("-" in viewport)


@pytest.mark.parametrize(
    "wrong",
    ["quality=0", "quality=x", "window=1,2", "window=1,0,linear", "window=1,2,round", "viewport=0,5", "viewport=5"]
    + ["viewport=100000,100000", "viewport=9,9,50,0,60,10", "annotation=", "iccprofile=maybe"],
)
def test_a_wrong_parameter_is_named(client: FlaskClient, wrong: str) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(f"{url}/rendered?{wrong}")
    assert answer.status_code == 400
    assert wrong.partition("=")[0] in answer.json["message"]


def test_an_unknown_annotation_is_left_out_with_a_warning(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(f"{url}/rendered?annotation=patient,weather")
    assert answer.status_code == 200
    assert "weather" in answer.headers["Warning"]


def test_annotations_are_drawn_only_when_asked_for(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    plain, drawn = (
        np.asarray(picture(client.get(f"{url}/rendered?viewport=512,512{tail}", headers={"Accept": "image/png"})))
        for tail in ("", "&annotation=patient,technique")
    )
    assert plain.shape[:2] == drawn.shape[:2]
    assert (plain != drawn).any()


def test_frames_are_rendered_alone_in_parts_and_as_animation(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient(4)))
    levels = [
        np.asarray(picture(client.get(f"{url}/frames/{n}/rendered", headers={"Accept": "image/png"}))).mean()
        for n in (1, 2, 3, 4)
    ]
    assert levels == sorted(levels)
    answer = client.get(f"{url}/frames/3,1/rendered", headers={"Accept": 'multipart/related; type="image/png"'})
    found = [np.asarray(Image.open(BytesIO(body))).mean() for kind, body in parts(answer) if kind == "image/png"]
    assert found == [levels[2], levels[0]]
    animation = picture(client.get(f"{url}/rendered"))
    assert (animation.format, animation.n_frames) == ("GIF", 4)
    every = client.get(f"{url}/rendered", headers={"Accept": 'multipart/related; type="image/jpeg"'})
    assert len(parts(every)) == 4
    assert client.get(f"{url}/frames/5/rendered").status_code == 404
    assert client.get(f"{url}/frames/0/rendered").status_code == 400


def test_a_series_and_a_study_are_rendered_part_by_part(client: FlaskClient) -> None:
    first = gradient()
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    report = make_file(**uids, PixelData=None, Rows=None, Columns=None, InstanceNumber=9)
    url = store(client, make_file(first), make_file(gradient(2, **uids, InstanceNumber=2)), report)[0]
    for resource in (url.partition("/instances/")[0], url.partition("/series/")[0]):
        found = parts(client.get(f"{resource}/rendered"))
        assert [kind for kind, _ in found] == ["image/jpeg"] * 3
        pages = client.get(f"{resource}/rendered", headers={"Accept": 'multipart/related; type="text/html"'})
        assert [kind for kind, _ in parts(pages)] == ["text/html"]


def test_compressed_frames_are_rendered_like_native_ones(client: FlaskClient) -> None:
    dataset = gradient()
    (url,) = store(client, make_file(dataset))
    native = client.get(f"{url}/rendered", headers={"Accept": "image/png"}).data
    client.delete(url)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(RLELossless, generate_instance_uid=False)
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    (url,) = store(client, target.getvalue())
    for _ in range(2):  # the second time from the cache
        assert client.get(f"{url}/rendered", headers={"Accept": "image/png"}).data == native


def test_what_was_made_of_an_instance_goes_with_it(client: FlaskClient, tmp_path: Path) -> None:
    dataset = gradient()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(RLELossless, generate_instance_uid=False)
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    (url,) = store(client, target.getvalue())
    assert client.get(f"{url}/rendered").status_code == 200
    assert client.get(f"{url}/frames/1").status_code == 200
    assert client.get(url.partition("/instances/")[0] + "/metadata", headers={"Accept-Encoding": "gzip"}).data
    assert len(list((tmp_path / "data" / "cache").rglob("*.bin"))) >= 3
    client.delete(url)
    assert list((tmp_path / "data" / "cache").rglob("*.bin")) == []


def test_thumbnails_are_small_and_show_no_name(client: FlaskClient) -> None:
    first = gradient()
    uids = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    burned = gradient(**uids, BurnedInAnnotation="YES", InstanceNumber=2)
    urls = store(client, make_file(first), make_file(burned))
    study, series = urls[0].partition("/series/")[0], urls[0].partition("/instances/")[0]
    own = client.get(f"{urls[0]}/thumbnail").data
    for resource in (study, series, f"{urls[0]}/frames/1"):
        answer = client.get(f"{resource}/thumbnail")
        assert answer.mimetype == "image/jpeg"
        assert max(picture(answer).size) <= 128
        assert answer.data == own  # never the one with burned-in annotations
    assert picture(client.get(f"{study}/thumbnail?viewport=16,16")).size == (16, 8)
    assert client.get(f"{study}/thumbnail?viewport=16,16,0,0,8,8").status_code == 400


def test_what_has_no_image_has_no_thumbnail(client: FlaskClient) -> None:
    (url,) = store(client, make_file(PixelData=None, Rows=None, Columns=None))
    assert client.get(f"{url}/thumbnail").status_code == 404
    assert client.get(f"{url.partition('/series/')[0]}/thumbnail").status_code == 404


def test_a_report_is_a_page_or_text(client: FlaskClient) -> None:
    (path,) = [path for path in pydicom_files() if path.name == "reportsi.dcm"]
    (url,) = store(client, path.read_bytes())
    page = client.get(f"{url}/rendered", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    plain = client.get(f"{url}/rendered", headers={"Accept": "text/plain"})
    assert plain.mimetype == "text/plain"
    assert str(pydicom.dcmread(path).ContentSequence[2].ConceptNameCodeSequence[0].CodeMeaning) in plain.text


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples do not lie beside the project")
@pytest.mark.parametrize(
    ("name", "kind", "start"),
    [
        ("nonimage/derived_public-pdf.dcm", "application/pdf", b"%PDF"),
        ("multiframe/derived_public-video-h264.dcm", "video/mp4", b""),
        ("nonimage/pydicom_waveform_ecg.dcm", "image/svg+xml", b"<"),
    ],
)
def test_documents_films_and_waveforms(client: FlaskClient, name: str, kind: str, start: bytes) -> None:
    (url,) = store(client, (SAMPLES / name).read_bytes())
    answer = client.get(f"{url}/rendered", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status_code, answer.mimetype) == (200, kind)
    assert answer.data.startswith(start)
    ranged = client.get(f"{url}/rendered", headers={"Range": "bytes=0-9"})
    assert (ranged.status_code, ranged.data) == (206, answer.data[:10])


def test_hostile_pixel_data_are_refused_with_the_reason(client: FlaskClient) -> None:
    dataset = gradient()
    dataset.Rows = dataset.Columns = 60000  # more than the data have
    (url,) = store(client, make_file(dataset))
    answer = client.get(f"{url}/rendered")
    assert answer.status_code == 406
    assert answer.json["message"]


def test_pictures_are_validated_not_sent_twice(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    for tail in ("/rendered", "/frames/1/rendered", "/thumbnail"):
        etag = client.get(url + tail).headers["ETag"]
        assert client.get(url + tail, headers={"If-None-Match": etag}).status_code == 304


def test_only_the_bytes_of_the_frame_are_read_of_a_stored_file(client: FlaskClient, tmp_path: Path) -> None:
    (url,) = store(client, make_file(gradient(frames=3)))
    tails = ("/rendered", "/thumbnail", "/frames/2/rendered", "/rendered?annotation=patient,technique")
    before = [client.get(url + tail).data for tail in tails]
    (stored,) = tmp_path.rglob("storage/**/*.dcm")
    pixels = 3 * 32 * 64 * 2
    stored.chmod(0o600)
    with stored.open("r+b") as file:
        file.write(bytes(stored.stat().st_size - pixels))
    assert [client.get(url + tail).data for tail in tails] == before


# Presentation states

IMAGE, SERIES, STUDY = "1.2.826.0.1.88.1", "1.2.826.0.1.88.2", "1.2.826.0.1.88.3"


def state(kind: int = 1, **attributes: Any) -> bytes:
    """A presentation state for the image `IMAGE`."""
    reference, series = Dataset(), Dataset()
    reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID = IMAGE, "1.2.840.10008.5.1.4.1.1.2"
    series.SeriesInstanceUID, series.ReferencedImageSequence = SERIES, [reference]
    return make_file(
        make_dataset(
            SOPClassUID=f"1.2.840.10008.5.1.4.1.1.11.{kind}", StudyInstanceUID=STUDY, Modality="PR", PixelData=None,
            Rows=None, Columns=None, ReferencedSeriesSequence=[series], PresentationLUTShape="INVERSE", **attributes,
        )
    )  # fmt: skip


def image_of_state() -> bytes:
    return make_file(gradient(SOPInstanceUID=IMAGE, SeriesInstanceUID=SERIES, StudyInstanceUID=STUDY))


@pytest.mark.parametrize("kind", [1, 3, 5])
def test_a_presentation_state_shows_its_image_as_it_says(client: FlaskClient, kind: int) -> None:
    _, url = store(client, image_of_state(), state(kind))
    levels = np.asarray(picture(client.get(f"{url}/rendered", headers={"Accept": "image/png"})).convert("L"))
    assert levels[0, 0] > levels[0, -1]  # INVERSE
    together = client.get(f"{url}/rendered", headers={"Accept": 'multipart/related; type="image/png"'})
    assert [kind for kind, _ in parts(together)] == ["image/png"]


def test_a_presentation_state_without_its_images_can_be_read(client: FlaskClient) -> None:
    (url,) = store(client, state())
    page = client.get(f"{url}/rendered", headers={"Accept": "*/*"})
    assert (page.status_code, page.mimetype) == (200, "text/html")
    refused = client.get(f"{url}/rendered", headers={"Accept": "image/jpeg"})
    assert refused.status_code == 406
    assert "None of the images" in refused.json["message"]


@pytest.mark.parametrize("kind", [4, 6])
def test_presentation_states_that_are_not_drawn_say_so(client: FlaskClient, kind: int) -> None:
    _, url = store(client, image_of_state(), state(kind))
    refused = client.get(f"{url}/rendered", headers={"Accept": "image/jpeg"})
    assert refused.status_code == 406
    assert "blending" in refused.json["message"]
    assert client.get(f"{url}/rendered", headers={"Accept": "text/html"}).status_code == 200


def test_a_report_links_to_the_pictures_it_refers_to(client: FlaskClient) -> None:
    image, url = store(client, image_of_state(), state())
    page = client.get(f"{url}/rendered", headers={"Accept": "text/html"}).text
    assert f'href="http://localhost{image}/rendered"' in page
