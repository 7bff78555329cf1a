"""Bearer tokens of an OpenID Connect provider that runs on this machine, with keys that change and go away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flask.testing import FlaskClient
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from dicomcloud.access import tokens
from tests.conftest import AppMaker

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


class Provider:
    """Publishes keys as a login server does."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "one"}]
        self.asked = 0
        self.away = False
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += self.path == "/keys"
                documents = {
                    "/.well-known/openid-configuration": {"issuer": provider.url, "jwks_uri": f"{provider.url}/keys"},
                    "/keys": {"keys": provider.keys},
                }
                self.send_response(503 if provider.away else 200)
                self.end_headers()
                self.wfile.write(json.dumps(documents[self.path]).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, key: Any = RSA, algorithm: str = "RS256", kid: str = "one", **claims: Any) -> str:
        body = {
            "iss": self.url,
            "aud": "pacs",
            "exp": time() + 300,
            "sub": "4711",
            "preferred_username": "anna",
            "realm_access": {"roles": ["Radiology", "offline"]},
        } | claims
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, key, algorithm, headers={"kid": kid} if kid else {})


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setattr(tokens, "_BETWEEN", 0.0)
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture
def client(provider: Provider, make_app: AppMaker) -> FlaskClient:
    return make_app(
        oidc_issuer=provider.url,
        oidc_audience="viewer,pacs",
        oidc_roles_claim="realm_access.roles",
        role_names="Radiology=reader",
    ).test_client()


def status(client: FlaskClient, token: str, method: str = "GET") -> int:
    path = "/dicomweb/studies" + ("" if method == "GET" else "/1.2.3")
    return client.open(path, method=method, headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_good_token_lets_in_with_the_roles_of_its_claim(provider: Provider, client: FlaskClient) -> None:
    assert status(client, provider.token()) == 200
    assert status(client, provider.token(), "DELETE") == 403
    assert status(client, provider.token(realm_access={"roles": ["deleter"]}), "DELETE") == 404
    assert status(client, provider.token(realm_access=None)) == 403
    answer = client.get("/session", headers={"Authorization": f"Bearer {provider.token()}"}).json
    assert (answer["name"], answer["method"]) == ("anna", "token")
    assert provider.asked == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "other"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"nbf": time() + 3600},
        {"preferred_username": None, "sub": None},
    ],
)
def test_a_token_for_another_or_of_another_time_does_not(
    provider: Provider, client: FlaskClient, claims: dict[str, Any]
) -> None:
    answer = client.get("/dicomweb/studies", headers={"Authorization": f"Bearer {provider.token(**claims)}"})
    assert answer.status_code == 401
    assert any(text.startswith("Bearer") for text in answer.headers.getlist("WWW-Authenticate"))


def test_a_token_that_is_forged_does_not(provider: Provider, client: FlaskClient) -> None:
    public = json.dumps(provider.keys[0])
    forged = [
        provider.token(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        provider.token("x" * 64, "HS256"),
        provider.token(None, "none"),
        provider.token()[:-8] + "AAAAAAAA",
        provider.token(kid="unknown"),
        "a.b.c",
        "..",
        "x" * 20_000,
    ]
    assert "n" in public
    assert [status(client, token) for token in forged] == [401] * len(forged)


def test_new_keys_are_taken_when_a_token_names_them_and_old_ones_go(provider: Provider, client: FlaskClient) -> None:
    assert status(client, provider.token()) == 200
    old = provider.token(name="another token")
    provider.keys = [json.loads(ECAlgorithm.to_jwk(EC.public_key())) | {"kid": "two"}]
    assert status(client, provider.token(EC, "ES256", "two")) == 200
    assert status(client, old) == 401


def test_a_provider_that_is_away_stops_nobody_whose_key_is_known(provider: Provider, client: FlaskClient) -> None:
    assert status(client, provider.token()) == 200
    provider.away = True
    assert status(client, provider.token(jti="1")) == 200
    assert status(client, provider.token(EC, "ES256", "two")) == 401


def test_a_provider_that_was_never_there_is_a_503(provider: Provider, client: FlaskClient) -> None:
    provider.away = True
    assert status(client, provider.token()) == 503
    provider.away = False
    assert status(client, provider.token()) == 200


def test_many_unknown_keys_do_not_flood_the_provider(
    provider: Provider, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_BETWEEN", 60.0)
    assert status(client, provider.token()) == 200
    assert {status(client, provider.token(kid=f"k{number}")) for number in range(20)} == {401}
    assert provider.asked == 1
