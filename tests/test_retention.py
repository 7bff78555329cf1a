"""`retention`: rules by age and kind, quota, what is never deleted, and that it is told first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dicomcloud.archive import Archive
from dicomcloud.archive.retention import plan, read_rules
from tests.conftest import AppMaker, Run, report_of
from tests.data import make_dataset, make_file


@pytest.fixture
def archive(make_app: AppMaker, run: Run) -> Archive:
    opened: Archive = make_app().extensions["dicomcloud"].archive
    return opened


def store(archive: Archive, **attributes: Any) -> str:
    dataset = make_dataset(**attributes)
    with archive.begin_store() as batch:
        batch.add([make_file(dataset)])
        assert batch.commit().items[0].failure is None
    return str(dataset.StudyInstanceUID)


def doomed(archive: Archive, rules: str, **later: float) -> list[str]:
    found = plan(archive.index, read_rules(rules), datetime.now(UTC) + timedelta(**later))
    return [each.study.uid for each in found.studies]


def test_without_rules_nothing_is_forgotten(archive: Archive) -> None:
    store(archive, StudyDate="19000101")
    assert doomed(archive, "", days=100_000) == []
    assert doomed(archive, "[[keep]]\npatient_id = '*'", days=100_000) == []


def test_studies_go_by_their_age_and_those_without_a_date_by_when_they_were_stored(archive: Archive) -> None:
    old, recent = store(archive, StudyDate="20100101"), store(archive, StudyDate=datetime.now().strftime("%Y%m%d"))
    undated = store(archive, StudyDate="")
    rule = "[[delete]]\nolder_than_days = 365\n"
    assert doomed(archive, rule) == [old]
    assert doomed(archive, rule + "by = 'stored'") == []
    assert doomed(archive, rule, days=366) == [old, recent, undated]


def test_every_part_of_a_rule_has_to_hold_and_one_rule_is_enough(archive: Archive) -> None:
    film = store(archive, Modality="MG", PatientID="TEST1")
    other = store(archive, Modality="CT", PatientID="TEST2")
    mine = store(archive, Modality="MG", PatientID="P1")
    assert doomed(archive, "[[delete]]\nmodalities = ['MG', 'CR']\npatient_id = 'test*'") == [film]
    two = "[[delete]]\nmodalities = ['CT']\n[[delete]]\npatient_id = 'P?'"
    assert doomed(archive, two) == [other, mine]


def test_a_study_goes_only_when_all_of_its_series_are_of_that_kind(archive: Archive) -> None:
    study = store(archive, Modality="MG")
    store(archive, StudyInstanceUID=study, Modality="SR")
    assert doomed(archive, "[[delete]]\nmodalities = ['MG']") == []
    assert doomed(archive, "[[delete]]\nmodalities = ['MG', 'SR']") == [study]


def test_what_is_to_be_kept_stays_whatever_else_is_said(archive: Archive) -> None:
    store(archive, PatientID="RESEARCH1", StudyDate="19900101")
    other = store(archive, StudyDate="19900101")
    rules = "[[delete]]\nolder_than_days = 1\n[quota]\nbytes = 0\n[[keep]]\npatient_id = 'RESEARCH*'"
    assert doomed(archive, rules) == [other]


def test_a_quota_takes_what_was_stored_longest_ago_and_no_more_than_it_must(archive: Archive) -> None:
    first, second, _ = (store(archive, StudyDate=date) for date in ("20200101", "20100101", "20150101"))
    sizes = [each.bytes for each in archive.index.study_summaries()]
    assert doomed(archive, f"[quota]\nbytes = {sum(sizes)}") == []
    assert doomed(archive, f"[quota]\nbytes = {sum(sizes) - 1}") == [first]
    assert doomed(archive, f"[quota]\nbytes = {sizes[2]}") == [first, second]


@pytest.mark.parametrize(
    "rules",
    [
        "[[delete]]",
        "[[delete]]\nname = 'all of it'",
        "[delete]\nolder_than_days = 3",
        "[[delete]]\nolder_than_days = 0",
        "[[delete]]\nolder_than_days = '5'",
        "[[delete]]\nolder_then_days = 5",
        "[[delete]]\nmodalities = 'CT'",
        "[[delete]]\npatient_id = 5",
        "[[delete]]\npatient_id = 'x'\nby = 'birth'",
        "[quota]\nbytes = 'much'",
        "[quota]\nstudies = 5",
        "[[forget]]\npatient_id = 'x'",
        "no toml",
    ],
)
def test_rules_that_are_not_understood_delete_nothing(run: Run, tmp_path: Path, rules: str) -> None:
    (tmp_path / "rules.toml").write_text(rules, encoding="utf-8")
    finished = run("retention", tmp_path / "rules.toml", "--delete")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "rules.toml: " in finished.stderr


def test_nothing_is_deleted_that_was_not_told_before(archive: Archive, run: Run, tmp_path: Path) -> None:
    store(archive, StudyDate="19900101")
    rules = tmp_path / "rules.toml"
    rules.write_text("[[delete]]\nname = 'old'\nolder_than_days = 3650", encoding="utf-8")
    refused = run("retention", rules, "--delete")
    assert (refused.returncode, "without --delete first" in refused.stderr) == (1, True)
    told = report_of(run("retention", "--json", rules))
    assert (told["deleted"], [each["rule"] for each in told["studies"]]) == (False, ["old"])
    assert archive.index.counts()["studies"] == 1
    rules.write_text("[[delete]]\nolder_than_days = 1", encoding="utf-8")
    assert run("retention", rules, "--delete").returncode == 1
    assert "Would delete 1 study" in run("retention", rules).stdout
    assert "Deleted 1 of 1 study" in run("retention", rules, "--delete").stdout
    assert archive.index.counts()["studies"] == 0
    assert "Deleted 0 of 0 studies" in run("retention", rules, "--delete").stdout  # the next night
    assert run("verify").returncode == 0


def test_old_versions_of_corrected_instances_go_after_their_time(archive: Archive, run: Run, tmp_path: Path) -> None:
    study = store(archive, PatientID="WRONG")
    archive.correction.correct(study, {"PatientID": "4711"})
    rules = read_rules("[superseded]\nolder_than_days = 30")
    assert plan(archive.index, rules).superseded == []
    found = plan(archive.index, rules, datetime.now(UTC) + timedelta(days=31))
    assert (len(found.superseded), found.studies) == (1, [])
    assert len(list((tmp_path / "data" / "storage").rglob("*.dcm"))) == 2
    assert list(archive.forget(found)) == []
    assert len(list((tmp_path / "data" / "storage").rglob("*.dcm"))) == 1
    assert run("verify", "--checksums").returncode == 0
