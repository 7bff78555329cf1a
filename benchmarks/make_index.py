"""Fill an index with synthetic studies: no files, only what searches and stores meet in the database.

    python -m benchmarks.make_index sqlite:////tmp/100k.db --studies 100000
    python -m benchmarks.make_index sqlite:////tmp/1m.db --studies 1000000 --lean
    python -m benchmarks.make_index mssql://user:password@host/dicomcloud --studies 100000

The first instance of each series goes through the index as one that is stored (for a server through one on SQLite in
the temporary folder, from where the rows are copied); the others, 17 a study on the average, are copied from it inside
the database. Names come in several scripts and are as unevenly frequent as real ones.
The same number of studies and seed give the same index; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from tqdm import tqdm

from dicomcloud.errors import Conflict
from dicomcloud.index import Database, Index, NewInstance, migrate, open_database
from dicomcloud.index.copying import copy_index

MIGRATIONS = Path(__file__).parents[1] / "migrations"
INSTANCES_PER_STUDY = 17
_BATCH = 2000  # instances stored, or copied, in one transaction
_FIRST_DAY, _DAYS = date(2016, 1, 1), 3600
_PATIENTS = 0.6  # a study
_BYTES = 527_000  # an instance
_OTHERS = "the index has other studies in it"

_COMMON = (
    (
        "Smith Garcia Müller Doe Rossi Martin Johnson Nguyen Kowalski Novák Silva Schmidt Brown Dubois Fernández"
        " Andersson O'Brien Van^der^Berg Öztürk Horváth Papadopoulos Haddad Kumar Singh Miller Moore Mayer Meier"
        " Thompson Bauer Weber Moreau López Lindqvist Virtanen MacDonald Goetz Koenig Roemer Boehm Joergensen"
    )
    .replace("^", " ")
    .split()
)
_ONSETS = [
    "B",
    "Br",
    "C",
    "Ch",
    "D",
    "Dr",
    "F",
    "Fr",
    "G",
    "Gr",
    "H",
    "J",
    "K",
    "Kl",
    "L",
    "M",
    "N",
    "P",
    "Pr",
    "R",
    "S",
    "Sch",
    "St",
    "T",
    "Tr",
    "V",
    "W",
    "Z",
]
_NUCLEI = ["a", "e", "i", "o", "u", "ai", "ei", "ie", "ou", "au"]
_CODAS = ["", "n", "r", "l", "s", "t", "m", "nd", "rt", "ck", "ng"]
_ENDINGS = [
    "er",
    "mann",
    "son",
    "sen",
    "ski",
    "ova",
    "ez",
    "elli",
    "o",
    "a",
    "berg",
    "stein",
    "idis",
    "yan",
    "enko",
    "ić",
]
_GIVEN = [
    "John",
    "Maria",
    "Anna",
    "Peter",
    "José",
    "Anne-Marie",
    "Hans",
    "Giulia",
    "Ahmed",
    "Li",
    "Olga",
    "Ivan",
    "Jörg",
    "Zoë",
    "Mateusz",
    "Björn",
    "Chloé",
    "Noah",
    "Emma",
    "Liam",
    "Sofia",
    "Lucas",
    "Mia",
    "Ella",
    "Oskar",
    "Nora",
    "Elias",
    "Ida",
    "Hugo",
    "Clara",
    "Felix",
    "Alma",
    "Max",
    "Ines",
    "Paul",
    "Vera",
    "Leon",
    "Ruth",
    "Karl",
    "Eva",
    "Otto",
    "Rosa",
]
# alphabetic=ideographic=phonetic, or one group in another script
_OTHER_SCRIPTS = (
    (
        "Yamada^{}=山田^{}=やまだ^{}",
        (("Tarou", "太郎", "たろう"), ("Hanako", "花子", "はなこ"), ("Jirou", "次郎", "じろう")),
    ),
    ("Tanaka^{}=田中^{}=たなか^{}", (("Ichirou", "一郎", "いちろう"), ("Yuki", "雪", "ゆき"), ("Ken", "健", "けん"))),
    ("Hong^{}=洪^{}=홍^{}", (("Gildong", "吉洞", "길동"), ("Minsu", "民秀", "민수"), ("Jiwoo", "智宇", "지우"))),
    ("Wang^{}=王^{}", (("XiaoDong", "小东"), ("Wei", "伟"), ("Fang", "芳"))),
    ("Люкceмбypг^{}", (("Иван",), ("Мария",), ("Ольга",))),
    ("Παπαδόπουλος^{}", (("Γιώργος",), ("Ελένη",))),
    ("قباني^{}", (("لنزار",), ("ليلى",))),
)
_SCRIPTS = 0.06  # of the patients
_REFERRING = tuple(f"{name}^{given}^^Dr" for name in _COMMON for given in _GIVEN[:12])

#: modality → share of the studies, SOP class, body parts
_MODALITIES: dict[str, tuple[float, str, Sequence[str]]] = {
    "CT": (25, "1.2.840.10008.5.1.4.1.1.2", ("Head", "Chest", "Abdomen", "Pelvis", "C-Spine", "Sinus")),
    "MR": (20, "1.2.840.10008.5.1.4.1.1.4", ("Brain", "Knee", "Lumbar spine", "Shoulder", "Prostate", "Liver")),
    "DX": (22, "1.2.840.10008.5.1.4.1.1.1.1", ("Chest", "Hand", "Foot", "Knee", "Hip", "Wrist")),
    "US": (15, "1.2.840.10008.5.1.4.1.1.6.1", ("Abdomen", "Thyroid", "Breast", "Carotid", "Pelvis")),
    "MG": (6, "1.2.840.10008.5.1.4.1.1.1.2", ("Screening", "Diagnostic")),
    "CR": (5, "1.2.840.10008.5.1.4.1.1.1", ("Chest", "Spine")),
    "XA": (3, "1.2.840.10008.5.1.4.1.1.12.1", ("Coronary", "Cerebral")),
    "NM": (2, "1.2.840.10008.5.1.4.1.1.20", ("Bone", "Thyroid")),
    "PT": (1.5, "1.2.840.10008.5.1.4.1.1.128", ("Whole body",)),
    "RF": (0.5, "1.2.840.10008.5.1.4.1.1.12.2", ("Swallow",)),
    "OT": (0.02, "1.2.840.10008.5.1.4.1.1.7", ("Scan",)),
}
_VERBS = ("", " native", " with contrast", " follow-up", " after intervention", ", 2 planes", " low dose", " emergency")
_PREFIXES = ("", "", "", "Klinik ", "Ext. ", "Re-read ", "Konsil ", "Trauma ")


class _Weighted:
    """Choices of unequal frequency."""

    def __init__(self, choices: Sequence[Any], weights: Sequence[float]) -> None:
        self._choices, self._weights = choices, list(accumulate(weights))

    def pick(self, random: Random) -> Any:
        return random.choices(self._choices, cum_weights=self._weights)[0]


def _uid(random: Random) -> str:
    return f"2.25.{random.getrandbits(120)}"


def _surnames(random: Random) -> _Weighted:
    made = {
        random.choice(_ONSETS) + random.choice(_NUCLEI) + random.choice(_CODAS) + random.choice(_ENDINGS)
        for _ in range(30_000)
    }
    names = [*_COMMON, *sorted(made)]
    return _Weighted(names, [1 / (rank + 8) for rank in range(len(names))])


def _patient(number: int, random: Random, surnames: _Weighted) -> dict[str, Any]:
    born = date(1930, 1, 1) + timedelta(days=random.randrange(33_000))
    if number % 20_000 == 7:
        name = "Doering^" + random.choice(_GIVEN)
    elif random.random() < _SCRIPTS:
        pattern, given = random.choice(_OTHER_SCRIPTS)
        name = pattern.format(*random.choice(given))
    else:
        name = f"{surnames.pick(random)}^{random.choice(_GIVEN)}"
        name += f"^{random.choice(_GIVEN)[0]}" if random.random() < 0.2 else ""
    identity = f"{number:07}" if random.random() < 0.8 else f"P{number}-{number % 97}"
    return {"name": name, "id": identity, "born": f"{born:%Y%m%d}", "sex": random.choice("MF")}


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


def _name(text: str) -> dict[str, Any]:
    groups = ("Alphabetic", "Ideographic", "Phonetic")
    return _element("PN", {group: part for group, part in zip(groups, text.split("="), strict=False) if part})


def first_instances(studies: int, seed: int = 1) -> Iterator[tuple[NewInstance, int]]:
    """Of each series an instance, and how many more there are to be."""
    random = Random(seed)
    surnames = _surnames(random)
    modalities = _Weighted(list(_MODALITIES), [share for share, _, _ in _MODALITIES.values()])
    referring = _Weighted(_REFERRING, [1 / (rank + 3) for rank in range(len(_REFERRING))])
    patients = max(1, int(studies * _PATIENTS))
    for number in range(studies):
        who = random.randrange(patients)
        patient = _patient(who, Random(f"{seed} {who}"), surnames)
        modality = modalities.pick(random)
        _, sop_class, parts = _MODALITIES[modality]
        day = _FIRST_DAY + timedelta(days=min(_DAYS, max(0, int(number * _DAYS / studies + random.gauss(0, 2)))))
        moment = f"{random.randrange(7, 20):02}{random.randrange(60):02}{random.randrange(60):02}"
        part = random.choice(parts)
        description = f"{random.choice(_PREFIXES)}{modality} {part}{random.choice(_VERBS)}"
        study = {
            "00080020": _element("DA", f"{day:%Y%m%d}"),
            "00080030": _element("TM", moment),
            "00080050": _element("SH", f"A{number:08}"),
            "00080090": _name(referring.pick(random)),
            "00081030": _element("LO", description),
            "00081048": _name(referring.pick(random)),
            "00100010": _name(patient["name"]),
            "00100020": _element("LO", patient["id"]),
            "00100030": _element("DA", patient["born"]),
            "00100040": _element("CS", patient["sex"]),
            "0020000D": _element("UI", _uid(random)),
            "00200010": _element("SH", f"S{number}"),
        }
        series = [modality] * random.choice((1, 1, 1, 1, 2, 2, 3)) + (["SR"] if random.random() < 0.15 else [])
        left = max(0, round(random.expovariate(1 / INSTANCES_PER_STUDY)) - len(series)) if modality != "DX" else 0
        left = round(left * 1.33)  # what DX studies lack
        for position, own in enumerate(series, 1):
            more = left // len(series) if own != "SR" else 0
            sop = _uid(random)
            attributes = study | {
                "00080016": _element("UI", sop_class if own != "SR" else "1.2.840.10008.5.1.4.1.1.88.11"),
                "00080018": _element("UI", sop),
                "00080060": _element("CS", own),
                "0008103E": _element("LO", f"{part} {random.choice(('axial', 'sagittal', 'T1', 'T2', 'PA', 'LAT'))}"),
                "00180015": _element("CS", part.upper()[:16]),
                "0020000E": _element("UI", _uid(random)),
                "00200011": _element("IS", position),
                "00200013": _element("IS", 1),
                "00280010": _element("US", 512),
                "00280011": _element("US", 512),
                "00280100": _element("US", 16),
                "00400244": study["00080020"],
                "00400245": study["00080030"],
                "00400275": _element(
                    "SQ",
                    {"00400009": _element("SH", f"SPS{number}"), "00401001": _element("SH", f"RP{number}")},
                ),
            }
            attributes = dict(sorted(attributes.items()))
            checksum = hashlib.sha256(sop.encode()).digest()
            yield (
                NewInstance(
                    attributes=attributes,
                    document=orjson.dumps(attributes),
                    transfer_syntax="1.2.840.10008.1.2.1",
                    file_key=f"0000/{checksum[:2].hex()}/{checksum[2:18].hex()}.dcm",
                    size=_BYTES,
                    checksum=checksum,
                    dataset_offset=340,
                    frames=b"\0" * 40,
                    bulk_data=b"\0" * 30,
                ),
                more,
            )


def fill(url: str, studies: int, *, seed: int = 1, lean: bool = False, quiet: bool = False) -> dict[str, int]:
    """Make the index, or go on where a run with the same arguments has stopped; what is in it then.

    ValueError where something else is in the database.
    """
    database = open_database(url)
    migrate(database, MIGRATIONS)
    if _is_sqlite(database):
        with _without_syncs(database):
            copies = _store(database, studies, seed, quiet=quiet)
            _multiply(database, copies, lean=lean, quiet=quiet)
    else:
        copies = _store_by_way_of_sqlite(database, studies, seed, quiet=quiet)
        _multiply(database, copies, lean=lean, quiet=quiet)
    counts = Index(database).counts()
    database.close()
    return counts


def _is_sqlite(database: Database) -> bool:
    return hasattr(database, "pragma")


@contextmanager
def _without_syncs(database: Database) -> Iterator[None]:
    """SQLite need not survive a power failure while it is filled."""
    database.run("PRAGMA synchronous = off")
    database.run("PRAGMA cache_size = -500000")
    yield
    database.run("PRAGMA wal_checkpoint(truncate)")


def _store(database: Database, studies: int, seed: int, *, quiet: bool) -> array[int]:
    """Store the first instances of the series, those that are not there; how many copies there are to be of each."""
    index, new, copies, seen = Index(database), first_instances(studies, seed), array("H"), set[str]()
    used = index.counts()["instances"] > 0
    with tqdm(total=studies, unit="study", disable=quiet or None) as progress:
        while batch := list(islice(new, _BATCH)):
            if not (used and _has(database, batch[0][0])):
                if used and not copies:
                    raise ValueError(_OTHERS)
                index.add([instance for instance, _ in batch], "reject")
                used = False
            copies.extend(more for _, more in batch)
            studies_seen = {instance.attributes["0020000D"]["Value"][0] for instance, _ in batch}
            progress.update(len(studies_seen - seen))
            seen = studies_seen
    return copies


def _store_by_way_of_sqlite(database: Database, studies: int, seed: int, *, quiet: bool) -> array[int]:
    """The same, for a server, where many rows at a time are ten times as fast."""
    newest = database.run("SELECT number FROM instance WHERE id = (SELECT max(id) FROM instance)").fetchone()
    if newest is not None and newest[0] > 1:  # a copy: all that they are made from is there
        if not _has(database, next(first_instances(studies, seed))[0]):
            raise ValueError(_OTHERS)
        return array("H", (more for _, more in first_instances(studies, seed)))
    with TemporaryDirectory() as folder:
        local = open_database(f"sqlite:///{Path(folder, 'index.sqlite3').as_posix()}")
        try:
            migrate(local, MIGRATIONS)
            with _without_syncs(local):
                copies = _store(local, studies, seed, quiet=quiet)
            _send(local, database, quiet=quiet)
        finally:
            local.close()
    return copies


def _send(local: Database, database: Database, *, quiet: bool) -> None:
    done: dict[str, int] = {}
    try:
        with tqdm(unit="row", disable=quiet or None) as progress:
            for step in copy_index(local, database):
                done[step.table] = step.copied
                progress.set_postfix_str(step.table, refresh=False)
                progress.update(sum(done.values()) - progress.n)
    except Conflict as error:
        raise ValueError(_OTHERS) from error


def _has(database: Database, instance: NewInstance) -> bool:
    uid = instance.attributes["00080018"]["Value"][0]
    return database.run("SELECT 1 FROM instance WHERE uid = ?", [uid]).fetchone() is not None


def _multiply(database: Database, copies: Sequence[int], *, lean: bool, quiet: bool) -> None:
    """Copy the first instances of the series as often as they say, inside the database.

    They were stored one after the other, each with a series of its own: both have the keys 1, 2, 3 …
    """
    keys = database.run("SELECT id, series_key FROM instance WHERE id = ?", (len(copies),)).fetchone()
    if tuple(keys or ()) != (len(copies), len(copies)):
        raise ValueError(_OTHERS)
    with tqdm(total=sum(copies), unit="copy", disable=quiet or None) as progress:
        for start in range(0, len(copies), _BATCH):
            some = copies[start : start + _BATCH]
            if any(some):
                _multiply_some(database, start + 1, some, lean=lean)
            progress.update(sum(some))


def _multiply_some(database: Database, first: int, copies: Sequence[int], *, lean: bool) -> None:
    """The same for the series `first` and those that follow, in one transaction."""
    run, last = database.run, first + len(copies) - 1
    wanted = [(key, more) for key, more in enumerate(copies, first) if more]
    done = run("SELECT 1 FROM instance WHERE series_key = ? AND number = 2", wanted[0][:1]).fetchone()
    if done is not None:
        return
    columns = [each.name for each in database.get_columns("instance")]
    copied = ", ".join(name for name in columns if name not in ("id", "uid", "number", "file_key"))
    values = ", ".join(f"i.{name}" for name in copied.split(", "))
    uid, file_key = (_joined(database, f"i.{column}", "'.'", "n.n") for column in ("uid", "file_key"))
    with database.write():
        before = run("SELECT max(id) FROM instance").fetchone()[0]
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            pairs = ", ".join(f"({key}, {more})" for key, more in some)
            numbers = ", ".join(f"({number})" for number in range(1, max(more for _, more in some) + 1))
            if _is_sqlite(database):
                tables = f"WITH wanted(id, more) AS (VALUES {pairs}), numbers(n) AS (VALUES {numbers})"
            else:
                tables = f"WITH wanted(id, more) AS (SELECT * FROM (VALUES {pairs}) v(id, more)),"
                tables += f" numbers(n) AS (SELECT * FROM (VALUES {numbers}) v(n))"
            run(
                f"{tables} INSERT INTO instance (uid, number, file_key, {copied})"
                f" SELECT {uid}, n.n + 1, {file_key}, {values}"
                " FROM wanted w JOIN instance i ON i.id = w.id JOIN numbers n ON n.n <= w.more"
            )
        if not lean:
            columns = [each.name for each in database.get_columns("instance_metadata") if each.name != "instance_key"]
            run(
                f"INSERT INTO instance_metadata (instance_key, {', '.join(columns)})"
                f" SELECT c.id, {', '.join(f'd.{name}' for name in columns)} FROM instance c"
                " JOIN instance_metadata d ON d.instance_key = c.series_key WHERE c.id > ?",
                (before,),
            )
        run(
            "UPDATE series SET number_of_instances = (SELECT count(*) FROM instance i WHERE i.series_key = series.id)"
            " WHERE id BETWEEN ? AND ?",
            (first, last),
        )
        studies = run("SELECT min(study_key), max(study_key) FROM series WHERE id IN (?, ?)", (first, last)).fetchone()
        run(
            "UPDATE study SET number_of_instances ="
            " (SELECT sum(r.number_of_instances) FROM series r WHERE r.study_key = study.id) WHERE id BETWEEN ? AND ?",
            studies,
        )
        run(
            "UPDATE archive_state SET instances = instances + ?, bytes = bytes + ? WHERE id = 1",
            (sum(copies), sum(copies) * _BYTES),
        )


def _joined(database: Database, *parts: str) -> str:
    return " || ".join(parts) if _is_sqlite(database) else f"CONCAT({', '.join(parts)})"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_index", description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="sqlite:///PATH or mssql://…; empty, or begun by the same command")
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--lean", action="store_true", help="only the first instance of a series has metadata: smaller")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(given)
    began = time.perf_counter()
    counts = fill(options.url, options.studies, seed=options.seed, lean=options.lean)
    print(", ".join(f"{number:,} {name}" for name, number in counts.items()), file=sys.stderr)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
