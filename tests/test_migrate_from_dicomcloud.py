"""`migrate-from-dicomcloud`: a folder as the original DICOMcloud lays it out, and its database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian

from dicomcloud.index import open_database
from tests.conftest import Run, report_of
from tests.data import make_dataset, make_file
from tests.databases import SERVER, new_server_database

REAL = ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm")


def put(root: Path, media: str, uids: tuple[str, str, str], content: bytes, *, frame: str = "1") -> Path:
    """A file where the original puts it: parts of more than 32 characters become their MD5."""
    parts = [media, *uids, frame]
    short = [hashlib.md5(part.encode()).hexdigest().upper() if len(part) > 32 else part for part in parts]
    path = root.joinpath(*short)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def uids_of(dataset: pydicom.Dataset) -> tuple[str, str, str]:
    return dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID


def decompressed(dataset: pydicom.Dataset) -> bytes:
    dataset.decompress(generate_instance_uid=False)
    return make_file(dataset)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Real files as version 0.7 keeps them: as received, in Explicit VR Little Endian, and as JSON."""
    for name in REAL:
        put_real(tmp_path, name)
    return tmp_path / "ds"


def put_real(tmp_path: Path, name: str) -> None:
    root, path = tmp_path / "ds", Path(str(get_testdata_file(name)))
    dataset = pydicom.dcmread(path)
    uids, syntax = uids_of(dataset), dataset.file_meta.TransferSyntaxUID
    put(root, f"application-dicom;{syntax}", uids, path.read_bytes())
    put(root, "application-dicomjson", uids, b"{}")
    if syntax != ExplicitVRLittleEndian:
        put(root, f"application-dicom;{ExplicitVRLittleEndian}", uids, decompressed(dataset))


def test_the_folder_alone_is_enough_and_what_was_received_is_what_is_kept(
    run: Run, store: Path, tmp_path: Path
) -> None:
    report = report_of(run("migrate-from-dicomcloud", store, "--json"))
    assert (report["instances"], report["stored"], report["copies_left_out"], report["other_forms_left_out"]) == (
        3,
        3,
        2,
        3,
    )
    assert report["compared"]["instances"] == {"original": 3, "here": 3}
    assert report["compared"]["studies"] == {"original": 3, "here": 3}
    kept = {hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "data").rglob("*.dcm")}
    assert kept == {hashlib.sha256(Path(str(get_testdata_file(name))).read_bytes()).digest() for name in REAL}


def test_what_came_since_the_last_run_is_added(run: Run, tmp_path: Path) -> None:
    put_real(tmp_path, REAL[0])
    assert report_of(run("migrate-from-dicomcloud", tmp_path / "ds", "--json"))["stored"] == 1
    for name in REAL[1:]:
        put_real(tmp_path, name)
    report = report_of(run("migrate-from-dicomcloud", tmp_path / "ds", "--json"))
    assert (report["already_there"], report["stored"]) == (1, 2)
    assert report["compared"]["instances"] == {"original": 3, "here": 3}


def test_a_second_run_finds_everything_there(run: Run, store: Path) -> None:
    assert run("migrate-from-dicomcloud", store).returncode == 0
    again = run("migrate-from-dicomcloud", store)
    assert again.returncode == 0
    assert "3 already there" in again.stdout
    assert "instances  original          3   here          3" in again.stdout


def test_a_dry_run_stores_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    finished = run("migrate-from-dicomcloud", store, "--dry-run")
    assert finished.returncode == 0
    assert "3 to be stored" in finished.stdout
    assert not list((tmp_path / "data").rglob("*.dcm"))


def test_the_lossy_copy_of_early_versions_is_never_taken_for_the_original(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "ds"
    dataset = make_dataset()
    original = make_file(dataset)
    put(root, f"application-dicom;{ExplicitVRLittleEndian}", uids_of(dataset), original)
    head = original.index(b"\x02\x00\x10\x00UI") + 6
    syntax = JPEG2000.encode()
    lossy = original[:head] + len(syntax).to_bytes(2, "little") + syntax + original[head + 22 :]
    put(root, f"application-dicom;{JPEG2000}", uids_of(dataset), lossy)
    report = report_of(run("migrate-from-dicomcloud", root, "--json"))
    assert (report["stored"], report["copies_left_out"]) == (1, 1)
    assert [path.read_bytes() for path in (tmp_path / "data").rglob("*.dcm")] == [original]


def test_what_cannot_be_taken_is_named_with_the_reason(run: Run, store: Path) -> None:
    put(store, "application-dicomjson", ("1.2.3", "1.2.3.1", "1.2.3.1.1"), b"{}")
    broken = put(
        store, f"application-dicom;{ExplicitVRLittleEndian}", ("1.2.4", "1.2.4.1", "1.2.4.1.1"), bytes(128) + b"DICM"
    )
    finished = run("migrate-from-dicomcloud", store, "--json")
    assert finished.returncode == 1
    reasons = {each["path"]: each["reason"] for each in report_of(finished)["not_taken"]}
    assert "no DICOM file" in reasons[str(Path("1.2.3", "1.2.3.1", "1.2.3.1.1"))]
    assert reasons[str(broken)]
    assert "NOT TAKEN" in run("migrate-from-dicomcloud", store).stderr


def test_containers_of_azure_are_read_when_they_have_been_downloaded(run: Run, tmp_path: Path) -> None:
    dataset = make_dataset()
    folder = tmp_path / "blobs" / "applicationadicoma1a2a840a10008a1a2a1" / Path(*uids_of(dataset))
    folder.mkdir(parents=True)
    (folder / "1").write_bytes(make_file(dataset))
    assert report_of(run("migrate-from-dicomcloud", tmp_path / "blobs", "--json"))["stored"] == 1


def test_a_folder_that_is_not_there_and_a_url_that_is_none_are_wrong_usage(run: Run, store: Path) -> None:
    assert run("migrate-from-dicomcloud", store / "nothing").returncode == 2
    assert run("migrate-from-dicomcloud", store, "--database", "postgres://x").returncode == 2
    assert run("migrate-from-dicomcloud", store, anonymizer_enabled="true").returncode == 2


# Its database

SCHEMA = (
    "CREATE TABLE DICOMcloudDbVersion (Major int NOT NULL, Minor int NOT NULL)",
    "CREATE TABLE Study (StudyKey bigint PRIMARY KEY, Study_PatientKey bigint, StudyInstanceUid nvarchar(64) NOT NULL)",
    "CREATE TABLE Series (SeriesKey bigint PRIMARY KEY, Series_StudyKey bigint, SeriesInstanceUid nvarchar(64) NULL)",
    "CREATE TABLE ObjectInstance (ObjectInstanceKey bigint PRIMARY KEY, ObjectInstance_SeriesKey bigint,"
    " SopInstanceUid nvarchar(64) NOT NULL)",
)


@pytest.fixture
def original_url(tmp_path: Path) -> Iterator[str]:
    """The tables of the original, as far as they are read, with the instances of REAL."""
    if SERVER:
        with new_server_database() as url:
            fill(url)
            yield url
    else:
        (tmp_path / "original.db").touch()
        url = f"sqlite:///{(tmp_path / 'original.db').as_posix()}"
        fill(url)
        yield url


def fill(url: str) -> None:
    database = open_database(url)
    for statement in (*SCHEMA, "INSERT INTO DICOMcloudDbVersion (Major, Minor) VALUES (0, 7)"):
        database.run(statement)
    for key, name in enumerate(REAL):
        study, series, sop = uids_of(pydicom.dcmread(str(get_testdata_file(name))))
        add_row(database, key, study, series, sop)
    database.close()


def add_row(database, key: int, study: str, series: str, sop: str) -> None:  # type: ignore[no-untyped-def]
    database.run("INSERT INTO Study (StudyKey, StudyInstanceUid) VALUES (?, ?)", (key, study))
    database.run(
        "INSERT INTO Series (SeriesKey, Series_StudyKey, SeriesInstanceUid) VALUES (?, ?, ?)", (key, key, series)
    )
    database.run(
        "INSERT INTO ObjectInstance (ObjectInstanceKey, ObjectInstance_SeriesKey, SopInstanceUid) VALUES (?, ?, ?)",
        (key, key, sop),
    )


def test_every_instance_of_the_database_is_looked_for(run: Run, store: Path, original_url: str) -> None:
    finished = run("migrate-from-dicomcloud", store, "--database", original_url, "--json")
    assert finished.returncode == 0
    assert report_of(finished)["compared"] == {
        name: {"original": 3, "here": 3} for name in ("studies", "series", "instances")
    }


def test_a_row_without_a_file_is_named_also_in_a_dry_run(run: Run, store: Path, original_url: str) -> None:
    database = open_database(original_url)
    add_row(database, 9, "1.2.9", "1.2.9.1", "1.2.9.1.1")
    database.close()
    for options in (["--dry-run"], []):
        finished = run("migrate-from-dicomcloud", store, "--database", original_url, "--json", *options)
        report = json.loads(finished.stdout)
        assert finished.returncode == 1
        assert report["missing"] == ["instance 1.2.9.1.1 of study 1.2.9: the store has no file of it"]
        assert report["compared"]["instances"] == {"original": 4, "here": 3}


def test_two_rows_of_one_instance_are_one(run: Run, store: Path, original_url: str) -> None:
    database = open_database(original_url)
    add_row(database, 7, *uids_of(pydicom.dcmread(str(get_testdata_file(REAL[0])))))
    database.close()
    finished = run("migrate-from-dicomcloud", store, "--database", original_url, "--json")
    assert report_of(finished)["compared"]["instances"] == {"original": 3, "here": 3}


def test_a_database_of_something_else_or_of_a_newer_version_is_refused(
    run: Run, store: Path, original_url: str, tmp_path: Path
) -> None:
    database = open_database(original_url)
    database.run("UPDATE DICOMcloudDbVersion SET Minor = 9")
    database.close()
    newer = run("migrate-from-dicomcloud", store, "--database", original_url)
    assert (newer.returncode, "version 0.9" in newer.stderr) == (1, True)
    (tmp_path / "empty.db").touch()
    other = run("migrate-from-dicomcloud", store, "--database", f"sqlite:///{(tmp_path / 'empty.db').as_posix()}")
    assert (other.returncode, "no database of the original" in other.stderr) == (1, True)
