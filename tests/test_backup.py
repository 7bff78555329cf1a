"""`backup` and `restore`: while the archive is in use, again and again, and back."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from dicomcloud.archive import Archive
from tests.conftest import AppMaker, Run, report_of
from tests.data import make_dataset, make_file
from tests.databases import on_sqlite

pytestmark = on_sqlite  # a server's index is backed up by the server's own means


def store(archive: Archive, *files: bytes) -> None:
    with archive.begin_store() as batch:
        for file in files:
            batch.add([file])
        assert all(item.failure is None for item in batch.commit().items)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.dcm"))}


@pytest.fixture
def used(make_app: AppMaker, run: Run) -> Archive:
    """An archive in use, over the same data directory as the commands of `run`."""
    archive: Archive = make_app().extensions["dicomcloud"].archive
    return archive


def test_a_backup_is_restored_file_by_file_and_row_by_row(used: Archive, run: Run, tmp_path: Path) -> None:
    study = make_dataset().StudyInstanceUID
    store(used, *(make_file(StudyInstanceUID=study) for _ in range(3)), make_file())
    (tmp_path / "data" / "deidentification.key").write_text("k" * 32, encoding="ascii")
    report = report_of(run("backup", "--json", tmp_path / "safe"))
    assert (report["files"], report["copied"], report["faults"]) == (4, 4, [])
    finished = run("restore", tmp_path / "safe", data_dir=tmp_path / "new")
    assert finished.returncode == 0, finished.stderr
    assert "2 studies, 4 instances" in finished.stdout
    assert files_below(tmp_path / "new" / "storage") == files_below(tmp_path / "data" / "storage")
    assert (tmp_path / "new" / "deidentification.key").read_text() == "k" * 32
    assert run("verify", "--checksums", data_dir=tmp_path / "new").returncode == 0


def test_the_next_backup_copies_only_what_is_new(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file(), make_file())
    run("backup", tmp_path / "safe")
    store(used, make_file())
    report = report_of(run("backup", "--json", tmp_path / "safe"))
    assert (report["files"], report["copied"]) == (3, 1)
    listed = report_of(run("restore", "--list", "--json", tmp_path / "safe"))
    assert [each["instances"] for each in listed] == [2, 3]


def test_an_older_backup_brings_back_what_was_deleted_since(used: Archive, run: Run, tmp_path: Path) -> None:
    dataset = make_dataset()
    store(used, make_file(dataset), make_file())
    first = report_of(run("backup", "--json", tmp_path / "safe"))["backup"]
    used.delete(dataset.StudyInstanceUID)
    run("backup", tmp_path / "safe")
    assert run("restore", tmp_path / "safe", data_dir=tmp_path / "last").stdout.endswith("1 studies, 1 instances.\n")
    finished = run("restore", tmp_path / "safe", "--at", first, data_dir=tmp_path / "first")
    assert finished.stdout.endswith("2 studies, 2 instances.\n")
    assert run("verify", "--checksums", data_dir=tmp_path / "first").returncode == 0


def test_files_that_no_kept_backup_names_are_removed_from_it(used: Archive, run: Run, tmp_path: Path) -> None:
    dataset = make_dataset()
    store(used, make_file(dataset), make_file())
    run("backup", tmp_path / "safe", "--keep", 2)
    used.delete(dataset.StudyInstanceUID)
    run("backup", tmp_path / "safe", "--keep", 2)
    assert len(files_below(tmp_path / "safe")) == 2
    run("backup", tmp_path / "safe", "--keep", 2)
    assert len(files_below(tmp_path / "safe")) == 1
    assert len(report_of(run("restore", "--list", "--json", tmp_path / "safe"))) == 2
    assert run("backup", "--verify", tmp_path / "safe").returncode == 0


def test_a_backup_made_while_instances_come_and_go_is_consistent(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, *(make_file() for _ in range(30)))
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            dataset = make_dataset()
            store(used, make_file(dataset), make_file())
            used.delete(dataset.StudyInstanceUID)

    worker = threading.Thread(target=come_and_go)
    worker.start()
    try:
        for _ in range(4):
            finished = run("backup", "--json", tmp_path / "safe")
            assert (finished.returncode, report_of(finished)["faults"]) == (0, [])
    finally:
        done.set()
        worker.join()
    for each in report_of(run("restore", "--list", "--json", tmp_path / "safe")):
        target = tmp_path / each["name"]
        assert run("restore", tmp_path / "safe", "--at", each["name"], data_dir=target).returncode == 0
        assert run("verify", "--checksums", data_dir=target).returncode == 0


def test_a_damaged_file_is_named_and_does_not_replace_the_good_copy(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file())
    run("backup", tmp_path / "safe")
    store(used, make_file())
    old, new = sorted((tmp_path / "data" / "storage").rglob("*.dcm"))
    for path in (old, new):
        path.write_bytes(b"\0" * path.stat().st_size)
    finished = run("backup", tmp_path / "safe")
    assert finished.returncode == 1
    assert "1 not copied" in finished.stdout
    assert new.name in finished.stderr
    assert old.name not in finished.stderr
    assert b"\0" * 200 not in files_below(tmp_path / "safe").popitem()[1][128:328]


def test_a_damaged_backup_is_found_out_when_it_is_verified_and_restored(
    used: Archive,
    run: Run,
    tmp_path: Path,
) -> None:
    store(used, make_file(), make_file())
    run("backup", tmp_path / "safe")
    assert run("backup", "--verify", tmp_path / "safe").returncode == 0
    broken, lost = sorted((tmp_path / "safe").rglob("*.dcm"))
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    lost.unlink()
    finished = run("backup", "--verify", tmp_path / "safe")
    assert finished.returncode == 1
    assert {line.split()[0].rpartition("/")[2] for line in finished.stderr.splitlines()} == {
        f"{broken.name}:",
        f"{lost.name}:",
    }
    finished = run("restore", tmp_path / "safe", data_dir=tmp_path / "new")
    assert (finished.returncode, "2 not restored" in finished.stdout) == (1, True)


def test_an_interrupted_backup_is_none_and_the_next_one_is_whole(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file())
    run("backup", tmp_path / "safe")
    (generation,) = (tmp_path / "safe" / "generations").iterdir()
    (generation / "manifest.json").unlink()
    finished = run("restore", tmp_path / "safe", data_dir=tmp_path / "new")
    assert (finished.returncode, "no complete backup" in finished.stderr) == (1, True)
    assert run("backup", tmp_path / "safe").returncode == 0
    assert [path.name for path in (tmp_path / "safe" / "generations").iterdir()] != [generation.name]


def test_two_backups_into_one_folder_are_not_made_at_once(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file())
    run("backup", tmp_path / "safe")
    with closing(sqlite3.connect(tmp_path / "safe" / "lock.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        finished = run("backup", tmp_path / "safe")
    assert (finished.returncode, "under way" in finished.stderr) == (1, True)


def test_restore_does_not_touch_an_archive_that_is_there(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file())
    run("backup", tmp_path / "safe")
    before = files_below(tmp_path / "data")
    finished = run("restore", tmp_path / "safe")
    assert (finished.returncode, "is there already" in finished.stderr) == (1, True)
    assert files_below(tmp_path / "data") == before


def test_an_interrupted_restore_goes_on(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file(), make_file())
    run("backup", tmp_path / "safe")
    run("restore", tmp_path / "safe", data_dir=tmp_path / "new")
    for path in (tmp_path / "new").glob("index.sqlite3*"):
        path.unlink()  # the last thing that is put there
    report = report_of(run("restore", "--json", tmp_path / "safe", data_dir=tmp_path / "new"))
    assert (report["files"], report["copied"], report["faults"]) == (2, 0, [])


def test_a_backup_inside_the_data_directory_is_not_part_of_itself(used: Archive, run: Run, tmp_path: Path) -> None:
    store(used, make_file())
    target = tmp_path / "data" / "backups"
    assert run("backup", target).returncode == run("backup", target).returncode == 0
    assert len(files_below(target)) == 1
    assert run("backup", tmp_path).returncode == 2
    manifest = json.loads(next(iter(target.glob("generations/*/manifest.json"))).read_text())
    assert manifest["instances"] == 1


def test_an_index_that_is_no_file_is_left_to_its_own_tools(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicomcloud.settings import Settings

    monkeypatch.setattr(Settings, "resolved_database_url", "mssql://server/dicom")
    finished = run("backup", tmp_path / "safe")
    assert (finished.returncode, "its own tools" in finished.stderr) == (2, True)
