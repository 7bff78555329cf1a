"""`/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file
from tests.databases import on_sqlite


@pytest.fixture
def client(client: FlaskClient) -> FlaskClient:
    """A client that reads every answer to its end, as one over a network does."""
    unbuffered = client.open
    client.open = lambda *args, **kwargs: unbuffered(*args, **{"buffered": True} | kwargs)  # type: ignore[method-assign]
    return client


def figures(client: FlaskClient) -> dict[tuple[str, ...], float]:
    """The value of each sample, by its name and the values of its labels, in the order of the label names."""
    answer = client.get("/metrics")
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def post(client: FlaskClient, file: bytes) -> int:
    return client.post("/dicomweb/studies", data=file, content_type="application/dicom").status_code


def test_answers_are_counted_by_operation_method_and_status(client: FlaskClient) -> None:
    client.get("/dicomweb/studies")
    client.get("/api/studies?limit=1")
    client.get("/dicomweb/studies/1.2/metadata")
    client.get("/no/such/page")
    found = figures(client)
    assert found["dicomcloud_requests_total", "GET", "search_for_studies", "200"] == 2
    assert found["dicomcloud_requests_total", "GET", "retrieve_study_metadata", "404"] == 1
    assert found["dicomcloud_requests_total", "GET", "none", "404"] == 1
    assert found["dicomcloud_request_duration_seconds_count", "search_for_studies"] == 2
    assert found["dicomcloud_request_duration_seconds_bucket", "+Inf", "search_for_studies"] == 2
    assert found["dicomcloud_requests_in_progress",] == 1  # this one


def test_bytes_in_and_out_are_counted(client: FlaskClient) -> None:
    file = make_file(dataset := make_dataset())
    assert post(client, file) == 200
    path = f"/dicomweb/studies/{dataset.StudyInstanceUID}"
    body = client.get(path, headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}).data
    found = figures(client)
    assert found["dicomcloud_received_bytes_total", "store_instances"] == len(file)
    assert found["dicomcloud_sent_bytes_total", "retrieve_study"] == len(body) > len(file)


def test_stored_instances_and_disk_are_told(client: FlaskClient) -> None:
    file = make_file()
    post(client, file)
    post(client, file)
    post(client, b"no DICOM")
    found = figures(client)
    assert [found["dicomcloud_store_instances_total", kind] for kind in ("stored", "present", "failed")] == [1, 1, 1]
    assert found["dicomcloud_stored_instances",] == found["dicomcloud_stored_studies",] == 1
    assert found["dicomcloud_stored_bytes",] == len(file)
    assert 0 < found["dicomcloud_disk_free_bytes",] <= found["dicomcloud_disk_total_bytes",]
    assert found["dicomcloud_index_ready",] == found["dicomcloud_storage_ready",] == 1
    assert found["dicomcloud_codec_queue",] == 0


def test_no_uid_name_or_unknown_method_gets_into_a_metric(client: FlaskClient) -> None:
    dataset = make_dataset(PatientName="Secret^Sam", PatientID="SECRET1")
    post(client, make_file(dataset))
    client.get(f"/dicomweb/studies/{dataset.StudyInstanceUID}/metadata?PatientName=Secret^Sam")
    client.open("/dicomweb/studies", method="BREW")
    text = client.get("/metrics").text
    assert 'method="other"' in text
    assert not [word for word in ("Secret", "SECRET1", "BREW", dataset.StudyInstanceUID) if word in text]


def test_an_archive_that_can_work_says_so(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}
    checks = {"index": "ok", "storage": "ok", "disk_space": "ok"}
    assert client.get("/readyz").json == {"status": "ready", "checks": checks}


def test_a_disk_that_is_almost_full_stops_storing_and_lets_reading_go_on(make_app: AppMaker) -> None:
    file = make_file(dataset := make_dataset())
    assert post(make_app().test_client(), file) == 200
    client = make_app(min_free_bytes="900 TB").test_client()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["checks"]["index"]) == (503, "ok")
    assert "almost full" in answer.json["message"]
    assert client.get("/readyz?for=reading").status_code == 200
    assert client.get(f"/dicomweb/studies/{dataset.StudyInstanceUID}/metadata").status_code == 200
    assert post(client, make_file()) == 503
    assert figures(client)["dicomcloud_disk_space_ready",] == 0


def test_a_storage_that_is_away_is_named_without_its_path(client: FlaskClient, tmp_path: Path) -> None:
    post(client, make_file())
    shutil.move(tmp_path / "data" / "storage", tmp_path / "unmounted")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["checks"]["storage"]) == (503, "The storage cannot be used")
    assert str(tmp_path) not in answer.text
    os.makedirs(tmp_path / "data" / "storage" / "incoming")  # an empty folder where another disk belongs
    assert client.get("/readyz?for=reading").status_code == 503
    shutil.rmtree(tmp_path / "data" / "storage")
    shutil.move(tmp_path / "unmounted", tmp_path / "data" / "storage")
    assert client.get("/readyz").status_code == 200


@on_sqlite
def test_an_index_that_is_no_database_any_more_is_named(client: FlaskClient, tmp_path: Path) -> None:
    post(client, make_file())
    archive = client.application.extensions["dicomcloud"].archive
    archive.close()
    for path in (tmp_path / "data").glob("index.sqlite3*"):
        path.write_bytes(b"garbage" * 1000)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["checks"]["index"]) == (503, "The index does not answer")
    assert figures(client)["dicomcloud_index_ready",] == 0
