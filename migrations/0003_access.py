"""Users, API keys, share links, sessions, the audit trail; institutions of studies. Frozen like the first tables."""

from __future__ import annotations

import secrets
from typing import Any

import orjson
from peewee import BigAutoField, BigIntegerField, CharField, ForeignKeyField, IntegerField, Model, TextField

from dicomcloud.dicom.comparison import normalise

INSTITUTION_NAME = 0x00080080


class Table(Model):
    class Meta:
        legacy_table_names = False


class Study(Table):
    id = BigAutoField()


class StudyInstitution(Table):
    study = ForeignKeyField(Study, column_name="study_key", index=False)
    institution = CharField(200)

    class Meta:
        primary_key = False
        indexes = ((("study", "institution"), True),)


StudyInstitution.add_index(
    StudyInstitution.index(
        StudyInstitution.institution, StudyInstitution.study, unique=True, name="study_institution_of"
    )
)


class AccountState(Table):
    id = IntegerField(primary_key=True)
    generation = BigIntegerField()
    secret = CharField(64)


class UserAccount(Table):
    id = BigAutoField()
    name = CharField(100, unique=True)
    password = CharField(200)
    roles = CharField(200)
    studies = TextField()
    disabled = IntegerField()
    created_at = BigIntegerField()
    changed_at = BigIntegerField()


class ApiKey(Table):
    id = BigAutoField()
    key_id = CharField(16, unique=True)
    name = CharField(100)
    checksum = CharField(64)
    roles = CharField(200)
    studies = TextField()
    created_at = BigIntegerField()
    expires_at = BigIntegerField()
    revoked_at = BigIntegerField()


class ShareLink(Table):
    id = BigAutoField()
    share_id = CharField(24, unique=True)
    study_uid = CharField(64)
    roles = CharField(200)
    created_by = CharField(100)
    created_at = BigIntegerField()
    expires_at = BigIntegerField()
    revoked_at = BigIntegerField()


class LoginSession(Table):
    id = BigAutoField()
    checksum = CharField(64, unique=True)
    user_name = CharField(100)
    share_id = CharField(24)
    created_at = BigIntegerField()
    used_at = BigIntegerField()
    expires_at = BigIntegerField(index=True)


class AuditChain(Table):
    id = IntegerField(primary_key=True)
    sequence = BigIntegerField()
    hash = CharField(64)
    forwarded = BigIntegerField()
    forwarder = CharField(64)
    forwarder_until = BigIntegerField()


class AuditEvent(Table):
    sequence = BigIntegerField(primary_key=True)
    began_at = BigIntegerField()
    ended_at = BigIntegerField()
    action = CharField(24)
    outcome = IntegerField()
    times = IntegerField()
    caller = CharField(100)
    method = CharField(24)
    address = CharField(64)
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64)
    request_id = CharField(64)
    detail = TextField()
    hash = CharField(64)


AuditEvent.add_index(AuditEvent.index(AuditEvent.began_at, name="audit_event_began_at"))
AuditEvent.add_index(AuditEvent.index(AuditEvent.study_uid, AuditEvent.sequence, name="audit_event_study"))
AuditEvent.add_index(AuditEvent.index(AuditEvent.caller, AuditEvent.sequence, name="audit_event_caller"))


TABLES = (
    StudyInstitution,
    AccountState,
    UserAccount,
    ApiKey,
    ShareLink,
    LoginSession,
    AuditChain,
    AuditEvent,
)


def up(migrator: Any, database: Any) -> None:
    with database.bind_ctx((Study, *TABLES), bind_refs=False, bind_backrefs=False):
        database.create_tables(TABLES, safe=False)
        AccountState.insert(id=1, generation=0, secret=secrets.token_hex(32)).execute()
        AuditChain.insert(id=1, sequence=0, hash="0" * 64, forwarded=0, forwarder="", forwarder_until=0).execute()
    database.append_only("audit_event")
    known = set()
    for study, attributes in database.run("SELECT study_key, attributes FROM series").fetchall():
        element = orjson.loads(attributes).get("00080080") or {}
        values = element.get("Value") or [None]
        if values[0] is not None:
            known.add((study, normalise(INSTITUTION_NAME, element["vr"], str(values[0]))[:200]))
    for row in sorted(known):
        database.run("INSERT INTO study_institution (study_key, institution) VALUES (?, ?)", row)


def down(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.drop_tables(TABLES)
