"""`copy-index`: the index of one database into another, such as from SQLite to MS SQL Server."""

from __future__ import annotations

from typing import Any

import click
from tqdm import tqdm

from ..archive import CopyStep
from ..archive import copy_index as copy
from .program import Program, commands, fail


def _bar(step: CopyStep, quiet: bool) -> Any:
    return tqdm(total=step.rows, desc=step.table, unit="row", disable=quiet or None)


@commands.command("copy-index")
@click.option("--from", "source", metavar="URL", help="Default: the database of the settings.")
@click.option(
    "--to", "target", metavar="URL", required=True, help="An empty database, or one whose copy was broken off."
)
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@click.pass_obj
def copy_index(program: Program, source: str | None, target: str, quiet: bool) -> None:
    """Copy the index from one database to another: sqlite:///PATH or mssql://USER:PASSWORD@HOST/DATABASE.

    Stop the server before. May be broken off and run again. At the end it compares the numbers of rows. Then set
    `database_url` to the target; the files stay where they are.
    """
    progress: Any = None
    table = ""
    try:
        for step in copy(source or program.settings.resolved_database_url, target):
            if step.table != table:
                if progress is not None:
                    progress.close()
                table, progress = step.table, _bar(step, quiet)
            if progress is not None:
                progress.update(step.copied - progress.n)
    except KeyboardInterrupt:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    finally:
        if progress is not None:
            progress.close()
    if not quiet:
        click.echo("Copied; both have the same numbers of rows in every table.")
