"""What is not there on Windows is not needed: the core runs where modules and functions of POSIX are absent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file, sample_files

PROJECT = Path(__file__).resolve().parent.parent
MODULES = (
    "fcntl",
    "pwd",
    "grp",
    "resource",
    "termios",
    "syslog",
    "pty",
    "crypt",
    "spwd",
    "nis",
    "posix_ipc",
    "gunicorn",
)
FUNCTIONS = (
    *("fork", "forkpty", "register_at_fork", "pread", "preadv", "pwrite", "pwritev", "sendfile", "posix_fadvise"),
    *("posix_fallocate", "getuid", "geteuid", "getgid", "setuid", "chown", "fchown", "fchmod", "lchown", "mkfifo"),
    *("killpg", "setsid", "getpgid", "nice", "getloadavg", "sysconf", "fdatasync", "openpty", "wait3"),
)

CORE = """
import os, sys
modules, functions, folder = sys.argv[1].split(","), sys.argv[2].split(","), sys.argv[3]
import asyncio, multiprocessing, shutil, subprocess  # of Python itself: they have chosen their ways already
for name in modules:
    sys.modules[name] = None  # an import of it fails
for name in functions:
    if hasattr(os, name):
        delattr(os, name)
import socket, signal
for module, names in ((socket, ("MSG_MORE",)), (signal, ("SIGHUP", "SIGUSR1", "SIGCHLD"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.environ["DICOMCLOUD_DATA_DIR"] = folder
os.environ["DICOMCLOUD_MIN_FREE_BYTES"] = "1 MB"

from app import create_app
from dicomcloud import cli, server, settings
from tests.data import make_dataset, make_file

client = create_app().test_client()
dataset = make_dataset()
file = make_file(dataset)
root = f"/dicomweb/studies/{dataset.StudyInstanceUID}"
assert client.post("/dicomweb/studies", data=file, content_type="application/dicom").status_code == 200
assert len(client.get("/dicomweb/studies?PatientName=doe*").json) == 1
assert client.get(f"{root}/metadata").status_code == 200
instance = f"{root}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
whole = client.get(instance, headers={"Accept": "application/dicom; transfer-syntax=*"})
assert whole.data == file
assert client.get(f"{instance}/rendered", headers={"Accept": "image/png"}).data[:4] == b"\\x89PNG"
rle = client.get(instance, headers={"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.5"})
assert rle.status_code == 200, rle.data
assert client.get("/readyz").status_code == 200
assert b"dicomcloud_stored_instances 1.0" in client.get("/metrics").data
assert client.delete(root).status_code == 204
from dicomcloud import server
assert not [name for name in modules if sys.modules.get(name)]
client.application.extensions["dicomcloud"].archive.close()
print("done")
"""


def test_the_core_runs_without_what_only_posix_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE, ",".join(MODULES), ",".join(FUNCTIONS), str(tmp_path / "data")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_no_module_but_the_worker_of_gunicorn_imports_what_windows_lacks() -> None:
    for path in sorted(PROJECT.glob("dicomcloud/**/*.py")):
        if path.name == "http_worker.py":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.partition(".")[0] for name in names} & set(MODULES), path


def test_text_files_are_opened_with_their_encoding() -> None:
    for path in sorted(PROJECT.glob("dicomcloud/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                assert {"encoding"} <= {each.arg for each in node.keywords}, f"{path}:{node.lineno}"


def _open_files() -> set[str]:
    """What this process has open or mapped."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    for line in Path("/proc/self/maps").read_text().splitlines():
        found.add(line.split(maxsplit=5)[-1])
    return found


@pytest.fixture
def windows_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are open are neither removed nor renamed, as on Windows."""
    if os.name == "nt":
        return
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc, which tells what is open")

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*paths: Any, **options: Any) -> Any:
            if "dir_fd" not in options and {os.path.realpath(path) for path in paths} & _open_files():
                raise PermissionError(13, "the file is open", str(paths[0]))
            return function(*paths, **options)

        return call

    for name in ("unlink", "remove", "rename", "replace"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


@pytest.mark.usefixtures("windows_files")
def test_a_store_leaves_nothing_behind_where_open_files_cannot_be_removed(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app(quarantine="true").test_client()
    for path in sample_files():
        client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
    bare = make_file(make_dataset())[132:]  # without preamble: the archive writes one
    assert client.post("/dicomweb/studies", data=bare, content_type="application/dicom").status_code == 200
    for kind, body in (
        ("application/dicom+xml", b"<!DOCTYPE x><NativeDicomModel/>"),
        ("application/dicom+xml", b"<NativeDicomModel><DicomAttribute/></NativeDicomModel>"),
        ("application/dicom+xml", b"<NativeDicomModel>"),
        ("application/dicom+json", b'[{"00080018": {"vr": "UI", "Value": 5}}, {'),
        ("application/zip", b"PK\x03\x04 no archive"),
    ):
        related = f'multipart/related; type="{kind}"; boundary=b'
        parts = b"--b\r\nContent-Type: %s\r\n\r\n%s\r\n--b--" % (kind.encode(), body)
        for content_type, data in ((kind, body), (related, parts)):
            assert client.post("/dicomweb/studies", data=data, content_type=content_type).status_code >= 400
    assert [path for path in (tmp_path / "data").rglob("*") if path.suffix in (".part", ".note", ".undo")] == []


@pytest.mark.usefixtures("windows_files")
def test_a_file_that_is_read_while_it_is_deleted_goes_when_it_is_closed(make_app: AppMaker, tmp_path: Path) -> None:
    client = make_app().test_client()
    dataset = make_dataset(NumberOfFrames=100, PixelData=bytes(100 * 512))
    stored = make_file(dataset)
    assert client.post("/dicomweb/studies", data=stored, content_type="application/dicom").status_code == 200
    study = f"/dicomweb/studies/{dataset.StudyInstanceUID}"
    instance = f"{study}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    reading = client.get(instance, headers={"Accept": "application/dicom"})
    assert client.delete(study).status_code == 204
    assert client.get(instance).status_code == 410
    files = list((tmp_path / "data" / "storage").rglob("*.dcm"))
    assert len(files) == 1
    assert reading.data == stored
    reading.close()
    deadline = monotonic() + 60
    while files[0].exists() and monotonic() < deadline:
        sleep(0.1)
    assert not files[0].exists()
