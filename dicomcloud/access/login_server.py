"""Logging in with a browser at an OpenID Connect provider: the authorization code flow with PKCE.

OpenID Connect Core 3.1, RFC 6749 4.1, RFC 7636. The browser is sent to the provider with a state, a nonce and the hash
of a verifier; it comes back with a code, which this server exchanges for an ID token. What it has to remember
meanwhile is in `Attempt`, which the browser keeps in a signed cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from threading import Lock
from time import monotonic
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote_plus, urlencode, urlsplit

from .tokens import InvalidToken, KeysAway, Tokens, claim, discovery, json_of

log = logging.getLogger(__name__)

_FRESH: Final = 600.0  # seconds for which the discovery document is kept


class LoginFailed(Exception):
    """The provider, or what came back from it, did not let the person in; the message says why."""


class LoginServerAway(Exception):
    """The provider cannot be asked at the moment."""


class Attempt(NamedTuple):
    """One person's login while it is under way; `target` is where they wanted to go."""

    state: str
    nonce: str
    verifier: str
    target: str

    @classmethod
    def begin(cls, target: str) -> Attempt:
        return cls(secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48), target)


class LoginServer:
    """The provider `issuer`, at which this server is registered as `client_id`. Safe to use from several threads."""

    def __init__(self, issuer: str, client_id: str, *, secret: str, scopes: Sequence[str], jwks_url: str = "") -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._secret = secret
        self._scopes = " ".join(dict.fromkeys(("openid", *scopes)))
        self._tokens = Tokens(issuer, [client_id], jwks_url=jwks_url)
        self._document: Mapping[str, Any] = {}
        self._fetched = float("-inf")
        self._lock = Lock()

    @property
    def name(self) -> str:
        """What people know it by."""
        return urlsplit(self._issuer).hostname or self._issuer

    def authorization_url(self, attempt: Attempt, redirect_uri: str) -> str:
        """Where the browser is to go. Raises LoginServerAway."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=")
        return _with_query(
            self._endpoint("authorization_endpoint"),
            response_type="code",
            client_id=self._client_id,
            redirect_uri=redirect_uri,
            scope=self._scopes,
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=challenge.decode(),
            code_challenge_method="S256",
        )

    def claims(self, attempt: Attempt, redirect_uri: str, *, code: str, roles_claim: str) -> Mapping[str, Any]:
        """Who came back with this code: the claims of the ID token, and of UserInfo where that one has no roles.

        Raises LoginFailed, LoginServerAway.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {}
        if self._secret:  # client_secret_basic: RFC 6749 2.3.1
            pair = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form["client_id"] = self._client_id
        answer = self._ask(self._endpoint("token_endpoint"), form, headers)
        try:
            claims = self._tokens.claims(str(answer.get("id_token", "")))
        except InvalidToken as error:
            raise LoginFailed(f"what the login server sent is not good: {error}") from None
        except KeysAway as error:
            raise LoginServerAway(str(error)) from None
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), attempt.nonce.encode()):
            raise LoginFailed("what the login server sent belongs to another login")
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else self._client_id) != self._client_id:
            raise LoginFailed("what the login server sent is meant for another program")
        if not isinstance(claims.get("sub"), str):
            raise LoginFailed("what the login server sent names nobody")
        if claim(claims, roles_claim) is None and self._endpoint("userinfo_endpoint", needed=False):
            bearer = {"Authorization": f"Bearer {answer.get('access_token', '')}"}
            more = self._ask(self._endpoint("userinfo_endpoint"), None, bearer)
            if more.get("sub") != claims["sub"]:  # OpenID Connect Core 5.3.2
                raise LoginFailed("what the login server says of the user is about another one")
            claims = {**more, **claims}
        return claims

    def logout_url(self, back_to: str) -> str | None:
        """Where the browser ends the session at the provider as well (OpenID Connect RP-Initiated Logout 2)."""
        try:
            endpoint = self._endpoint("end_session_endpoint", needed=False)
        except LoginServerAway:
            return None
        return _with_query(endpoint, client_id=self._client_id, post_logout_redirect_uri=back_to) if endpoint else None

    def _endpoint(self, name: str, *, needed: bool = True) -> str:
        with self._lock:
            if monotonic() - self._fetched > _FRESH:
                try:
                    self._document = discovery(self._issuer)
                    self._fetched = monotonic()
                except (OSError, ValueError) as error:
                    log.warning("%s cannot be asked: %s", self._issuer, type(error).__name__)
                    if not self._document:
                        raise LoginServerAway("it does not answer as it should") from None
            url = self._document.get(name, "")
        if isinstance(url, str) and url.startswith(("https://", "http://")):
            return url
        if needed:
            raise LoginServerAway(f"it names no {name}")
        return ""

    def _ask(self, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            return json_of(url, form, **headers)
        except HTTPError as error:
            if error.code >= 500:
                raise LoginServerAway("it does not answer as it should") from None
            log.warning("%s refused: %s", urlsplit(url).path, _reason(error))
            raise LoginFailed("the login server did not take what the browser brought back") from None
        except (OSError, ValueError):
            raise LoginServerAway("it does not answer as it should") from None


def _reason(error: HTTPError) -> str:
    """The error code of an OAuth answer (RFC 6749 5.2), for the log."""
    try:
        return f"{error.code} {str(json.loads(error.read(4096))['error'])[:60]!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.code)


def _with_query(url: str, **parameters: str) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(parameters)}"
