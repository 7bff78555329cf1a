"""The change feed, and the outbox of events that are still to be delivered."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, IntegerField, Model, TextField


class Table(Model):
    class Meta:
        legacy_table_names = False


class LastChange(Table):
    id = IntegerField(primary_key=True)
    sequence = BigIntegerField()


class ArchiveChange(Table):
    sequence = BigIntegerField(primary_key=True)
    changed_at = BigIntegerField()
    action = CharField(16)
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64)
    sop_class_uid = CharField(64)


class Outbox(Table):
    id = BigAutoField()
    event_id = CharField(36)
    target = CharField(200)
    kind = CharField(16)
    study_uid = CharField(64)
    payload = TextField()
    created_at = BigIntegerField()
    state = CharField(16)
    attempts = IntegerField()
    due_at = BigIntegerField()
    last_error = CharField(400)


Outbox.add_index(Outbox.index(Outbox.target, Outbox.state, Outbox.due_at, Outbox.id, name="outbox_due"))
Outbox.add_index(Outbox.index(Outbox.target, Outbox.study_uid, Outbox.state, Outbox.id, name="outbox_study"))

TABLES = (LastChange, ArchiveChange, Outbox)


def up(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.create_tables(TABLES, safe=False)
        LastChange.insert(id=1, sequence=0).execute()
    # What is stored already is the beginning of the feed.
    database.execute_sql(
        "INSERT INTO archive_change (sequence, changed_at, action, study_uid, series_uid, sop_uid, sop_class_uid)"
        " SELECT ROW_NUMBER() OVER (ORDER BY i.stored_at, i.id), i.stored_at, 'stored', s.uid, r.uid, i.uid,"
        " i.sop_class_uid FROM instance i JOIN series r ON r.id = i.series_key JOIN study s ON s.id = r.study_key"
    )
    database.execute_sql("UPDATE last_change SET sequence = (SELECT count(*) FROM archive_change) WHERE id = 1")


def down(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.drop_tables(TABLES)
