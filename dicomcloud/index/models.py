"""The tables of the index. The migrations create them; a test holds the two equal.

Text columns that are matched hold what dicom.query.normalise makes of the value, cut to their length, and '' where
there is none. Dates are digits that sort: YYYYMMDDHHMMSSFFFFFF. `attributes` is DICOM JSON of the attributes of that
level. Moments are microseconds since 1970 UTC.
"""

from __future__ import annotations

from typing import Final

from peewee import BigAutoField, BigIntegerField, BlobField, CharField, ForeignKeyField, IntegerField, Model, TextField

from dicomcloud.index.database import CoveringIndex

#: Series or Instance Number of what has none, or one that is no integer: sorts behind all others.
NO_NUMBER: Final = 2**63 - 1


class Table(Model):
    class Meta:
        legacy_table_names = False


class ArchiveState(Table):
    """One row. `revision` only ever grows; the rest are totals."""

    id = IntegerField(primary_key=True)
    revision = BigIntegerField()
    studies = BigIntegerField()
    series = BigIntegerField()
    instances = BigIntegerField()
    bytes = BigIntegerField()


class Patient(Table):
    """A patient is (issuer, PatientID). Without a PatientID each study is its own patient: `only_study` is its UID."""

    id = BigAutoField()
    issuer_of_patient_id = CharField(200)
    patient_id = CharField(200)
    only_study = CharField(64)

    class Meta:
        indexes = ((("patient_id", "issuer_of_patient_id", "only_study"), True),)


class Study(Table):
    """What a study search matches and returns, the patient's attributes among it."""

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
Study.add_index(Study.index(Study.study_datetime.desc(), Study.id.desc(), name="study_order"))
Study.add_index(CoveringIndex(Study, [Study.patient_name], include=[Study.study_datetime], name="study_patient_name"))
Study.add_index(
    CoveringIndex(
        Study, [Study.referring_physician_name], include=[Study.study_datetime], name="study_referring_physician_name"
    )
)
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
Study.add_index(
    CoveringIndex(Study, [Study.study_description], include=[Study.study_datetime], name="study_study_description")
)


class StudyModality(Table):
    """ModalitiesInStudy, in the order of study searches."""

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


class NameWord(Table):
    """The words of Patient's and Referring Physician's Name, their phonetic codes; in the order of searches."""

    study = ForeignKeyField(Study, column_name="study_key", index=False)
    attribute = BigIntegerField()  # tag
    word = CharField(200)
    code = CharField(64)
    study_datetime = CharField(20)

    class Meta:
        primary_key = False
        indexes = ((("study", "attribute", "word", "code"), True),)  # the code only so that the row need not be read


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


class Series(Table):
    """A series; its UID is unique in its study only (real archives have the same one in two studies)."""

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
    """An instance and the place of its file; `attributes` only those that every instance search returns."""

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
    """What only retrieve needs: the DICOM JSON (zlib), the tables of frames and of bulk data."""

    instance = ForeignKeyField(Instance, column_name="instance_key", primary_key=True)
    document = BlobField()
    frames = BlobField(null=True)
    bulk_data = BlobField()


class Superseded(Table):
    """A version of an instance that another one has replaced; its file is kept."""

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
    """Tombstone of a study (other UIDs ''), a series (sop_uid '') or an instance."""

    id = BigAutoField()
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64)
    deleted_at = BigIntegerField()

    class Meta:
        indexes = ((("study_uid", "series_uid", "sop_uid"), True),)


class RemovedFile(Table):
    """A file that no row names any more and that is still to be removed from storage."""

    id = BigAutoField()
    file_key = CharField(200, unique=True)
    removed_at = BigIntegerField()


class StudyInstitution(Table):
    """Institution Name of the series of a study, for callers who see those of some institutions only."""

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
    """One row. `generation` grows with every change of users, keys and links; `secret` signs share links."""

    id = IntegerField(primary_key=True)
    generation = BigIntegerField()
    secret = CharField(64)


class UserAccount(Table):
    """`name` is case-folded; `password` an Argon2 hash, '' for who comes in another way; `studies` a rule a line."""

    id = BigAutoField()
    name = CharField(100, unique=True)
    password = CharField(200)
    roles = CharField(200)  # separated by blanks
    studies = TextField()
    disabled = IntegerField()
    created_at = BigIntegerField()
    changed_at = BigIntegerField()


class ApiKey(Table):
    """A key is `dck_<key_id>_<secret>`; of it the SHA-256 is kept. `expires_at`, `revoked_at`: 0 is never."""

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
    """A link that opens one study without a password until it ends."""

    id = BigAutoField()
    share_id = CharField(24, unique=True)
    study_uid = CharField(64)
    roles = CharField(200)
    created_by = CharField(100)
    created_at = BigIntegerField()
    expires_at = BigIntegerField()
    revoked_at = BigIntegerField()


class LoginSession(Table):
    """A browser that logged in, or opened a share link; its cookie is kept as SHA-256."""

    id = BigAutoField()
    checksum = CharField(64, unique=True)
    user_name = CharField(100)
    share_id = CharField(24)
    created_at = BigIntegerField()
    used_at = BigIntegerField()
    expires_at = BigIntegerField(index=True)


class AuditChain(Table):
    """One row: the last event of the trail, and up to which one they were sent to the syslog server, and by whom."""

    id = IntegerField(primary_key=True)
    sequence = BigIntegerField()
    hash = CharField(64)
    forwarded = BigIntegerField()
    forwarder = CharField(64)
    forwarder_until = BigIntegerField()


class AuditEvent(Table):
    """The audit trail. Rows are added and never changed; each has the hash of itself and the one before."""

    sequence = BigIntegerField(primary_key=True)
    began_at = BigIntegerField()
    ended_at = BigIntegerField()
    action = CharField(24)
    outcome = IntegerField()  # HTTP status
    times = IntegerField()  # how many such requests this event stands for
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


class Vocabulary(Table):
    """The words of the names in name_word and the study descriptions there have been, each once.

    Few, beside the studies that have them: a wildcard is tried on them first. None is taken away again.
    """

    attribute = BigIntegerField()  # tag; negative for words in other groups than the alphabetic one
    word = CharField(200)

    class Meta:
        primary_key = False
        indexes = ((("attribute", "word"), True),)


class SeriesRequest(Table):
    """The items of Request Attributes Sequence (0040,0275), as far as they are to be found by their IDs."""

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


class LastChange(Table):
    """One row (id 1): the sequence of the newest change. Every writer of the feed locks it first."""

    id = IntegerField(primary_key=True)
    sequence = BigIntegerField()


class ArchiveChange(Table):
    """The change feed: an instance that was stored, replaced or deleted."""

    sequence = BigIntegerField(primary_key=True)
    changed_at = BigIntegerField()
    action = CharField(16)
    study_uid = CharField(64)
    series_uid = CharField(64)
    sop_uid = CharField(64)
    sop_class_uid = CharField(64)


class Outbox(Table):
    """An event that is still to be delivered to one destination; `state` is waiting or dead."""

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


TABLES: Final = (
    ArchiveState,
    Patient,
    Study,
    StudyModality,
    NameWord,
    Series,
    Instance,
    InstanceMetadata,
    Superseded,
    Deletion,
    RemovedFile,
    StudyInstitution,
    AccountState,
    UserAccount,
    ApiKey,
    ShareLink,
    LoginSession,
    AuditChain,
    AuditEvent,
    Vocabulary,
    SeriesRequest,
    LastChange,
    ArchiveChange,
    Outbox,
)
