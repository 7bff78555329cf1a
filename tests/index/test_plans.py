"""How SQLite goes about searches: by an index, never over a table. The same for few studies and for a million."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.bench_search import SEARCHES, _facts, _plans
from benchmarks.make_index import fill
from dicomcloud.index import Index, open_database


@pytest.mark.parametrize("many", [False, True], ids=["where few fit", "where many fit"])
def test_no_search_reads_a_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    for name in ("_FEW", "_FEW_WITH_WORD", "_VERY_FEW_WITH_WORD", "_FAR") if many else ():
        monkeypatch.setattr(f"dicomcloud.index.search.{name}", 0)
    url = f"sqlite:///{(tmp_path / 'index.db').as_posix()}"
    counts = fill(url, 120, quiet=True)
    assert counts["studies"] == 120
    assert counts["instances"] > counts["series"] > 120
    index = Index(open_database(url))
    facts = _facts(index)
    scans = {
        search.name: steps
        for search in SEARCHES
        if (
            steps := [
                step
                for step in _plans(index, search, facts)
                if re.fullmatch(r"SCAN [a-z]", step) and step[5] in "srimtdvq"
            ]
        )
    }
    assert scans == {}
    index._database.close()
