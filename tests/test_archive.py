"""Index and files are one: after stores, deletes, crashes, lost files and a lost index."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicomcloud.archive import Archive, StoreItem
from dicomcloud.errors import FailureReason, Gone, NotFound, Unavailable, WarningReason
from dicomcloud.index.database import ServerAway
from dicomcloud.index.writing import Outcome
from dicomcloud.storage import CannotStore
from tests.data import data_set_bytes, make_dataset, make_file, pydicom_files


def store(archive: Archive, *files: bytes, study: str | None = None) -> tuple[StoreItem, ...]:
    with archive.begin_store(study) as batch:
        for file in files:
            batch.add([file[:100], file[100:]])
        return batch.commit().items


def content(archive: Archive, item: StoreItem) -> bytes:
    assert item.study_uid is not None
    (row,) = archive.instances(item.study_uid, item.series_uid, item.sop_instance_uid)
    with archive.open_file(row) as file:
        return file.read()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "data" / "storage"


def stored_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.dcm"))


def test_what_was_stored_is_there_bit_for_bit(archive: Archive) -> None:
    sent = [make_file(), make_file()]
    items = store(archive, *sent)
    assert [item.outcome for item in items] == [Outcome.ADDED, Outcome.ADDED]
    assert [content(archive, item) for item in items] == sent


def test_a_batch_that_is_left_without_commit_leaves_nothing(archive: Archive, files: Path) -> None:
    with archive.begin_store() as batch:
        batch.add([make_file()])
        with pytest.raises(ConnectionError):
            batch.add(broken_off())
    assert [path for path in files.rglob("*") if path.is_file()] == []
    assert archive.index.counts()["instances"] == 0


def broken_off() -> Iterator[bytes]:
    yield make_file()[:400]
    raise ConnectionError("the client is gone")


def test_faults_are_kept_as_items_and_the_rest_is_stored(archive: Archive) -> None:
    cut = make_file()[:-100]
    items = store(archive, b"no dicom at all", make_file(), cut, b"")
    assert [item.failure for item in items] == [
        FailureReason.CANNOT_UNDERSTAND,
        None,
        FailureReason.CANNOT_UNDERSTAND,
        FailureReason.CANNOT_UNDERSTAND,
    ]
    assert archive.index.counts()["instances"] == 1


def test_an_instance_of_another_study_fails_alone(archive: Archive) -> None:
    dataset = make_dataset()
    items = store(archive, make_file(), make_file(dataset), study=dataset.StudyInstanceUID)
    assert [item.failure for item in items] == [FailureReason.DATA_SET_DOES_NOT_MATCH, None]
    assert items[0].sop_instance_uid


def test_an_instance_without_sop_class_is_stored_with_a_warning(archive: Archive) -> None:
    file = make_file()
    start = file.index(b"\x08\0\x16\0UI")  # the element in the data set; the File Meta Information loses its own too
    file = (file[:start] + file[start + 34 :]).replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"\0" * 26)
    (item,) = store(archive, file)
    assert (item.failure, item.warning) == (None, WarningReason.DATA_SET_DOES_NOT_MATCH)
    assert data_set_bytes(content(archive, item)) == data_set_bytes(file)


def test_a_data_set_without_preamble_is_completed_and_its_bytes_kept(archive: Archive) -> None:
    file = make_file()
    (item,) = store(archive, file[132:])
    stored = content(archive, item)
    assert stored[128:132] == b"DICM"
    assert data_set_bytes(stored) == data_set_bytes(file)
    row, frames = archive.frames(str(item.study_uid), str(item.series_uid), str(item.sop_instance_uid))
    assert frames is not None
    assert archive.read_frame(row, frames, 1) == make_dataset().PixelData
    assert store(archive, file[132:])[0].outcome is Outcome.SAME


@pytest.mark.parametrize(
    ("policy", "outcome", "kept"),
    [("reject", Outcome.REJECTED, "first"), ("keep", Outcome.KEPT, "first"), ("replace", Outcome.REPLACED, "second")],
)
def test_other_bytes_under_the_same_uid(
    archive: Archive, files: Path, policy: str, outcome: Outcome, kept: str
) -> None:
    archive.duplicates = policy  # type: ignore[assignment]
    dataset = make_dataset()
    sent = {"first": make_file(dataset)}
    dataset.StudyDescription = "Changed"
    sent["second"] = make_file(dataset)
    (first,) = store(archive, sent["first"])
    assert store(archive, sent["first"])[0].outcome is Outcome.SAME
    (second,) = store(archive, sent["second"])
    assert second.outcome is outcome
    assert (second.failure is FailureReason.DUPLICATE_SOP_INSTANCE) == (policy == "reject")
    assert content(archive, first) == sent[kept]
    assert len(stored_files(files)) == (2 if policy == "replace" else 1)
    assert list(archive.upkeep.verify(checksums=True)) == []


def test_delete_removes_files_and_remembers(archive: Archive, files: Path) -> None:
    dataset = make_dataset()
    (item,) = store(archive, make_file(dataset))
    store(archive, make_file())
    assert archive.delete(dataset.StudyInstanceUID) == 1
    assert len(stored_files(files)) == 1
    with pytest.raises(Gone):
        archive.instances(dataset.StudyInstanceUID)
    with pytest.raises(Gone):
        archive.delete(dataset.StudyInstanceUID)
    with pytest.raises(NotFound):
        archive.delete("1.2.3")
    assert store(archive, make_file(dataset))[0].outcome is Outcome.ADDED
    assert content(archive, item) == make_file(dataset)


def test_a_replaced_version_goes_with_its_instance(archive: Archive, files: Path) -> None:
    archive.duplicates = "replace"
    dataset = make_dataset()
    store(archive, make_file(dataset))
    dataset.StudyDescription = "Changed"
    store(archive, make_file(dataset))
    archive.delete(dataset.StudyInstanceUID)
    assert stored_files(files) == []


def test_files_whose_rows_were_not_written_get_them_at_the_next_start(archive: Archive, files: Path) -> None:
    sent = make_file()
    storage = archive._storage
    incoming = storage.receive()
    incoming.write(sent)
    storage.commit([incoming])  # and here the power goes
    assert archive.index.counts()["instances"] == 0
    archive.upkeep.recover()
    assert archive.index.counts()["instances"] == 1
    assert list(archive.upkeep.verify(checksums=True)) == []
    assert storage.unconfirmed() == []


def test_recovery_drops_a_file_whose_instance_is_there_already(archive: Archive, files: Path) -> None:
    sent = make_file()
    store(archive, sent)
    incoming = archive._storage.receive()
    incoming.write(sent)
    archive._storage.commit([incoming])
    archive.upkeep.recover()
    assert len(stored_files(files)) == 1
    assert list(archive.upkeep.verify()) == []


def test_files_that_could_not_be_deleted_go_at_the_next_start(
    archive: Archive, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    store(archive, make_file(dataset))
    with monkeypatch.context() as patch:
        patch.setattr(type(archive._storage), "delete", _refuse)
        archive.delete(dataset.StudyInstanceUID)
    assert len(stored_files(files)) == 1
    assert archive.index.counts()["instances"] == 0
    assert list(archive.upkeep.verify()) == []  # known to be on its way out
    archive.upkeep.recover()
    assert stored_files(files) == []


def _refuse(self: object, key: str) -> None:
    raise PermissionError(errno.EACCES, "open in another process")


def test_verify_finds_a_missing_file_and_repair_takes_its_row_out(archive: Archive, files: Path) -> None:
    dataset = make_dataset()
    store(archive, make_file(dataset), make_file())
    (path,) = [path for path in stored_files(files) if dataset.SOPInstanceUID.encode() in path.read_bytes()]
    path.unlink()
    (finding,) = archive.upkeep.verify()
    assert (finding.kind, finding.repaired) == ("missing file", False)
    (finding,) = archive.upkeep.verify(repair=True)
    assert finding.repaired
    assert list(archive.upkeep.verify()) == []
    assert archive.index.counts()["studies"] == 1


def test_verify_finds_a_file_without_row_and_repair_files_it(archive: Archive, files: Path) -> None:
    store(archive, make_file())
    path = stored_files(files)[0]
    orphan = path.with_name("zz" + path.name[2:])
    orphan.write_bytes(make_file())
    broken = path.with_name("zzz" + path.name[3:])
    broken.write_bytes(make_file()[:-9])
    assert [finding.kind for finding in archive.upkeep.verify()] == ["unknown file", "unknown file"]
    assert [finding.kind for finding in archive.upkeep.verify(repair=True)] == ["unknown file", "unreadable file"]
    assert archive.index.counts()["instances"] == 2
    assert broken.exists()


def test_verify_finds_changed_files(archive: Archive, files: Path) -> None:
    store(archive, make_file(), make_file())
    first, second = stored_files(files)
    first.write_bytes(first.read_bytes() + b"\0\0")
    second.write_bytes(second.read_bytes().replace(b"Doe^Jane", b"Doe^John"))
    assert [finding.kind for finding in archive.upkeep.verify()] == ["wrong size"]
    assert [finding.kind for finding in archive.upkeep.verify(checksums=True)] == ["wrong size", "wrong checksum"]


def test_the_index_is_rebuilt_from_the_files(archive: Archive, files: Path) -> None:
    archive.duplicates = "replace"
    dataset = make_dataset()
    items = store(archive, *(make_file() for _ in range(5)), make_file(dataset))
    dataset.StudyDescription = "Changed"
    store(archive, make_file(dataset))
    before = archive.index.counts()
    document = b"".join(archive.documents(dataset.StudyInstanceUID))
    unreadable = stored_files(files)[0].with_name("zzz.dcm")
    unreadable.write_bytes(b"not dicom")
    archive.index.clear()
    assert archive.index.counts()["instances"] == 0
    steps = list(archive.upkeep.reindex())
    assert [step.key for step in steps if step.message] == [unreadable.relative_to(files).as_posix()]
    assert archive.index.counts() == before
    assert b"".join(archive.documents(dataset.StudyInstanceUID)) == document
    assert b"Changed" in document
    assert content(archive, items[0])
    unreadable.unlink()
    assert list(archive.upkeep.verify(checksums=True)) == []


def test_a_full_disk_fails_the_instance_and_changes_nothing(
    archive: Archive, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(self: object, data: bytes) -> None:
        raise CannotStore(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dicomcloud.storage.spool.SpooledFile.write", no_space)
    (item,) = store(archive, make_file())
    assert item.failure is FailureReason.OUT_OF_RESOURCES
    assert [path for path in files.rglob("*") if path.is_file()] == []


def test_nothing_is_taken_when_the_disk_is_nearly_full(make_app) -> None:  # type: ignore[no-untyped-def]
    archive = make_app(min_free_bytes=str(1 << 60)).extensions["dicomcloud"].archive
    with pytest.raises(Unavailable):
        archive.begin_store()


@pytest.mark.parametrize("path", pydicom_files(), ids=lambda path: path.name)
def test_every_file_of_pydicom_is_stored_as_it_is_or_refused_with_a_reason(archive: Archive, path: Path) -> None:
    file = path.read_bytes()
    (item,) = store(archive, file)
    if item.failure is not None:
        assert item.message
        assert archive.index.counts()["instances"] == 0
    else:
        stored = content(archive, item)
        assert stored == file or file.endswith(data_set_bytes(stored))


def test_an_instance_that_is_deleted_while_another_process_recovers_it_stays_deleted(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    store(archive, make_file(dataset))
    (row,) = archive.instances(dataset.StudyInstanceUID)
    archive._storage._spool.note([row.file_key])  # type: ignore[attr-defined]
    add, has_file = archive.index.add, archive.index.has_file
    answers = iter([False])  # asked before the other process wrote the row
    monkeypatch.setattr(archive.index, "has_file", lambda key: next(answers, has_file(key)))

    def add_late(*args: Any, **kwargs: Any) -> list[Outcome]:
        archive.delete(dataset.StudyInstanceUID)
        return add(*args, **kwargs)

    monkeypatch.setattr(archive.index, "add", add_late)
    archive.upkeep.recover()
    assert archive.index.counts()["instances"] == 0
    assert list(archive.upkeep.verify()) == []


def test_a_file_stays_when_nobody_knows_whether_its_row_was_written(
    archive: Archive, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(*_: Any, **__: Any) -> None:
        error = ServerAway("The database server has dropped the connection.")
        error.outcome_unknown = True
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(archive.index, "add", drop)
        with pytest.raises(Unavailable):
            store(archive, make_file())
    assert len(stored_files(files)) == 1
    archive.upkeep.recover()
    assert archive.index.counts()["instances"] == len(stored_files(files)) == 1
