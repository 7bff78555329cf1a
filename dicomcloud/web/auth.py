"""Who is calling, and whether they may: asked before every view, told by `current_caller()`.

What a route needs is said where its blueprint is registered (`web/__init__.py`), or at the view by `@needs(...)`, which
comes first. A route of which nothing is said is for administrators. A caller who does not see all studies gets to a
route with `<study>` in its path when that study is one of theirs, and to others only when the view narrows what it
does itself (`narrows=True`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from flask import Flask, Response, g, request

from ..access import ANYBODY, Caller, Permission
from ..errors import Forbidden, NotFound, Unauthorized
from .service import current_service

View = TypeVar("View", bound=Callable[..., Any])
REALM: Final = "DICOMcloud"


@dataclass(frozen=True, slots=True)
class Need:
    """What a route asks of its caller."""

    permission: Permission
    narrows: bool = False  # the view itself keeps to the studies that the caller sees

    @property
    def public(self) -> bool:
        return self.permission is Permission.PUBLIC


_UNDECLARED: Final = Need(Permission.ADMINISTER)


def needs(permission: Permission, *, narrows: bool = False) -> Callable[[View], View]:
    """Say of a view what its caller must be allowed; below the line with the route."""

    def mark(view: View) -> View:
        cast(Any, view).need = Need(permission, narrows)
        return view

    return mark


def current_caller() -> Caller:
    """Who sent this request. Every view can rely on it."""
    caller: Caller = g.get("caller", ANYBODY)
    return caller


def need_of(app: Flask, endpoint: str, declared: Mapping[str, Need]) -> Need:
    """What the route of an endpoint needs; `declared` is by endpoint and by the name of the blueprint."""
    own: Need | None = getattr(app.view_functions[endpoint], "need", None)
    return own or declared.get(endpoint) or declared.get(endpoint.rpartition(".")[0]) or _UNDECLARED


def guard(app: Flask, declared: Mapping[str, Need]) -> None:
    """Ask every request for its caller, and keep out who may not."""
    known: dict[str, Need] = {}

    @app.before_request
    def admit() -> Response | None:
        endpoint = request.endpoint
        if endpoint is None:  # no such route: a 404 tells nothing
            return None
        need = known.get(endpoint)
        if need is None:
            need = known[endpoint] = need_of(app, endpoint, declared)
        caller = g.caller = _caller(need)
        if need.public or request.method == "OPTIONS":
            return None
        if not caller.may(need.permission) and not _only_deidentified(caller, need):
            raise _refused(f"This needs the permission to {need.permission}, which {_named(caller)} lacks")
        if caller.studies is not None and not need.narrows:
            _check_study(caller)
        return None


def _caller(need: Need) -> Caller:
    service = current_service()
    if not service.asks_callers:
        return ANYBODY
    if need.public:
        return Caller("", (), "nobody")
    raise Unauthorized("Say who you are", headers={"WWW-Authenticate": f'Basic realm="{REALM}", charset="UTF-8"'})


def _only_deidentified(caller: Caller, need: Need) -> bool:
    """Whether a caller who may see de-identified copies only asks for such a one (PS3.18 9.5.1.1.5)."""
    if need.permission is not Permission.READ or not caller.may(Permission.DEIDENTIFIED):
        return False
    return (request.endpoint or "").startswith("WADO-URI") and request.args.getlist("anonymize") == ["yes"]


def _check_study(caller: Caller) -> None:
    study = (request.view_args or {}).get("study")
    if study is None:
        raise _refused(f"{_named(caller)} sees some studies only, and this is about all")
    check_visible(study)


def check_visible(study: str) -> None:
    """Raises what keeps the caller from a study that they do not see; the same whether it exists or not."""
    studies = current_caller().studies
    if studies is not None and not current_service().archive.index.has_study(study, studies.rules):
        raise _refused(
            f"There is no study {study} that {_named(current_caller())} may see", f"There is no study {study}"
        )


def _refused(message: str, hidden: str = "There is no such resource") -> Forbidden | NotFound:
    return NotFound(hidden) if current_service().forbidden_status == 404 else Forbidden(message)


def _named(caller: Caller) -> str:
    return caller.name or "the caller"
