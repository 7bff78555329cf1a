"""What the views share: the archive, the limits, and the URL under which the client knows this server."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import current_app, request

from ..access.authentication import Authentication
from ..archive import Archive
from ..dicom.attributes import is_uid
from ..errors import BadRequest


@dataclass(frozen=True, slots=True)
class Service:
    """The archive and the settings of the web layer, as plain values."""

    archive: Archive
    root: str = "/dicomweb"
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
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
    service: Service = current_app.extensions["dicomcloud"]
    return service


def server_url() -> str:
    """The server's own URL as the client sees it, without a slash at the end.

    The setting `public_url`, or else the request's; X-Forwarded-Proto, -Host and -Prefix count only when they come
    from a trusted proxy.
    """
    service = current_service()
    if service.public_url:
        return service.public_url
    scheme, host, prefix = request.scheme, _host_with_port(), request.script_root
    if comes_from_proxy():
        scheme = _forwarded("X-Forwarded-Proto") or scheme
        host = _forwarded("X-Forwarded-Host") or host
        prefix = (_forwarded("X-Forwarded-Prefix") or prefix).rstrip("/")
    return f"{scheme}://{host}{prefix}"


def comes_from_proxy() -> bool:
    """Whether the request was sent by a trusted proxy, whose headers count."""
    trusted = current_service().trusted_proxies
    return bool(trusted) and _is_trusted(request.remote_addr or "", trusted)


def client_address() -> str:
    """The address of the client: the last one in X-Forwarded-For that is no trusted proxy, as far as proxies say so."""
    address = request.remote_addr or ""
    if not comes_from_proxy():
        return address
    trusted = current_service().trusted_proxies
    for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        host = _without_port(hop.strip())
        if not host:
            break
        address = host
        if not _is_trusted(host, trusted):
            break
    return address[:64]


def _without_port(hop: str) -> str:
    """`10.0.0.1:4711` and `[::1]:4711` (IIS) → the address; '' for what is none."""
    host = hop[1:].partition("]")[0] if hop.startswith("[") else hop
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def _host_with_port() -> str:
    """The Host header; with the port of this server where the client left it out (dicomweb-client does so).

    Behind a proxy, which says so in its headers, a host without a port is right as it is.
    """
    host, port = request.host, request.environ.get("SERVER_PORT") or ""
    if host.endswith("]") or ":" not in host:
        direct = not any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "Via"))
        if direct and port.isdigit() and port != ("443" if request.scheme == "https" else "80"):
            return f"{host}:{port}"
    return host


def service_url() -> str:
    """The root of the DICOMweb services as the client sees it, e.g. `https://pacs.example/dicomweb`."""
    root = "/api" if request.path.startswith("/api/") else current_service().root
    return server_url() + root


def check_uids(**uids: str | None) -> None:
    """Raises BadRequest for a path segment that is no UID (PS3.5 9.1; zeros in front are let pass)."""
    for name, uid in uids.items():
        if uid is not None and not is_uid(uid):
            raise BadRequest(f"The {name} in the URL is not a UID: {uid[:80]!r}")


def _forwarded(header: str) -> str:
    value = request.headers.get(header, "").split(",")[0].strip()
    return value if not set(value) & set("\"'<>\\ ") else ""


@lru_cache(maxsize=1024)
def _is_trusted(address: str, trusted: tuple[str, ...]) -> bool:
    try:
        client = ipaddress.ip_address(address)
    except ValueError:  # gunicorn and waitress know no address of who comes by a unix socket
        return address in ("", "localhost") and "unix" in trusted
    return any(client in ipaddress.ip_network(network, strict=False) for network in trusted if network != "unix")
