"""`verify` in parts and at a pace, and a damaged index that `reindex` replaces."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.conftest import Run, report_of
from tests.data import make_dataset, make_file
from tests.databases import on_sqlite


@pytest.fixture
def stored(run: Run, tmp_path: Path) -> list[Path]:
    """The files of an archive of six instances, in the order of their keys."""
    folder = tmp_path / "medium"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.dcm").write_bytes(make_file(make_dataset(InstanceNumber=number)))
    assert run("import", folder).returncode == 0
    return sorted((tmp_path / "data" / "storage").rglob("*.dcm"))


def test_verify_in_parts_sees_every_file_once_and_then_begins_anew(run: Run, stored: list[Path]) -> None:
    stored[0].write_bytes(b"\0" * stored[0].stat().st_size)
    stored[5].write_bytes(b"\0" * stored[5].stat().st_size)
    seen: list[str] = []
    for _ in stored:
        report = report_of(run("verify", "--checksums", "--resume", "--minutes", "0.000001", "--json"))
        assert (report["files"], report["complete"]) == (1, False)
        seen += [each["key"] for each in report["findings"]]
    assert seen == [path.relative_to(stored[0].parents[2]).as_posix() for path in (stored[0], stored[5])]
    report = report_of(run("verify", "--checksums", "--resume", "--json"))
    assert report["complete"]
    whole = report_of(run("verify", "--checksums", "--resume", "--json"))
    assert (whole["files"], len(whole["findings"])) == (6, 2)


def test_verify_reads_no_faster_than_it_is_told(run: Run, stored: list[Path]) -> None:
    size = sum(path.stat().st_size for path in stored)
    started = time.monotonic()
    assert run("verify", "--checksums", "--rate", str(size)).returncode == 0
    assert time.monotonic() - started >= 0.9
    assert run("verify", "--rate", "fast").returncode == 2


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_verified(run: Run, stored: list[Path]) -> None:
    stored[2].unlink()
    stored[2].mkdir()  # reading it fails with an error of the system, as on a broken disk
    report = report_of(run("verify", "--checksums", "--json"))
    assert [Path(each["key"]).name for each in report["findings"]] == [stored[2].name]


@on_sqlite
@pytest.mark.parametrize("damage", ["all of it", "the first page", "a page in the middle"])
def test_a_damaged_index_is_made_anew_from_the_files(run: Run, stored: list[Path], tmp_path: Path, damage: str) -> None:
    index = tmp_path / "data" / "index.sqlite3"
    content = bytearray(index.read_bytes())
    where = {"all of it": (0, len(content)), "the first page": (0, 100), "a page in the middle": (4096, len(content))}
    first, end = where[damage]
    content[first:end] = b"\xa5" * (end - first)
    index.write_bytes(content)
    finished = run("verify")
    assert finished.returncode == 1
    assert "The index is damaged. Stop the server, then restore a backup or run `reindex`." in finished.stderr
    finished = run("reindex")
    assert (finished.returncode, "put aside" in finished.stderr) == (0, True)
    assert "Indexed 6 instances of 6 studies" in finished.stdout
    assert len(list((tmp_path / "data").glob("index.sqlite3.*.damaged"))) == 1
    assert json.loads(run("verify", "--checksums", "--json").stdout)["findings"] == []
