"""The checks of `doctor` beside the index: each finds what it is there for, and what to do."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.data import make_file


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
