"""What keeps searches fast with very many studies: a vocabulary, the IDs of requests, an index. Frozen."""

from __future__ import annotations

import json
from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, ForeignKeyField, Model

from dicomcloud.dicom.comparison import name_tokens
from dicomcloud.index.database import CoveringIndex


class Table(Model):
    class Meta:
        legacy_table_names = False


class Series(Table):
    id = BigAutoField()


class Study(Table):
    patient_name = CharField(200)
    referring_physician_name = CharField(200)
    study_description = CharField(200)
    study_datetime = CharField(20)


INDEXES = [
    Study.index(Study.study_datetime.desc(), Study.id.desc(), name="study_order", safe=False),
    *(
        CoveringIndex(Study, [field], include=[Study.study_datetime], name=f"study_{field.name}", safe=False)
        for field in (Study.patient_name, Study.referring_physician_name, Study.study_description)
    ),
]


class Vocabulary(Table):
    attribute = BigIntegerField()  # tag
    word = CharField(200)

    class Meta:
        primary_key = False
        indexes = ((("attribute", "word"), True),)


class SeriesRequest(Table):
    id = BigAutoField()
    series = ForeignKeyField(Series, column_name="series_key")
    scheduled_procedure_step_id = CharField(200)
    requested_procedure_id = CharField(200)


SeriesRequest.add_index(
    SeriesRequest.index(
        SeriesRequest.scheduled_procedure_step_id, SeriesRequest.series, name="series_request_scheduled"
    )
)
SeriesRequest.add_index(
    SeriesRequest.index(SeriesRequest.requested_procedure_id, SeriesRequest.series, name="series_request_requested")
)


TABLES = (Vocabulary, SeriesRequest)
SCHEDULED, REQUESTED = "00400009", "00401001"
BATCH = 1000


def up(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.create_tables(TABLES, safe=False)
    migrator.migrate(migrator.drop_index("study", "study_patient_name"))
    for index in INDEXES:
        database.execute(index)
    database.run(
        "INSERT INTO vocabulary (attribute, word) SELECT DISTINCT attribute, token FROM name_token"
        " UNION SELECT DISTINCT 528432, study_description FROM study WHERE study_description > ''"
    )
    for tag, column in ((0x00100010, "patient_name_other"), (0x00080090, "referring_physician_name_other")):
        words: set[str] = set()
        for row in database.run(f"SELECT DISTINCT {column} FROM study WHERE {column} > ''").fetchall():
            words.update(word[:200] for word in name_tokens(row[0]))
        for word in sorted(words):
            database.run("INSERT INTO vocabulary (attribute, word) VALUES (?, ?)", (-tag, word))
    last = 0
    while True:
        page, values = database.page(BATCH, 0)
        condition, texts = database.mentions("attributes", '"00400275"')
        rows = database.run(
            f"SELECT id, attributes FROM series WHERE id > ? AND {condition} ORDER BY id {page}",
            [last, *texts, *values],
        ).fetchall()
        for series, attributes in rows:
            for item in json.loads(attributes).get("00400275", {}).get("Value", ()):
                ids = [_text(item.get(key)) for key in (SCHEDULED, REQUESTED)]
                database.run(
                    "INSERT INTO series_request (series_key, scheduled_procedure_step_id, requested_procedure_id)"
                    " VALUES (?, ?, ?)",
                    (series, *ids),
                )
        if len(rows) < BATCH:
            return
        last = rows[-1][0]


def _text(element: Any) -> str:
    values = (element or {}).get("Value") or [""]
    return str(values[0] or "").strip()[:200] if len(values) == 1 else ""


def down(migrator: Any, database: Any) -> None:
    for index in INDEXES:
        migrator.migrate(migrator.drop_index("study", index._name))
    migrator.migrate(migrator.add_index("study", ["patient_name"], name="study_patient_name"))
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.drop_tables(TABLES)
