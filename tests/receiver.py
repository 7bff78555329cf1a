"""A web server for webhooks that notes what it is sent, and answers as a test wants it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """`answer(number of the request, its event)` gives the status, and headers behind it."""

    def __init__(self, answer: Callable[[int, Any], int | tuple[int, dict[str, str]]] = lambda number, event: 204):
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.accepted: list[dict[str, Any]] = []
        lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = json.loads(body)
                with lock:
                    receiver.requests.append(({key.lower(): value for key, value in self.headers.items()}, body))
                    given = answer(len(receiver.requests), event)
                    status, headers = given if isinstance(given, tuple) else (given, {})
                    if status < 300:
                        receiver.accepted.append(event)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "0"}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def wait_for(self, count: int, seconds: float = 30) -> list[dict[str, Any]]:
        """The accepted events as soon as there are so many of different ids; what there is when the time is up."""
        return self.wait_until(lambda events: len({event["id"] for event in events}) >= count, seconds)

    def wait_until(self, enough: Callable[[list[dict[str, Any]]], bool], seconds: float = 30) -> list[dict[str, Any]]:
        """The accepted events as soon as they are `enough`; what there is when the time is up."""
        deadline = time.monotonic() + seconds
        while not enough(list(self.accepted)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return list(self.accepted)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
