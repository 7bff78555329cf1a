"""Time searches of an index that benchmarks.make_index has filled, in this process, without HTTP.

    python -m benchmarks.bench_search sqlite:////tmp/100k.db sqlite:////tmp/1m.db [--markdown] [--plans]

Each search is run once, then for a while; the table gives the median in milliseconds, rows built as DICOM JSON
included. `--plans` prints how SQLite goes about each. Every index is measured by a process of its own, whose memory
stands below: what it has for itself, and the pages of files that the system takes back when it needs room.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from benchmarks.memory import Memory, memory
from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.query import parse_query
from dicomcloud.index import Index, open_database

_SECONDS = 0.4  # for which a search is repeated
_MOST = 200  # times


class Search(NamedTuple):
    name: str
    query: str
    level: Level = Level.STUDY


#: `{…}` is filled in from the index that is measured.
SEARCHES = (
    Search("no key", ""),
    Search("PatientID", "PatientID={patient_id}"),
    Search("AccessionNumber", "AccessionNumber={accession}"),
    Search("StudyInstanceUID", "StudyInstanceUID={study_uid}"),
    Search("50 Study Instance UIDs", "StudyInstanceUID={study_uids}&limit=50"),
    Search("StudyID", "StudyID={study_id}"),
    Search("one day", "StudyDate={day}"),
    Search("date range, 3 years", "StudyDate=20200101-20221231"),
    Search("PatientName=Doe^J*", "PatientName=Doe^J*"),
    Search("PatientName=Doe", "PatientName=Doe"),
    Search("PatientName=M*", "PatientName=M*"),
    Search("PatientName=*oe*, many", "PatientName=*oe*"),
    Search("PatientName=*oering*, few", "PatientName=*oering*"),
    Search("PatientName=*qqx*, none", "PatientName=*qqx*"),
    Search("PatientName=山田*", "PatientName=山田*"),
    Search("fuzzy doe j*", "fuzzymatching=true&PatientName=doe j*"),
    Search("fuzzy, by sound", "fuzzymatching=true&PatientName=jon smyth"),
    Search("fuzzy m*", "fuzzymatching=true&PatientName=m*"),
    Search("ModalitiesInStudy=CT", "ModalitiesInStudy=CT"),
    Search("ModalitiesInStudy=OT, rare", "ModalitiesInStudy=OT"),
    Search("ModalitiesInStudy=ZZ, none", "ModalitiesInStudy=ZZ"),
    Search("CT and a month", "ModalitiesInStudy=CT&StudyDate=20210301-20210331"),
    Search("deep offset, half way", "offset={half}"),
    Search("deep offset, last page", "offset={last}"),
    Search("StudyDescription=*knee*, many", "StudyDescription=*knee*"),
    Search("StudyDescription=*qqx*, none", "StudyDescription=*qqx*"),
    Search("ReferringPhysicianName=*qqx*, none", "ReferringPhysicianName=*qqx*"),
    Search("ReferringPhysicianName=Müller^J*", "ReferringPhysicianName=Müller^J*"),
    Search("includefield=all, 25 studies", "includefield=all"),
    Search("100 studies", "limit=100"),
    Search("series of a study", "", Level.SERIES),
    Search("instances of a study", "", Level.INSTANCE),
    Search("series, Modality=CT", "Modality=CT", Level.SERIES),
    Search("series, Modality=OT, rare", "Modality=OT", Level.SERIES),
    Search(
        "series by request (sequence)", "RequestAttributesSequence.ScheduledProcedureStepID={request}", Level.SERIES
    ),
    Search("series by request, none", "00400275.00401001=NONE", Level.SERIES),
    Search("instance by UID", "SOPInstanceUID={sop_uid}", Level.INSTANCE),
)


def _facts(index: Index) -> dict[str, str]:
    database = index._database
    studies = index.counts()["studies"]
    page, values = database.page(1, studies // 3)
    row = database.run(
        "SELECT uid, patient_id, accession_number, study_id, study_datetime, id FROM study"
        f" WHERE patient_name < '~' ORDER BY id {page}",
        values,
    ).fetchone()
    page, values = database.page(50, 0)
    uids = [each[0] for each in database.run(f"SELECT uid FROM study ORDER BY uid {page}", values).fetchall()]
    page, values = database.page(1, 0)
    sop = database.run(
        f"SELECT i.uid FROM instance i JOIN series r ON r.id = i.series_key WHERE r.study_key = ? ORDER BY i.id {page}",
        [row[5], *values],
    ).fetchone()
    return {
        "study_uid": row[0], "patient_id": row[1], "accession": row[2], "study_id": row[3], "day": row[4][:8],
        "study_uids": ",".join(uids), "half": str(studies // 2), "last": str(studies - 25),
        "request": "SPS" + row[3].removeprefix("s").removeprefix("S"), "sop_uid": sop[0],
    }  # fmt: skip


def measure(index: Index, search: Search, facts: dict[str, str]) -> tuple[float, int]:
    """Median milliseconds, and how many rows came back."""
    text = search.query.format(**facts)
    pairs = parse_qsl(text if "limit=" in text else f"{text}&limit=25", keep_blank_values=True)
    path: dict[str, Any] = {"study_uid": facts["study_uid"]} if search.name.endswith("of a study") else {}
    query = parse_query(search.level, pairs, max_results=1000, **path)
    rows = len(index.search(query).rows)
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    while (len(times) < 3 or time.perf_counter() < until) and len(times) < _MOST:
        began = time.perf_counter()
        index.search(query)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), rows


def _plans(index: Index, search: Search, facts: dict[str, str]) -> list[str]:
    database = index._database
    seen: list[str] = []
    database.connection().set_trace_callback(seen.append)
    text = search.query.format(**facts)
    index.search(parse_query(search.level, parse_qsl(text, keep_blank_values=True), max_results=25))
    database.connection().set_trace_callback(None)
    return [row[3] for sql in seen for row in database.run(f"EXPLAIN QUERY PLAN {sql}").fetchall()]


def measure_index(url: str, only: str, plans: bool) -> tuple[int, list[float], Memory]:
    """How many studies there are, the milliseconds of each search, the memory of this process afterwards."""
    database = open_database(url)
    index = Index(database)
    facts = _facts(index)
    studies = index.counts()["studies"]
    times = []
    for search in chosen(only):
        median, rows = measure(index, search, facts)
        times.append(median)
        print(f"{studies:>9,}  {search.name:36} {rows:4} rows  {median:8.2f} ms", file=sys.stderr)
        if plans:
            print(*(f"              {line}" for line in _plans(index, search, facts)), sep="\n", file=sys.stderr)
    used = memory()
    database.close()
    return studies, times, used


def chosen(only: str) -> list[Search]:
    return [search for search in SEARCHES if only.lower() in search.name.lower()]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_search", description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--only", default="", help="searches whose name contains this")
    parser.add_argument("--plans", action="store_true")
    options = parser.parse_args(given)
    columns: list[list[str]] = []
    headings = []
    for url in options.urls:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            studies, times, used = process.apply(measure_index, (url, options.only, options.plans))
        headings.append(f"{studies:,}")
        columns.append([*(f"{time:.2f}" for time in times), f"{used.own:.0f} MB", f"{used.mapped:.0f} MB"])
        print(f"{headings[-1]:>9}  memory {used.own:.0f} MB, mapped {used.mapped:.0f} MB", file=sys.stderr)
    names = [search.name for search in chosen(options.only)] + ["own memory of the process", "mapped pages of files"]
    if options.markdown:
        print("| search |" + "".join(f" {heading} studies |" for heading in headings))
        print("|---|" + "---:|" * len(headings))
        for name, *cells in zip(names, *columns, strict=True):
            print(f"| {name} |" + "".join(f" {cell} |" for cell in cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
