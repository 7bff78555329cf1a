"""`viewer`: the OHIF viewer, installed beside the archive."""

from __future__ import annotations

from pathlib import Path

import click

from .. import viewer
from .program import Program, commands, fail, make_folder


@commands.group("viewer")
def viewer_commands() -> None:
    """The OHIF viewer, served at /viewer."""


@viewer_commands.command("install")
@click.argument("source", required=False, metavar="[FOLDER|ZIP|TGZ]", type=click.Path(exists=True, path_type=Path))
@click.pass_obj
def install(program: Program, source: Path | None) -> None:
    """Get the ready-built OHIF viewer and make it ready to be served.

    Without an argument it is fetched with npm, as npm is configured. On a computer without internet, give the file that
    `npm pack` made elsewhere, a ZIP file or a folder with the built viewer. A running server takes it at once.
    """
    make_folder(program.settings.data_path)
    try:
        found = viewer.install(program.settings.viewer_path, source, click.echo)
    except viewer.CannotInstall as error:
        fail(str(error), 1)
    click.echo(f"OHIF {found.version} is installed ({found.files} files) and served at /viewer.")
    if not found.verified:
        click.echo(f"Note: this is not {viewer.PACKAGE} {viewer.VERSION} as its makers published it; not checked.")


@viewer_commands.command("status")
@click.pass_obj
def status(program: Program) -> None:
    """Tell which viewer is installed. Exit code 1 if there is none."""
    found = viewer.installed(program.settings.viewer_path)
    if found is None:
        fail("No viewer is installed; `viewer install` gets it.", 1)
    else:
        click.echo(f"OHIF {found.version}, {'as published' if found.verified else 'not checked'}.")
