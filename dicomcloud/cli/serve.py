"""`serve`: the archive over HTTP until stopped."""

from __future__ import annotations

import ipaddress
import sys

import click

from .. import __version__, server
from ..settings import split_address
from .program import Program, commands


@commands.command()
@click.pass_obj
def serve(program: Program) -> None:
    """Serve the archive until stopped (Ctrl+C)."""
    settings = program.settings
    with program.archive():
        pass  # made and migrated before the server's processes start, so that a fault is told here and once
    listener = server.listen(settings.bind)
    here = server.url_of(listener)
    click.echo(f"DICOMcloud {__version__}")
    click.echo(f"  DICOMweb root   {settings.public_url or here}{settings.root}")
    click.echo(f"  Swagger UI      {settings.public_url or here}/swagger")
    click.echo(f"  Data directory  {settings.data_path}")
    if not _is_loopback(split_address(settings.bind)[0]):
        click.echo(f"  Note: {settings.bind} is open to the network, and this version asks nobody for a password.")
    click.echo("Stop it with Ctrl+C.")
    sys.stdout.flush()
    server.run(listener, settings, program.create_app)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
