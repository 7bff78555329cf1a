"""nginx in front of this server with X-Accel-Redirect, beside nginx that serves the same files without it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
from pathlib import Path

from .client import BadAnswer, Connection, Request
from .data import Data
from .operations import ALONE
from .servers import Server, free_port, start, start_dicomcloud

_CONFIGURATION = """
daemon off; worker_processes 2; pid {folder}/{name}.pid; user {user}; error_log {folder}/{name}.error;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/dicom;
    client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi; uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    {upstream}
    server {{ listen 127.0.0.1:{port}; {locations} }}
}}
"""
_UPSTREAM = "upstream dicomcloud {{ server 127.0.0.1:{port}; keepalive 32; }}"
_PROXY = """
    location / {{
        proxy_pass http://dicomcloud; proxy_http_version 1.1;
        proxy_set_header Connection ""; proxy_set_header Host $http_host;
    }}
    location /stored/ {{ internal; alias {storage}/; }}
"""


def find_nginx() -> str | None:
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def start_behind_nginx(folder: Path, program: str, data: Data, stack: contextlib.ExitStack) -> list[Server]:
    """nginx before this server, nginx alone, this server alone; all over the same stored files. Raises BadAnswer."""
    behind = start_dicomcloud(folder, "behind-nginx", DICOMCLOUD_ACCEL_REDIRECT="/stored")
    stack.callback(behind.stop)
    alone = start_dicomcloud(folder, "dicomcloud-alone")
    stack.callback(alone.stop)
    storage, static = folder / "dicomcloud" / "storage", folder / "static"
    with contextlib.closing(Connection(behind.root)) as connection:
        for one in data.slices:
            place = connection.exchange(Request("GET", one.path(), ALONE)).headers.get("x-accel-redirect", "")
            if not place.startswith("/stored/"):
                raise BadAnswer("the server does not lead nginx to a file")
            link = static / one.path().lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(storage / place.removeprefix("/stored/"), link)
    port = behind.root.rpartition(":")[2].partition("/")[0]
    proxy = _start_nginx(
        folder, program, "nginx-x-accel", "/dicomweb", "/studies?limit=1",
        _UPSTREAM.format(port=port), _PROXY.format(storage=storage),
    )  # fmt: skip
    stack.callback(proxy.stop)
    proxy.name, proxy.behind = "nginx, X-Accel-Redirect", (behind.pid or 0,)
    plain = _start_nginx(folder, program, "nginx-static", "", data.slices[0].path(), "", f"root {static};")
    stack.callback(plain.stop)
    plain.name = "nginx, static files"
    alone.name = "dicomcloud alone"
    return [proxy, plain, alone]


def _start_nginx(folder: Path, program: str, name: str, root: str, path: str, upstream: str, locations: str) -> Server:
    port, file = free_port(), folder / f"{name}.conf"
    text = _CONFIGURATION.format(
        folder=folder, name=name, port=port, user=getpass.getuser(), upstream=upstream, locations=locations
    )
    file.write_text(text, encoding="utf-8")
    command = [program, "-c", str(file), "-p", str(folder)]
    server = start(name, f"http://127.0.0.1:{port}{root}", command, folder, dict(os.environ), folder, path)
    answer = subprocess.run([program, "-v"], capture_output=True, text=True, check=False, timeout=10)
    server.version = answer.stderr.strip().rpartition("/")[2]
    return server
