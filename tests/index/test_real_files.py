"""Real files, as the scanner reads them: stored, found by everything they say, returned as they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicomcloud.dicom.attributes import Level, level_of
from dicomcloud.dicom.header import pack_bulk_data, scan
from dicomcloud.dicom.query import parse_query
from dicomcloud.errors import BadRequest, InvalidInstance
from dicomcloud.index import Index, NewInstance, Outcome
from tests.data import pydicom_files, sample_files


def read(path: Path) -> NewInstance | None:
    content = path.read_bytes()
    try:
        header = scan(content)
    except InvalidInstance:
        return None
    return NewInstance(
        attributes=header.attributes,
        document=orjson.dumps(header.attributes),
        transfer_syntax=header.transfer_syntax,
        file_key=hashlib.sha256(str(path).encode()).hexdigest(),
        size=len(content),
        checksum=hashlib.sha256(content).digest(),
        dataset_offset=header.dataset_offset,
        frames=header.frames.pack() if header.frames else None,
        bulk_data=pack_bulk_data(header.bulk_data),
    )


def as_query_values(element: dict[str, Any]) -> list[str]:
    """Each value of a text, date or number element as a client would send it."""
    if element["vr"] == "SQ":
        return []
    values = [value for value in element.get("Value", []) if value not in (None, "", {})]
    if element["vr"] == "PN":
        return [group for name in values for group in name.values()]
    return [str(value) for value in values if not set(str(value)) & set("*?\\,") and str(value).strip()]


def check_found(index: Index, new: NewInstance, level: Level, scope: list[tuple[str, str]]) -> int:
    """Every attribute of the level finds the object by each of its values. How many did; malformed ones are refused."""
    found = 0
    for key, element in new.attributes.items():
        if level_of(int(key, 16)) is not level or key in ("00080005", "00080201"):
            continue
        for value in as_query_values(element)[:3]:
            pairs = [*scope, *([(key, value)] if (key, value) not in scope else [])]
            try:
                query = parse_query(level, pairs, max_results=10)
            except BadRequest:
                continue
            if not query.warnings:
                assert index.search(query).total == 1, (key, element)
                found += 1
    return found


@pytest.mark.parametrize("files", [pydicom_files, sample_files], ids=["pydicom", "samples"])
def test_real_files_are_found_by_what_they_say(index: Index, files: Any) -> None:
    if not files():
        pytest.skip("no such files here")
    new = [instance for instance in map(read, files()) if instance is not None]
    outcomes = []
    for instance in new:
        try:
            outcomes += index.add([instance], "reject")
        except ValueError:
            outcomes.append(None)  # a UID is missing
    stored = [instance for instance, outcome in zip(new, outcomes, strict=True) if outcome is Outcome.ADDED]
    assert len(stored) > len(new) // 2
    assert index.counts()["instances"] == len(stored)
    found, studies, series = 0, set(), set()
    for instance in stored:
        study, series_uid, sop = (instance.attributes[key]["Value"][0] for key in ("0020000D", "0020000E", "00080018"))
        rows = index.instances(study, series_uid, sop)
        assert [row.file_key for row in rows] == [instance.file_key]
        assert list(index.documents(study, series_uid, sop)) == [instance.document]
        if study not in studies:  # the first one speaks for it
            found += check_found(index, instance, Level.STUDY, [("0020000D", study)])
        if (study, series_uid) not in series:
            found += check_found(index, instance, Level.SERIES, [("0020000D", study), ("0020000E", series_uid)])
        found += check_found(index, instance, Level.INSTANCE, [("00080018", sop)])
        studies.add(study)
        series.add((study, series_uid))
        query = parse_query(Level.INSTANCE, [("00080018", sop), ("includefield", "all")], max_results=1)
        (row,) = index.search(query).rows
        own = {key: e for key, e in instance.attributes.items() if level_of(int(key, 16)) is Level.INSTANCE}
        assert {key: row[key] for key in own if key not in ("00080005", "00080201")} == {
            key: own[key] for key in own if key not in ("00080005", "00080201")
        }
    assert found > 20 * len(stored)
    for study in studies:
        index.remove(study)
    assert index.counts() == {"patients": 0, "studies": 0, "series": 0, "instances": 0, "bytes": 0}
