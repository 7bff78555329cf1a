"""Logging in with a browser, and links that open one study to somebody without a password."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from flask import Response, redirect, request

from ..access import Permission
from ..access.authentication import LONGEST_LOGIN, Authentication, OpenedSession
from ..access.credentials import csrf_token, new_cookie
from ..dicom.attributes import is_uid
from ..errors import BadRequest, Forbidden, NotFound, TooManyRequests, Unauthorized, Unavailable
from .auth import (
    COOKIE,
    CSRF_FIELD,
    check_csrf,
    check_visible,
    current_caller,
    current_csrf_token,
    needs,
)
from .openapi import Blueprint, faults
from .service import client_address, current_service, server_url
from .site import page

blueprint = Blueprint("Access", __name__, description="Who is logged in, and links to share a study")

_LOGIN_COOKIE: Final = "dicomcloud_login"
_ATTEMPT_COOKIE: Final = "dicomcloud_attempt"  # of a login at another server
_SMALL: Final = 16 << 10  # bytes of a request with a form or a little JSON
_SESSION: Final = {
    "200": {"description": "Who is calling", "content": {"application/json": {"schema": {"type": "object"}}}}
}
_SHARE: Final = {
    "type": "object",
    "required": ["study"],
    "properties": {
        "study": {"type": "string", "description": "Study Instance UID"},
        "hours": {"type": "number", "description": "How long the link is good", "default": 72},
        "deidentified": {"type": "boolean", "description": "Give de-identified copies only", "default": False},
    },
}


# Sessions


@blueprint.route("/login", methods=["GET"])
@needs(Permission.PUBLIC)
@blueprint.doc(summary="Show the login page", responses={"200": {"description": "A page with a form"}})
def login_page() -> Response:
    return _login_page(_local(request.args.get("next", "")))


@blueprint.route("/login", methods=["POST"])
@needs(Permission.PUBLIC)
@blueprint.doc(
    summary="Log in with the form of the login page",
    responses={"303": {"description": "Logged in; to the page that was asked for"}, **faults(401, 403, 429)},
)
def log_in() -> Response:
    request.max_content_length = _SMALL
    authentication, form = _authentication(), request.form
    check_csrf(csrf_token(request.cookies.get(_LOGIN_COOKIE, "")) if _LOGIN_COOKIE in request.cookies else "")
    target = _local(form.get("next", ""))
    try:
        caller = authentication.password(form.get("username", ""), form.get("password", ""), client_address())
    except (Unauthorized, TooManyRequests) as error:
        return _login_page(target, error.message, error.status)
    response = redirect(server_url() + target, 303)
    _set_session(response, authentication.open_session(caller.name))
    return response  # type: ignore[return-value]


@blueprint.route("/login/elsewhere")
@needs(Permission.PUBLIC)
@blueprint.doc(
    summary="Log in at the login server of the house",
    parameters=[{"in": "query", "name": "next", "schema": {"type": "string"}}],
    responses={"303": {"description": "To the login server (OpenID Connect)"}, **faults(404, 503)},
)
def begin_login() -> Response:
    url, attempt = _authentication().begin_login(_local(request.args.get("next", "")), _callback())
    response = redirect(url, 303)
    secure = server_url().startswith("https:")
    # Lax, not Strict: the browser comes back from another site
    response.set_cookie(
        _ATTEMPT_COOKIE, attempt, max_age=LONGEST_LOGIN, path="/", httponly=True, samesite="Lax", secure=secure
    )
    response.headers["Cache-Control"] = "no-store"
    return response  # type: ignore[return-value]


@blueprint.route("/login/callback")
@needs(Permission.PUBLIC)
@blueprint.doc(
    summary="Come back from the login server",
    parameters=[{"in": "query", "name": name, "schema": {"type": "string"}} for name in ("state", "code", "error")],
    responses={"303": {"description": "Logged in; to the page that was asked for"}, **faults(401, 403, 404, 503)},
)
def finish_login() -> Response:
    """OpenID Connect Core 3.1.2.5 and 3.1.2.6."""
    authentication, given = _authentication(), request.args
    try:
        if "error" in given:
            raise Unauthorized(f"The login server says: {_word(given['error'])}")
        opened, target = authentication.finish_login(
            request.cookies.get(_ATTEMPT_COOKIE, ""),
            _callback(),
            state=given.get("state", ""),
            code=given.get("code", ""),
        )
    except (Unauthorized, Forbidden, Unavailable) as error:
        response = _login_page("/", error.message, error.status)
    else:
        response = redirect(server_url() + _local(target), 303)  # type: ignore[assignment]
        _set_session(response, opened)
    response.delete_cookie(_ATTEMPT_COOKIE)
    response.headers["Referrer-Policy"] = "no-referrer"  # the code is in this URL
    return response


@blueprint.route("/logout/elsewhere")
@needs(Permission.PUBLIC)
@blueprint.doc(
    summary="Log out at the login server, too", responses={"303": {"description": "To the login server"}, **faults(404)}
)
def log_out_elsewhere() -> Response:
    login_server = _authentication().login_server
    url = login_server.logout_url(f"{server_url()}/login") if login_server else None
    if url is None:
        raise NotFound("There is no login server that ends sessions")
    return redirect(url, 303)  # type: ignore[return-value]


def _callback() -> str:
    return f"{server_url()}/login/callback"


def _word(text: str) -> str:
    """An error code of RFC 6749 4.1.2.1, and nothing else that a URL may say."""
    return text if re.fullmatch(r"[a-z_]{1,40}", text) else "no"


@blueprint.route("/logout", methods=["POST"])
@needs(Permission.PUBLIC, action="logout")
@blueprint.doc(
    summary="Log out",
    responses={"303": {"description": "Logged out; to the login page"}, **faults(403)},
)
def log_out() -> Response:
    cookie = request.cookies.get(COOKIE, "")
    if cookie and current_caller().name:
        check_csrf(current_csrf_token())
        _authentication().close_session(cookie)
    elsewhere = "." in cookie  # a page, not a redirect: the policy of our pages lets forms lead nowhere else
    response = redirect(f"{server_url()}/login{'?ended=1' if elsewhere else ''}", 303)
    response.delete_cookie(COOKIE)
    return response  # type: ignore[return-value]


@blueprint.route("/session")
@needs(Permission.PUBLIC)
@blueprint.doc(summary="Tell who is logged in", responses=_SESSION)
def tell_session() -> Response:
    """For pages: the name, what it may do, and the token to send in X-CSRF-Token."""
    caller, asks = current_caller(), current_service().authentication is not None
    body = {
        "name": caller.name,
        "method": caller.method,
        "roles": list(caller.roles),
        "permissions": sorted(caller.permissions - {Permission.PUBLIC}),
        "sees_all_studies": caller.studies is None,
        "logged_in": bool(caller.name),
        "login_needed": asks and not caller.name,
        "csrf_token": current_csrf_token() if caller.method in ("session", "share link") else "",
    }
    return _json(body)


# Share links


@blueprint.route("/shares", methods=["POST"])
@needs(Permission.SHARE, narrows=True)
@blueprint.doc(
    summary="Make a link to a study",
    requestBody={"required": True, "content": {"application/json": {"schema": _SHARE}}},
    responses={"201": {"description": "The link; it is shown this once"}, **faults(400, 403, 404)},
)
def share_study() -> Response:
    asked = _small_json()
    study, hours, deidentified = asked.get("study"), asked.get("hours", 72), asked.get("deidentified", False)
    if not isinstance(study, str) or not is_uid(study):
        raise BadRequest("study must be a Study Instance UID")
    most = current_service().share_max_hours
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours <= most:
        raise BadRequest(f"hours must be a number up to {most}")
    if not isinstance(deidentified, bool):
        raise BadRequest("deidentified must be true or false")
    caller = current_caller()
    if not caller.may(Permission.DEIDENTIFIED if deidentified else Permission.READ):
        raise Forbidden("Only what one may see oneself can be shared")
    check_visible(study)
    if not current_service().archive.index.has_study(study):
        raise NotFound(f"There is no study {study}")
    role = "deidentified-reader" if deidentified else "reader"
    share, token = _authentication().share(study, hours=hours, roles=[role], created_by=caller.name)
    body = {"id": share.share_id, "url": f"{server_url()}/share/{token}", "token": token, "study": study}
    return _json(body | {"expires": _time(share.expires_at), "deidentified": deidentified}, 201)


@blueprint.route("/shares", methods=["GET"])
@needs(Permission.SHARE, narrows=True)
@blueprint.doc(summary="List the links that are good", responses=_SESSION)
def list_shares() -> Response:
    """One's own; an administrator's list has everybody's."""
    shares = [
        {
            "id": share.share_id,
            "study": share.study_uid,
            "created_by": share.created_by,
            "created": _time(share.created_at),
            "expires": _time(share.expires_at),
            "deidentified": share.roles == "deidentified-reader",
        }
        for share in current_service().archive.accounts.shares()
        if _is_mine(share.created_by)
    ]
    return _json(shares)


@blueprint.route("/shares/<share>", methods=["DELETE"])
@needs(Permission.SHARE, narrows=True)
@blueprint.doc(
    summary="Revoke a link",
    parameters=[{"in": "path", "name": "share", "required": True, "schema": {"type": "string"}}],
    responses={"204": {"description": "It does not open any more"}, **faults(404)},
)
def revoke_share(share: str) -> Response:
    accounts = current_service().archive.accounts
    found = accounts.share(share)
    if found is None or not _is_mine(found.created_by) or not accounts.revoke_share(share):
        raise NotFound("There is no such link")
    return Response(status=204)


@blueprint.route("/share/<token>")
@needs(Permission.PUBLIC)
@blueprint.doc(
    summary="Open a link to a study",
    parameters=[{"in": "path", "name": "token", "required": True, "schema": {"type": "string"}}],
    responses={"303": {"description": "To the study, with a session that sees nothing else"}, **faults(401)},
)
def open_share(token: str) -> Response:
    opened = _authentication().open_share(token)
    response = redirect(f"{server_url()}{current_service().study_page.format(study=opened.study_uid)}", 303)
    _set_session(response, opened)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response  # type: ignore[return-value]


def _is_mine(created_by: str) -> bool:
    caller = current_caller()
    return caller.may(Permission.ADMINISTER) or created_by == caller.name


# What they share


def _authentication() -> Authentication:
    authentication = current_service().authentication
    if authentication is None:
        raise NotFound("Nobody has to log in here: the server asks nobody (setting authentication)")
    return authentication


def _set_session(response: Any, opened: OpenedSession) -> None:
    response.set_cookie(
        COOKIE,
        opened.cookie,
        max_age=opened.seconds,
        httponly=True,
        samesite="Lax",
        secure=server_url().startswith("https:"),
    )
    response.headers["Cache-Control"] = "no-store"


def _local(target: str) -> str:
    """A path of this server; the first page for anything else, so that a login leads nowhere else."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not target.startswith("/") or target.startswith(("//", "/\\")):
        return "/"
    return "/" if any(ord(char) < 33 for char in target) or "\\" in target else target


def _small_json() -> dict[str, Any]:
    request.max_content_length = _SMALL
    try:
        body = orjson.loads(request.get_data())
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")


def _json(body: object, status: int = 200) -> Response:
    response = Response(orjson.dumps(body), status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def _login_page(target: str, fault: str = "", status: int = 200) -> Response:
    cookie = request.cookies.get(_LOGIN_COOKIE) or new_cookie()
    authentication = current_service().authentication
    login_server = authentication.login_server if authentication else None
    response = page(
        "login.html",
        field=CSRF_FIELD,
        csrf=csrf_token(cookie),
        target=target,
        fault=fault,
        login_server=login_server.name if login_server else "",
        ended="ended" in request.args,
    )
    response.status_code = status
    response.set_cookie(
        _LOGIN_COOKIE, cookie, httponly=True, samesite="Strict", secure=server_url().startswith("https:")
    )
    response.headers["Cache-Control"] = "no-store"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="DICOMcloud"'  # no window of the browser over the page
    return response
