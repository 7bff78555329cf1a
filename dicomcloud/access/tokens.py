"""Tokens of an OpenID Connect provider: JWTs, verified with the keys it publishes. The one home of PyJWT."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from threading import Lock
from time import monotonic, time
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import jwt
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import ExpiredSignatureError, InvalidTokenError, PyJWKSetError, PyJWTError

log = logging.getLogger(__name__)

#: Signatures with a public key only: what the provider publishes must not be able to sign.
ALGORITHMS: Final = (
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
)  # fmt: skip
LONGEST_TOKEN: Final = 16_384  # characters

_TIMEOUT: Final = 5.0  # seconds for one answer of the provider
_LARGEST: Final = 1 << 20  # bytes of one
_FRESH: Final = 600.0  # seconds for which the keys are taken without asking again
_BETWEEN: Final = 15.0  # seconds at least between two questions, also for a key that is not known
_LEEWAY: Final = 30  # seconds by which clocks may differ
_REMEMBERED: Final = 60.0  # seconds for which a verified token is taken as it is
_MOST_REMEMBERED: Final = 5_000


class InvalidToken(Exception):
    """The token is not one that lets in; the message says why and does not repeat it."""


class KeysAway(Exception):
    """The provider's keys cannot be had."""


class Tokens:
    """Verifies JWTs of one issuer for one of our audiences (RFC 7519, RFC 8725, OpenID Connect Core 3.1.3.7).

    The keys come from `jwks_url`, or from where the issuer's discovery document says. They are kept for ten minutes,
    asked for anew when a token names a key that is not among them, and kept on while the provider is away.
    """

    def __init__(self, issuer: str, audiences: Sequence[str], *, jwks_url: str = "") -> None:
        self._issuer = issuer
        self._audiences = list(audiences)
        self._jwks_url = jwks_url
        self._keys: dict[str, PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._verified: dict[str, tuple[Mapping[str, Any], float]] = {}
        self._lock = Lock()

    def claims(self, token: str) -> Mapping[str, Any]:
        """The claims of a token that is good. Raises InvalidToken, KeysAway."""
        known = self._verified.get(token)
        if known is not None and known[1] > monotonic():
            return known[0]
        claims = self._verify(token)
        good = min(_REMEMBERED, claims["exp"] - time())
        if len(self._verified) >= _MOST_REMEMBERED:
            self._verified = {}
        self._verified[token] = (claims, monotonic() + good)
        return claims

    def _verify(self, token: str) -> Mapping[str, Any]:
        if len(token) > LONGEST_TOKEN:
            raise InvalidToken("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise InvalidToken("the token is signed in a way that is not accepted")
            key = self._key(str(header.get("kid") or ""))
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                audience=self._audiences,
                issuer=self._issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except ExpiredSignatureError:
            raise InvalidToken("the token has expired") from None
        except InvalidTokenError as error:
            raise InvalidToken(f"the token is not good: {error}") from None
        except (PyJWTError, TypeError, ValueError):
            raise InvalidToken("the token is malformed or its key does not fit") from None
        return claims

    def _key(self, key_id: str) -> PyJWK:
        keys = self._current()
        if key_id not in keys:
            keys = self._current(missing=key_id)
        if key_id in keys:
            return keys[key_id]
        if not key_id and len(keys) == 1:
            return next(iter(keys.values()))
        raise InvalidToken("the token is signed with a key that its issuer does not publish")

    def _current(self, missing: str | None = None) -> Mapping[str, PyJWK]:
        """The keys; fetched where they are old or one is missing, but not more often than every 15 s."""
        now = monotonic()
        if missing is None and now - self._fetched < _FRESH:
            return self._keys
        with self._lock:
            now = monotonic()
            if (missing is not None and missing in self._keys) or now - self._tried < _BETWEEN:
                if not self._keys:
                    raise KeysAway("the keys of the token's issuer cannot be had at the moment")
                return self._keys
            self._tried = now
            try:
                self._keys = self._fetch()
                self._fetched = now
            except (URLError, OSError, ValueError, PyJWKSetError) as error:
                log.warning("the keys of %s cannot be had: %s", self._issuer, type(error).__name__)
                if not self._keys:
                    raise KeysAway("the keys of the token's issuer cannot be had at the moment") from None
            return self._keys

    def _fetch(self) -> dict[str, PyJWK]:
        url = self._jwks_url or self._discovered()
        keys = PyJWKSet.from_dict(json_of(url)).keys
        return {key.key_id or "": key for key in keys if key.public_key_use in (None, "sig")}

    def _discovered(self) -> str:
        url = discovery(self._issuer).get("jwks_uri")
        if not isinstance(url, str):
            raise ValueError("the discovery document names no keys")
        return url


def discovery(issuer: str) -> dict[str, Any]:
    """What an issuer says of itself (OpenID Connect Discovery 4). Raises OSError, ValueError."""
    document = json_of(issuer.rstrip("/") + "/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise ValueError("the discovery document is another issuer's")
    return document


def json_of(url: str, form: Mapping[str, str] | None = None, **headers: str) -> dict[str, Any]:
    """The JSON object at a URL, or with which it answers a form. Raises OSError (HTTPError is one), ValueError."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("not an http or https URL")
    body = None if form is None else urlencode(form).encode()
    asked = Request(url, body, {"Accept": "application/json", **headers})
    with urlopen(asked, timeout=_TIMEOUT) as answer:
        document = json.loads(answer.read(_LARGEST))
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def claim(claims: Mapping[str, Any], path: str) -> Any:
    """The claim at a dotted path such as `realm_access.roles`; None where there is none."""
    if path in claims:  # names such as https://pacs.example/roles have dots of their own
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
