"""On whose behalf this thread works: for the audit trail and for the log, so that nobody has to hand it through."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Actor:
    """`recorded`: what this actor does is in the trail already, written together with what was done."""

    caller: str = ""
    method: str = ""
    address: str = ""
    request_id: str = ""
    recorded: bool = False


_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


def current_actor() -> Actor:
    """The request's, the command's, or the server itself."""
    return _actor.get() or Actor("DICOMcloud", "server")


def set_actor(actor: Actor | None) -> None:
    _actor.set(actor)


@contextmanager
def acting(actor: Actor) -> Iterator[Actor]:
    token = _actor.set(actor)
    try:
        yield actor
    finally:
        _actor.reset(token)


def operator() -> Actor:
    """Who runs a command on this computer."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no such user in this container
        name = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return Actor(f"operator:{name}", "command line")
