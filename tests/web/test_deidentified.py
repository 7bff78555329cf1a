"""De-identification on the way in (a setting) and on the way out (WADO-URI `anonymize=yes`), PS3.15 Annex E."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
import pydicom
import pytest
from flask.testing import FlaskClient
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from dicomcloud.archive import Archive
from dicomcloud.dicom.deidentification import Deidentifier, Option
from dicomcloud.errors import Gone
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

SECRETS = (b"Doe^Jane", b"P1", b"19700131", b"Refer^Rita")


def identified() -> pydicom.Dataset:
    return make_dataset(PatientID="P1-secret", AccessionNumber="ACC-77")


def test_what_is_stored_names_nobody_when_the_setting_says_so(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app(anonymizer_enabled="true").test_client()
    dataset = identified()
    answer = client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    assert answer.status_code == 200, answer.text
    again = client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    assert again.json["00081199"]["Value"] == answer.json["00081199"]["Value"]  # the same UIDs each time
    assert answer.json["00081199"]["Value"][0]["00081155"]["Value"] != [dataset.SOPInstanceUID]
    for path in (tmp_path / "data" / "storage").rglob("*.dcm"):
        stored = path.read_bytes()
        assert not [secret for secret in (*SECRETS, dataset.SOPInstanceUID.encode()) if secret in stored]
        assert pydicom.dcmread(path).PatientIdentityRemoved == "YES"
    (study,) = client.get("/dicomweb/studies").json
    assert "Doe" not in str(study)
    assert not list((tmp_path / "data" / "storage" / "incoming").iterdir())


def test_by_default_nothing_is_changed(client: FlaskClient) -> None:
    dataset = identified()
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    (study,) = client.get("/dicomweb/studies").json
    assert study["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane"}]


def test_an_instance_of_another_study_is_told_by_the_uid_that_was_sent(make_app: AppMaker) -> None:
    client = make_app(anonymizer_enabled="true").test_client()
    dataset = identified()
    path = f"/dicomweb/studies/{dataset.StudyInstanceUID}"
    assert client.post(path, data=make_file(dataset), content_type="application/dicom").status_code == 200
    assert client.post(path, data=make_file(), content_type="application/dicom").status_code == 409


def test_wado_uri_gives_a_copy_without_identity(client: FlaskClient) -> None:
    dataset = identified()
    file = make_file(dataset)
    client.post("/dicomweb/studies", data=file, content_type="application/dicom")
    query = {
        "requestType": "WADO",
        "studyUID": dataset.StudyInstanceUID,
        "seriesUID": dataset.SeriesInstanceUID,
        "objectUID": dataset.SOPInstanceUID,
        "contentType": "application/dicom",
        "anonymize": "yes",
    }
    answer = client.get("/wado", query_string=query)
    assert answer.status_code == 200, answer.text
    copy = pydicom.dcmread(BytesIO(answer.data))
    assert copy.SOPInstanceUID != dataset.SOPInstanceUID
    assert copy.PixelData == dataset.PixelData
    assert not [secret for secret in SECRETS if secret in answer.data]
    assert client.get("/wado", query_string=query).data == answer.data
    compressed = client.get("/wado", query_string=query | {"transferSyntax": "1.2.840.10008.1.2.5"})
    assert pydicom.dcmread(BytesIO(compressed.data)).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    assert client.get("/wado", query_string=query | {"contentType": "image/png"}).status_code == 400
    stored = client.get("/wado", query_string=query | {"anonymize": ""}).data
    assert stored == file


def test_pixels_that_may_name_the_patient_are_not_given_away(client: FlaskClient) -> None:
    dataset = make_dataset(BurnedInAnnotation="YES")
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    query = {"requestType": "WADO", "studyUID": dataset.StudyInstanceUID, "seriesUID": dataset.SeriesInstanceUID}
    query |= {"objectUID": dataset.SOPInstanceUID, "contentType": "application/dicom", "anonymize": "yes"}
    answer = client.get("/wado", query_string=query)
    assert answer.status_code == 406
    assert answer.json["message"]


def test_a_preview_is_the_copy_drawn_small_and_only_where_no_text_is_burned_in(client: FlaskClient) -> None:
    bright = np.full((16, 16), 4000, "<u2")
    bright[:8] = 0
    window = {"WindowCenter": 2000, "WindowWidth": 4000, "PixelData": bright.tobytes()}
    dataset = make_dataset(**window)
    same = {"StudyInstanceUID": dataset.StudyInstanceUID}
    captured = make_dataset(**same, **window, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    named = make_dataset(**same, **window, BurnedInAnnotation="YES")
    for each in (dataset, captured, named):
        client.post("/dicomweb/studies", data=make_file(each), content_type="application/dicom")
    answers = [client.get(f"/study/{dataset.StudyInstanceUID}/preview/{number}") for number in (1, 2, 3, 4, 0)]
    assert sorted(answer.status_code for answer in answers) == [200, 404, 404, 406, 406]
    (shown,) = (answer for answer in answers if answer.status_code == 200)
    picture = np.asarray(Image.open(BytesIO(shown.data)).convert("L"))
    assert picture[: len(picture) // 3].max() < 20
    assert picture[-len(picture) // 3 :].min() > 235
    client.delete(f"/dicomweb/studies/{dataset.StudyInstanceUID}")
    assert client.get(f"/study/{dataset.StudyInstanceUID}/preview/1").status_code == 410


def test_a_deidentified_copy_is_made_once_and_goes_with_the_instance(client: FlaskClient, archive: Archive) -> None:
    dataset = identified()
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    (row,) = archive.instances(dataset.StudyInstanceUID)
    with archive.open_deidentified(row, ExplicitVRLittleEndian) as copy:
        first = copy.read()
    assert not [secret for secret in (*SECRETS, dataset.SOPInstanceUID.encode()) if secret in first]
    archive._storage.delete(row.file_key)  # what was kept needs no original
    with archive.open_deidentified(row, ExplicitVRLittleEndian) as copy:
        assert copy.read() == first
    archive.delete(dataset.StudyInstanceUID)
    assert archive.cache.open(f"{row.file_key} deidentified") is None
    with pytest.raises(Gone):
        archive.open_deidentified(row, ExplicitVRLittleEndian)


def test_the_metadata_of_a_copy_are_those_of_its_file_and_lead_nowhere(client: FlaskClient, archive: Archive) -> None:
    dataset = identified()
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    (row,) = archive.instances(dataset.StudyInstanceUID)
    for _ in range(2):  # made, and kept
        text = archive.deidentified_document(row)
        assert not [secret for secret in (*SECRETS, dataset.StudyInstanceUID.encode()) if secret in text]
        assert b"BulkDataURI" not in text
        document = orjson.loads(text)
        assert document["7FE00010"] == {"vr": "OW"}
        with archive.open_deidentified(row, ExplicitVRLittleEndian) as copy:
            assert document["00080018"]["Value"] == [pydicom.dcmread(copy).SOPInstanceUID]


def test_other_options_or_keys_make_other_copies() -> None:
    key, options = b"sixteen secret bytes", (Option.RetainUIDs,)
    one = Deidentifier((), key).fingerprint
    assert one == Deidentifier((), key).fingerprint
    assert len({one, Deidentifier(options, key).fingerprint, Deidentifier((), key + b"!").fingerprint}) == 3
