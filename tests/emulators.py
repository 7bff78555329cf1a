"""Object stores on this machine: moto's S3 server, and Azurite, which npm installs once under build/."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

PACKAGES = Path(__file__).resolve().parent / "storage" / "npm"
BUILD = PACKAGES.parents[2] / "build"  # git-ignored
AZURITE = Path("node_modules/azurite/dist/src/blob/main.js")
NODE, NPM = shutil.which("node"), shutil.which("npm")
NO_REGISTRY = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|TIMEDOUT|ENOTCACHED")
ACCOUNT = "devstoreaccount1"  # Azurite's own, with the key that its documentation gives
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Emulator:
    """A server on a port of its own; can be killed and started again at the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self.command(), stdin=quiet, stdout=quiet, stderr=quiet)
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(self.endpoint, timeout=5).close()
                return
            except HTTPError:  # it speaks
                return
            except (URLError, OSError):
                assert self._process.poll() is None, "the emulator did not start"
                assert time.monotonic() < deadline, "the emulator does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class S3Server(Emulator):
    """What it stores is in its memory, and gone when it is killed."""

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def new_storage(self, options: str = "") -> str:
        """The storage URL of a bucket that is made for it."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        urlopen(Request(f"{self.endpoint}/{bucket}", method="PUT"), timeout=30).close()
        return f"s3://key:secret@{bucket}/some/prefix?endpoint={self.endpoint}{options}"


class Azurite(Emulator):
    """What it stores is in its folder, and there again after it was stopped; a kill costs what is not 5 s old."""

    def __init__(self, installed: Path, folder: Path) -> None:
        super().__init__()
        self._script = str(installed / AZURITE)
        self._folder = str(folder)
        self.connection_string = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={self.endpoint}/{ACCOUNT};"
        )

    def command(self) -> Sequence[str]:
        assert NODE is not None
        address = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", self._folder]
        return [NODE, self._script, *address, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def new_storage(self, options: str = "") -> str:
        """The storage URL of a container that is made for it."""
        from azure.storage.blob import BlobServiceClient

        container = f"container-{uuid.uuid4().hex[:12]}"
        BlobServiceClient.from_connection_string(self.connection_string).create_container(container).close()
        return f"azure://{container}/some/prefix?connection_string={quote(self.connection_string, safe='')}{options}"


class Wire:
    """The way to another server: counts the bytes that come back, can be cut, and can keep everything to itself."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._server = (host, port)
        self.cut_behind = b""  # once: pass on what has these bytes in it, and let no answer through
        self.stays_cut = False  # after that: no new connections either
        self._flows = threading.Event()
        self._flows.set()
        self.received = 0
        self.requests = 0
        self.cut_at = 0  # after so many requests; 0: never
        self._open = True
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        """Break the connections, and take no new ones until `mend`."""
        self._open = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._open, self.cut_at = True, 0

    def pause(self) -> None:
        """Take everything and pass nothing on, until `resume`: nobody is told that something is wrong."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.resume()
        self.cut()
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._open:
                    client.close()
                    continue
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            server = socket.create_connection(self._server)
        except OSError:
            client.close()
            return
        self._ends += [client, server]
        threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
        self._pass_on(server, client, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if back:
                    self.received += len(data)
                else:
                    self.requests += sum(data.startswith(verb) for verb in (b"GET ", b"PUT ", b"POST ", b"DELETE "))
                    if 0 < self.cut_at <= self.requests:
                        self.cut()
                self._flows.wait()
                if not back and self.cut_behind and self.cut_behind in data:
                    self.cut_behind = b""
                    self._open = not self.stays_cut
                    source.shutdown(socket.SHUT_RDWR)
                    target.sendall(data)
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def install_azurite() -> Path:
    """A folder under build/ with the pinned packages, made once for each version of the lock file."""
    if not NODE or not NPM:
        pytest.skip("needs node and npm, for Azurite")
    folder = BUILD / f"npm-{sha256((PACKAGES / 'package-lock.json').read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    unfinished = BUILD / f"{folder.name}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGES / name, unfinished)
    options = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--fetch-retries=1"]
    try:
        done = subprocess.run(
            [NPM, "ci", *options], cwd=unfinished, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode and (reason := NO_REGISTRY.search(done.stderr)):
            pytest.skip(f"npm cannot reach its registry: {reason[0]}")
        assert done.returncode == 0, done.stderr
        try:
            unfinished.rename(folder)
        except OSError:  # another process of the tests was faster
            assert folder.exists()
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    server = Azurite(install_azurite(), tmp_path_factory.mktemp("azurite"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def wired() -> Iterator[Callable[[str], tuple[str, Wire]]]:
    """A storage URL that goes through a Wire, and the Wire."""
    wires: list[Wire] = []

    def through(url: str) -> tuple[str, Wire]:
        found = re.search(r"127\.0\.0\.1(?::|%3A)(\d+)", url)
        assert found
        wires.append(Wire(int(found[1])))
        return url.replace(found[1], str(wires[-1].port)), wires[-1]

    yield through
    for wire in wires:
        wire.close()
