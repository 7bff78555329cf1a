"""What Index.add, remove and the look-ups keep right: counters, revisions, duplicates, tombstones, files."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest

from dicomcloud.dicom.attributes import Level
from dicomcloud.index import Index, Outcome, open_database

from .conftest import Find, new_instance, new_study


def counts(index: Index) -> tuple[int, ...]:
    """Patients, studies, series, instances; the totals agree with the rows."""
    values = index.counts()
    run = index._database.run
    for table in ("patient", "study", "series", "instance", "instance_metadata"):
        (values[f"rows of {table}"],) = run(f"SELECT count(*) FROM {table}").fetchone()
    assert values["studies"] == values["rows of study"]
    assert values["series"] == values["rows of series"]
    assert values["instances"] == values["rows of instance"] == values["rows of instance_metadata"]
    assert values["bytes"] == sum(size for (size,) in run("SELECT size FROM instance").fetchall())
    for uid, *expected in run("SELECT uid, number_of_series, number_of_instances FROM study").fetchall():
        of_study = run(
            "SELECT count(DISTINCT r.id), count(*) FROM series r JOIN instance i ON i.series_key = r.id"
            " JOIN study s ON s.id = r.study_key WHERE s.uid = ?",
            (uid,),
        ).fetchone()
        assert list(of_study) == expected
    wrong = run(
        "SELECT count(*) FROM series r WHERE number_of_instances <>"
        " (SELECT count(*) FROM instance i WHERE i.series_key = r.id)"
    )
    assert wrong.fetchone() == (0,)
    return values["patients"], values["studies"], values["series"], values["instances"]


# Store


def test_instances_of_one_study_make_one_of_each_parent(index: Index) -> None:
    new = [new_instance(SeriesInstanceUID=f"1.1.{n % 3}") for n in range(9)]
    assert index.add(new, "reject") == [Outcome.ADDED] * 9
    assert counts(index) == (1, 1, 3, 9)
    assert index.add([new_instance(SeriesInstanceUID="1.1.9")], "reject") == [Outcome.ADDED]
    assert counts(index) == (1, 1, 4, 10)


def test_a_patient_is_issuer_and_id(index: Index) -> None:
    index.add([new_study("1.1"), new_study("1.2"), new_study("1.3", IssuerOfPatientID="X")], "reject")
    assert counts(index)[0] == 2


@pytest.mark.parametrize("empty", [{"PatientID": None}, {"PatientID": "  "}])
def test_studies_without_a_patient_id_are_patients_of_their_own(index: Index, empty: dict[str, str]) -> None:
    index.add([new_study(f"1.{n}", PatientName="Doe^John", **empty) for n in range(3)], "reject")
    assert counts(index)[0] == 3


def test_one_series_uid_in_two_studies_is_two_series(index: Index) -> None:
    index.add([new_study("1.1", SeriesInstanceUID="9"), new_study("1.2", SeriesInstanceUID="9")], "reject")
    assert counts(index) == (1, 2, 2, 2)
    assert [row.study_uid for row in index.instances("1.2", "9")] == ["1.2"]


def test_the_first_instance_speaks_for_its_study(index: Index, find: Find) -> None:
    index.add([new_instance(StudyDescription="first"), new_instance(StudyDescription="second")], "reject")
    assert find("includefield=StudyDescription").rows[0]["00081030"]["Value"] == ["first"]


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [("reject", Outcome.REJECTED), ("keep", Outcome.KEPT), ("replace", Outcome.REPLACED)],
)
def test_other_bytes_of_a_known_instance_follow_the_policy(index: Index, policy: str, outcome: Outcome) -> None:
    old = new_instance(b"old", SOPInstanceUID="1.1.1.1")
    new = new_instance(b"new", SOPInstanceUID="1.1.1.1", StudyDescription="new")
    index.add([old], "reject")
    before = index.revision("1.1")
    assert index.add([new], policy) == [outcome]
    assert counts(index) == (1, 1, 1, 1)
    (row,) = index.instances("1.1")
    assert row.checksum == (new if policy == "replace" else old).checksum
    assert (index.revision("1.1") != before) is (policy == "replace")
    assert {key for key, _, _ in index.files()} == {old.file_key} | ({new.file_key} if policy == "replace" else set())


@pytest.mark.parametrize("policy", ["reject", "keep", "replace"])
def test_the_same_bytes_again_change_nothing(index: Index, policy: str) -> None:
    index.add([new_instance(b"x", SOPInstanceUID="1.1.1.1")], "reject")
    before = index.revision("1.1")
    assert index.add([new_instance(b"x", SOPInstanceUID="1.1.1.1")], policy) == [Outcome.SAME]
    assert index.revision("1.1") == before
    assert counts(index) == (1, 1, 1, 1)


def test_duplicates_inside_one_call(index: Index) -> None:
    new = [new_instance(content, SOPInstanceUID="1.1.1.1") for content in (b"a", b"a", b"b", b"b")]
    assert index.add(new, "replace") == [Outcome.ADDED, Outcome.SAME, Outcome.REPLACED, Outcome.SAME]
    assert counts(index) == (1, 1, 1, 1)
    new = [new_instance(content, SOPInstanceUID="1.1.1.2") for content in (b"a", b"b")]
    assert index.add(new, "reject") == [Outcome.ADDED, Outcome.REJECTED]


def test_a_replacement_speaks_for_its_study_and_may_move_to_another(index: Index, find: Find) -> None:
    index.add([new_study("1.1", SOPInstanceUID="7", PatientName="Wrong", Modality="CT")], "reject")
    index.add([new_study("1.1", SOPInstanceUID="7", PatientName="Right", Modality="MR", PatientID="P2")], "replace")
    assert find("PatientName=wrong").total == 0
    assert find("PatientName=right&ModalitiesInStudy=MR&PatientID=P2").total == 1
    assert find("fuzzymatching=true&PatientName=wrong").total == 0
    index.add([new_study("1.2", SOPInstanceUID="7")], "replace")
    assert counts(index) == (1, 1, 1, 1)
    assert find().uids == [("1.2", "", "")]
    assert len(list(index.files())) == 3


def test_an_instance_without_uids_is_refused_and_nothing_recorded(index: Index) -> None:
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        with pytest.raises(ValueError, match="not a UID"):
            index.add([new_instance(), new_instance(**{keyword: None})], "reject")
    assert counts(index) == (0, 0, 0, 0)


def test_hostile_values_are_only_values(index: Index, find: Find) -> None:
    name = "Robert'); DROP TABLE study;--"
    new = new_study(
        "1.1", PatientName=name, PatientID="x" * 5000, InstanceNumber="12a", SeriesNumber="9" * 40, StudyDate="2020",
        Modality="A\\B", NumberOfFrames="-4", StudyDescription=["a", None], AccessionNumber=[None],
    )  # fmt: skip
    index.add([new], "reject")
    (row,) = find("includefield=StudyDescription").rows
    assert row["00100010"]["Value"] == [{"Alphabetic": name}]
    assert row["00081030"]["Value"] == ["a", None]
    assert row["00080020"]["Value"] == ["2020"]
    assert index.instances("1.1")[0].number_of_frames == 1


# Look up


def test_instances_are_ordered_and_their_hierarchy_checked(index: Index) -> None:
    new = [
        new_instance(SeriesInstanceUID=f"1.1.{s}", SeriesNumber=s, InstanceNumber=i, SOPInstanceUID=f"1.1.{s}.{i}")
        for s in (10, 9)
        for i in (3, 11, 2)
    ]
    index.add(new, "reject")
    order = ["1.1.9.2", "1.1.9.3", "1.1.9.11", "1.1.10.2", "1.1.10.3", "1.1.10.11"]
    assert [row.sop_uid for row in index.instances("1.1")] == order
    documents = [orjson.loads(document) for document in index.documents("1.1")]
    assert [document["00080018"]["Value"][0] for document in documents] == order
    assert [row.sop_uid for row in index.instances("1.1", "1.1.10")] == order[3:]
    assert index.instances("1.2", "1.1.10") == []
    assert index.instances("1.1", "1.1.9", "1.1.10.2") == []
    assert list(index.documents("1.1", "1.1.9", "1.1.10.2")) == []
    assert index.frames("1.1", "1.1.9", "1.1.10.2") is None
    assert index.bulk_data("1.2", "1.1.10", "1.1.10.2") is None


def test_an_instance_row_has_what_was_given(index: Index) -> None:
    new = new_instance(b"content", SOPInstanceUID="1.1.1.1", NumberOfFrames=12)
    index.add([new, new_instance(frames=None, SOPInstanceUID="1.1.1.2")], "reject")
    found = index.frames("1.1", "1.1.1", "1.1.1.1")
    assert found is not None
    row, frames = found
    assert frames == b"frames"
    assert (row.study_uid, row.series_uid, row.sop_uid) == ("1.1", "1.1.1", "1.1.1.1")
    assert (row.file_key, row.size, row.checksum, row.dataset_offset) == (new.file_key, 7, new.checksum, 300)
    assert (row.transfer_syntax, row.sop_class_uid) == ("1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2")
    assert row.number_of_frames == 12
    assert abs((datetime.now(UTC) - row.stored_at).total_seconds()) < 60
    assert index.bulk_data("1.1", "1.1.1", "1.1.1.1") == (row, b"bulk")
    other = index.frames("1.1", "1.1.1", "1.1.1.2")
    assert other is not None
    assert (other[0].number_of_frames, other[1]) == (0, None)


def test_documents_come_back_byte_for_byte_over_many_batches(index: Index) -> None:
    new = [new_instance(InstanceNumber=n) for n in range(200)]
    index.add(new, "reject")
    assert list(index.documents("1.1")) == [instance.document for instance in new]


def test_documents_go_on_while_instances_are_deleted(index: Index) -> None:
    index.add([new_instance(InstanceNumber=n, SOPInstanceUID=f"1.1.1.{n}") for n in range(100)], "reject")
    documents = index.documents("1.1")
    next(documents)
    index.remove("1.1", "1.1.1", "1.1.1.99")
    index.add([new_study("1.2")], "reject")  # may get the number of the removed row
    assert len(list(documents)) == 98


def test_the_revision_changes_with_every_change_below(index: Index) -> None:
    assert index.revision("1.1") is None
    seen = []

    def changed(*path: str) -> None:
        found = index.revision(*path)
        assert found is not None
        seen.append(found[0])

    index.add([new_instance(SOPInstanceUID="1"), new_instance(SOPInstanceUID="2", SeriesInstanceUID="1.1.2")], "keep")
    changed("1.1")
    other_series = index.revision("1.1", "1.1.2")
    index.add([new_instance(SOPInstanceUID="3")], "keep")
    changed("1.1")
    assert index.revision("1.1", "1.1.2") == other_series
    index.add([new_instance(SOPInstanceUID="3")], "replace")
    changed("1.1")
    index.remove("1.1", "1.1.1", "3")
    changed("1.1")
    index.remove("1.1")
    assert index.revision("1.1") is None
    index.add([new_instance(SOPInstanceUID="1")], "keep")
    changed("1.1")
    assert seen == sorted(set(seen))
    assert index.revision("1.9") is None
    assert index.revision("1.1", "1.9") is None


# Remove


def test_removing_an_instance_prunes_what_is_empty(index: Index, find: Find) -> None:
    new = [
        new_instance(SOPInstanceUID="1", PatientName="First", Modality="CT"),
        new_instance(SOPInstanceUID="2", PatientName="Second", Modality="MR", SeriesInstanceUID="1.1.2"),
        new_study("1.2", PatientID="P2"),
    ]
    index.add(new, "reject")
    assert index.remove("1.1", "1.1.1", "1") == [new[0].file_key]
    assert counts(index) == (2, 2, 2, 2)
    assert find("ModalitiesInStudy=CT&StudyInstanceUID=1.1").total == 0
    assert find("PatientName=second").total == 1  # the next instance speaks for the study
    assert index.remove("1.1", "1.1.2") == [new[1].file_key]
    assert counts(index) == (1, 1, 1, 1)
    assert index.remove("1.2") == [new[2].file_key]
    assert counts(index) == (0, 0, 0, 0)
    assert index.files_to_remove() == [instance.file_key for instance in new]
    assert index._database.run("SELECT count(*) FROM name_word").fetchone() == (0,)


def test_removing_what_is_not_there_or_elsewhere_does_nothing(index: Index) -> None:
    index.add([new_instance(SOPInstanceUID="1")], "reject")
    assert index.remove("1.9") == []
    assert index.remove("1.9", "1.1.1", "1") == []
    assert index.remove("1.1", "1.1.1", "9") == []
    assert counts(index) == (1, 1, 1, 1)
    assert not index.was_deleted("1.9")


def test_tombstones_stay_until_the_object_is_stored_again(index: Index) -> None:
    new = [new_instance(SOPInstanceUID=uid) for uid in "12"]
    index.add(new, "reject")
    index.remove("1.1", "1.1.1", "1")
    assert index.was_deleted("1.1", "1.1.1", "1")
    assert not index.was_deleted("1.1", "1.1.1")
    index.remove("1.1")
    assert index.was_deleted("1.1")
    assert index.was_deleted("1.1", "1.1.1")
    assert index.was_deleted("1.1", "1.1.1", "2")
    assert not index.was_deleted("1.2", "1.1.1", "2")
    index.add([new_instance(SOPInstanceUID="2")], "reject")
    assert not index.was_deleted("1.1")
    assert not index.was_deleted("1.1", "1.1.1")
    assert not index.was_deleted("1.1", "1.1.1", "2")
    assert index.was_deleted("1.1", "1.1.1", "1")


def test_superseded_files_are_removed_with_their_instance(index: Index) -> None:
    old, new = (new_instance(SOPInstanceUID="1") for _ in range(2))
    index.add([old], "reject")
    index.add([new], "replace")
    assert index.has_file(old.file_key)
    assert set(index.remove("1.1")) == {old.file_key, new.file_key}
    assert list(index.files()) == []
    assert not index.has_file(old.file_key)
    index.files_removed([old.file_key])
    assert index.files_to_remove() == [new.file_key]


def test_files_come_by_key_over_many_batches(index: Index) -> None:
    new = [new_instance(SOPInstanceUID=f"1.1.1.{n}") for n in range(2100)]
    index.add(new, "reject")
    assert list(index.files()) == [(n.file_key, n.size, n.checksum) for n in new]


def test_a_lost_file_takes_its_row_along(index: Index) -> None:
    old, new = (new_instance(SOPInstanceUID="1") for _ in range(2))
    index.add([old], "reject")
    index.add([new], "replace")
    index.drop_instance_of_file(old.file_key)
    assert counts(index) == (1, 1, 1, 1)
    index.drop_instance_of_file(new.file_key)
    assert counts(index) == (0, 0, 0, 0)
    assert not index.was_deleted("1.1")
    assert index.files_to_remove() == []
    index.drop_instance_of_file("unknown")


def test_clear_keeps_what_a_rebuild_must_not_bring_back(index: Index) -> None:
    first, old, new = new_study("1.2"), new_instance(SOPInstanceUID="1"), new_instance(SOPInstanceUID="1")
    index.add([first, old], "reject")
    index.add([new], "replace")
    index.remove("1.2")
    before = index.revision("1.1")
    index.clear()
    assert counts(index) == (0, 0, 0, 0)
    assert index.was_deleted("1.2")
    assert index.files_to_remove() == [first.file_key]
    assert index.has_file(old.file_key)
    index.add([new], "reject")
    after = index.revision("1.1")
    assert before is not None
    assert after is not None
    assert after[0] > before[0]


# Together


def check_one_study(index: Index) -> None:
    assert counts(index) == (1, 1, 4, 160)


def share(worker: int) -> list[list[object]]:
    """Five requests of four instances; all workers share the study and its four series."""
    return [
        [
            replace(
                new_instance(
                    f"{worker}.{n}".encode(), SeriesInstanceUID=f"1.1.{n % 4}", SOPInstanceUID=f"1.1.{worker}.{n}"
                ),
                file_key=f"{worker}/{n}",
            )
            for n in range(start, start + 4)
        ]
        for start in range(0, 20, 4)
    ]


def store_share(url: str, worker: int) -> None:
    index = Index(open_database(url))
    for request in share(worker):
        assert index.add(request, "reject") == [Outcome.ADDED] * 4  # type: ignore[arg-type]


def test_eight_threads_store_parts_of_one_study(index: Index) -> None:
    threads = [
        threading.Thread(target=lambda n=n: [index.add(request, "reject") for request in share(n)]) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_one_study(index)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_eight_processes_store_parts_of_one_study(index: Index, database_url: str, method: str) -> None:
    if method == "forkserver":
        pytest.skip("as spawn")
    index.counts()  # a connection of the parent is open
    processes = [
        multiprocessing.get_context(method).Process(target=store_share, args=(database_url, n)) for n in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    check_one_study(index)


def test_readers_go_on_while_a_writer_writes(index: Index, find: Find) -> None:
    index.add([new_study("1.1")], "reject")
    with index._database.write():
        index._database.run("DELETE FROM instance_metadata")
        index._database.run("UPDATE study SET number_of_instances = 77")
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(find("", Level.INSTANCE).total))
        reader.start()
        reader.join(10)
        assert found == [1]
