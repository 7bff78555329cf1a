"""An index on a temporary SQLite file, and data sets made by hand."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
import pytest

from dicomcloud.dicom.attributes import Level, json_key, tag_of, vr_of
from dicomcloud.dicom.query import parse_query
from dicomcloud.index import Index, NewInstance, SearchResult, migrate, open_database
from tests.databases import SERVER, new_server_database

MIGRATIONS = Path(__file__).parents[2] / "migrations"
_numbers = count(1)


def data_set(**values: Any) -> dict[str, Any]:
    """DICOM JSON from keywords: a value, a list of values, None for an empty element; names as text with `=`."""
    attributes: dict[str, Any] = {}
    for keyword, value in values.items():
        tag = tag_of(keyword)
        assert tag is not None, keyword
        vr = vr_of(tag)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if vr == "PN":
            groups = ("Alphabetic", "Ideographic", "Phonetic")
            items = [{g: t for g, t in zip(groups, v.split("="), strict=False) if t} for v in items]
        attributes[json_key(tag)] = {"vr": vr, "Value": items} if items else {"vr": vr}
    return dict(sorted(attributes.items()))


def new_instance(content: bytes | None = None, frames: bytes | None = b"frames", **values: Any) -> NewInstance:
    """An instance of study 1.1, series 1.1.1 unless told otherwise, with bytes of its own unless given some."""
    number = next(_numbers)
    content = f"bytes {number}".encode() if content is None else content
    attributes = data_set(
        **{
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SOPInstanceUID": f"1.1.1.{number}",
            "StudyInstanceUID": "1.1",
            "SeriesInstanceUID": "1.1.1",
            "Modality": "CT",
            "PatientID": "P1",
            **values,
        }
    )
    return NewInstance(
        attributes=attributes,
        document=orjson.dumps(attributes),
        transfer_syntax="1.2.840.10008.1.2.1",
        file_key=f"aa/bb/{number:026}.dcm",
        size=len(content),
        checksum=hashlib.sha256(content).digest(),
        dataset_offset=300,
        frames=frames,
        bulk_data=b"bulk",
    )


def new_study(uid: str, **values: Any) -> NewInstance:
    """The only instance of a study."""
    return new_instance(
        **{"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.1.1", **values}
    )


Find = Callable[..., SearchResult]


@pytest.fixture
def database_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database; with the fixture `index`, of a migrated one."""
    if not SERVER:
        yield f"sqlite:///{(tmp_path / 'index.db').as_posix()}"
    elif "index" in request.fixturenames:
        yield request.getfixturevalue("server_url")
    else:
        with new_server_database() as url:
            yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database, migrated once."""
    path = tmp_path_factory.mktemp("migrated") / "index.db"
    database = open_database(f"sqlite:///{path.as_posix()}")
    migrate(database, MIGRATIONS)
    database.close()
    return path


@pytest.fixture
def index(database_url: str, migrated: Path) -> Iterator[Index]:
    if not SERVER:
        shutil.copy(migrated, database_url.removeprefix("sqlite:///"))
    database = open_database(database_url)
    yield Index(database)
    database.close()


@pytest.fixture
def find(index: Index) -> Find:
    """find(query string, level, study_uid=…, series_uid=…, max_results=…) → SearchResult."""

    def search(text: str = "", level: Level = Level.STUDY, *, max_results: int = 100, **path: Any) -> SearchResult:
        pairs = parse_qsl(text, keep_blank_values=True)
        return index.search(parse_query(level, pairs, max_results=max_results, **path))

    return search
