"""WADO-URI: what it gives for each category of object, by each of its parameters (PS3.18 9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from flask.testing import FlaskClient

from tests.data import make_dataset, make_file, pydicom_files
from tests.web.test_wado_rendered import gradient, image_of_state, picture, state, store


def uri(url: str, **query: str) -> str:
    study, series, instance = url.split("/")[3::2]
    pairs = {"requestType": "WADO", "studyUID": study, "seriesUID": series, "objectUID": instance} | query
    return "/wado?" + "&".join(f"{key}={value}" for key, value in pairs.items())


def test_a_link_of_a_patient_record_shows_the_picture(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(uri(url, contentType="image/jpeg", rows="512", annotation="patient"))
    assert picture(answer).size == (1024, 512)
    assert picture(client.get(uri(url, contentType="image/jpg", columns="32"))).size == (32, 16)
    assert client.get(uri(url)).mimetype == "image/jpeg"
    assert client.get(uri(url), headers={"Accept": "image/png"}).mimetype == "image/png"


def test_region_window_and_frame(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient(3)))
    left = picture(client.get(uri(url, contentType="image/png", frameNumber="1", region="0.0,0.0,0.5,1.0")))
    assert left.size == (32, 32)
    narrow = picture(
        client.get(uri(url, contentType="image/png", frameNumber="1", windowCenter="100", windowWidth="2"))
    )
    assert list(np.asarray(narrow)[0]).index(255) == 7
    assert client.get(uri(url, contentType="image/png", frameNumber="4")).status_code == 400


@pytest.mark.parametrize("kind", ["application/dicom%2Bjson", "application/dicom+json"])
def test_metadata_and_pixels_as_the_original_served_them(client: FlaskClient, kind: str) -> None:
    dataset = gradient()
    (url,) = store(client, make_file(dataset))
    answer = client.get(uri(url, contentType=kind))
    assert answer.json["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]
    assert answer.json["7FE00010"]["BulkDataURI"].startswith("http://localhost/")
    assert client.get(uri(url, contentType="application/octet-stream")).data == dataset.PixelData
    assert b"NativeDicomModel" in client.get(uri(url, contentType="application/dicom%2Bxml")).data


@pytest.mark.parametrize(
    ("name", "kind", "start"),
    [
        ("examples_ybr_color.dcm", "image/jpeg", b"\xff\xd8"),
        ("test-SR.dcm", "text/html", b"<!DOCTYPE html"),
        ("waveform_ecg.dcm", "image/svg+xml", b"<?xml"),
        ("rtplan.dcm", "text/html", b"<!DOCTYPE html"),
    ],
)
def test_each_category_of_objects_has_its_default_media_type(
    client: FlaskClient, name: str, kind: str, start: bytes
) -> None:
    (path,) = (path for path in pydicom_files() if path.name == name)
    (url,) = store(client, path.read_bytes())
    answer = client.get(uri(url))
    assert (answer.status_code, answer.mimetype) == (200, kind)
    assert answer.data.lstrip().startswith(start)
    assert answer.content_length == len(answer.data)
    assert "/wado?" in answer.headers["Content-Location"]


def test_a_report_comes_as_text_where_that_is_asked_for(client: FlaskClient) -> None:
    (url,) = store(client, Path(str(pydicom.data.get_testdata_file("test-SR.dcm"))).read_bytes())
    for charset in ("", "utf-8", "iso-8859-1;q=0.5,utf-8;q=0.1"):
        answer = client.get(uri(url, contentType="text/plain", charset=charset))
        assert (answer.status_code, answer.mimetype) == (200, "text/plain")
        assert answer.content_type.endswith("charset=utf-8")


def test_a_film_of_many_frames_moves_or_gives_one_of_them(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient(3)))
    assert picture(client.get(uri(url, contentType="image/gif"))).n_frames == 3
    assert picture(client.get(uri(url, contentType="image/gif", frameNumber="2"))).n_frames == 1
    first, last = (
        np.asarray(picture(client.get(uri(url, contentType="image/png", frameNumber=number)))) for number in "13"
    )
    assert (first.astype(int) < last.astype(int)).any()


def test_an_image_is_shown_with_a_presentation_state(client: FlaskClient) -> None:
    url, presentation = store(client, image_of_state(), state())
    series, instance = presentation.split("/")[5::2]
    named = {"presentationSeriesUID": series, "presentationUID": instance, "contentType": "image/png"}
    levels = np.asarray(picture(client.get(uri(url, **named)))).astype(int)
    assert levels[0, 0] > levels[0, -1]  # INVERSE
    assert picture(client.get(uri(url, **named, rows="16", region="0,0,0.5,1", annotation="patient"))).size == (16, 16)
    for name, value in (("windowCenter", "5"), ("frameNumber", "1")):
        refused = client.get(uri(url, **named, **{name: value, "windowWidth": "5"} if "w" in name else {name: value}))
        assert refused.status_code == 400
        assert name in refused.json["message"]


def test_a_presentation_state_of_another_image_is_refused(client: FlaskClient) -> None:
    url, presentation = store(client, make_file(make_dataset(StudyInstanceUID="1.2.826.0.1.88.3")), state())
    series, instance = presentation.split("/")[5::2]
    answer = client.get(uri(url, presentationSeriesUID=series, presentationUID=instance))
    assert answer.status_code == 400
    assert "does not refer" in answer.json["message"]


def test_what_was_deleted_is_gone_and_what_never_was_is_not_found(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    client.delete(url)
    assert client.get(uri(url)).status_code == 410
    assert client.get(uri("/dicomweb/studies/1.2/series/1.3/instances/1.4")).status_code == 404


@pytest.mark.parametrize("name", ["studyuid", "StudyUID"])
def test_names_of_parameters_are_case_sensitive(client: FlaskClient, name: str) -> None:
    (url,) = store(client, make_file(gradient()))
    answer = client.get(uri(url).replace("studyUID", name))
    assert answer.status_code == 400
    assert "studyUID" in answer.json["message"]


def test_a_picture_is_asked_for_by_its_head_alone(client: FlaskClient) -> None:
    (url,) = store(client, make_file(gradient()))
    whole, head = client.get(uri(url, rows="32")), client.head(uri(url, rows="32"))
    assert (head.status_code, head.data) == (200, b"")
    assert head.content_length == len(whole.data)
