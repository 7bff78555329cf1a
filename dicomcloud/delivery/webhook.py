"""Events as HTTP requests, signed after the Standard Webhooks specification 1.0 (standardwebhooks.com).

    webhook-id          the event's id: the same in every attempt
    webhook-timestamp   seconds since 1970 of this attempt
    webhook-signature   v1,<base64 of HMAC-SHA256 over "id.timestamp.body">

2xx means taken. Redirections are not followed: the event would go where nobody meant it to go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ssl
import time
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from .. import __version__
from ..index.events import Event
from . import NotDelivered

_TIMEOUT: Final = 15.0  # seconds for connecting, and for the answer
_SECRET_PREFIX: Final = "whsec_"
_UNREACHABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # not only this event's fault
_LONGEST_RETRY_AFTER: Final = 3600.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Webhook:
    """One URL, which may hold a name and a password (Basic)."""

    def __init__(self, url: str, secret: str) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        netloc = (f"[{host}]" if ":" in host else host) + (f":{parts.port}" if parts.port else "")
        self._url = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
        self._authorization = ""
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = "Basic " + base64.b64encode(login.encode()).decode()
        self._key = key_of(secret)
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.name = f"webhook {parts.scheme}://{netloc}{parts.path}"[:180] + f" {digest}"
        self._opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context())
        )

    def deliver(self, event: Event) -> None:
        """Raises NotDelivered."""
        body = event.payload()
        moment = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"DICOMcloud/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": moment,
            "webhook-signature": "v1," + signature(self._key, event.id, moment, body),
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            with error:
                after = _seconds(error.headers.get("Retry-After"))
            raise NotDelivered(
                f"HTTP {error.code} {error.reason}", unreachable=error.code in _UNREACHABLE, retry_after=after
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise NotDelivered(f"{type(error).__name__}: {reason}", unreachable=True) from None


def key_of(secret: str) -> bytes:
    """The key of a secret: `whsec_` and base64, or any other text as it is."""
    if secret.startswith(_SECRET_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def signature(key: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    return base64.b64encode(hmac.digest(key, f"{event_id}.{timestamp}.".encode() + body, "sha256")).decode()


def _seconds(retry_after: str | None) -> float:
    text = (retry_after or "").strip()
    return min(float(text), _LONGEST_RETRY_AFTER) if text.isascii() and text.isdigit() else 0
