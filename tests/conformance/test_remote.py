"""The commands for DICOMweb servers, against a server of this project in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from dicomcloud.cli.remote import table
from tests.conformance.conftest import Server
from tests.conftest import Run, report_of
from tests.data import make_dataset, make_file


@pytest.fixture
def study(server: Any) -> Any:
    """A study of two series with three instances, stored anew for each test; its first data set."""
    first = make_dataset(PatientName="Remote^Rosa=遠隔^薔薇", PatientID="R1")
    same = {"StudyInstanceUID": first.StudyInstanceUID, "PatientName": first.PatientName, "PatientID": "R1"}
    second = make_dataset(**same, SeriesInstanceUID=first.SeriesInstanceUID, InstanceNumber=2)
    for dataset in (first, second, make_dataset(**same, SeriesNumber=2, Modality="MR")):
        headers = {"Content-Type": "application/dicom"}
        answer = requests.post(f"{server.root}/studies", data=make_file(dataset), headers=headers, timeout=60)
        assert answer.status_code == 200
    yield first
    requests.delete(f"{server.root}/studies/{first.StudyInstanceUID}", timeout=60)


def test_studies_series_and_instances_are_listed(run: Run, server: Any, study: Any) -> None:
    found = run("search", server.root, "PatientName=remote*")
    assert (found.returncode, found.stderr) == (0, "")
    header, _, row, total = found.stdout.splitlines()
    assert header.split() == ["Patient", "ID", "Date", "Modality", "Description", "Images", "Study", "Instance", "UID"]
    for text in ("Remote^Rosa=遠隔^薔薇", "R1", "2025-01-02", "CT\\MR", "Thorax", " 3 ", study.StudyInstanceUID):
        assert text in row
    assert total == "1 study."
    assert run("search", server.root, "--study", study.StudyInstanceUID).stdout.endswith("2 series.\n")
    uids = ("--study", study.StudyInstanceUID, "--series", study.SeriesInstanceUID)
    assert run("search", server.root, *uids).stdout.endswith("2 instances.\n")


def test_results_are_printed_as_the_server_gave_them(run: Run, server: Any, study: Any) -> None:
    found = run("search", server.root, "PatientID=R1", "--json")
    (row,) = json.loads(found.stdout)
    assert row["0020000D"]["Value"] == [study.StudyInstanceUID]
    assert json.loads(run("search", server.root, "PatientID=nobody", "--json").stdout) == []


def test_all_pages_are_fetched(run: Run, new_server: Callable[..., Any]) -> None:
    server = new_server(DICOMCLOUD_MAX_RESULTS="2")
    for _ in range(5):
        headers = {"Content-Type": "application/dicom"}
        requests.post(f"{server.root}/studies", data=make_file(), headers=headers, timeout=60)
    assert len(json.loads(run("search", server.root, "--all", "--json").stdout)) == 5
    assert len(json.loads(run("search", server.root, "--limit", 3, "--json").stdout)) == 3


def test_a_study_is_fetched_bit_for_bit(run: Run, server: Any, study: Any, tmp_path: Path) -> None:
    done = run("fetch", server.root, study.StudyInstanceUID, "--to", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fetched 3 files" in done.stdout
    files = sorted((tmp_path / "out").rglob("*.*"))
    assert len([file for file in files if file.is_file()]) == 3
    file = tmp_path / "out" / study.StudyInstanceUID / study.SeriesInstanceUID / f"{study.SOPInstanceUID}.dcm"
    assert file.read_bytes() == make_file(study)


def test_a_series_and_an_instance_are_fetched_alone(run: Run, server: Any, study: Any, tmp_path: Path) -> None:
    uids = [study.StudyInstanceUID, study.SeriesInstanceUID, study.SOPInstanceUID]
    for depth, expected in ((2, 2), (3, 1)):
        report = report_of(run("fetch", server.root, *uids[:depth], "--to", tmp_path / str(depth), "--json"))
        assert (report["expected"], len(report["files"])) == (expected, expected)  # type: ignore[arg-type]


def test_instances_are_fetched_converted(run: Run, server: Any, tmp_path: Path, study: Any) -> None:
    jpeg_ls, out = "1.2.840.10008.1.2.4.80", tmp_path / "out"
    done = run("fetch", server.root, study.StudyInstanceUID, "--to", out, "--transfer-syntax", jpeg_ls)
    assert (done.returncode, done.stderr) == (0, "")
    files = [pydicom.dcmread(file) for file in out.rglob("*.dcm")]
    assert [file.file_meta.TransferSyntaxUID for file in files] == [jpeg_ls] * 3


def test_a_folder_is_stored_and_what_failed_is_named(run: Run, server: Any, tmp_path: Path, study: Any) -> None:
    folder = tmp_path / "in" / "below"
    folder.mkdir(parents=True)
    for number in range(25):
        (folder / f"{number}.dcm").write_bytes(make_file(PatientID="R2"))
    (folder / "cut.dcm").write_bytes(make_file()[:-30])
    study.PatientID = "changed"
    (folder / "other.dcm").write_bytes(make_file(study))
    (folder / "README.txt").write_text("An export", encoding="utf-8")
    done = run("store", server.root, tmp_path / "in")
    assert done.returncode == 1
    assert "Stored 25 files." in done.stdout
    assert "Skipped 1 file:" in done.stdout
    for words in ("NOT STORED: 2 files", "cut.dcm", "truncated", "other.dcm", "another version"):
        assert words in done.stderr
    report = report_of(run("store", server.root, folder / "1.dcm", "--json"))
    assert report == {"stored": 1, "skipped": [], "failed": []}
    assert len(requests.get(f"{server.root}/studies", params={"PatientID": "R2"}, timeout=60).json()) == 25


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("search", "http://127.0.0.1:9/dicomweb"), 1, "cannot be reached"),
        (("search", "ftp://pacs"), 2, "no http or https URL"),
        (("search", "{root}", "nonsense"), 2, "no KEY=VALUE"),
        (("search", "{root}", "Nonsense=1"), 1, "400"),
        (("search", "{root}", "--series", "1.2"), 2, "--study"),
        (("search", "{url}/healthz"), 1, "404"),
        (("fetch", "{root}", "1.2.3"), 1, "Nothing is stored under studies/1.2.3"),
        (("store", "{root}", "."), 0, ""),
    ],
)
def test_what_goes_wrong_is_told_with_an_exit_code(
    run: Run, server: Any, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(*(each.format(root=server.root, url=server.url) for each in arguments))
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_password_is_sent_and_a_refusal_told(
    run: Run, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = Server(tmp_path_factory.mktemp("closed"), DICOMCLOUD_AUTHENTICATION="required")
    done = server.run("users", "add", "rita", "--role", "reader", "--password-stdin", typed="correct horse battery\n")
    assert done.returncode == 0, done.stderr
    server.start()
    try:
        refused = run("search", server.root)
        assert (refused.returncode, "401" in refused.stderr) == (1, True)
        monkeypatch.setenv("DICOMWEB_PASSWORD", "correct horse battery")
        assert run("search", server.root, "--user", "rita").stdout == "0 studies.\n"
    finally:
        server.stop()


def test_a_table_is_as_wide_as_its_text() -> None:
    lines = table(["Patient", "ID"], [["山田^太郎", "1"], ["Doe", "22"]]).splitlines()
    assert lines == ["Patient    ID", "─────────  ──", "山田^太郎  1", "Doe        22"]
