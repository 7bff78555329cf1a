"""The servers that are measured: how they are started, what CPU time they took, how they are ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

from .client import BadAnswer, wait_until_up

PROJECT = Path(__file__).resolve().parent.parent
HOW_TO_INSTALL_THE_PEER = "apt-get install orthanc orthanc-dicomweb orthanc-gdcm (Debian, Ubuntu)"
_PLUGIN = "libOrthancDicomWeb.so"
_CODECS = "libOrthancGdcm.so"  # JPEG 2000
_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


@dataclass
class Server:
    name: str
    root: str  # URL of the DICOMweb root
    pid: int | None = None  # None: CPU time is not known
    version: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log: Path | None = None
    behind: tuple[int, ...] = ()  # further processes whose time counts

    def alive(self) -> bool:
        return self.process is None or self.process.poll() is None

    def cpu_seconds(self) -> float | None:
        """User and system time of the process and all below it, of ended children too. None where unknown."""
        if self.pid is None:
            return None
        ticks = 0
        for pid in (pid for root in (self.pid, *self.behind) for pid in process_tree(root)):
            with contextlib.suppress(OSError):
                ticks += sum(int(value) for value in _stat(pid)[11:15])  # utime stime cutime cstime
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process and those it started, by their ids; a server that was already there is left alone."""
        if self.process is None or self.pid is None:
            return
        family = process_tree(self.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        for pid in family:
            if pid != self.pid and _parent(pid) in (1, self.pid, *family):
                _end(pid, signal.SIGTERM)
        until = monotonic() + 5
        while monotonic() < until and any(_parent(pid) is not None for pid in family if pid != self.pid):
            sleep(0.05)
        for pid in family:
            if _parent(pid) is not None:
                _end(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the command name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _parent(pid: int) -> int | None:
    try:
        state, parent = _stat(pid)[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def process_tree(pid: int) -> list[int]:
    """The process and all its living descendants; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    family, found = [], [pid] if children else []
    while found:
        family.append(found.pop())
        found += children.get(family[-1], [])
    return family


def _end(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, how)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    name: str,
    root: str,
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    cwd: Path,
    path: str = "/studies?limit=1",
) -> Server:
    """Start a program and wait until it answers `path`. Raises BadAnswer."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(name, root, process.pid if Path("/proc/self/stat").exists() else None, process=process, log=log)
    try:
        wait_until_up(root, path, 60, server.alive)
    except BaseException as error:
        server.stop()
        if isinstance(error, BadAnswer):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            raise BadAnswer("\n".join([str(error), *lines])) from None
        raise
    return server


def start_dicomcloud(folder: Path, name: str = "dicomcloud", **settings: str) -> Server:
    """This checkout, served by `python -m dicomcloud serve` with a data directory in the folder. Raises BadAnswer.

    DICOMCLOUD_* variables of the caller reach it, so that settings can be compared.
    """
    port, data = free_port(), folder / "dicomcloud"
    environment = os.environ | {
        "DICOMCLOUD_BIND": f"127.0.0.1:{port}",
        "DICOMCLOUD_DATA_DIR": str(data),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
    command = [sys.executable, "-m", "dicomcloud", "serve"]
    server = start(name, f"http://127.0.0.1:{port}/dicomweb", command, folder, environment, PROJECT)
    git = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        server.version = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    return server


def find_orthanc() -> tuple[str, Path] | None:
    """The program and its DICOMweb plug-in."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("Orthanc", path=places)
    plugins = (Path(folder) / _PLUGIN for folder in _PLUGIN_FOLDERS)
    plugin = next((path for path in plugins if path.exists()), None)
    return (program, plugin) if program and plugin else None


def start_orthanc(folder: Path, program: str, plugin: Path) -> Server:
    """Orthanc with SQLite and its defaults; only what keeps it to this machine and this folder is set.

    Raises BadAnswer.
    """
    port, data = free_port(), folder / "orthanc"
    data.mkdir()
    settings = {
        "Name": "benchmark",
        "StorageDirectory": str(data),
        "IndexDirectory": str(data),
        "Plugins": [str(one.resolve()) for one in (plugin, plugin.with_name(_CODECS)) if one.exists()],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    root = f"http://127.0.0.1:{port}/dicom-web"
    server = start("orthanc", root, [program, str(file)], folder, dict(os.environ), folder)
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    server.version = answer.stdout.splitlines()[0].rpartition(" ")[2] if answer.stdout else ""
    version = plugin.resolve().name.rpartition(".so")[2].lstrip(".")
    server.version += f" with DICOMweb {version}" if version else " with DICOMweb"
    return server


def given_server(text: str) -> Server:
    """NAME=URL or NAME=URL=PID of a server that runs already. Raises ValueError."""
    name, _, rest = text.partition("=")
    url, separator, pid = rest.rpartition("=") if rest.rpartition("=")[2].isdigit() else (rest, "", "")
    parts = urlsplit(url)
    if not name or parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{text!r} is not NAME=URL or NAME=URL=PID with an http URL")
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"{parts.hostname} is not this machine: thousands of objects are stored, loopback only")
    if separator and not Path(f"/proc/{pid}").exists():
        raise ValueError(f"there is no process {pid}")
    return Server(name, url.rstrip("/"), int(pid) if separator else None)
