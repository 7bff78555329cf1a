"""`serve`: the archive over HTTP until stopped."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

from .. import __version__, server
from ..access.policy import open_authentication
from ..errors import Unavailable
from .program import Program, commands


@commands.command()
@click.pass_obj
def serve(program: Program) -> None:
    """Serve the archive until stopped (Ctrl+C)."""
    settings = program.settings
    with program.archive(
        patient=True
    ) as archive:  # made before the server's processes start: a fault is told here and once
        archive.check_storage()
        asked = open_authentication(settings, archive.accounts) is not None
        listener = server.listen(settings.bind)
        archive.audit.write("start", detail=__version__)
    here = server.url_of(listener)
    if settings.tls_certificate:
        here = here.replace("http:", "https:", 1)
    click.echo(f"DICOMcloud {__version__}")
    click.echo(f"  Study browser   {settings.public_url or here}/")
    click.echo(f"  DICOMweb root   {settings.public_url or here}{settings.root}")
    click.echo(f"  Swagger UI      {settings.public_url or here}/swagger")
    click.echo(f"  Data directory  {settings.data_path}")
    if not asked:
        click.echo("  Open: nobody is asked for a password. `python -m dicomcloud users add NAME` changes that.")
    click.echo("Stop it with Ctrl+C.")
    sys.stdout.flush()
    own_process = os.getpid()
    try:
        server.run(listener, settings, program.create_app)
    finally:
        if os.getpid() == own_process:  # and not one of those that it made
            with suppress(Unavailable), program.archive(migrated=False) as archive:  # stopped, though the index is away
                archive.audit.write("stop")
