"""The first tables. The models are frozen here: a later change of the models is another migration."""

from __future__ import annotations

from typing import Any

from peewee import BigAutoField, BigIntegerField, BlobField, CharField, ForeignKeyField, IntegerField, Model, TextField

from dicomcloud.index.database import CoveringIndex


class Table(Model):
    class Meta:
        legacy_table_names = False


class ArchiveState(Table):
    id = IntegerField(primary_key=True)
    revision = BigIntegerField()
    studies = BigIntegerField()
    series = BigIntegerField()
    instances = BigIntegerField()
    bytes = BigIntegerField()


class Patient(Table):
    id = BigAutoField()
    issuer_of_patient_id = CharField(200)
    patient_id = CharField(200)
    only_study = CharField(64)

    class Meta:
        indexes = ((("patient_id", "issuer_of_patient_id", "only_study"), True),)


class Study(Table):
    id = BigAutoField()
    uid = CharField(64, unique=True)
    patient = ForeignKeyField(Patient, column_name="patient_key")
    patient_id = CharField(200)
    issuer_of_patient_id = CharField(200)
    patient_name = CharField(200)  # alphabetic group
    patient_name_other = CharField(400)  # ideographic=phonetic
    patient_birth_date = CharField(8)
    patient_sex = CharField(16)
    study_datetime = CharField(20)
    study_time = CharField(12)
    accession_number = CharField(200)
    study_id = CharField(200)
    study_description = CharField(200)
    referring_physician_name = CharField(200)
    referring_physician_name_other = CharField(400)
    modalities = CharField(400)  # sorted, separated by backslashes
    number_of_series = IntegerField()
    number_of_instances = IntegerField()
    revision = BigIntegerField()
    changed_at = BigIntegerField()
    attributes = TextField()


# The order of study searches; what follows the key is there so that wildcard searches need not read the rows.
Study.add_index(
    CoveringIndex(
        Study,
        [Study.study_datetime.desc(), Study.id.desc()],
        include=[
            Study.patient_id,
            Study.patient_name,
            Study.accession_number,
            Study.referring_physician_name,
            Study.study_description,
        ],
        name="study_newest",
    )
)
Study.add_index(Study.index(Study.patient_name, name="study_patient_name"))
Study.add_index(
    Study.index(Study.patient_name_other, where=Study.patient_name_other > "", name="study_patient_name_other")
)
Study.add_index(
    Study.index(
        Study.referring_physician_name_other,
        where=Study.referring_physician_name_other > "",
        name="study_referring_physician_name_other",
    )
)
Study.add_index(Study.index(Study.patient_id, name="study_patient_id"))
Study.add_index(Study.index(Study.accession_number, name="study_accession_number"))
Study.add_index(Study.index(Study.study_id, name="study_study_id"))


class StudyModality(Table):
    study = ForeignKeyField(Study, column_name="study_key", index=False)
    modality = CharField(64)
    study_datetime = CharField(20)

    class Meta:
        primary_key = False
        indexes = ((("study", "modality"), True),)


StudyModality.add_index(
    StudyModality.index(
        StudyModality.modality,
        StudyModality.study_datetime.desc(),
        StudyModality.study.desc(),
        unique=True,
        name="study_modality_newest",
    )
)


class NameToken(Table):
    id = BigAutoField()
    attribute = BigIntegerField()  # tag
    token = CharField(200)
    code = CharField(64)
    study = ForeignKeyField(Study, column_name="study_key")


NameToken.add_index(NameToken.index(NameToken.attribute, NameToken.token, NameToken.study, name="name_token_token"))
NameToken.add_index(NameToken.index(NameToken.attribute, NameToken.code, NameToken.study, name="name_token_code"))


class Series(Table):
    id = BigAutoField()
    study = ForeignKeyField(Study, column_name="study_key", index=False)
    uid = CharField(64, index=True)
    number = BigIntegerField()
    modality = CharField(64)
    study_datetime = CharField(20)
    performed_start = CharField(20)
    number_of_instances = IntegerField()
    revision = BigIntegerField()
    changed_at = BigIntegerField()
    attributes = TextField()

    class Meta:
        indexes = ((("study", "uid"), True),)


Series.add_index(Series.index(Series.study, Series.number, Series.id, unique=True, name="series_number"))
Series.add_index(
    Series.index(
        Series.study_datetime.desc(), Series.study.desc(), Series.number, Series.id, unique=True, name="series_newest"
    )
)
Series.add_index(
    Series.index(
        Series.modality,
        Series.study_datetime.desc(),
        Series.study.desc(),
        Series.number,
        Series.id,
        unique=True,
        name="series_modality",
    )
)
Series.add_index(Series.index(Series.performed_start, name="series_performed_start"))


class Instance(Table):
    id = BigAutoField()
    series = ForeignKeyField(Series, column_name="series_key", index=False)
    uid = CharField(64, unique=True)
    sop_class_uid = CharField(64)
    number = BigIntegerField()
    transfer_syntax = CharField(64)
    number_of_frames = IntegerField()
    file_key = CharField(200, unique=True)
    size = BigIntegerField()
    checksum = BlobField()
    dataset_offset = IntegerField()
    stored_at = BigIntegerField()
    attributes = TextField()


Instance.add_index(Instance.index(Instance.series, Instance.number, Instance.id, unique=True, name="instance_number"))


class InstanceMetadata(Table):
    instance = ForeignKeyField(Instance, column_name="instance_key", primary_key=True)
    document = BlobField()
    frames = BlobField(null=True)
    bulk_data = BlobField()


class Superseded(Table):
    id = BigAutoField()
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64, index=True)
    transfer_syntax = CharField(64)
    file_key = CharField(200, unique=True)
    size = BigIntegerField()
    checksum = BlobField()
    stored_at = BigIntegerField()
    superseded_at = BigIntegerField()


class Deletion(Table):
    id = BigAutoField()
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64)
    deleted_at = BigIntegerField()

    class Meta:
        indexes = ((("study_uid", "series_uid", "sop_uid"), True),)


class RemovedFile(Table):
    id = BigAutoField()
    file_key = CharField(200, unique=True)
    removed_at = BigIntegerField()


TABLES = (
    ArchiveState,
    Patient,
    Study,
    StudyModality,
    NameToken,
    Series,
    Instance,
    InstanceMetadata,
    Superseded,
    Deletion,
    RemovedFile,
)


def up(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.create_tables(TABLES, safe=False)
        ArchiveState.insert(id=1, revision=0, studies=0, series=0, instances=0, bytes=0).execute()


def down(migrator: Any, database: Any) -> None:
    with database.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        database.drop_tables(TABLES)
