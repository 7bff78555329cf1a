"""A real server process on a port of its own, ways to stop it gently and not, browsers, and npm packages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.databases import SERVER, url_of_new_server_database

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = Path(__file__).resolve().parent / "npm"
BUILD = PROJECT / "build"  # git-ignored
PASSWORD = "correct horse battery staple"  # of the users of `closed_server`
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE, NPM = shutil.which("node"), shutil.which("npm")
NO_REGISTRY = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|TIMEDOUT|ENOTCACHED")


class Server:
    """`python -m dicomcloud serve` over one data directory; can be killed and started again."""

    def __init__(self, folder: Path, *, limit_files: int = 0, **settings: str) -> None:
        self.data = folder / "data"
        self._log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.bind = f"127.0.0.1:{probe.getsockname()[1]}"
        self.url = f"http://{self.bind}"
        self.root = f"{self.url}/dicomweb"
        database = {}
        if SERVER and "DICOMCLOUD_DATABASE_URL" not in settings:
            database["DICOMCLOUD_DATABASE_URL"] = url_of_new_server_database()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DICOMCLOUD_")},
            "DICOMCLOUD_BIND": self.bind,
            "DICOMCLOUD_DATA_DIR": str(self.data),
            "DICOMCLOUD_WORKERS": "2",
            "DICOMCLOUD_MIN_FREE_BYTES": "0",
            "DICOMCLOUD_SERVER": os.environ.get("TEST_SERVER", "auto"),
            **database,
            **settings,
        }
        self._limited = ["sh", "-c", f'ulimit -n {limit_files}; exec "$@"', "sh"] if limit_files else []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.begin()
        self.wait_until_up()

    def begin(self) -> None:
        """Start it without waiting for it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._limited, sys.executable, "-m", "dicomcloud", "serve"],
                cwd=PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a kill reaches its workers
            )

    def log(self) -> str:
        return self._log.read_text()

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

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

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

    def run(self, *command: str, typed: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line over the same data directory."""
        return subprocess.run(
            [sys.executable, "-m", "dicomcloud", *command],
            cwd=PROJECT,
            env={**self._environment, **settings},
            input=typed,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def new_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(**settings: Any) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), **settings))
        servers[-1].start()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(new_server: Callable[..., Server]) -> Server:
    return new_server()


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that asks who is calling, with a reader and an administrator."""
    server = Server(tmp_path_factory.mktemp("closed"), DICOMCLOUD_AUTHENTICATION="required")
    for name, role in (("rita", "reader"), ("ada", "administrator")):
        done = server.run("users", "add", name, "--role", role, "--password-stdin", typed=f"{PASSWORD}\n")
        assert done.returncode == 0, done.stderr
    server.start()
    yield server
    server.stop()


def log_in(page: Any, server: Any, name: str) -> None:
    from playwright.sync_api import expect

    page.goto(server.url)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Studies")).to_be_visible()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser shares two processors with the other tests: what it did not manage in time, it may try again."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, as it is installed on this machine."""
    from playwright.sync_api import expect, sync_playwright

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed on this machine")
    expect.set_options(timeout=30_000)  # other tests run at the same time
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-gl=angle",
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """`new_page(**options)`: a page of a browser that knows nothing yet and reaches this server only.

    A picture of each page as it was left lies in build/screenshots, under the name of the test. What the page has to
    say of errors is in `page.complaints`.
    """
    contexts: list[Any] = []

    def make(*, server: Server = server, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda line: page.complaints.append(line.text) if "Content Security" in line.text else None)
        page.route(
            lambda url: not url.startswith((server.url, "data:", "blob:")),
            lambda route: (page.complaints.append(f"another host: {route.request.url}"), route.abort()),
        )
        return page

    yield make
    folder = BUILD / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for number, context in enumerate(contexts):
        name = request.node.name + (f"-{number + 1}" if number else "")
        context.pages[0].screenshot(path=folder / f"{re.sub('[^A-Za-z0-9-]+', '-', name)}.png")
        context.close()


@pytest.fixture(scope="session")
def installed() -> Path:
    """A folder under build/ with the pinned packages, made once for each version of the lock file."""
    if not NODE or not NPM:
        pytest.skip("needs node and npm")
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 18:
        pytest.skip(f"needs Node 18 or newer, found {version.strip()}")
    lock = (PACKAGES / "package-lock.json").read_bytes()
    folder = BUILD / f"npm-{sha256(lock).hexdigest()[:12]}"
    if folder.exists():
        return folder
    unfinished = BUILD / f"{folder.name}.{os.getpid()}"
    unfinished.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGES / name, unfinished)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(
            [NPM, "ci", *options], cwd=unfinished, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode and (reason := NO_REGISTRY.search(done.stderr)):
            pytest.skip(f"npm cannot reach its registry: {reason[0]}")
        assert done.returncode == 0, done.stderr
        try:
            unfinished.rename(folder)
        except OSError:  # another process of the tests was faster
            assert folder.exists()
    except subprocess.TimeoutExpired:
        pytest.skip("npm cannot reach its registry within two minutes")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
