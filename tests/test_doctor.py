"""The checks of `doctor` beside the index: each finds what it is there for, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.data import make_file
from tests.databases import on_sqlite
from tests.emulators import S3Server


@pytest.fixture
def stored(run: Run, tmp_path: Path) -> Path:
    """The data directory of an archive with one instance."""
    (tmp_path / "one.dcm").write_bytes(make_file())
    run("import", tmp_path / "one.dcm")
    return tmp_path / "data"


def diagnosed(run: Run, **settings: Any) -> dict[str, tuple[str, str, str]]:
    rows = json.loads(run("doctor", "--json", **settings).stdout)
    return {row["what"]: (row["state"], row["message"], row["advice"]) for row in rows}


def test_an_archive_in_order_has_no_fault(run: Run, stored: Path) -> None:
    found = diagnosed(run, min_free_bytes="1 MB")
    assert {state for state, _, _ in found.values()} <= {"ok", "warning"}
    assert {"settings", "storage", "disk space", "clock", "codecs"} <= found.keys()
    assert found["codecs"][0] == found["storage"][0] == "ok"
    assert int(found["codecs"][1].split()[0]) >= 6


def test_files_that_are_not_there_are_a_fault(run: Run, stored: Path) -> None:
    shutil.move(stored / "storage", stored / "elsewhere")
    state, message, _ = diagnosed(run)["storage"]
    assert (state, "mounted" in message or "lacks the files" in message) == ("fault", True)


def test_a_disk_that_is_almost_full_is_a_fault(run: Run, stored: Path) -> None:
    state, message, advice = diagnosed(run, min_free_bytes="900 TB")["disk space"]
    assert (state, "nothing is stored any more" in message, advice) == ("fault", True, "Make room.")


@on_sqlite
def test_a_clock_that_is_behind_is_a_fault(run: Run, stored: Path) -> None:
    later = time.time() + 7200
    os.utime(stored / "index.sqlite3", (later, later))
    state, message, advice = diagnosed(run)["clock"]
    assert (state, "behind" in message, advice) == ("fault", True, "Set it.")


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_data_directory_that_everybody_may_read_is_named(run: Run, stored: Path) -> None:
    assert "data directory" not in diagnosed(run)
    stored.chmod(0o755)
    state, _, advice = diagnosed(run)["data directory"]
    assert (state, advice) == ("warning", f"chmod o= {stored}")


def test_settings_that_do_not_fit_together_are_named(run: Run, stored: Path) -> None:
    found = diagnosed(run, accel_redirect="/stored", min_free_bytes="0", authentication="none")
    assert found["accel_redirect"][0] == "fault"
    assert found["min_free_bytes"][0] == found["authentication"][0] == "warning"
    found = diagnosed(run, bind="unix:/run/x.sock", authentication="none")
    assert found["trusted_proxies"][2] == 'trusted_proxies = ["unix"]'


def test_a_public_url_that_leads_nowhere_is_named(run: Run, stored: Path) -> None:
    found = diagnosed(run, public_url="http://127.0.0.1:9")
    assert found["public_url"][0] == "warning"


def test_an_object_store_is_written_to_and_read(run: Run, s3_server: S3Server, tmp_path: Path) -> None:
    url = s3_server.new_storage()
    (tmp_path / "one.dcm").write_bytes(make_file())
    assert run("import", tmp_path / "one.dcm", storage_url=url).returncode == 0
    found = diagnosed(run, storage_url=url)
    assert found["object store"] == ("ok", "an object was written, read and deleted", "")
    assert run("verify", storage_url=url).returncode == 0  # nothing is left of it


def test_an_object_store_that_takes_nothing_is_told_with_its_reason(run: Run, s3_server: S3Server) -> None:
    url = s3_server.new_storage()
    bucket = url.partition("//")[2].rpartition("@")[2].partition("/")[0]
    state, message, advice = diagnosed(run, storage_url=url.replace(bucket, "no-such-bucket"))["object store"]
    assert (state, "could not be written" in message, "credentials" in advice) == ("fault", True, True)
    assert "404" in message  # there is no such bucket


@pytest.mark.parametrize(("library", "url"), [("obstore", "s3://bucket/x"), ("azure", "azure://container/x")])
def test_a_missing_library_of_an_object_store_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, library: str, url: str
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == library or name in ("dicomcloud.storage.s3", "dicomcloud.storage.azure_blob"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    told = "is not installed: python -m pip install -r requirements-objectstore.txt"
    assert told in diagnosed(run, storage_url=url)["index"][1]
    served = run("serve", storage_url=url)
    assert (served.returncode, told in served.stderr) == (2, True)
