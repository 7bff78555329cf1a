"""What storing costs with indexes of different sizes, made by benchmarks.make_index, in this process.

    python -m benchmarks.bench_store sqlite:////tmp/3k.db sqlite:////tmp/1m.db [--markdown]

STOW: a CT image of 0.5 MB through the application, without a socket: its file, its header, its row. The rest is the
index alone. Every store is a transaction of one instance: of a new study of today, or another one of a study that is
there. The indexes take turns, each turn in a process of its own; what was stored is deleted after it. The mean has in
it what is not done with every store (SQLite's checkpoints). Memory is that of such a process, for the index alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import islice
from random import Random, SystemRandom
from typing import Any, NamedTuple

import orjson
from pydicom.uid import generate_uid

from app import create_app
from benchmarks.bench_store_forms import ct_image, written
from benchmarks.make_index import first_instances
from benchmarks.memory import Memory, memory
from dicomcloud.index import Index, NewInstance, open_database
from dicomcloud.settings import load
from dicomcloud.storage.spool import new_key

_STORES = 150  # of each kind in a turn
_WARM = 15  # before it
_STOWS = 60  # of each kind in a turn


class Turn(NamedTuple):
    """Milliseconds of each store, wall and CPU."""

    new_study: list[tuple[float, float]]
    further: list[tuple[float, float]]
    stow_new_study: list[tuple[float, float]]
    stow_further: list[tuple[float, float]]
    memory: Memory


def _renamed(instance: NewInstance, number: int, run: int, study: str | None, series: str | None) -> NewInstance:
    """The instance with UIDs and a file of its own."""
    random = Random(f"{run} {number}")
    uids = {"0020000D": study, "0020000E": series, "00080018": None}
    changed = {key: {"vr": "UI", "Value": [uid or f"2.25.{random.getrandbits(120)}"]} for key, uid in uids.items()}
    changed |= {key: {"vr": "DA", "Value": [f"{date.today():%Y%m%d}"]} for key in ("00080020", "00400244")}
    attributes = {**instance.attributes, **changed}
    return replace(instance, attributes=attributes, document=orjson.dumps(attributes), file_key=new_key())


def _timed(store: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    store()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


def take_turn(url: str) -> Turn:
    """Store, measure, delete again."""
    database = open_database(url)
    index = Index(database)
    run = SystemRandom().getrandbits(32)
    given = [instance for instance, _ in islice(first_instances(3000, run), 2 * (_STORES + _WARM))]
    greatest = database.run("SELECT max(id) FROM series").fetchone()[0]
    random = Random(run)
    times: dict[str, list[tuple[float, float]]] = {"new": [], "further": []}
    stored: list[tuple[str, str, str]] = []
    for number, instance in enumerate(given):
        kind = "further" if number % 2 else "new"
        study = series = None
        if kind == "further":
            row = database.run(
                "SELECT s.uid, r.uid FROM series r JOIN study s ON s.id = r.study_key WHERE r.id = ?",
                [random.randint(1, greatest)],
            ).fetchone()
            if row is None:
                continue
            study, series = row
        new = _renamed(instance, number, run, study, series)
        times[kind].append(_timed(partial(index.add, [new], "reject")))
        stored.append(tuple(new.attributes[key]["Value"][0] for key in ("0020000D", "0020000E", "00080018")))  # type: ignore[arg-type]
    used = memory()
    for uids in stored:
        index.files_removed(index.remove(*uids))
    database.close()
    stows = [_stow(url, new_study=new_study) for new_study in (True, False)]
    return Turn(times["new"][_WARM:], times["further"][_WARM:], *stows, used)


def _stow(url: str, *, new_study: bool) -> list[tuple[float, float]]:
    """Store through the application over this index, with the files in a temporary folder."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "DICOMCLOUD_DATABASE_URL": url, "DICOMCLOUD_DATA_DIR": folder, "DICOMCLOUD_MIN_FREE_BYTES": "0",
        }  # fmt: skip
        app = create_app(load())
        client, dataset, studies = app.test_client(), ct_image(), set()
        for number in range(_STOWS + _WARM):
            if new_study:
                dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
            studies.add(dataset.StudyInstanceUID)
            file = written(dataset)

            def send(file: bytes = file) -> None:
                answer = client.post("/dicomweb/studies", data=file, content_type="application/dicom")
                assert answer.status_code == 200, answer.text

            taken = _timed(send)
            if number >= _WARM:
                times.append(taken)
        for study in studies:
            client.delete(f"/dicomweb/studies/{study}")
        app.extensions["dicomcloud"].archive.close()
    return times


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_store", description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(given)
    turns: dict[str, list[Turn]] = {url: [] for url in options.urls}
    studies: dict[str, int] = {}
    for url in options.urls:
        database = open_database(url)
        studies[url] = Index(database).counts()["studies"]
        database.close()
    for number in range(options.turns):
        for url in options.urls:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                turns[url].append(process.apply(take_turn, (url,)))
        print(f"turn {number + 1} of {options.turns}", file=sys.stderr)
    rows: list[list[Any]] = []
    for kind, name in (
        ("stow_new_study", "STOW, new study"),
        ("stow_further", "STOW, further instance"),
        ("new_study", "index, new study"),
        ("further", "index, further instance"),
    ):
        for what, way in (("median", statistics.median), ("mean", statistics.mean)):
            for position, unit in enumerate(("ms", "ms of CPU")):
                values = [
                    way([store[position] for turn in turns[url] for store in getattr(turn, kind)])
                    for url in options.urls
                ]
                rows.append([f"{name}, {what} {unit}", *(f"{value:.2f}" for value in values), values[-1] / values[0]])
    for name, field in (("own memory, MB", "own"), ("mapped pages of files, MB", "mapped")):
        values = [statistics.median(getattr(turn.memory, field) for turn in turns[url]) for url in options.urls]
        rows.append([name, *(f"{value:.0f}" for value in values), values[-1] / values[0] if values[0] else 0])
    headings = [f"{studies[url]:,}" for url in options.urls]
    if options.markdown:
        print("| store |" + "".join(f" {heading} studies |" for heading in headings) + " last : first |")
        print("|---|" + "---:|" * (len(headings) + 1))
    for name, *cells, ratio in rows:
        if options.markdown:
            print(f"| {name} |" + "".join(f" {cell} |" for cell in cells) + f" {ratio:.2f} |")
        else:
            print(f"{name:48}" + "".join(f"{cell:>10}" for cell in cells) + f"{ratio:>8.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
