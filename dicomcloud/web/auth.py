"""Who is calling, and whether they may: asked before every view, told by `current_caller()`.

What a route needs is said where its blueprint is registered (`web/__init__.py`), or at the view by `@needs(...)`, which
comes first. A route of which nothing is said is for administrators. A caller who does not see all studies gets to a
route with `<study>` in its path when that study is one of theirs, and to others only when the view narrows what it
does itself (`narrows=True`).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlsplit

from flask import Flask, Request, Response, g, redirect, request

from ..access import ANYBODY, Caller, Permission
from ..access.authentication import Shown
from ..access.credentials import csrf_token
from ..audit import Actor
from ..errors import Forbidden, NotFound, Unauthorized
from .service import Service, client_address, comes_from_proxy, current_request, current_service, server_url

View = TypeVar("View", bound=Callable[..., Any])

COOKIE: Final = "dicomcloud_session"
CSRF_HEADER: Final = "X-CSRF-Token"
CSRF_FIELD: Final = "csrf_token"

_NOBODY: Final = Caller("", (), "nobody")
_CHALLENGES: Final = {
    "Basic": 'Basic realm="DICOMcloud", charset="UTF-8"',
    "Bearer": 'Bearer realm="DICOMcloud"',
}
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_COPIES: Final = frozenset(
    ("retrieve_study", "retrieve_series", "retrieve_instance")
    + ("retrieve_study_metadata", "retrieve_series_metadata", "retrieve_instance_metadata")
)
_SMALL: Final = 64 << 10  # bytes of a form that is looked into for its CSRF token


@dataclass(frozen=True, slots=True)
class Need:
    """What a route asks of its caller."""

    permission: Permission
    narrows: bool = False  # the view itself keeps to the studies that the caller sees
    action: str = ""  # in the audit trail, where the permission does not tell

    @property
    def public(self) -> bool:
        return self.permission is Permission.PUBLIC


_UNDECLARED: Final = Need(Permission.ADMINISTER)


def needs(permission: Permission, *, narrows: bool = False, action: str = "") -> Callable[[View], View]:
    """Say of a view what its caller must be allowed; below the line with the route."""

    def mark(view: View) -> View:
        cast(Any, view).need = Need(permission, narrows, action)
        return view

    return mark


def current_caller() -> Caller:
    """Who sent this request. Every view can rely on it; on a public route it may be nobody, with no name."""
    caller: Caller | None = g.get("caller")
    if caller is None:
        try:
            caller = _caller(current_request(), current_service(), g.get("actor"))
        except Unauthorized:
            caller = _NOBODY
        g.caller = caller
    return caller


def sees_copies_only() -> bool:
    """Whether the caller may see de-identified copies and nothing else."""
    caller = current_caller()
    return not caller.may(Permission.READ) and caller.may(Permission.DEIDENTIFIED)


def current_csrf_token() -> str:
    """What a page of this server sends in X-CSRF-Token, or a form in `csrf_token`, with what changes something."""
    cookie = request.cookies.get(COOKIE, "")
    return csrf_token(cookie) if cookie else ""


def need_of(app: Flask, endpoint: str, declared: Mapping[str, Need]) -> Need:
    """What the route of an endpoint needs; `declared` is by endpoint and by the name of the blueprint."""
    own: Need | None = getattr(app.view_functions[endpoint], "need", None)
    return own or declared.get(endpoint) or declared.get(endpoint.rpartition(".")[0]) or _UNDECLARED


def guard(app: Flask, service: Service, declared: Mapping[str, Need]) -> None:
    """Ask every request for its caller, and keep out who may not."""
    known: dict[str, Need] = {}

    @app.before_request
    def admit() -> Response | None:
        asked, own = current_request(), g._get_current_object()
        endpoint = asked.endpoint
        if endpoint is None:  # no such route: a 404 tells nothing
            return None
        need = known.get(endpoint)
        if need is None:
            need = known[endpoint] = need_of(app, endpoint, declared)
        own.need = need
        _check_site(asked, service)
        if need.public:
            return None
        try:
            caller = own.caller = _caller(asked, service, own.get("actor"))
        except Unauthorized:
            if _is_navigation():
                here = request.full_path.rstrip("?")
                return cast(Response, redirect(f"{server_url()}/login?next={quote(here, safe='')}", 303))
            raise
        if asked.method == "OPTIONS":
            return None
        _check_origin(caller)
        if not caller.may(need.permission) and not _only_deidentified(caller, need):
            raise _refused(f"This needs the permission to {need.permission}, which {_named(caller)} lacks")
        if caller.studies is not None and not need.narrows:
            study = (asked.view_args or {}).get("study")
            if study is None:
                raise _refused(f"{_named(caller)} sees some studies only, and this is about all")
            check_visible(study)
        return None

    @app.after_request
    def challenge(response: Response) -> Response:
        if response.status_code == 401 and "WWW-Authenticate" not in response.headers:
            for text in _challenges():
                response.headers.add("WWW-Authenticate", text)
            response.headers["Cache-Control"] = "no-store"
        return response


def _caller(asked: Request, service: Service, actor: Actor | None) -> Caller:
    """Raises Unauthorized, TooManyRequests, Unavailable."""
    authentication = service.authentication
    if authentication is None:
        return ANYBODY
    headers = cast(Mapping[str, str], asked.headers)  # names in any case
    cookie = asked.cookies.get(COOKIE, "") if "HTTP_COOKIE" in asked.environ else ""
    address = actor.address if actor is not None else client_address()
    proxied = bool(service.trusted_proxies) and comes_from_proxy()
    caller = authentication.caller(Shown(headers, cookie, address, proxied))
    if caller is None:
        raise Unauthorized("Say who you are: log in, or send an Authorization header")
    if actor is not None and caller.name:
        actor.caller, actor.method = caller.name, caller.method
    return caller


def _challenges() -> list[str]:
    """How to log in. A page of this server must not make the browser ask for a password: it has a page for that."""
    page = COOKIE in request.cookies or request.headers.get("X-Requested-With") == "XMLHttpRequest"
    return [_CHALLENGES["Bearer"]] if page else list(_CHALLENGES.values())


def _is_navigation() -> bool:
    """Whether a browser is about to show the answer as a page, and no Authorization header was tried."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and "Authorization" not in request.headers
    )


def _check_site(asked: Request, service: Service) -> None:
    """What a browser remembers, be it a password or only that the server is on this computer, is not for other sites.

    A page of another site cannot read answers, but it could send what changes something. And while nobody is asked, a
    page could make its own host name mean this computer (DNS rebinding): then only an address, or localhost, will do.
    """
    if asked.method not in _SAFE and asked.headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
        origin = asked.headers.get("Origin", "")
        if origin not in service.cors_origins and "*" not in service.cors_origins:
            g.refused = True
            raise Forbidden("This was sent by a page of another site, which cors_origins does not list")
    if service.only_this_computer and not _is_ours(asked.host, service.public_url):
        g.refused = True
        raise Forbidden(
            "Nobody is asked for a password here, so that only 127.0.0.1 and localhost are answered. Where a proxy "
            "asks, set public_url to the name under which it serves this archive"
        )


@lru_cache(maxsize=256)
def _is_ours(host: str, public_url: str) -> bool:
    """Whether no other site can have this name: an address, a name without a dot, or our own in `public_url`."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name == urlsplit(public_url).hostname
    return True


def _check_origin(caller: Caller) -> None:
    """A browser sends its cookie along with what other sites make it send: such a request shows no token of ours."""
    if caller.method not in ("session", "share link") or "Authorization" in request.headers:
        return
    if request.method in _SAFE:
        return
    check_csrf(current_csrf_token())


def check_csrf(expected: str) -> None:
    """Raises Forbidden when the request does not bring this token, or comes from another site."""
    given = request.headers.get(CSRF_HEADER, "")
    if not given and request.mimetype == "application/x-www-form-urlencoded":
        request.max_content_length = _SMALL
        given = request.form.get(CSRF_FIELD, "")
    elsewhere = request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if elsewhere or not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        g.refused = True
        raise Forbidden(f"This was not sent by a page of this server: its {CSRF_HEADER} is missing or wrong")


def _only_deidentified(caller: Caller, need: Need) -> bool:
    """Whether a caller who may see de-identified copies only asks for such a one (PS3.18 9.5.1.1.5)."""
    if need.permission is not Permission.READ or not caller.may(Permission.DEIDENTIFIED):
        return False
    endpoint = request.endpoint or ""
    if endpoint.startswith("WADO-RS") and endpoint.rpartition(".")[2] in _COPIES:
        return True  # these views look at `sees_copies_only` themselves
    return (request.endpoint or "").startswith("WADO-URI") and request.args.getlist("anonymize") == ["yes"]


def check_visible(study: str) -> None:
    """Raises what keeps the caller from a study that they do not see; the same whether it exists or not."""
    caller = current_caller()
    if caller.studies is not None and not current_service().archive.index.has_study(study, caller.studies.rules):
        raise _refused(f"There is no study {study} that {_named(caller)} may see", f"There is no study {study}")


def _refused(message: str, hidden: str = "There is no such resource") -> Forbidden | NotFound:
    g.refused = True
    return NotFound(hidden) if current_service().forbidden_status == 404 else Forbidden(message)


def _named(caller: Caller) -> str:
    return caller.name or "the caller"
