"""`python -m dicomcloud deidentify`, the key, and the settings that go with them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from app import create_app, open_archive
from dicomcloud import cli
from dicomcloud.deidentify import open_deidentifier
from dicomcloud.settings import OPTIONS, Settings, SettingsError, load
from tests.data import make_file, sample_files

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in os.environ:
        if name.startswith("DICOMCLOUD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(open_archive, create_app, [str(argument) for argument in arguments])
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "DOE^JANE"
    for study in ("first", "second"):
        (folder / study).mkdir(parents=True)
        (folder / study / "DOE-1.dcm").write_bytes(make_file())
    (folder / "notes.txt").write_text("Doe, Jane", encoding="utf-8")
    return folder


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_becomes_the_same_tree_with_names_that_say_nothing(run: Run, originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("deidentify", originals, out) == 0
    names = names_below(out)
    assert len(names) == 2
    assert len({Path(name).parent for name in names}) == 2
    for name in names:
        dataset = pydicom.dcmread(out / name)
        assert Path(name).name == f"{dataset.SOPInstanceUID}.dcm"
        assert dataset.PatientIdentityRemoved == "YES"
    assert not any(word in name.lower() for name in names for word in ("doe", "jane", "first"))


def test_run_again_it_leaves_alone_what_is_there(
    run: Run, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("deidentify", originals, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names_below(tmp_path / "out")}
    capsys.readouterr()
    assert run("deidentify", originals, tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["already_there"], report["skipped"]) == (0, 2, {"not a DICOM file": 1})
    assert {file["file"] for file in report["files"]} == before.keys()
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before


def test_the_report_holds_nothing_of_the_originals(
    run: Run, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in originals.rglob("*.dcm")]
    run("deidentify", originals, tmp_path / "out", "--json")
    text = capsys.readouterr().out
    assert not any(word in text for word in ("DOE", "Doe", "P1", *uids))


def test_what_cannot_be_copied_is_named_and_the_rest_is_done(
    run: Run, originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (originals / "cut.dcm").write_bytes(make_file()[:-100])
    assert run("deidentify", originals, tmp_path / "out", "--quiet") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "The pixel data end too early" in told.err
    assert "cut.dcm" in told.err
    assert len(names_below(tmp_path / "out")) == 2


def test_nothing_is_overwritten(run: Run, originals: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.dcm"
    out.write_bytes(b"mine")
    source = originals / "first" / "DOE-1.dcm"
    assert run("deidentify", source, out) == 1
    assert out.read_bytes() == b"mine"
    assert run("deidentify", originals, out) == 2
    assert run("deidentify", originals, originals) == 2
    assert run("deidentify", source, tmp_path / "new.dcm", "--options", "RetainUIDs") == 0
    assert pydicom.dcmread(tmp_path / "new.dcm").SOPInstanceUID == pydicom.dcmread(source).SOPInstanceUID


def test_an_output_folder_inside_the_input_is_not_read_again(run: Run, originals: Path) -> None:
    assert run("deidentify", originals, originals / "out") == 0
    assert run("deidentify", originals, originals / "out") == 0
    assert len(names_below(originals / "out")) == 2


@pytest.mark.skipif(not sample_files(), reason="needs the samples")
def test_every_sample_is_copied_or_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sample_files()[0].parent.parent
    assert run("deidentify", folder, tmp_path / "out", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    told = sum(report["failed"].values()) + sum(report["skipped"].values())
    assert told + report["written"] + report["already_there"] == len(sample_files()) + 2  # README.md and inventory.csv
    assert report["written"] > 140


# The key


def test_the_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    settings = load(None, {"DICOMCLOUD_DATA_DIR": str(tmp_path / "data")})
    key = settings.deidentification_key()
    assert len(key) == 64
    assert settings.deidentification_key() == key
    files = list((tmp_path / "data").iterdir())
    assert [file.name for file in files] == ["deidentification.key"]
    if os.name == "posix":
        assert stat.S_IMODE(files[0].stat().st_mode) == 0o600
    files[0].write_text("cut", encoding="ascii")
    with pytest.raises(SettingsError, match="damaged"):
        settings.deidentification_key()


def test_a_key_of_the_settings_goes_before_the_file_and_is_never_shown(tmp_path: Path) -> None:
    settings = load(None, {"DICOMCLOUD_ANONYMIZER_KEY": "correct horse battery", "DICOMCLOUD_DATA_DIR": str(tmp_path)})
    assert settings.deidentification_key() == b"correct horse battery"
    assert not list(tmp_path.iterdir())
    (option,) = (option for option in OPTIONS if option.name == "anonymizer_key")
    assert option.show(settings.anonymizer_key) == "***"
    with pytest.raises(SettingsError) as raised:
        load(None, {"DICOMCLOUD_ANONYMIZER_KEY": "tooshort"})
    assert "tooshort" not in str(raised.value)


# The settings


def test_options_are_known_in_any_case_and_contradictions_are_refused() -> None:
    settings = load(None, {"DICOMCLOUD_ANONYMIZER_OPTIONS": "basicprofile,RETAINUIDS, CleanDesc"})
    assert settings.anonymizer_options == ("BasicProfile", "RetainUIDs", "CleanDesc")
    assert not settings.anonymizer_enabled
    for wrong in ("RetainAll", "RetainLongFullDates,RetainLongModifDates"):
        with pytest.raises(SettingsError, match="anonymizer_options"):
            load(None, {"DICOMCLOUD_ANONYMIZER_OPTIONS": wrong})


def test_pixel_rules_are_read_from_their_file_and_faults_are_told(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    settings = Settings(data_dir=str(tmp_path), anonymizer_pixel_rules=str(rules), anonymizer_key="k" * 16)
    with pytest.raises(SettingsError, match="cannot be read"):
        open_deidentifier(settings)
    rules.write_text("[[rule]]\nregions = 1", encoding="utf-8")
    with pytest.raises(SettingsError, match="Pixel rule 1: regions is not a list"):
        open_deidentifier(settings)
    rules.write_text("[[rule]]\nregions = [[0, 0, 4, 4]]", encoding="utf-8")
    assert open_deidentifier(settings, ["CleanPixelData"]).options
