"""The command line, one module per command or group of commands.

Exit codes: 0 done; 1 something could not be done, and is named; 2 wrong usage or settings.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from .. import server
from ..archive import Archive, explain
from ..audit.actor import operator, set_actor
from ..errors import DicomWebError
from ..settings import Settings, SettingsError
from . import (
    audit,
    backup,
    copy_index,
    copy_storage,
    correct,
    deidentify,
    doctor,
    events,
    export,
    import_files,
    migrate_from_dicomcloud,
    remote,
    retention,
    serve,
    show_settings,
    upkeep,
    users,
    viewer,
)
from .program import Program, commands, fail

COMMANDS = (
    copy_index,
    serve,
    import_files,
    migrate_from_dicomcloud,
    export,
    deidentify,
    doctor,
    remote,
    backup,
    copy_storage,
    events,
    correct,
    retention,
    upkeep,
    users,
    viewer,
    audit,
    show_settings,
)  # imported for the commands they add to `commands`
_PROGRAM = "python -m dicomcloud"

__all__ = ["COMMANDS", "commands", "main"]


def main(
    open_archive: Callable[[Settings], Archive],
    create_app: Callable[[Settings], server.WsgiApp],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run the command that `arguments` name (default: the process's own), and exit."""
    program = Program(open_archive, create_app)
    # Into a file or a pipe Windows writes a code page, which lacks most letters.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    set_actor(operator())
    try:
        commands.main(arguments, prog_name=_PROGRAM, obj=program)
    except SettingsError as error:
        fail(str(error), 2)
    except (server.CannotListen, DicomWebError) as error:
        fail(str(error), 1)
    except Exception as error:
        if explained := explain(error):
            fail(f"{explained.message} ({error})", 1)
        if os.environ.get("DICOMCLOUD_LOG_LEVEL", "").lower() == "debug":
            raise
        fail(f"{type(error).__name__}: {error}\nDICOMCLOUD_LOG_LEVEL=debug shows where it happened.", 1)
