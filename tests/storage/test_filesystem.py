"""The folder adapter, beyond what the contract says of all."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Timer

import pytest

from dicomcloud.storage import LocalSpace, open_storage, spool


def test_a_folder_that_may_not_be_reached_is_told(tmp_path: Path) -> None:
    local = LocalSpace(tmp_path / "spool", tmp_path / "cache", 0)
    storage = open_storage(f"file://{tmp_path / 'storage'}", local)
    (tmp_path / "storage" / "incoming").rmdir()
    with pytest.raises(OSError, match="is not there"):
        storage.check()


def test_a_folder_uses_no_other_place_of_the_machine(tmp_path: Path) -> None:
    local = LocalSpace(tmp_path / "spool", tmp_path / "cache", 1 << 20)
    storage = open_storage(f"file://{tmp_path / 'storage'}", local)
    incoming = storage.receive()
    incoming.write(b"abc")
    (key,) = storage.commit([incoming])
    assert storage.presigned_url(key, 60) is None
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]


def test_a_new_file_that_another_program_looks_into_for_a_moment_is_stored(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path / 'storage'}", LocalSpace(tmp_path / "spool", tmp_path / "cache", 0))
    incoming = storage.receive()
    incoming.write(b"abc")
    (part,) = (tmp_path / "storage" / "incoming").iterdir()
    looking = open(part, "rb")  # noqa: SIM115 (as a virus scanner does: on Windows it cannot be renamed meanwhile)
    closing = Timer(0.3, looking.close)
    closing.start()
    (key,) = storage.commit([incoming])
    closing.join()
    assert storage.read(key, 0, 9) == b"abc"


def test_no_key_has_a_name_that_windows_keeps_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
    keys = []
    for n in range(1 << 15):  # all folders of thirteen days
        monkeypatch.setattr(spool.time, "time_ns", lambda n=n: ((1 << 40) + (n << 15)) * 1_000_000)
        keys.append(spool.new_key())
    assert not [key for key in keys if devices & {part.partition(".")[0] for part in key.split("/")}]
    assert keys == sorted(keys)
    assert len({key.rpartition("/")[0] for key in keys}) == 1 << 15


def test_a_note_that_was_begun_only_goes_with_the_abandoned_files(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path / 'storage'}", LocalSpace(tmp_path / "spool", tmp_path / "cache", 0))
    incoming = storage.receive()
    incoming.write(b"abc")
    keys = storage.commit([incoming])
    folder = tmp_path / "storage" / "incoming"
    (written,) = folder.iterdir()
    begun = folder / "0123456789abcdefghjkmnpqrs.dcm.note"
    begun.touch()
    for path in (written, begun):
        os.utime(path, (1, 1))
    assert storage.remove_abandoned(3600) == 1
    assert (list(folder.iterdir()), storage.unconfirmed()) == ([written], keys)
