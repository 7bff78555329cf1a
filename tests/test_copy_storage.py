"""copy-storage: from a folder to object stores and back, stopped and gone on with, and what it finds wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomcloud.storage import LocalSpace, Storage, open_storage
from tests.conftest import Run, report_of
from tests.data import make_file
from tests.emulators import Wire

Through = Callable[[str], tuple[str, Wire]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def stored(run: Run, tmp_path: Path) -> int:
    """Some instances in the folder of the archive."""
    (tmp_path / "medium").mkdir()
    for number in range(12):
        (tmp_path / "medium" / f"{number}.dcm").write_bytes(make_file(InstanceNumber=number))
    assert run("import", tmp_path / "medium").returncode == 0
    return 12


def opened(url: str, tmp_path: Path) -> Storage:
    return open_storage(url, LocalSpace(tmp_path / "spool", tmp_path / "cache", 0))


def test_an_archive_goes_from_a_folder_to_s3_to_azure_and_back(
    run: Run, stored: int, data: Path, tmp_path: Path, s3_server: Any, azurite: Any
) -> None:
    folders = [data / "storage", tmp_path / "new"]
    places = [f"file://{folders[0]}", s3_server.new_storage(), azurite.new_storage(), f"file://{folders[1]}"]
    for source, target in zip(places, places[1:], strict=False):
        report = report_of(run("copy-storage", "--from", source, "--to", target, "--json"))
        assert (report["copied"], report["there"], report["failed"]) == (stored, 0, [])
        again = run("copy-storage", "--to", target, storage_url=source)
        assert (again.returncode, f"{stored} files there already" in again.stdout) == (0, True)
        assert run("verify", "--checksums", storage_url=target).returncode == 0
    files = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.dcm")} for folder in folders]
    assert files[0] == files[1]
    assert len(files[0]) == stored


def test_a_copy_that_broke_off_goes_on_where_it_stopped(
    run: Run, stored: int, s3_server: Any, wired: Through, tmp_path: Path
) -> None:
    direct = s3_server.new_storage()
    url, wire = wired(direct)
    wire.cut_at = 9
    first = run("copy-storage", "--to", url, "--json")
    assert (first.returncode, "object store" in first.stderr) == (1, True)
    assert 0 < len(list(opened(direct, tmp_path).files())) < stored
    wire.mend()
    report = report_of(run("copy-storage", "--to", url, "--json"))
    assert report["copied"] + report["there"] == stored  # type: ignore[operator]
    assert 0 < report["copied"] < stored  # type: ignore[operator]
    assert run("verify", "--checksums", storage_url=direct).returncode == 0


def test_a_damaged_file_is_named_and_not_copied(run: Run, stored: int, data: Path, tmp_path: Path) -> None:
    damaged = sorted((data / "storage").rglob("*.dcm"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    target = f"file://{tmp_path / 'new'}"
    finished = run("copy-storage", "--to", target)
    assert finished.returncode == 1
    assert f"{damaged.name}: its bytes are not those that were stored" in finished.stderr
    assert len(list(opened(target, tmp_path).files())) == stored - 1


def test_a_copy_that_was_cut_short_is_made_anew(run: Run, stored: int, data: Path, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'new'}"
    run("copy-storage", "--to", target)
    copy = next((tmp_path / "new").rglob("*.dcm"))
    copy.write_bytes(b"short")
    report = report_of(run("copy-storage", "--to", target, "--json"))
    assert (report["copied"], report["there"]) == (1, stored - 1)
    assert run("verify", "--checksums", storage_url=target).returncode == 0


def test_what_was_deleted_since_an_earlier_copy_is_told_and_removed(
    run: Run, stored: int, data: Path, tmp_path: Path, azurite: Any
) -> None:
    target = azurite.new_storage()
    run("copy-storage", "--to", target)
    gone = next((data / "storage").rglob("*.dcm"))
    gone.unlink()
    report = report_of(run("copy-storage", "--to", target, "--json"))
    assert [key.rpartition("/")[2] for key in report["extra"]] == [gone.name]  # type: ignore[attr-defined]
    assert len(list(opened(target, tmp_path).files())) == stored
    assert run("copy-storage", "--to", target, "--remove-extra").returncode == 0
    assert len(list(opened(target, tmp_path).files())) == stored - 1


def test_a_wrong_target_is_refused(run: Run, data: Path) -> None:
    for url in (f"file://{data / 'storage'}", "ftp://x", "s3://bucket?nonsense=1"):
        finished = run("copy-storage", "--to", url)
        assert (finished.returncode, finished.stderr.startswith("--from or --to: ")) == (2, True)
