"""`export`: out of the archive into a folder or a ZIP file, resumable, with a DICOMDIR, de-identified on request."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
from click.testing import CliRunner, Result
from pydicom.fileset import FileSet

import app as application
from dicomcloud.cli import commands
from dicomcloud.cli.program import Program
from tests.data import make_dataset, make_file


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DICOMCLOUD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DICOMCLOUD_MIN_FREE_BYTES", "0")
    return Program(application.open_archive, application.create_app)


def run(program: Program, *arguments: str) -> Result:
    return CliRunner().invoke(commands, ["export", *arguments], obj=program, catch_exceptions=False)


def fill(program: Program) -> list[Any]:
    """Two studies of one patient (one of two series), and one of another."""
    one = make_dataset(PatientName="Doe^Jane", PatientID="P1")
    data_sets = [
        one,
        make_dataset(StudyInstanceUID=one.StudyInstanceUID, PatientID="P1", SeriesNumber=2),
        make_dataset(PatientID="P1"),
        make_dataset(PatientName="Roe^Rita", PatientID="P2"),
    ]
    with program.archive() as archive, archive.begin_store() as batch:
        for dataset in data_sets:
            batch.add([make_file(dataset)])
        batch.commit()
    return data_sets


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path.read_bytes()
        for path in (folder / "DICOM").rglob("*")
        if path.is_file()
    }


def test_a_study_is_exported_bit_for_bit_with_a_dicomdir_that_pydicom_reads(program: Program, tmp_path: Path) -> None:
    data_sets = fill(program)
    out = tmp_path / "out"
    done = run(program, str(out), "--study", data_sets[0].StudyInstanceUID)
    assert (done.exit_code, "Exported 2 instances" in done.output) == (0, True), done.output
    assert files_in(out) == {each.SOPInstanceUID: make_file(each) for each in data_sets[:2]}
    listed = FileSet(out / "DICOMDIR")
    assert {instance.SOPInstanceUID for instance in listed} == {each.SOPInstanceUID for each in data_sets[:2]}
    assert all(Path(instance.path).is_file() for instance in listed)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--patient", "P1"], [0, 1, 2]),
        (["--query", "PatientName=roe*"], [3]),
        (["--query", "PatientID=P1", "--query", "PatientName=Roe*"], []),
        (["--all"], [0, 1, 2, 3]),
    ],
)
def test_what_is_exported_is_chosen_by_patient_query_or_everything(
    program: Program, tmp_path: Path, arguments: list[str], expected: list[int]
) -> None:
    data_sets = fill(program)
    done = run(program, str(tmp_path / "out"), *arguments)
    assert done.exit_code == (0 if expected else 1)
    found = files_in(tmp_path / "out") if expected else {}
    assert set(found) == {data_sets[number].SOPInstanceUID for number in expected}


def test_one_series_is_exported(program: Program, tmp_path: Path) -> None:
    data_sets = fill(program)
    assert run(program, str(tmp_path / "out"), "--series", data_sets[1].SeriesInstanceUID).exit_code == 0
    assert set(files_in(tmp_path / "out")) == {data_sets[1].SOPInstanceUID}


def test_a_repeated_export_writes_only_what_is_missing_or_damaged(program: Program, tmp_path: Path) -> None:
    fill(program)
    out = tmp_path / "out"
    run(program, str(out), "--all")
    before = files_in(out)
    paths = sorted(path for path in (out / "DICOM").rglob("*") if path.is_file())
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    done = json.loads(run(program, str(out), "--all", "--json").output)
    assert (done["written"], done["already_there"], done["failed"]) == (2, 2, [])
    assert files_in(out) == before
    assert len(FileSet(out / "DICOMDIR")) == 4
    assert list(out.rglob("*.part")) == []


def test_a_zip_file_holds_the_same_and_is_there_when_it_is_complete(program: Program, tmp_path: Path) -> None:
    data_sets = fill(program)
    out = tmp_path / "study.zip"
    assert run(program, str(out), "--patient", "P1").exit_code == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    assert files_in(tmp_path / "unpacked") == {each.SOPInstanceUID: make_file(each) for each in data_sets[:3]}
    assert len(FileSet(tmp_path / "unpacked/DICOMDIR")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "study.zip", "unpacked"]


def test_a_deidentified_export_names_nobody_anywhere(program: Program, tmp_path: Path) -> None:
    data_sets = fill(program)
    out = tmp_path / "out"
    assert run(program, str(out), "--all", "--deidentify", "--options", "RetainPatientChars").exit_code == 0
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    paths = "\n".join(map(str, out.rglob("*")))
    for each in data_sets:
        for value in (each.SOPInstanceUID, each.StudyInstanceUID, each.SeriesInstanceUID, "Doe", "Roe", "19700131"):
            assert str(value).encode() not in written
            assert str(value) not in paths
    listed = FileSet(out / "DICOMDIR")
    assert len(listed) == 4
    assert {instance.load().PatientIdentityRemoved for instance in listed} == {"YES"}
    assert len({instance.PatientID for instance in listed}) == 2
    again = json.loads(run(program, str(out), "--all", "--deidentify", "--json").output)
    assert (again["written"], again["already_there"]) == (0, 4)


def test_what_cannot_be_exported_is_named_and_the_rest_is_written(program: Program, tmp_path: Path) -> None:
    data_sets = fill(program)
    lost = next(
        path
        for path in (tmp_path / "data/storage").rglob("*.dcm")
        if data_sets[3].SOPInstanceUID.encode() in path.read_bytes()
    )
    lost.unlink()
    done = run(program, str(tmp_path / "out"), "--all")
    assert done.exit_code == 1
    assert data_sets[3].SOPInstanceUID in done.output
    assert len(files_in(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--study, --series, --patient, --query or --all"),
        (["--query", "NoSuchAttribute=1"], "NoSuchAttribute"),
        (["--study", "1.2.3"], "no study 1.2.3"),
    ],
)
def test_a_wrong_request_is_named(program: Program, tmp_path: Path, arguments: list[str], named: str) -> None:
    fill(program)
    try:
        done = run(program, str(tmp_path / "out"), *arguments)
        said = done.output
        assert done.exit_code != 0
    except Exception as error:  # the program's own handler makes an exit code of it
        said = str(error)
    assert named in said
    assert not (tmp_path / "out").exists()
