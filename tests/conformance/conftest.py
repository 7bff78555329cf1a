"""A real server process on a port of its own, and ways to stop it gently and not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent


class Server:
    """`python -m dicomcloud serve` over one data directory; can be killed and started again."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.data = folder / "data"
        self._log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.bind = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.bind}"
        self.root = f"{self.url}/dicomweb"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DICOMCLOUD_")},
            "DICOMCLOUD_BIND": self.bind,
            "DICOMCLOUD_DATA_DIR": str(self.data),
            "DICOMCLOUD_WORKERS": "2",
            "DICOMCLOUD_MIN_FREE_BYTES": "0",
            "DICOMCLOUD_SERVER": os.environ.get("TEST_SERVER", "auto"),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicomcloud", "serve"],
                cwd=PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a kill reaches its workers
            )
        self.wait_until_up()

    def wait_until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{self.url}/healthz", timeout=5).close()
                return
            except (URLError, OSError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{self._log.read_text()}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """The power goes: every process of the server dies at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def workers(self) -> list[int]:
        """The process ids of gunicorn's server processes."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def terminate(self) -> None:
        """Tell it to stop as a service manager does."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> int:
        """Stop as a service manager does; return the exit status."""
        assert self._process is not None
        self.terminate()
        return self._process.wait(timeout=60)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line over the same data directory."""
        return subprocess.run(
            [sys.executable, "-m", "dicomcloud", *command],
            cwd=PROJECT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def new_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**settings: str) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), **settings))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Server]) -> Server:
    return new_server()
