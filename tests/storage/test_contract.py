"""The Storage contract, kept by every adapter: a folder, S3 and Azure Blob Storage (emulators)."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dicomcloud.storage import FileMissing, LocalSpace, Storage, open_storage

UNKNOWN = "0000/000/00000000000000000000000000.dcm"
MIB = 1 << 20
Opener = Callable[[], Storage]


@pytest.fixture
def local(tmp_path: Path) -> LocalSpace:
    return LocalSpace(tmp_path / "incoming", tmp_path / "cache", 0)


@pytest.fixture(params=["folder", "s3", "azure"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path / 'storage'}"
    emulator = request.getfixturevalue("s3_server" if request.param == "s3" else "azurite")
    made: str = emulator.new_storage()
    return made


@pytest.fixture
def storage(url: str, local: LocalSpace) -> Storage:
    return open_storage(url, local)


@pytest.fixture
def spool(url: str, local: LocalSpace) -> Path:
    return Path(url.removeprefix("file://")) / "incoming" if url.startswith("file:") else local.spool


def put(storage: Storage, *contents: bytes, confirm: bool = True) -> list[str]:
    incoming = []
    for content in contents:
        incoming.append(storage.receive())
        incoming[-1].write(content)
    keys = storage.commit(incoming)
    if confirm:
        storage.confirm(keys)
    return keys


def names(spool: Path) -> Sequence[str]:
    return [path.name for path in spool.iterdir()]


def test_what_was_put_is_read_back(storage: Storage, spool: Path) -> None:
    first, second = put(storage, b"one", b"two" * 1000)
    with storage.open(first) as file:
        assert file.read() == b"one"
    assert storage.read(second, 2999, 10) == b"o"
    assert storage.read(second, 3, 4) == b"twot"
    assert names(spool) == []


def test_a_range_that_begins_behind_the_end_is_empty_and_so_is_one_of_no_bytes(storage: Storage) -> None:
    (key,) = put(storage, b"abc")
    assert storage.read(key, 3, 10) == b""
    assert storage.read(key, 90, 10) == b""
    assert storage.read(key, 1, 0) == b""


def test_a_large_file_is_sent_in_blocks_and_read_by_seeking(storage: Storage) -> None:
    content = os.urandom(MIB) * 20 + b"end"
    (key,) = put(storage, content)
    with storage.open(key) as file:
        assert file.seek(0, os.SEEK_END) == len(content)
        assert (file.seek(17 * MIB + 5), file.read(100)) == (17 * MIB + 5, content[5:105])
        assert (file.seek(-3, os.SEEK_END), file.read()) == (20 * MIB, b"end")
        assert file.read(1) == b""
        file.seek(3)
        assert file.read() == content[3:]
        file.seek(len(content) + 5)
        assert file.read(5) == b""
        target = bytearray(7)
        file.seek(-4, os.SEEK_END)
        assert (file.readinto(target), target[:4]) == (4, content[-4:])  # type: ignore[attr-defined]


def test_keys_are_unique_opaque_and_in_order_of_arrival(storage: Storage) -> None:
    keys = [put(storage, b"x")[0] for _ in range(8) if not time.sleep(0.002)]
    assert keys == sorted(keys)
    assert len(set(keys)) == 8
    assert all(len(key) == len("01k9/x3f/") + 26 + len(".dcm") for key in keys)
    assert all(key == key.lower() for key in keys)


def test_files_lists_every_stored_file_in_order_and_no_spooled_one(storage: Storage) -> None:
    before = time.time()
    keys = put(storage, b"a", b"bb", b"ccc")
    storage.receive().write(b"unfinished")
    assert {file.key: file.size for file in storage.files()} == dict(zip(keys, (1, 2, 3), strict=True))
    assert [file.key for file in storage.files()] == sorted(keys)
    assert all(before - 2 <= file.modified <= time.time() + 2 for file in storage.files())


def test_a_spooled_file_is_mapped_and_discarded(storage: Storage, spool: Path) -> None:
    incoming = storage.receive()
    incoming.write(b"abc")
    incoming.write(memoryview(b"def"))
    with incoming.buffer() as buffer:
        assert buffer[2:5] == b"cde"
    incoming.sync_soon()
    incoming.discard()
    assert names(spool) == []


def test_an_empty_spooled_file_has_an_empty_buffer(storage: Storage) -> None:
    with storage.receive().buffer() as buffer:
        assert len(buffer) == 0


def test_a_commit_that_was_never_confirmed_is_remembered(storage: Storage, url: str, local: LocalSpace) -> None:
    keys = put(storage, b"abc", b"def", confirm=False)
    again = open_storage(url, local)
    assert again.unconfirmed() == keys
    again.confirm(keys)
    assert again.unconfirmed() == []
    assert again.read(keys[0], 0, 9) == b"abc"


def test_a_commit_that_fails_leaves_no_file(storage: Storage, spool: Path) -> None:
    good, lost = storage.receive(), storage.receive()
    good.write(b"good")
    lost.write(b"lost")
    lost.discard()
    with pytest.raises(FileNotFoundError):
        storage.commit([good, lost])
    good.discard()
    assert list(storage.files()) == []
    assert storage.unconfirmed() == []
    assert names(spool) == []


def test_a_missing_file_is_told_and_may_be_deleted(storage: Storage) -> None:
    with pytest.raises(FileMissing):
        storage.open(UNKNOWN)
    with pytest.raises(FileMissing):
        storage.read(UNKNOWN, 0, 1)
    with pytest.raises(FileMissing):
        storage.read(UNKNOWN, 0, 0)
    with pytest.raises(FileNotFoundError):
        storage.source(UNKNOWN).open()
    storage.delete(UNKNOWN)


def test_a_deleted_file_is_gone(storage: Storage) -> None:
    kept, key = put(storage, b"kept", b"gone")
    storage.delete(key)
    assert [file.key for file in storage.files()] == [kept]
    with pytest.raises(FileMissing):
        storage.open(key)


def test_a_source_is_opened_in_another_process_and_names_its_file_only(storage: Storage, url: str) -> None:
    (key,) = put(storage, b"abc")
    source = storage.source(key)
    with pickle.loads(pickle.dumps(source)).open() as file:
        assert file.read() == b"abc"
    assert key in repr(source).replace("\\\\", "/")
    assert "secret" not in repr(source)
    assert source.is_local == url.startswith("file:")


def test_a_file_of_another_store_keeps_its_key(storage: Storage) -> None:
    incoming = storage.receive()
    incoming.write(b"from elsewhere")
    assert storage.size(UNKNOWN) is None
    storage.put(incoming, UNKNOWN)
    assert storage.size(UNKNOWN) == 14
    assert [(file.key, file.size) for file in storage.files()] == [(UNKNOWN, 14)]
    assert storage.read(UNKNOWN, 0, 99) == b"from elsewhere"
    assert storage.unconfirmed() == []


def test_a_store_is_checked_with_a_file_and_without(storage: Storage) -> None:
    storage.check()
    (key,) = put(storage, b"abc")
    storage.check(key)
    with pytest.raises(OSError, match=UNKNOWN):
        storage.check(UNKNOWN)
    free, total = storage.disk_space()
    assert 0 < free < total


def test_only_spooled_files_that_nobody_writes_to_are_removed(storage: Storage, spool: Path) -> None:
    old, new = storage.receive(), storage.receive()
    old.write(b"old")
    new.write(b"new")
    old.sync_soon()  # nobody has it open: its request died
    paths = sorted(spool.iterdir(), key=lambda path: path.read_bytes())
    os.utime(paths[1], (1, 1))  # "old" sorts behind "new"
    assert storage.remove_abandoned(3600) == 1
    assert [path.read_bytes() for path in spool.iterdir()] == [b"new"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://somewhere", "begin with file://"),
        ("s3://", "begin with file://"),
        ("s3://bucket?endpiont=x", "'endpiont'"),
        ("azure://container?account=a&nonsense=1", "'nonsense'"),
        ("azure://container", "account="),
        ("azure://container?connection_string=nonsense", "(?i)connection string"),
    ],
)
def test_a_url_that_is_not_understood_is_refused(
    url: str, reason: str, local: LocalSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    with pytest.raises(ValueError, match=reason):
        open_storage(url, replace(local, cache_bytes=1))
