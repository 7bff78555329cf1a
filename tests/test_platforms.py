"""What is not there on Windows is not needed: the core runs where modules and functions of POSIX are absent."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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
