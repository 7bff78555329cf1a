"""What every command uses: the settings, the archive, how to report and how to fail."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from .. import __version__, server
from ..archive import Archive
from ..settings import Settings, SettingsError, load


@dataclass
class Program:
    """What the commands act on, as the application hands it over."""

    open_archive: Callable[[Settings], Archive]
    create_app: Callable[[Settings], server.WsgiApp]
    config: str | None = None

    @cached_property
    def settings(self) -> Settings:
        return load(self.config)

    @contextmanager
    def archive(self, *, migrated: bool = True, patient: bool = False) -> Iterator[Archive]:
        """The archive over an existing data directory, brought up to date unless told otherwise.

        `patient`: a database server that cannot be reached yet is waited for.
        """
        make_folder(self.settings.data_path)
        archive = self.open_archive(self.settings)
        try:
            if migrated and patient:
                archive.patiently(archive.migrate, lambda message: click.echo(message, err=True))
            elif migrated:
                archive.migrate()
            yield archive
        finally:
            archive.close()


@click.group()
@click.version_option(__version__, prog_name="DICOMcloud")
@click.option("--config", type=click.Path(), help="TOML file with settings (default: dicomcloud.toml, if it is there).")
@click.pass_obj
def commands(program: Program, config: str | None) -> None:
    """DICOMcloud: a DICOMweb server and archive."""
    program.config = config


def make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # patient data: for its owner only
    except OSError as error:
        raise SettingsError(f"Setting data_dir: {path} cannot be made: {error.strerror}") from None


def ask_password(text: str, instead: str, *, twice: bool = False) -> str:
    """A password that is typed and not shown; where that cannot be, the command ends and says what to do `instead`."""
    if os.name == "nt":  # without a console Python's own function waits for ever, and fills the memory
        try:
            open("CONIN$").close()
        except OSError:
            fail(f"There is no console in which a password could be typed: {instead}.", 2)
    return str(click.prompt(text, hide_input=True, confirmation_prompt=twice, err=True))


def read_password() -> str:
    """The first line of standard input, which is UTF-8 whatever the system's own encoding. Raises UsageError."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig")  # PowerShell begins with a byte order mark
    try:
        return sys.stdin.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("The password on standard input is not UTF-8; it can be typed instead.") from None


def count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def fail(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
