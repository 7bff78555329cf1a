"""A real archive in a temporary folder, and a client that speaks to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app, open_archive
from dicomcloud import cli
from dicomcloud.archive import Archive
from dicomcloud.settings import Settings, load
from tests.databases import WorkDatabase, url_of_new_server_database, work_database
from tests.emulators import azurite, s3_server, wired
from tests.tsql import as_tsql, faults, gathered

__all__ = ["azurite", "s3_server", "wired"]

AppMaker = Callable[..., Flask]


@pytest.fixture(scope="session", autouse=True)
def _sent_statements() -> Iterator[None]:
    """Whatever the program sends to its index while the tests run has to be T-SQL, too."""
    with gathered() as statements:
        yield
    refused = {statement: found for statement in statements if (found := faults(as_tsql(statement)))}
    assert refused == {}, "SQL Server would refuse these"


@pytest.fixture(scope="session")
def server_database() -> Iterator[WorkDatabase | None]:
    """The database of this process on the server under test; None where the tests run on SQLite."""
    with work_database() as work:
        yield work


@pytest.fixture
def server_url(server_database: WorkDatabase | None) -> str:
    """The URL of an empty, migrated database on the server under test, '' where the tests run on SQLite."""
    return server_database.reset() if server_database else ""


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_url: str) -> Iterator[AppMaker]:
    """Applications over one data directory, with the settings given as text, as in the environment."""
    monkeypatch.chdir(tmp_path)  # away from a dicomcloud.toml of the developer
    made: list[Flask] = []
    urls: dict[str, str] = {}  # by data directory: on SQLite each has a database of its own, too

    def make(**settings: Any) -> Flask:
        environment = {f"DICOMCLOUD_{name.upper()}": str(value) for name, value in settings.items()}
        environment.setdefault("DICOMCLOUD_DATA_DIR", str(tmp_path / "data"))
        environment.setdefault("DICOMCLOUD_MIN_FREE_BYTES", "0")
        if server_url:
            folder = environment["DICOMCLOUD_DATA_DIR"]
            urls.setdefault(folder, url_of_new_server_database() if urls and folder not in urls else server_url)
            environment.setdefault("DICOMCLOUD_DATABASE_URL", urls[folder])
        made.append(create_app(load_settings(environment)))
        return made[-1]

    yield make
    for app in made:
        app.extensions["dicomcloud"].archive.close()


def load_settings(environment: dict[str, str]) -> Settings:
    return load(None, environment)


@pytest.fixture
def app(make_app: AppMaker) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def archive(app: Flask) -> Archive:
    opened: Archive = app.extensions["dicomcloud"].archive
    return opened


# The command line


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Finished]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_url: str) -> dict[str, str]:
    """The variables of a caller with a data directory of his own, and no other settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("DICOMCLOUD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DICOMCLOUD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DICOMCLOUD_BIND", "127.0.0.1:0")
    monkeypatch.setenv("DICOMCLOUD_MIN_FREE_BYTES", "0")
    monkeypatch.setenv("DICOMCLOUD_WORKERS", "1")
    if server_url:
        monkeypatch.setenv("DICOMCLOUD_DATABASE_URL", server_url)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    return dict(os.environ)


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What `python -m dicomcloud` does with these arguments; settings by keyword."""

    def run(*arguments: object, **settings: object) -> Finished:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(f"DICOMCLOUD_{name.upper()}", str(value))
            with pytest.raises(SystemExit) as ended:
                cli.main(open_archive, create_app, [str(argument) for argument in arguments])
        return Finished(int(ended.value.code or 0), *capsys.readouterr())

    return run


def report_of(finished: Finished) -> dict[str, object]:
    return json.loads(finished.stdout)
