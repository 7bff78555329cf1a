"""The words of names with the moment of their study: frequent words are read in the order of the answer. Frozen."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, CharField, ForeignKeyField, Model


class Table(Model):
    class Meta:
        legacy_table_names = False


class Study(Table):
    id = BigAutoField()


class NameToken(Table):
    id = BigAutoField()
    attribute = BigIntegerField()  # tag
    token = CharField(200)
    code = CharField(64)
    study = ForeignKeyField(Study, column_name="study_key")


NameToken.add_index(NameToken.index(NameToken.attribute, NameToken.token, NameToken.study, name="name_token_token"))
NameToken.add_index(NameToken.index(NameToken.attribute, NameToken.code, NameToken.study, name="name_token_code"))


class NameWord(Table):
    study = ForeignKeyField(Study, column_name="study_key", index=False)
    attribute = BigIntegerField()  # tag
    word = CharField(200)
    code = CharField(64)
    study_datetime = CharField(20)

    class Meta:
        primary_key = False
        indexes = ((("study", "attribute", "word", "code"), True),)


for _field in (NameWord.word, NameWord.code):
    NameWord.add_index(
        NameWord.index(
            NameWord.attribute,
            _field,
            NameWord.study_datetime.desc(),
            NameWord.study.desc(),
            name=f"name_word_{_field.name}",
        )
    )


def up(migrator: Any, database: Any) -> None:
    _replace(
        database,
        NameToken,
        NameWord,
        "INSERT INTO name_word (study_key, attribute, word, code, study_datetime)"
        " SELECT t.study_key, t.attribute, t.token, t.code, s.study_datetime FROM name_token t"
        " JOIN study s ON s.id = t.study_key WHERE NOT EXISTS (SELECT 1 FROM name_token e"
        " WHERE e.study_key = t.study_key AND e.attribute = t.attribute AND e.token = t.token AND e.id < t.id)",
    )


def down(migrator: Any, database: Any) -> None:
    _replace(
        database,
        NameWord,
        NameToken,
        "INSERT INTO name_token (study_key, attribute, token, code)"
        " SELECT study_key, attribute, word, code FROM name_word",
    )


def _replace(database: Any, old: Any, new: Any, copy: str) -> None:
    with database.bind_ctx((old, new), bind_refs=False, bind_backrefs=False):
        new._schema.create_table(safe=False)
        database.run(copy)
        new._schema.create_indexes(safe=False)
        database.drop_tables((old,))
