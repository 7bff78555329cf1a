"""`settings`: every setting, its value and its source."""

from __future__ import annotations

import click

from ..settings import OPTIONS, markdown_table
from .program import Program, commands


@commands.command("settings")
@click.option("--markdown", is_flag=True, help="Print the table of docs/settings.md instead.")
@click.pass_obj
def show_settings(program: Program, markdown: bool) -> None:
    """Print every setting, its value and where it came from."""
    if markdown:
        click.echo(markdown_table(), nl=False)
        return
    settings = program.settings
    rows = [
        (option.name, option.show(getattr(settings, option.name)) or '""', settings.sources.get(option.name, "default"))
        for option in OPTIONS
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, source in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")
