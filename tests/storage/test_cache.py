"""The disk cache: what is kept, what goes first, and what it lets happen around it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dicomcloud.storage.cache import DiskCache


def results(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.bin"))


def age(cache: DiskCache, key: str, seconds: float) -> None:
    path = Path(cache._path(key))
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def test_a_result_comes_back_to_every_process(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1 << 20).write("1.dcm frame 1", b"pixels")
    other = DiskCache(tmp_path, 1 << 20)
    assert other.read("1.dcm frame 1") == b"pixels"
    assert other.read("1.dcm frame 2") is None


def test_names_tell_nothing_about_the_key(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1 << 20).write("metadata 1.2.840 Doe^Jane", b"x")
    (path,) = results(tmp_path)
    assert "1.2.840" not in str(path.relative_to(tmp_path))
    assert "Doe" not in str(path.relative_to(tmp_path))


def test_a_written_file_is_kept_and_opened(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    path = cache.spool()
    path.write_bytes(b"instance")
    with cache.keep(path, "key") as file:
        assert file.read() == b"instance"
    assert cache.read("key") == b"instance"
    assert not path.exists()


@pytest.mark.parametrize(("limit", "size"), [(0, 10), (1000, 300)])
def test_what_is_too_large_or_not_wanted_can_be_read_and_is_gone_then(tmp_path: Path, limit: int, size: int) -> None:
    cache = DiskCache(tmp_path, limit)
    path = cache.spool()
    path.write_bytes(bytes(size))
    with cache.keep(path, "key") as file:
        assert file.read() == bytes(size)
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == []
    cache.write("other", bytes(size))
    assert cache.read("other") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 4000)
    for number in range(4):
        cache.write(f"key {number}", bytes(900))
        age(cache, f"key {number}", 1000 - number)
    assert cache.read("key 0") is not None  # used just now
    cache.write("key 4", bytes(900))
    kept = [number for number in range(5) if cache.read(f"key {number}") is not None]
    assert kept == [0, 2, 3, 4]


def test_the_limit_holds_over_many_results(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 50_000)
    for number in range(300):
        cache.write(f"key {number}", bytes(1000))
    assert 40_000 < sum(path.stat().st_size for path in results(tmp_path)) <= 50_000 * 17 / 16
    assert cache.read("key 299") is not None


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 1 << 20)
    cache.write("key", b"one")
    file = cache.open("key")
    path = cache.spool()
    path.write_bytes(b"two")
    shutil.rmtree(tmp_path / "cache", ignore_errors=os.name == "nt")  # where what is open stays
    assert file is not None
    with file:
        assert file.read() == b"one"
    shutil.rmtree(tmp_path / "cache", ignore_errors=os.name != "nt")
    assert cache.read("key") is None
    with pytest.raises(FileNotFoundError):
        cache.keep(path, "other")
    cache.write("key", b"three")
    assert cache.read("key") == b"three"


def test_a_disk_that_is_about_to_be_full_takes_no_results(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20, min_free_bytes=1 << 60)
    cache.write("key", b"x")
    assert results(tmp_path) == []


def test_a_place_where_nothing_can_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = DiskCache(tmp_path / "cache", 1 << 20)
    cache.write("key", b"x")
    assert cache.read("key") is None


def test_what_a_crash_left_half_written_is_removed_after_a_day(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    old, new = cache.spool(), cache.spool()
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.write("key", b"x")
    assert (old.exists(), new.exists()) == (False, True)
