"""The documentation against the code: options, commands, targets and routes are named, and no others are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pydicom
import pytest
from flask import Flask

from dicomcloud.cli import commands
from dicomcloud.settings import CONFIG_VARIABLE, OPTIONS, load, markdown_table
from tests.test_cli import serving

PROJECT = Path(__file__).resolve().parent.parent
PATHS = {str(path.relative_to(PROJECT)): path for path in (*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"))}
PAGES = {name.removeprefix("docs/"): path.read_text(encoding="utf-8") for name, path in PATHS.items()}
README, SETTINGS, CHANGELOG = PAGES["README.md"], PAGES["settings.md"], PAGES["CHANGELOG.md"]
TARGETS = set(re.findall(r"^([a-z]+):.*## ", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_table_of_settings_is_the_one_that_the_program_prints() -> None:
    assert markdown_table() in SETTINGS, "run `python -m dicomcloud settings --markdown`"


@pytest.mark.parametrize("page", PAGES)
def test_a_variable_that_is_named_exists(page: str) -> None:
    known = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE, "DICOMCLOUD_TEST_DATABASE_URL"}
    assert set(re.findall(r"DICOMCLOUD_[A-Z_]*[A-Z]", PAGES[page])) <= known


@pytest.mark.parametrize("page", PAGES)
def test_a_command_that_is_shown_exists_with_its_options(page: str) -> None:
    for line in re.findall(r"-m dicomcloud ([^`\n]+)", PAGES[page]):
        words = line.replace("--config config/development.toml ", "").split()
        if re.fullmatch(r"[a-z]+", words[0]):
            command: click.Command = commands.commands[words[0]]
            if isinstance(command, click.Group):
                command = command.commands[words[1]]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_a_make_target_that_is_shown_exists(page: str) -> None:
    assert set(re.findall(r"(?:`|^|[A-Z0-9] )make ([a-z]+)", PAGES[page], re.MULTILINE)) <= TARGETS


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_is_linked_exists(page: str) -> None:
    folder = (PROJECT / page if (PROJECT / page).exists() else PROJECT / "docs" / page).parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page])
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_and_each_of_its_options_is_in_the_readme(name: str) -> None:
    row = re.search(rf"^\| `{name}[ `].*$", README, re.MULTILINE)
    assert row, f"`{name}` has no row in README's table of commands"
    assert f"`{name}`" in CHANGELOG
    command = commands.commands[name]
    if isinstance(command, click.Group):
        assert all(f"`{below}`" in row[0] for below in command.commands)
    for parameter in command.params:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in row[0]
    assert commands.commands[name].help


@pytest.mark.parametrize("target", sorted(TARGETS - {"help"}))
def test_every_make_target_is_in_the_readme(target: str) -> None:
    assert f"make {target}" in README


def test_every_route_is_in_the_readme(app: Flask) -> None:
    root = load(None, {}).root
    paths = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    own = {path.removeprefix(root) for path in paths if path.startswith(root)}
    others = {path for path in paths if not path.startswith(root)}
    roots = {"/" + path.split("/")[1] for path in others}
    outside = {path for path in others if path.startswith("/ohif") or path.count("/") == 1} | roots
    assert own, "no route under the canonical root"
    known = re.sub(r"…(/metadata)", r"\1", README)
    for path in own | outside:
        assert f"{path.removesuffix('/metadata')}" in known or path == "/", path
    assert "/metadata`" in known


def test_an_example_of_a_settings_file_is_valid() -> None:
    for path in PROJECT.glob("config/*.toml"):
        assert load(path, {}).sources, path


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_every_command_of_the_readme_works_as_written_and_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "site-packages").symlink_to(Path(pydicom.__file__).parent.parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DICOMCLOUD_")}
    environment |= {"DICOMCLOUD_BIND": "127.0.0.1:0", "PYTHONPATH": str(PROJECT)}
    with serving(tmp_path, environment) as (url, _):
        here = {
            "http://127.0.0.1:8000": url,
            ".venv/bin/python": sys.executable,
            ".venv/lib/python*/": "",
            "curl ": "curl -sSf ",
        }
        ran = 0
        for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
            if "make " in block:
                continue
            for written, meant in here.items():
                block = block.replace(written, meant)
            command = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran >= 8
    assert (tmp_path / "image.dcm").read_bytes()[128:132] == b"DICM"
