"""What the views share: the archive, the limits, and the URL under which the client knows this server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from flask import Request, current_app, request

from ..access.authentication import Authentication
from ..archive import Archive
from ..dicom.attributes import is_uid
from ..errors import BadRequest

_NOT_IN_HOST: Final = frozenset("\"'<>\\ ")


@dataclass(frozen=True, slots=True)
class Service:
    """The archive and the settings of the web layer, as plain values."""

    archive: Archive
    root: str = "/dicomweb"
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    proxy_headers: str = "x-forwarded"  # or "forwarded"
    max_results: int = 1000
    empty_search_status: int = 200
    max_request_bytes: int = 16 << 30
    max_parts: int = 10_000
    max_metadata_bytes: int = 256 << 20
    stow_query_attributes: bool = False
    cors_origins: tuple[str, ...] = ()
    cors_headers: tuple[str, ...] = ()  # none: those that are asked for
    cors_methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
    cors_credentials: bool = False
    frame_ancestors: tuple[str, ...] = ()
    hsts_days: int = 0
    max_url_bytes: int = 8000
    heavy_requests: int = 0  # 0: no limit of their own
    strict_accept: bool = False
    accel_redirect: str = ""
    presigned_redirects: str = "off"  # or "programs", "all"
    presigned_seconds: int = 300
    authentication: Authentication | None = None  # None: nobody is asked
    only_this_computer: bool = False  # nobody is asked, and nobody else is meant to reach the server
    forbidden_status: int = 403
    share_max_hours: int = 720
    log_requests: bool = False
    study_page: str = "/study/{study}"
    viewer_folder: Path | None = None  # with the OHIF viewer, if it is installed
    retrieved: Callable[[str, dict[str, Any]], None] | None = None  # is told of each retrieval, where anybody asks


def current_service() -> Service:
    service: Service = current_app._get_current_object().extensions["dicomcloud"]  # type: ignore[attr-defined]
    return service


def current_request() -> Request:
    """What Flask's `request` stands for, which looks for it again at each use: for what every request goes through."""
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]
    return asked


def server_url() -> str:
    """The server's own URL as the client sees it, without a slash at the end.

    The setting `public_url`, or else the request's; what a proxy says counts only when it is a trusted one.
    """
    return _server_url(current_service(), current_request())


def _server_url(service: Service, asked: Request) -> str:
    if service.public_url:
        return service.public_url
    scheme, host, prefix = asked.scheme, _host_with_port(asked), asked.script_root
    if service.trusted_proxies and comes_from_proxy():
        told = _told_by_proxy()
        scheme, host, prefix = told.scheme or scheme, told.host or host, (told.prefix or prefix).rstrip("/")
    return f"{scheme}://{host}{prefix}"


def came_over_tls() -> bool:
    """Whether the client's connection is encrypted: to this server, or to a trusted proxy that says so."""
    if request.scheme == "https":
        return True
    return comes_from_proxy() and _told_by_proxy().scheme == "https"


def comes_from_proxy() -> bool:
    """Whether the request was sent by a trusted proxy, whose headers count."""
    trusted = current_service().trusted_proxies
    return bool(trusted) and _is_trusted(current_request().remote_addr or "", trusted)


def client_address() -> str:
    """The address of the client: the last one that is no trusted proxy, as far as proxies say so."""
    address = current_request().remote_addr or ""
    return _told_by_proxy().address or address if comes_from_proxy() else address


class Told(NamedTuple):
    """What trusted proxies say of the client, with '' for what they do not say."""

    address: str = ""
    scheme: str = ""
    host: str = ""
    prefix: str = ""


def _told_by_proxy() -> Told:
    service = current_service()
    if service.proxy_headers == "forwarded":
        return _of_forwarded(request.headers.get("Forwarded", ""), service.trusted_proxies)
    address = ""
    for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        host = _without_port(hop.strip())
        if not host:
            break
        address = host
        if not _is_trusted(host, service.trusted_proxies):
            break
    proto, host, prefix = (_forwarded(f"X-Forwarded-{name}") for name in ("Proto", "Host", "Prefix"))
    return Told(address, proto, host, prefix)


_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = re.compile(rf'[ \t]*(?:({_TOKEN})=({_TOKEN}|"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"))?[ \t]*(;|,|$)')


@lru_cache(maxsize=1024)
def _of_forwarded(text: str, trusted: tuple[str, ...]) -> Told:
    """Of `Forwarded` (RFC 7239 4): read from its end, where the nearest proxy has written, while it was a trusted one.

    Each trusted proxy's word on scheme and host replaces that of the one after it; a field that is malformed, or an
    identifier such as `unknown` or `_hidden`, says nothing.
    """
    told = Told()
    for element in reversed(_elements(text)):
        address, scheme, host = _without_port(element.get("for", "")), element.get("proto", ""), element.get("host", "")
        told = Told(
            address or told.address,
            scheme.lower() if scheme.lower() in ("http", "https") else told.scheme,
            host if host and not set(host) & _NOT_IN_HOST else told.host,
        )
        if not address or not _is_trusted(address, trusted):
            break
    return told


def _elements(text: str) -> list[dict[str, str]]:
    """The elements of `Forwarded`, parameters in lower case; none where the field is malformed."""
    elements: list[dict[str, str]] = [{}]
    position = 0
    while position < len(text):
        if (found := _PAIR.match(text, position)) is None:
            return []
        name, value, end = found.groups()
        if name:
            if name.lower() in elements[-1]:
                return []
            quoted = value.startswith('"')
            elements[-1][name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
        if end == ",":
            elements.append({})
        position = found.end()
    return [element for element in elements if element]


def _without_port(hop: str) -> str:
    """`10.0.0.1:4711` and `[::1]:4711` (IIS) → the address; '' for what is none."""
    host = hop[1:].partition("]")[0] if hop.startswith("[") else hop
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def _host_with_port(asked: Request) -> str:
    """The Host header; with the port of this server where the client left it out (dicomweb-client does so).

    Behind a proxy, which says so in its headers, a host without a port is right as it is.
    """
    host, port = asked.host, asked.environ.get("SERVER_PORT") or ""
    if host.endswith("]") or ":" not in host:
        direct = asked.environ.keys().isdisjoint(("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_VIA"))
        if direct and port.isdigit() and port != ("443" if asked.scheme == "https" else "80"):
            return f"{host}:{port}"
    return host


def service_url() -> str:
    """The root of the DICOMweb services as the client sees it, e.g. `https://pacs.example/dicomweb`."""
    service, asked = current_service(), current_request()
    return _server_url(service, asked) + ("/api" if asked.path.startswith("/api/") else service.root)


def check_uids(**uids: str | None) -> None:
    """Raises BadRequest for a path segment that is no UID (PS3.5 9.1; zeros in front are let pass)."""
    for name, uid in uids.items():
        if uid is not None and not is_uid(uid):
            raise BadRequest(f"The {name} in the URL is not a UID: {uid[:80]!r}")


def _forwarded(header: str) -> str:
    value = request.headers.get(header, "").split(",")[0].strip()
    return value if not set(value) & _NOT_IN_HOST else ""


@lru_cache(maxsize=1024)
def _is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    try:
        client = ipaddress.ip_address(address)
    except ValueError:  # gunicorn and waitress know no address of who comes by a unix socket
        return address in ("", "localhost") and "unix" in trusted
    return any(client in ipaddress.ip_network(network, strict=False) for network in trusted if network != "unix")
