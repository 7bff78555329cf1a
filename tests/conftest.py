"""A real archive in a temporary folder, and a client that speaks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from dicomcloud.archive import Archive
from dicomcloud.settings import Settings, load

AppMaker = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppMaker]:
    """Applications over one data directory, with the settings given as text, as in the environment."""
    monkeypatch.chdir(tmp_path)  # away from a dicomcloud.toml of the developer
    made: list[Flask] = []

    def make(**settings: Any) -> Flask:
        environment = {f"DICOMCLOUD_{name.upper()}": str(value) for name, value in settings.items()}
        environment.setdefault("DICOMCLOUD_DATA_DIR", str(tmp_path / "data"))
        environment.setdefault("DICOMCLOUD_MIN_FREE_BYTES", "0")
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
