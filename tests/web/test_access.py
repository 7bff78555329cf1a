"""Who gets in, and who to what: generated from the URL map, so that a new route is in it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from time import time
from typing import Any
from zipfile import ZipFile

import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from dicomcloud.access import ROLES, Permission
from dicomcloud.access.credentials import checksum, new_key
from dicomcloud.access.failures import Failures
from dicomcloud.archive import NEVER, Archive, Key
from dicomcloud.errors import TooManyRequests
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

PASSWORD = "correct horse battery"
HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)  # cheap: what is stored says how


def basic(name: str, password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def add_user(app: Flask, name: str, *roles: str, only: str = "") -> None:
    assert app.extensions["dicomcloud"].archive.accounts.add_user(name, HASH, " ".join(roles), only)


def add_key(archive: Archive, roles: str = "reader", *, expires: int = NEVER) -> str:
    key_id, key = new_key()
    archive.accounts.add_key(Key(key_id, "k", checksum(key), roles, "", 1, expires, NEVER))
    return key


@pytest.fixture
def secured(make_app: AppMaker) -> Flask:
    """A server with a user of each role, named like it."""
    first = make_app()
    for role in ROLES:
        add_user(first, role, role)
    return make_app(forbidden_status=403)


@pytest.fixture
def door(secured: Flask) -> FlaskClient:
    return secured.test_client()


def store(client: FlaskClient, who: str = "administrator", **attributes: Any) -> dict[str, str]:
    dataset = make_dataset(**attributes)
    answer = client.post(
        "/dicomweb/studies", data=make_file(dataset), content_type="application/dicom", headers=basic(who)
    )
    assert answer.status_code == 200, answer.text
    return {
        "study": dataset.StudyInstanceUID,
        "series": dataset.SeriesInstanceUID,
        "instance": dataset.SOPInstanceUID,
    }


# Route by route: what is expected of each, by path and method. A route that is not here is for administrators.

EXPECTED: list[tuple[str, str, Permission]] = [
    ("GET", r"/|/study/<study>(/preview/<number>)?|/site/summary\.json|/viewer(/<name>)?", Permission.READ),
    ("GET", r"/site/(<name>|dictionary\.json)", Permission.PUBLIC),
    ("GET", r"/healthz|/readyz|/openapi\.json|/swagger(/assets/<name>)?", Permission.PUBLIC),
    ("GET", r"/login(/elsewhere|/callback)?|/logout/elsewhere|/session|/share/<token>", Permission.PUBLIC),
    ("POST", r"/login|/logout", Permission.PUBLIC),
    ("GET", r"/(dicomweb|api|qidors|wadors)/(studies|series|instances).*", Permission.READ),
    ("GET", r"/wado|/wadouri|/api/wadouri|/ohif/.*", Permission.READ),
    ("POST", r"/(dicomweb|api|stowrs)/studies(/<study>)?|/stowrs", Permission.STORE),
    ("DELETE", r"/(dicomweb|api|delowrs)/studies/<study>.*", Permission.DELETE),
    ("GET", r"/(dicomweb|api)/changes", Permission.READ),
    ("GET", r"/metrics", Permission.MONITOR),
    ("GET", r"/shares", Permission.SHARE),
    ("POST", r"/shares", Permission.SHARE),
    ("DELETE", r"/shares/<share>", Permission.SHARE),
]


#: Of what is for readers, that of which a de-identified copy is given.
COPIES = (
    r"/(dicomweb|api|wadors)/studies/<study>(/series/<series>(/instances/<instance>)?)?(/metadata)?"
    r"|/study/<study>(/preview/<int:number>)?"
)


def expected(method: str, rule: Rule) -> Permission:
    path = re.sub(r"<\w+:", "<", rule.rule)
    found = [need for verb, pattern, need in EXPECTED if verb == method and re.fullmatch(pattern, path)]
    return found[0] if found else Permission.ADMINISTER


def routes(app: Flask) -> Iterator[tuple[str, Rule]]:
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, rule


def url_of(rule: Rule, uids: dict[str, str]) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: uids.get(found[1], "1"), rule.rule)


def test_nobody_reaches_anything_but_what_is_public(door: FlaskClient) -> None:
    uids = store(door)
    reached = set()
    for method, rule in routes(door.application):
        public = expected(method, rule) is Permission.PUBLIC
        for verb in (method, "HEAD") if method == "GET" else (method,):
            answer = door.open(url_of(rule, uids), method=verb, query_string={"requestType": "WADO"})
            if public:
                reached.add(rule.rule)
            else:
                assert answer.status_code == 401, f"{verb} {rule.rule}: {answer.status}"
                challenges = answer.headers.getlist("WWW-Authenticate")
                assert [text.split()[0] for text in challenges] == ["Basic", "Bearer"]
                assert uids["study"] not in answer.text
    assert "/dicomweb/studies" not in reached
    assert len(reached) >= 8
    assert len(door.get("/dicomweb/studies", headers=basic("administrator")).json) == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reaches_what_it_is_for_and_nothing_else(door: FlaskClient, role: str) -> None:
    uids = store(door)
    for method, rule in routes(door.application):
        need = expected(method, rule)
        allowed = need in ROLES[role] or need is Permission.PUBLIC
        if role == "deidentified-reader" and re.fullmatch(COPIES, rule.rule) and method == "GET":
            allowed = True
        target = {} if allowed and method != "GET" else uids  # what may be deleted is not there
        answer = door.open(url_of(rule, target), method=method, headers=basic(role))
        answer.close()
        if need is not Permission.PUBLIC:
            assert (answer.status_code not in (401, 403)) is allowed, f"{method} {rule.rule} as {role}: {answer.status}"
    assert len(door.get("/dicomweb/studies", headers=basic("administrator")).json) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH", "TRACE", "QUERY"])
def test_doubled_slashes_and_odd_methods_are_no_way_around(door: FlaskClient, method: str) -> None:
    uids = store(door)
    for path in ("//dicomweb//studies", "/dicomweb/studies/", f"/api//studies/{uids['study']}/", "/dicomweb/./studies"):
        answer = door.open("/", method=method, environ_overrides={"PATH_INFO": path})
        assert answer.status_code in (401, 404, 405), f"{method} {path}: {answer.status}"


def test_the_refusal_can_look_like_nothing_were_there(make_app: AppMaker) -> None:
    add_user(make_app(), "sender", "sender")
    client = make_app(forbidden_status=404).test_client()
    uids = store(client, "sender")
    assert client.get(f"/dicomweb/studies/{uids['study']}", headers=basic("sender")).status_code == 404
    assert client.delete(f"/dicomweb/studies/{uids['study']}", headers=basic("sender")).status_code == 404


# Ways in


def test_a_password_that_is_right_lets_in_and_others_do_not(door: FlaskClient) -> None:
    for name in ("reader", "READER", " Reader"):
        assert door.get("/dicomweb/studies", headers=basic(name)).status_code == 200
    for headers in (basic("reader", "wrong"), basic("nobody"), basic("reader", ""), basic("")):
        assert door.get("/dicomweb/studies", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "value", ["Basic", "Basic !!!", "Basic " + base64.b64encode(b"no colon").decode(), "Digest x", "Bearer", "Bearer x"]
)
def test_a_malformed_authorization_header_is_a_401(door: FlaskClient, value: str) -> None:
    assert door.get("/dicomweb/studies", headers={"Authorization": value}).status_code == 401
    assert door.get("/dicomweb/studies", headers={"Authorization": "Basic " + "A" * 8000}).status_code == 401


def test_a_changed_password_and_a_disabled_user_are_out_within_seconds(secured: Flask, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    client, accounts = secured.test_client(), secured.extensions["dicomcloud"].archive.accounts
    assert client.get("/dicomweb/studies", headers=basic("reader")).status_code == 200
    monkeypatch.setattr("dicomcloud.access.authentication._REMEMBERED", 0.0)
    other = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("another password")
    assert accounts.change_user("reader", password=other)
    assert client.get("/dicomweb/studies", headers=basic("reader")).status_code == 401
    assert client.get("/dicomweb/studies", headers=basic("reader", "another password")).status_code == 200
    assert accounts.change_user("reader", disabled=True)
    assert client.get("/dicomweb/studies", headers=basic("reader", "another password")).status_code == 401


def test_wrong_passwords_are_limited_and_those_who_are_in_go_on(make_app: AppMaker) -> None:
    add_user(make_app(), "reader", "reader")
    client = make_app(login_failures=3).test_client()
    assert client.get("/dicomweb/studies", headers=basic("reader")).status_code == 200
    statuses = [client.get("/dicomweb/studies", headers=basic("reader", f"wrong {n}")).status_code for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    answer = client.get("/dicomweb/studies", headers=basic("nobody"))
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (429, True)
    assert client.get("/dicomweb/studies", headers=basic("reader")).status_code == 200
    elsewhere = {"REMOTE_ADDR": "10.9.8.7"}
    assert client.get("/dicomweb/studies", headers=basic("nobody"), environ_overrides=elsewhere).status_code == 401


def test_wrong_passwords_are_counted_for_all_server_processes_together(make_app: AppMaker) -> None:
    add_user(make_app(), "reader", "reader")
    clients = [make_app(login_failures=3).test_client() for _ in range(3)]
    wrong = [basic("reader", f"wrong {number}") for number in range(6)]
    statuses = [
        clients[number % 3].get("/dicomweb/studies", headers=headers).status_code
        for number, headers in enumerate(wrong)
    ]
    assert statuses == [401, 401, 401, 429, 429, 429]


def test_failures_are_counted_where_their_file_cannot_be_used_and_forgotten_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged").write_bytes(b"no database at all" * 100)
    moment = time()
    for path in (None, tmp_path, tmp_path / "damaged", tmp_path / "no" / "folder", tmp_path / "good"):
        failures = Failures(2, path)
        for _ in range(2):
            failures.check("10.0.0.1", "anna")
            failures.count("10.0.0.1", "anna")
        for name in ("anna", "bert"):
            with pytest.raises(TooManyRequests):
                failures.check("10.0.0.1", name)
        failures.check("10.0.0.2", "anna")
        for later in (61, -3600):  # also when the clock is put back
            with monkeypatch.context() as patch:
                patch.setattr("dicomcloud.access.failures.time", lambda later=later: moment + later)
                failures.check("10.0.0.1", "anna")


def test_an_api_key_lets_in_in_three_ways_until_it_is_revoked(secured: Flask, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("dicomcloud.access.authentication._REMEMBERED", 0.0)
    archive, client = secured.extensions["dicomcloud"].archive, secured.test_client()
    key = add_key(archive)
    ways = ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, basic("whoever", key))
    assert [client.get("/dicomweb/studies", headers=way).status_code for way in ways] == [200] * 3
    assert client.delete("/dicomweb/studies/1.2.3", headers=ways[0]).status_code == 403
    assert client.get("/dicomweb/studies", headers={"X-API-Key": key[:-1] + "x"}).status_code == 401
    assert archive.accounts.revoke_key(key.split("_")[1])
    assert [client.get("/dicomweb/studies", headers=way).status_code for way in ways] == [401] * 3
    assert client.get("/dicomweb/studies", headers={"X-API-Key": add_key(archive, expires=1)}).status_code == 401


def test_a_proxy_is_believed_when_it_is_a_trusted_one(make_app: AppMaker) -> None:
    settings = {
        "trusted_proxies": "10.0.0.1",
        "proxy_user_header": "X-Remote-User",
        "proxy_roles_header": "X-Remote-Groups",
        "role_names": "CLINIC\\Radiology=reader",
    }
    client = make_app(**settings).test_client()

    def status(address: str, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get("/dicomweb/studies", headers=named, environ_overrides={"REMOTE_ADDR": address}).status_code

    assert status("10.0.0.1", X_Remote_User="anna", X_Remote_Groups="Other, CLINIC\\Radiology") == 200
    assert status("10.0.0.1", X_Remote_User="anna", X_Remote_Groups="Other") == 403
    assert status("10.0.0.1") == 401
    assert status("10.0.0.2", X_Remote_User="anna", X_Remote_Groups="administrator") == 401


def test_a_name_that_a_proxy_tells_is_not_the_local_user_who_has_a_password(make_app: AppMaker) -> None:
    first = make_app()
    add_user(first, "root", "administrator")
    first.extensions["dicomcloud"].archive.accounts.add_user("anna", "", "reader", "")
    client = make_app(trusted_proxies="127.0.0.1", proxy_user_header="X-Remote-User").test_client()
    assert client.get("/dicomweb/studies", headers={"X-Remote-User": "Anna"}).status_code == 200
    assert client.get("/dicomweb/studies", headers={"X-Remote-User": "root"}).status_code == 403


# Some studies only


Narrowed = Callable[[str], FlaskClient]


@pytest.fixture
def narrowed(make_app: AppMaker) -> Narrowed:
    """A client whose user `north`, of all roles, sees the studies of a rule; `administrator` sees all."""

    def make(rule: str) -> FlaskClient:
        first = make_app()
        add_user(first, "administrator", "administrator")
        add_user(first, "north", "administrator", only=rule)
        return make_app().test_client()

    return make


@pytest.mark.parametrize(
    ("rule", "seen", "unseen"),
    [
        ("PatientID=A*", {"PatientID": "A7"}, {"PatientID": "B7"}),
        ("PatientID=A1\\A2", {"PatientID": "A2"}, {"PatientID": "A22"}),
        ("IssuerOfPatientID=NORTH", {"IssuerOfPatientID": "NORTH"}, {"IssuerOfPatientID": "SOUTH"}),
        ("InstitutionName=north*", {"InstitutionName": "North Clinic"}, {"InstitutionName": "South Clinic"}),
        (
            "PatientID=A*&InstitutionName=North, and+ more",
            {"PatientID": "A1", "InstitutionName": "North, and+ more"},
            {"PatientID": "A1"},
        ),
        ("PatientID=A*\nPatientID=B*", {"PatientID": "B1"}, {"PatientID": "C1"}),
    ],
)
def test_a_caller_finds_and_counts_the_studies_of_the_rules_only(
    narrowed: Narrowed, rule: str, seen: dict[str, str], unseen: dict[str, str]
) -> None:
    client = narrowed(rule)
    mine, other = store(client, **seen), store(client, **unseen)
    for resource, key in (("studies", "0020000D"), ("series", "0020000E"), ("instances", "00080018")):
        answer = client.get(f"/dicomweb/{resource}?limit=1", headers=basic("north"))
        assert [each["0020000D"]["Value"] for each in answer.json] == [[mine["study"]]]
        assert answer.headers["X-Total-Count"] == "1"
        assert "Link" not in answer.headers
        assert key in answer.json[0]
    found = client.get(f"/dicomweb/studies?StudyInstanceUID={other['study']}", headers=basic("north")).json
    assert found == []
    assert len(client.get("/dicomweb/studies?ModalitiesInStudy=CT", headers=basic("north")).json) == 1
    assert len(client.get("/dicomweb/studies", headers=basic("administrator")).json) == 2


def test_a_study_that_is_not_seen_is_refused_on_every_route_like_one_that_does_not_exist(narrowed: Narrowed) -> None:
    client = narrowed("PatientID=A*")
    mine, other = store(client, PatientID="A1"), store(client, PatientID="B1")
    nowhere = {"study": "1.2.3", "series": "1.2.4", "instance": "1.2.5"}
    asked = 0
    for method, rule in routes(client.application):
        if "<study>" not in rule.rule or method == "POST":
            continue
        asked += 1
        answers = [client.open(url_of(rule, u), method=method, headers=basic("north")) for u in (other, nowhere)]
        if answers[0].status_code == 200:  # a search finds nothing
            assert [answer.json for answer in answers] == [[], []], f"{method} {rule.rule}"
            continue
        assert [answer.status_code for answer in answers] == [403, 403], f"{method} {rule.rule}"
        assert answers[0].text.replace(other["study"], "") == answers[1].text.replace("1.2.3", "")
    assert asked > 60
    for path in ("/wado", "/wadouri", "/api/wadouri"):
        query = {"requestType": "WADO", "contentType": "application/dicom"}
        for uids, status in ((mine, 200), (other, 403), (nowhere, 403)):
            named = {"studyUID": uids["study"], "seriesUID": uids["series"], "objectUID": uids["instance"]}
            assert client.get(path, query_string=query | named, headers=basic("north")).status_code == status
    assert client.get(f"/dicomweb/studies/{mine['study']}/metadata", headers=basic("north")).status_code == 200
    assert client.delete(f"/dicomweb/studies/{mine['study']}", headers=basic("north")).status_code == 204
    assert len(client.get("/dicomweb/studies", headers=basic("administrator")).json) == 1


def test_a_caller_stores_only_what_they_see(narrowed: Narrowed) -> None:
    client = narrowed("PatientID=A*")
    other = store(client, PatientID="B1")

    def send(**attributes: str) -> tuple[int, Any]:
        body = make_file(**attributes)
        answer = client.post("/dicomweb/studies", data=body, content_type="application/dicom", headers=basic("north"))
        return answer.status_code, answer.json

    assert send(PatientID="A1")[0] == 200
    for attributes in ({"PatientID": "B2"}, {"PatientID": "A1", "StudyInstanceUID": other["study"]}):
        status, module = send(**attributes)
        assert status == 409
        assert module["00081198"]["Value"][0]["00081197"]["Value"] == [0x0124]
    assert len(client.get("/dicomweb/studies", headers=basic("administrator")).json) == 2


# De-identified only


def test_who_may_see_deidentified_copies_gets_nothing_else(door: FlaskClient) -> None:
    uids = store(door)
    query = {"requestType": "WADO", "studyUID": uids["study"], "seriesUID": uids["series"]}
    query |= {"objectUID": uids["instance"], "contentType": "application/dicom"}
    who = basic("deidentified-reader")
    assert door.get("/wado", query_string=query, headers=who).status_code == 403
    copy = door.get("/wado", query_string=query | {"anonymize": "yes"}, headers=who)
    assert copy.status_code == 200
    assert b"Doe^Jane" not in copy.data
    assert uids["study"].encode() not in copy.data
    picture = query | {"anonymize": "yes", "contentType": "image/png"}
    assert door.get("/wado", query_string=picture, headers=who).status_code == 400
    both = [*query.items(), ("anonymize", "yes"), ("anonymize", "no")]
    assert door.get("/wado", query_string=both, headers=who).status_code == 403


def test_copies_of_studies_series_and_instances_say_nothing_of_the_patient(door: FlaskClient) -> None:
    uids, who = store(door, PatientName="Secret^Name", PatientID="SECRET-1"), basic("deidentified-reader")
    study = f"/dicomweb/studies/{uids['study']}"
    series = f"{study}/series/{uids['series']}"
    instance = f"{series}/instances/{uids['instance']}"
    for path in (study, series, instance):
        copy, metadata = door.get(path, headers=who), door.get(f"{path}/metadata", headers=who)
        assert (copy.status_code, metadata.status_code, len(metadata.json)) == (200, 200, 1)
        for secret in (b"Secret^Name", b"SECRET-1", *(uid.encode() for uid in uids.values())):
            assert secret not in copy.data
            assert secret not in metadata.data
    alone = door.get(instance, headers=who | {"Accept": "application/dicom"})
    assert alone.data[128:132] == b"DICM"
    packed = ZipFile(BytesIO(door.get(study, headers=who | {"Accept": "application/zip"}).data))
    assert packed.namelist() == ["DICOM/S000001/I000001"]
    assert b"SECRET-1" not in packed.read(packed.namelist()[0])
    page = door.get(f"/study/{uids['study']}", headers=who)
    assert "1 image in 1 series" in page.text
    assert "Secret" not in page.text
    assert uids["series"] not in page.text
    preview = door.get(f"/study/{uids['study']}/preview/1", headers=who)
    assert (preview.status_code, preview.mimetype) == (200, "image/jpeg")
    for path in (
        f"{study}/rendered",
        f"{instance}/frames/1",
        f"{study}/bulkdata",
        f"{study}/series",
        "/dicomweb/studies",
    ):
        assert door.get(path, headers=who).status_code == 403
    assert door.get("/dicomweb/studies/1.2.3", headers=who).status_code == 404
