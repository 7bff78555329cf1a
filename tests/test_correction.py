"""`correct` and `merge`: new versions that say what they were, an index that follows, nothing by halves."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from flask.testing import FlaskClient

from dicomcloud.archive import Archive
from tests.conftest import AppMaker, Run, report_of
from tests.data import make_dataset, make_file

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}


@pytest.fixture
def client(make_app: AppMaker, run: Run) -> FlaskClient:
    """A client of a server over the data directory of the commands of `run`."""
    return make_app().test_client()


def store(client: FlaskClient, *datasets: Any) -> None:
    for dataset in datasets:
        answer = client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
        assert answer.status_code == 200


def fetch(client: FlaskClient, dataset: Any, study: str | None = None) -> Any:
    path = f"{study or dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    answer = client.get(f"/dicomweb/studies/{path}", headers=OCTETS, buffered=True)
    assert answer.status_code == 200
    return pydicom.dcmread(BytesIO(answer.data))


def studies(client: FlaskClient, **query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get("/dicomweb/studies", query_string=query).json
    return rows


def verified(run: Run) -> bool:
    return run("verify", "--checksums").returncode == 0


def test_a_corrected_study_says_the_new_values_everywhere_and_the_old_ones_in_its_record(
    client: FlaskClient, run: Run
) -> None:
    one = make_dataset(PatientID="WRONG", PatientName="Doe^Jon")
    two = make_dataset(StudyInstanceUID=one.StudyInstanceUID, PatientID="WRONG", PatientName="Doe^Jon")
    store(client, one, two)
    etag = client.get(f"/dicomweb/studies/{one.StudyInstanceUID}/metadata").headers["ETag"]
    finished = run(
        "correct", one.StudyInstanceUID, "--set", "PatientID=4711", "--set", "PatientName=Müller^Jön", "--apply"
    )
    assert (finished.returncode, "Changed 2 instances of 1 study." in finished.stdout) == (0, True)
    for dataset in (one, two):
        now = fetch(client, dataset)
        assert (now.PatientID, str(now.PatientName), now.PixelData) == ("4711", "Müller^Jön", dataset.PixelData)
        (record,) = now.OriginalAttributesSequence
        (old,) = record.ModifiedAttributesSequence
        assert (old.PatientID, str(old.PatientName)) == ("WRONG", "Doe^Jon")
        assert (record.ReasonForTheAttributeModification, record.ModifyingSystem) == ("CORRECT", "DICOMcloud")
        assert record.AttributeModificationDateTime
    assert studies(client, PatientID="WRONG") == studies(client, PatientName="Doe^Jon") == []
    (row,) = studies(client, PatientID="4711", PatientName="müller*")
    assert row["00201208"]["Value"] == [2]
    answer = client.get(f"/dicomweb/studies/{one.StudyInstanceUID}/metadata")
    assert answer.headers["ETag"] != etag
    assert {each["00100020"]["Value"][0] for each in answer.json} == {"4711"}
    assert verified(run)


def test_without_apply_it_is_only_told_what_would_change(client: FlaskClient, run: Run) -> None:
    dataset = make_dataset(PatientID="WRONG")
    store(client, dataset)
    report = report_of(run("correct", dataset.StudyInstanceUID, "--set", "PatientID=4711", "--json"))
    assert report["applied"] is False
    assert report["studies"][0]["changes"] == {"PatientID": ["WRONG", "4711"]}
    assert report["studies"][0]["instances"] == 1
    assert fetch(client, dataset).PatientID == "WRONG"
    assert "OriginalAttributesSequence" not in fetch(client, dataset)


def test_a_second_correction_adds_a_record_and_the_same_one_changes_nothing(client: FlaskClient, run: Run) -> None:
    dataset = make_dataset(AccessionNumber="A1")
    store(client, dataset)
    for number in ("A2", "A3", "A3"):
        assert run("correct", dataset.StudyInstanceUID, "--set", f"AccessionNumber={number}", "--apply").returncode == 0
    records = fetch(client, dataset).OriginalAttributesSequence
    assert [record.ModifiedAttributesSequence[0].AccessionNumber for record in records] == ["A1", "A2"]
    assert verified(run)


@pytest.mark.parametrize("value", ["StudyInstanceUID=1.2", "Rows=5", "NoSuchName=x", "StudyDate=tomorrow", "PatientID"])
def test_what_cannot_be_corrected_is_refused_and_nothing_changes(client: FlaskClient, run: Run, value: str) -> None:
    dataset = make_dataset()
    store(client, dataset)
    finished = run("correct", dataset.StudyInstanceUID, "--set", value, "--apply")
    assert (finished.returncode, value.partition("=")[0] in finished.stderr) == (2, True)
    assert fetch(client, dataset) == pydicom.dcmread(BytesIO(make_file(dataset)))
    assert run("correct", "1.2.3", "--set", "PatientID=1", "--apply").returncode == 1


def test_one_instance_that_cannot_be_changed_keeps_the_whole_study_as_it_is(
    client: FlaskClient, run: Run, tmp_path: Path
) -> None:
    one = make_dataset(InstanceNumber=1)
    two = make_dataset(StudyInstanceUID=one.StudyInstanceUID, InstanceNumber=2)
    store(client, one, two)
    last = sorted((tmp_path / "data" / "storage").rglob("*.dcm"))[-1]
    last.write_bytes(last.read_bytes()[:500])
    finished = run("correct", one.StudyInstanceUID, "--set", "PatientID=4711", "--apply")
    assert (finished.returncode, "so none was" in finished.stderr) == (1, True)
    assert fetch(client, one).PatientID == "P1"
    assert studies(client, PatientID="4711") == []


def test_merged_patients_are_one_and_their_studies_stay_apart(client: FlaskClient, run: Run) -> None:
    right = make_dataset(PatientID="P1", PatientName="Doe^Jane", PatientBirthDate="19700131", PatientSex="F")
    twins = [make_dataset(PatientID="P9", PatientName="Doe^J", PatientBirthDate="", PatientSex="O") for _ in range(2)]
    other = make_dataset(PatientID="P9", IssuerOfPatientID="ELSEWHERE")
    store(client, right, *twins, other)
    assert "Would change 2 instances of 2 studies." in run("merge", "P9", "P1").stdout
    assert run("merge", "P9", "P1", "--apply").returncode == 0
    assert len(studies(client, PatientID="P1")) == 3
    assert [row["00100021"]["Value"] for row in studies(client, PatientID="P9", includefield="00100021")] == [
        ["ELSEWHERE"]
    ]
    now = fetch(client, twins[0])
    assert (now.PatientID, str(now.PatientName), now.PatientBirthDate, now.PatientSex) == (
        "P1",
        "Doe^Jane",
        "19700131",
        "F",
    )
    assert now.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == "P9"
    assert run("merge", "P9", "P1", "--apply").returncode == 1
    assert verified(run)


def test_a_merged_study_is_gone_and_its_series_are_in_the_other(client: FlaskClient, run: Run) -> None:
    right = make_dataset(StudyDescription="Thorax", AccessionNumber="A1")
    wrong = [make_dataset(StudyDescription="?", AccessionNumber="", PatientID="X") for _ in range(2)]
    wrong[1].StudyInstanceUID = wrong[0].StudyInstanceUID
    store(client, right, *wrong)
    old, new = wrong[0].StudyInstanceUID, right.StudyInstanceUID
    assert run("merge", "--studies", old, new, "--apply").returncode == 0
    (row,) = studies(client)
    assert (row["0020000D"]["Value"], row["00201206"]["Value"], row["00201208"]["Value"]) == ([new], [3], [3])
    for dataset in wrong:
        now = fetch(client, dataset, new)
        assert (now.StudyInstanceUID, now.StudyDescription, now.AccessionNumber, now.PatientID) == (
            new,
            "Thorax",
            "A1",
            "P1",
        )
        assert now.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].StudyInstanceUID == old
    assert client.get(f"/dicomweb/studies/{old}/metadata").status_code in (404, 410)
    assert run("merge", "--studies", new, new, "--apply").returncode == 1
    assert verified(run)
    assert run("reindex").returncode == 0
    assert len(studies(client)) == 1


def test_what_is_stored_meanwhile_is_corrected_too(
    client: FlaskClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(PatientID="WRONG")
    store(client, dataset)
    archive: Archive = client.application.extensions["dicomcloud"].archive
    late = make_dataset(StudyInstanceUID=dataset.StudyInstanceUID, PatientID="WRONG")
    add, waiting = archive.index.add, [late]

    def add_after_another(*args: Any, **kwargs: Any) -> Any:
        if waiting:
            store(client, waiting.pop())
        return add(*args, **kwargs)

    monkeypatch.setattr(archive.index, "add", add_after_another)
    assert archive.correction.correct(dataset.StudyInstanceUID, {"PatientID": "4711"}).instances == 2
    assert fetch(client, late).PatientID == "4711"


def test_a_correction_is_in_the_audit_trail_without_values(client: FlaskClient, run: Run) -> None:
    dataset = make_dataset(PatientID="WRONG")
    store(client, dataset)
    run("correct", dataset.StudyInstanceUID, "--set", "PatientID=4711", "--apply")
    lines = run("audit", "list", "--json", "--action", "correct").stdout.splitlines()
    (event,) = (json.loads(line) for line in lines)
    assert (event["study_uid"], event["caller"].startswith("operator:")) == (dataset.StudyInstanceUID, True)
    assert "PatientID" in lines[0]
    assert "4711" not in lines[0]
