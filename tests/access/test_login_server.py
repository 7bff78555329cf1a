"""Logging in with a browser at an OpenID Connect provider, as strict as a real one, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from jwt.algorithms import RSAAlgorithm

from dicomcloud.access import login_server, tokens
from tests.access.test_tokens import RSA
from tests.conftest import AppMaker
from tests.web.test_access import add_user

CLIENT, SECRET = "pacs of the clinic", "s:e%c r+e/t"
BACK = "http://localhost/login/callback"


class Provider:
    """A login server at which one person is logged in. `lies` replace claims; `broken`: paths that answer 503."""

    def __init__(self) -> None:
        self.codes: dict[str, dict[str, str]] = {}
        self.person: dict[str, Any] = {"sub": "4711", "preferred_username": "Anna", "groups": ["Radiology", "x"]}
        self.in_userinfo: set[str] = set()
        self.lies: dict[str, Any] = {}
        self.broken: set[str] = set()
        self.secret = SECRET
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

            def _answer(self, fields: dict[str, list[str]]) -> None:
                path = urlsplit(self.path).path
                given = {name: value[0] for name, value in fields.items()}
                status, body = (503, {}) if path in provider.broken else provider.answer(path, given, self.headers)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, given: dict[str, str], headers: Any) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            names = {
                "authorization": "/authorize",
                "token": "/token",
                "userinfo": "/userinfo",
                "end_session": "/out?a=b",
            }
            ends = {f"{name}_endpoint": self.url + path for name, path in names.items()}
            return 200, {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **ends}
        if path == "/keys":
            return 200, {"keys": [json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "one"}]}
        if path == "/token":
            return self.exchange(given, headers)
        if path == "/userinfo" and headers["Authorization"] == "Bearer access":
            told = {name: value for name, value in self.person.items() if name in self.in_userinfo | {"sub"}}
            return 200, told | {name: value for name, value in self.lies.items() if name == "userinfo_sub"}
        return 404, {}

    def authorize(self, url: str) -> str:
        """What the browser does there: the URL to which it is sent back."""
        assert url.startswith(f"{self.url}/authorize?")
        asked = dict(parse_qsl(urlsplit(url).query))
        assert (asked["response_type"], asked["client_id"], asked["redirect_uri"]) == ("code", CLIENT, BACK)
        assert (asked["code_challenge_method"], len(asked["code_challenge"])) == ("S256", 43)
        assert asked["scope"].split()[0] == "openid"
        code = secrets.token_urlsafe(8)
        self.codes[code] = asked
        return "/login/callback?" + urlencode({"state": asked["state"], "code": code})

    def exchange(self, given: dict[str, str], headers: Any) -> tuple[int, dict[str, Any]]:
        asked = self.codes.pop(given["code"], None)  # good once
        known = base64.b64encode(b"pacs+of+the+clinic:s%3Ae%25c+r%2Be%2Ft").decode()
        right = headers["Authorization"] == f"Basic {known}" if self.secret else given.get("client_id") == CLIENT
        digest = hashlib.sha256(given["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or not right or challenge != asked["code_challenge"] or given["redirect_uri"] != BACK:
            return 400, {"error": "invalid_grant"}
        claims = {"iss": self.url, "aud": CLIENT, "exp": time() + 60, "nonce": asked["nonce"]}
        told = {name: value for name, value in self.person.items() if name not in self.in_userinfo}
        claims = {name: value for name, value in (claims | told | self.lies).items() if value is not None}
        return 200, {"id_token": jwt.encode(claims, RSA, "RS256", headers={"kid": "one"}), "access_token": "access"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture
def app(provider: Provider, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setattr(tokens, "_BETWEEN", 0.0)
    return make_app(
        oidc_issuer=provider.url,
        oidc_client_id=CLIENT,
        oidc_client_secret=SECRET,
        oidc_roles_claim="groups",
        role_names="Radiology=reader",
    )


def come_back(provider: Provider, browser: FlaskClient, target: str = "/") -> Any:
    """Log in there; the answer of this server to the browser that comes back."""
    sent = browser.get("/login/elsewhere", query_string={"next": target})
    assert sent.status_code == 303, sent.text
    return browser.get(provider.authorize(sent.headers["Location"]))


def test_a_person_logs_in_elsewhere_works_and_logs_out(app: Flask, provider: Provider) -> None:
    browser = app.test_client()
    page = browser.get("/login?next=/study/1.2").text
    assert 'href="/login/elsewhere?next=/study/1.2"' in page
    back = come_back(provider, browser, "/study/1.2")
    assert (back.status_code, back.headers["Location"]) == (303, "http://localhost/study/1.2")
    assert back.headers["Referrer-Policy"] == "no-referrer"
    session = browser.get("/session").json
    assert (session["name"], session["method"], session["roles"]) == ("Anna", "session", ["reader"])
    assert browser.get("/dicomweb/studies").status_code == 200
    token = {"X-CSRF-Token": session["csrf_token"]}
    assert browser.delete("/dicomweb/studies/1.2", headers=token).status_code == 403
    assert browser.post("/logout").status_code == 403
    out = browser.post("/logout", headers=token)
    assert (out.status_code, out.headers["Location"]) == (303, "http://localhost/login?ended=1")
    assert browser.get("/dicomweb/studies").status_code == 401
    assert "/logout/elsewhere" in browser.get("/login?ended=1").text
    there = browser.get("/logout/elsewhere").headers["Location"]
    assert there.startswith(f"{provider.url}/out?a=b&client_id=pacs+of+the+clinic&post_logout_redirect_uri=")


def test_a_cookie_whose_roles_were_changed_is_no_cookie(app: Flask, provider: Provider) -> None:
    browser = app.test_client()
    come_back(provider, browser)
    cookie = browser.get_cookie("dicomcloud_session")
    assert cookie is not None
    assert (cookie.value[-7:], cookie.http_only) == (".reader", True)
    for changed in (cookie.value[:-6] + "administrator", cookie.value.partition(".")[0], cookie.value + ".deleter"):
        browser.set_cookie("dicomcloud_session", changed)
        assert browser.get("/dicomweb/studies").status_code == 401
    browser.set_cookie("dicomcloud_session", cookie.value)
    assert browser.get("/dicomweb/studies").status_code == 200


def test_what_comes_back_must_belong_to_the_login_that_this_browser_began(app: Flask, provider: Provider) -> None:
    browser, other = app.test_client(), app.test_client()
    sent = browser.get("/login/elsewhere").headers["Location"]
    others = other.get("/login/elsewhere").headers["Location"]
    back = provider.authorize(sent)
    assert other.get(back).status_code == 401  # another state, and another verifier
    assert app.test_client().get(back).status_code == 401  # no cookie
    mixed = dict(parse_qsl(urlsplit(provider.authorize(others)).query)) | {
        "state": dict(parse_qsl(urlsplit(sent).query))["state"]
    }
    assert browser.get("/login/callback", query_string=mixed).status_code == 401  # another login's code: PKCE
    for query in ("", "?state=&code=", "?state=x&code=y", "?error=access_denied", "?error=<script>"):
        answer = browser.get(f"/login/callback{query}")
        assert (answer.status_code, "<script>" in answer.text.partition("<body")[2]) == (401, False)
    assert browser.get("/session").json["logged_in"] is False


def test_a_code_is_good_once_and_a_login_for_a_quarter_of_an_hour(
    app: Flask, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = app.test_client()
    sent = browser.get("/login/elsewhere").headers["Location"]
    attempt = browser.get_cookie("dicomcloud_attempt")
    assert attempt is not None
    assert (attempt.http_only, attempt.same_site) == (True, "Lax")
    back = provider.authorize(sent)
    assert browser.get(back).status_code == 303
    browser.set_cookie("dicomcloud_attempt", attempt.value)
    assert browser.get(back).status_code == 401
    sent = browser.get("/login/elsewhere").headers["Location"]
    monkeypatch.setattr("dicomcloud.access.authentication.LONGEST_LOGIN", -1)
    assert browser.get(provider.authorize(sent)).status_code == 401


@pytest.mark.parametrize(
    "lies",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": [CLIENT, "another"]},
        {"azp": "another"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"sub": None},
    ],
)
def test_an_id_token_that_is_not_meant_for_this_login_lets_nobody_in(
    app: Flask, provider: Provider, lies: dict[str, Any]
) -> None:
    provider.lies = lies
    browser = app.test_client()
    assert come_back(provider, browser).status_code == 401
    assert browser.get_cookie("dicomcloud_session") is None


def test_roles_may_be_in_userinfo_and_entries_of_this_server_count(app: Flask, provider: Provider) -> None:
    provider.in_userinfo = {"groups"}
    browser = app.test_client()
    assert come_back(provider, browser).status_code == 303
    assert browser.get("/session").json["roles"] == ["reader"]
    provider.person["groups"] = ["x"]
    refused = come_back(provider, app.test_client())
    assert (refused.status_code, "Anna may do nothing here" in refused.text) == (403, True)
    accounts = app.extensions["dicomcloud"].archive.accounts
    assert accounts.add_user("anna", "", "sender", "")  # as `users add anna --external` does
    assert accounts.add_user("bert", "a hash", "administrator", "")
    app.extensions["dicomcloud"].authentication._remembered.clear()
    assert come_back(provider, browser).status_code == 303
    assert browser.get("/session").json["roles"] == ["sender"]
    assert accounts.change_user("anna", disabled=True)
    app.extensions["dicomcloud"].authentication._remembered.clear()
    assert browser.get("/session").json["logged_in"] is False
    provider.person["preferred_username"] = "bert"  # is not the administrator who has a password here
    assert come_back(provider, app.test_client()).status_code == 403


def test_a_login_server_that_is_away_is_told_and_asked_again(
    app: Flask, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_server, "_FRESH", 0.0)
    browser = app.test_client()
    provider.broken = {"/.well-known/openid-configuration"}
    assert browser.get("/login/elsewhere").status_code == 503
    for broken in ("/token", "/keys"):
        provider.broken = set()
        sent = browser.get("/login/elsewhere").headers["Location"]
        provider.broken = {broken}
        answer = browser.get(provider.authorize(sent))
        assert (answer.status_code, "login server" in answer.text) == (503, True)
    provider.broken = set()
    assert come_back(provider, browser).status_code == 303


def test_a_public_client_says_its_name_without_a_secret(provider: Provider, make_app: AppMaker) -> None:
    provider.secret = ""
    app = make_app(oidc_issuer=provider.url, oidc_client_id=CLIENT, oidc_roles_claim="groups", default_roles="reader")
    browser = app.test_client()
    assert come_back(provider, browser, "//evil.example/").headers["Location"] == "http://localhost/"
    assert browser.get("/session").json["roles"] == ["reader"]
    assert browser.get("/dicomweb/studies", headers={"Authorization": "Bearer a.b.c"}).status_code == 401


def test_where_there_is_no_login_server_nobody_is_sent_there(make_app: AppMaker) -> None:
    add_user(make_app(), "anna", "reader")
    browser = make_app().test_client()
    assert "elsewhere" not in browser.get("/login").text
    for path in ("/login/elsewhere", "/login/callback", "/logout/elsewhere"):
        assert browser.get(path).status_code == 404
