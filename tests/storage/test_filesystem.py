"""The Storage contract, over a folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dicomcloud.storage import FileMissing, Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path / 'storage'}")


def put(storage: Storage, *contents: bytes) -> list[str]:
    incoming = []
    for content in contents:
        incoming.append(storage.receive())
        incoming[-1].write(content)
    keys = storage.commit(incoming)
    storage.confirm(keys)
    return keys


def test_what_was_put_is_read_back(storage: Storage) -> None:
    first, second = put(storage, b"one", b"two" * 1000)
    assert storage.open(first).read() == b"one"
    assert storage.read(second, 2999, 10) == b"o"
    assert storage.read(second, 3, 4) == b"twot"


def test_keys_are_unique_opaque_and_in_order_of_arrival(storage: Storage) -> None:
    keys = [put(storage, b"x")[0] for _ in range(20) if not time.sleep(0.002)]
    assert keys == sorted(keys)
    assert len(set(keys)) == 20
    assert all(len(key) == len("01k9/x3f/") + 26 + len(".dcm") for key in keys)
    assert all(key == key.lower() for key in keys)


def test_files_lists_every_stored_file_in_order_and_no_spooled_one(storage: Storage) -> None:
    keys = put(storage, b"a", b"bb", b"ccc")
    storage.receive().write(b"unfinished")
    assert {file.key: file.size for file in storage.files()} == dict(zip(keys, (1, 2, 3), strict=True))
    assert [file.key for file in storage.files()] == sorted(keys)


def test_a_spooled_file_is_mapped_and_discarded(storage: Storage, tmp_path: Path) -> None:
    incoming = storage.receive()
    incoming.write(b"abc")
    incoming.write(memoryview(b"def"))
    with incoming.buffer() as buffer:
        assert buffer[2:5] == b"cde"
    incoming.discard()
    assert list((tmp_path / "storage" / "incoming").iterdir()) == []


def test_an_empty_spooled_file_has_an_empty_buffer(storage: Storage) -> None:
    with storage.receive().buffer() as buffer:
        assert len(buffer) == 0


def test_a_commit_that_was_never_confirmed_is_remembered(storage: Storage, tmp_path: Path) -> None:
    incoming = storage.receive()
    incoming.write(b"abc")
    keys = storage.commit([incoming])
    again = open_storage(f"file://{tmp_path / 'storage'}")
    assert again.unconfirmed() == keys
    again.confirm(keys)
    assert again.unconfirmed() == []
    assert again.read(keys[0], 0, 9) == b"abc"


def test_a_commit_that_fails_leaves_no_file(storage: Storage, tmp_path: Path) -> None:
    good, lost = storage.receive(), storage.receive()
    good.write(b"good")
    lost.write(b"lost")
    lost.discard()
    with pytest.raises(OSError, match="No such file"):
        storage.commit([good, lost])
    assert list(storage.files()) == []
    assert storage.unconfirmed() == []


def test_missing_files_are_named(storage: Storage) -> None:
    with pytest.raises(FileMissing):
        storage.open("0000/000/00000000000000000000000000.dcm")
    with pytest.raises(FileMissing):
        storage.read("0000/000/00000000000000000000000000.dcm", 0, 1)
    storage.delete("0000/000/00000000000000000000000000.dcm")


def test_only_spooled_files_that_nobody_writes_to_are_removed(storage: Storage, tmp_path: Path) -> None:
    old, new = storage.receive(), storage.receive()
    old.write(b"old")
    new.write(b"new")
    paths = sorted((tmp_path / "storage" / "incoming").iterdir(), key=lambda path: path.read_bytes())
    os.utime(paths[1], (1, 1))  # "old" sorts behind "new"
    assert storage.remove_abandoned(3600) == 1
    assert [path.read_bytes() for path in (tmp_path / "storage" / "incoming").iterdir()] == [b"new"]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="ftp://"):
        open_storage("ftp://somewhere")
