"""Eight writers and eight readers on one index, each a process of its own: who is refused, and are the counts right?

    python -m tests.conformance.many_processes --seconds 60
    python -m tests.conformance.many_processes --seconds 60 --database mssql://user:password@host/master

Writers store, store again, replace and delete in studies that they share; readers search at every level, count and read
metadata. On a server a database is made for it, and dropped. Exit code 0 when nobody was told of an error, no instance
is there twice, and all counts are what the writers did.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from typing import Any

from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.query import parse_query
from dicomcloud.index import Index, Outcome, migrate, open_database
from tests import databases
from tests.index.conftest import new_instance

_STUDIES, _SERIES = 5, 2
_SEARCHES = (
    (Level.STUDY, [("PatientName", "doe*")]),
    (Level.STUDY, [("ModalitiesInStudy", "CT"), ("limit", "3")]),
    (Level.SERIES, [("Modality", "CT")]),
    (Level.INSTANCE, [("limit", "20"), ("offset", "5")]),
)


@dataclass
class Told:
    """What one process did, and what it was told."""

    there: set[str] = field(default_factory=set)  # SOP Instance UIDs that it stored and did not delete
    done: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds
    errors: list[str] = field(default_factory=list)


def _write(index: Index, number: int, chance: random.Random, told: Told) -> None:
    study = f"1.{chance.randrange(_STUDIES)}"
    uids = [f"{study}.{number}.{chance.randrange(10**9)}" for _ in range(3)]
    new = [_instance(study, uid) for uid in uids]
    _expect(index.add(new, "reject"), [Outcome.ADDED] * 3)
    told.there |= set(uids)
    _expect(index.add(new[:1], "reject"), [Outcome.SAME])
    _expect(index.add([_instance(study, uids[1])], "replace"), [Outcome.REPLACED])
    series = new[0].attributes["0020000E"]["Value"][0]
    if chance.random() < 0.3 and index.remove(study, series, uids[0]):
        told.there.discard(uids[0])
        told.done["deleted"] += 1
    told.done["stored"] += 3


def _expect(outcomes: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    if list(outcomes) != list(expected):
        raise AssertionError(f"{outcomes} where {expected} was expected")


def _instance(study: str, uid: str) -> Any:
    series = f"{study}.{int(uid.rpartition('.')[2]) % _SERIES}"
    names = {"PatientName": "Doe^Jane", "PatientID": study, "StudyDate": "20200101"}
    made = new_instance(StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=uid, **names)
    return replace(made, file_key=f"{os.getpid()}/{made.file_key}", checksum=os.urandom(32))


def _read(index: Index, chance: random.Random, told: Told) -> None:
    level, pairs = chance.choice(_SEARCHES)
    index.search(parse_query(level, pairs, max_results=50))
    index.counts()
    list(index.documents(f"1.{chance.randrange(_STUDIES)}"))
    told.done["searched"] += 1


def work(url: str, number: int, writes: bool, seconds: float, answers: Any) -> None:
    told, chance = Told(), random.Random(number)
    database = open_database(url)
    index = Index(database)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not told.errors:
        started = time.monotonic()
        try:
            if writes:
                _write(index, number, chance, told)
            else:
                _read(index, chance, told)
        except Exception:
            told.errors.append(traceback.format_exc())
        told.longest = max(told.longest, time.monotonic() - started)
    database.close()
    answers.put((writes, told))


def run(url: str, seconds: float, *, writers: int = 8, readers: int = 8) -> tuple[list[str], Told]:
    """What is wrong, and what was done by all together. The database has to be migrated and empty."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    processes = [
        context.Process(target=work, args=(url, number, number < writers, seconds, answers))
        for number in range(writers + readers)
    ]
    for process in processes:
        process.start()
    told = []
    while len(told) < len(processes):
        try:
            told.append(answers.get(timeout=1)[1])
        except Empty:
            if not any(process.is_alive() for process in processes) and answers.empty():
                break
    for process in processes:
        process.join()
    everything = Told(
        set().union(*(each.there for each in told)),
        sum((each.done for each in told), Counter()),
        max((each.longest for each in told), default=0.0),
        [error for each in told for error in each.errors],
    )
    faults = everything.errors + [f"{len(processes) - len(told)} processes died"] * (len(told) < len(processes))
    return faults + _faults(url, everything.there), everything


def _faults(url: str, there: set[str]) -> list[str]:
    """Where the index is not what it has to be."""
    database = open_database(url)
    run = database.run
    found = [row[0] for row in run("SELECT uid FROM instance").fetchall()]
    faults = [] if len(found) == len(set(found)) else ["an instance is there twice"]
    if not faults and set(found) != there:
        faults.append(f"{len(there - set(found))} instances are missing, {len(set(found) - there)} too many")
    for table in ("study", "patient"):
        key = "uid" if table == "study" else "patient_id"
        keys = [row[0] for row in run(f"SELECT {key} FROM {table}").fetchall()]
        if len(keys) != len(set(keys)):
            faults.append(f"a {table} is there twice")
    series = run("SELECT study_key, uid FROM series").fetchall()
    if len(series) != len(set(map(tuple, series))):
        faults.append("a series is there twice")
    counted = run("SELECT series_key, count(*) FROM instance GROUP BY series_key").fetchall()
    if sorted(map(tuple, counted)) != sorted(map(tuple, run("SELECT id, number_of_instances FROM series").fetchall())):
        faults.append("a series counts its instances wrongly")
    counted = run(
        "SELECT r.study_key, count(DISTINCT r.id), count(*) FROM series r JOIN instance i ON i.series_key = r.id"
        " GROUP BY r.study_key"
    ).fetchall()
    studies = run("SELECT id, number_of_series, number_of_instances FROM study").fetchall()
    if sorted(map(tuple, counted)) != sorted(map(tuple, studies)):
        faults.append("a study counts its series or instances wrongly")
    totals = Index(database).counts()
    if (totals["studies"], totals["series"], totals["instances"]) != (len(studies), len(series), len(found)):
        faults.append(f"the totals are wrong: {totals}")
    if run("SELECT count(*) FROM instance_metadata").fetchone()[0] != len(found):
        faults.append("metadata and instances do not pair")
    database.close()
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--database", metavar="URL", default=databases.SERVER, help="a server; default: SQLite")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.database:
            databases.SERVER = arguments.database
            url = stack.enter_context(databases.new_server_database())
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = f"sqlite:///{Path(folder, 'index.sqlite3').as_posix()}"
        database = open_database(url)
        migrate(database, databases.MIGRATIONS)
        database.close()
        faults, told = run(url, arguments.seconds)
    done = ", ".join(f"{count} {what}" for what, count in sorted(told.done.items()))
    print(f"{done}; the longest turn took {told.longest:.1f} s")
    print("\n".join(faults) or "Nobody was refused; nothing is there twice; all counts are right.")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
