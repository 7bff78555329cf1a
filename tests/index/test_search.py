"""Searches of the index: query string → UIDs, result rows, order, paging, one statement."""

from __future__ import annotations

from random import Random
from typing import Any
from urllib.parse import parse_qsl

import pytest

from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.matching import matches
from dicomcloud.dicom.query import parse_query
from dicomcloud.errors import BadRequest
from dicomcloud.index import Index, NewInstance, SearchResult
from dicomcloud.index.search import Search
from tests.databases import on_sqlite

from .conftest import Find, data_set, new_instance, new_study

STUDIES: dict[str, dict[str, Any]] = {
    "1": {
        "PatientName": "Doe^John",
        "PatientID": "ID_1",
        "AccessionNumber": "A%1",
        "StudyDate": "20200101",
        "StudyTime": "101500",
        "StudyID": "S1",
        "StudyDescription": "CT Kopf",
        "ReferringPhysicianName": "Smith^Ann",
        "PatientSex": "M",
        "PatientBirthDate": "19700101",
        "PhysiciansOfRecord": ["Adams^A", "Baker^B"],
    },
    "2": {
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "PatientID": "idx1",
        "IssuerOfPatientID": "Clinic",
        "AccessionNumber": "A21",
        "StudyDate": "20200102",
        "StudyTime": "233000",
        "TimezoneOffsetFromUTC": "-0500",
        "StudyDescription": "100% köpf",
        "Modality": "MR",
    },
    "3": {
        "PatientName": "Müller^Jörg^^Dr",
        "PatientID": "P3",
        "StudyDate": "20200103",
        "StudyTime": "0030",
        "TimezoneOffsetFromUTC": "+0100",
        "Modality": "US",
        "AccessionNumber": None,
    },
    "4": {"PatientName": "Doe^X^John", "PatientID": "P4", "Modality": "CT", "StudyDate": "20191231"},
    "5": {"PatientName": None, "PatientID": None, "Modality": None, "StudyDate": None, "StudyTime": "101500"},
}


@pytest.fixture
def studies(index: Index) -> Index:
    """Five studies of one series; study 1 has a second series, MR."""
    new = [new_study(f"1.{uid}", **values) for uid, values in STUDIES.items()]
    new.append(
        new_instance(
            **STUDIES["1"]
            | {"StudyInstanceUID": "1.1", "SeriesInstanceUID": "1.1.2", "Modality": "MR", "SOPInstanceUID": "1.1.2.1"}
        )
    )
    index.add(new, "reject")
    return index


def uids(result: SearchResult) -> str:
    """The last numbers of the study UIDs."""
    return "".join(study.removeprefix("1.") for study, _, _ in result.uids)


STUDY_SEARCHES = [
    ("", "32145"),
    ("StudyInstanceUID=1.1,1.3", "31"),
    (r"StudyInstanceUID=1.1\1.3\1.9", "31"),
    ("PatientID=ID_1", "1"),
    ("PatientID=id_1", ""),
    ("PatientID=ID%3F1", "1"),
    ("PatientID=*1", "21"),
    ("00100020=id_1*", ""),
    ("PatientID=P*", "34"),
    ("AccessionNumber=A%251", "1"),
    ("AccessionNumber=A%25*", "1"),
    ("AccessionNumber=*1*", "21"),
    ("StudyID=S1", "1"),
    ("PatientSex=M", "1"),
    ("PatientBirthDate=1970", None),
    ("PatientBirthDate=-19800101", "1"),
    ("IssuerOfPatientID=Clinic", "2"),
    ("PatientName=doe", "14"),
    ("PatientName=Doe^John", "1"),
    ("PatientName=doe*", "14"),
    ("PatientName=*john*", "14"),
    ("PatientName=do*^john", "1"),
    ("PatientName=d*^john", "1"),
    ("PatientName=^j*", "31"),
    ("PatientName=*oe^", "14"),
    ("PatientName=mueller", ""),
    ("PatientName=MULLER^JORG", "3"),
    ("PatientName=m?ller", ""),
    ("PatientName=m?ller*", "3"),
    ("PatientName=山田", "2"),
    ("PatientName=山*", "2"),
    ("PatientName=*太*", "2"),
    ("PatientName=山田^太*", "2"),
    ("PatientName=yamada=山田", "2"),
    ("PatientName==山田", "2"),
    ("PatientName=doe=山田", ""),
    ("PatientName==", "32145"),
    ("PatientName=d%25", ""),
    ("PatientName=d__", ""),
    ("ReferringPhysicianName=smith", "1"),
    ("ReferringPhysicianName=*ANN*", "1"),
    ("fuzzymatching=true&PatientName=john+doe", "14"),
    ("fuzzymatching=true&PatientName=jon+do*", "14"),
    ("fuzzymatching=true&PatientName=*amad*", "2"),
    ("fuzzymatching=true&PatientName=d*n", "14"),
    ("fuzzymatching=true&PatientName=miller", "3"),
    ("fuzzymatching=true&PatientName=太郎", "2"),
    ("fuzzymatching=true&PatientName=mul^dr", "3"),
    ("fuzzymatching=true&ReferringPhysicianName=smyth", "1"),
    ("fuzzymatching=true&PhysiciansOfRecord=becker", "1"),
    ("fuzzymatching=false&PatientName=jon", ""),
    ("ModalitiesInStudy=CT", "14"),
    ("ModalitiesInStudy=MR", "21"),
    ("ModalitiesInStudy=CT,MR", "214"),
    (r"multiplevaluematching=true&ModalitiesInStudy=CT\MR", "1"),
    ("ModalitiesInStudy=C*", "14"),
    ("ModalitiesInStudy=XX", ""),
    ("ModalitiesInStudy=CT&StudyDate=2020", None),
    ("ModalitiesInStudy=CT&StudyDate=20200101-", "1"),
    ("ModalitiesInStudy=CT&PatientName=doe*&PatientID=P4", "4"),
    ('emptyvaluematching=true&ModalitiesInStudy=""', "5"),
    ('emptyvaluematching=true&AccessionNumber=""', "345"),
    ('emptyvaluematching=true&PatientName=""', "5"),
    ('emptyvaluematching=true&StudyDate=""', "5"),
    ('emptyvaluematching=true&PhysiciansOfRecord=""', "3245"),
    ('AccessionNumber=""', ""),
    ("StudyDate=20200101", "1"),
    ("StudyDate=20200101-20200102", "21"),
    ("StudyDate=20200102-", "32"),
    ("StudyDate=-20200101", "14"),
    ("StudyTime=1015", "15"),
    ("StudyTime=2200-", "2"),
    ("StudyTime=-1100", "315"),
    ("StudyDate=20200101-20200102&StudyTime=1100-", "2"),
    ("StudyDate=20200101-20200103&StudyTime=1000-0015", "21"),
    ("StudyDate=20200101-20200103&StudyTime=1015", "1"),
    ("TimezoneOffsetFromUTC=%2B0000&StudyDate=20200102", "3"),
    ("TimezoneOffsetFromUTC=%2B0000&StudyDate=20200103", "2"),
    ("TimezoneOffsetFromUTC=%2B0000&StudyDate=20200101", "1"),
    ("TimezoneOffsetFromUTC=%2B0000&StudyDate=20200103&StudyTime=0430", "2"),
    ("TimezoneOffsetFromUTC=%2B0000&StudyTime=0430", "2"),
    ("StudyDescription=*KOPF*", "21"),
    ("StudyDescription=100%25*", "2"),
    ("StudyDescription=1__%25*", ""),
    ("PhysiciansOfRecord=baker", "1"),
    ("PhysiciansOfRecord=Adams^A&PatientID=ID_1", "1"),
    ("Modality=US", "32145"),  # below the level: ignored
    ("PatientID=' OR 1=1 --", ""),
    ("PatientName=x' OR '1'='1", ""),
    ('StudyDescription=*"); DROP TABLE study; --', ""),
    ("PhysiciansOfRecord=') OR 1=1 --", ""),
]


@pytest.mark.parametrize(("text", "expected"), [row for row in STUDY_SEARCHES if row[1] is not None])
def test_study_search(studies: Index, find: Find, text: str, expected: str) -> None:
    result = find(text)
    assert uids(result) == expected
    assert (result.total, result.remaining) == (len(expected), 0)


@pytest.mark.parametrize("text", [text for text, expected in STUDY_SEARCHES if expected and "Modalit" not in text])
def test_sql_and_python_match_alike(studies: Index, find: Find, text: str) -> None:
    query = parse_query(Level.STUDY, parse_qsl(text, keep_blank_values=True), max_results=9)
    data_sets = {uid: data_set(StudyInstanceUID=f"1.{uid}", **values) for uid, values in STUDIES.items()}
    assert set(uids(find(text))) == {
        uid for uid, attributes in data_sets.items() if all(matches(match, attributes) for match in query.matches)
    }


def some(letters: str, random: Random) -> str | None:
    return "".join(random.choice(letters) for _ in range(random.randint(0, 7))) or None


def some_study(number: int, random: Random) -> NewInstance:
    values = {
        "PatientName": some("abAü^ =^山", random),
        "ReferringPhysicianName": some("ab^ ", random),
        "AccessionNumber": some("aA1%_", random),
        "StudyDescription": some("aAü% []_", random),
        "StudyDate": random.choice([None, "20200101", "20200102", "2020.01.02", "2020"]),
        "StudyTime": random.choice([None, "10", "1015", "235959.5", "00:30:00", "99", "235960"]),
        "TimezoneOffsetFromUTC": random.choice([None, "+0100", "-0500", "x"]),
    }
    return new_study(f"1.{number}", **values)


def some_query(random: Random) -> list[tuple[str, str]]:
    text = random.choice([some("ab^*?=% _üA山^*", random) or "*", '""'])
    dates = random.choice(["20200101-", "20200101-20200102", "20200102", "-20200102", '""'])
    times = random.choice(["10-", "1000-1015", "-12", "10", "235960", '""'])
    text_keys = ["PatientName", "ReferringPhysicianName", "AccessionNumber", "StudyDescription"]
    pairs = [(random.choice(text_keys), text), ("StudyDate", dates), ("StudyTime", times)]
    options = [("TimezoneOffsetFromUTC", "+0000"), ("fuzzymatching", "true")]
    some_options = [option for option in options if random.random() < 0.4]
    return [random.choice(pairs), ("emptyvaluematching", "true"), *some_options]


def test_sql_and_python_match_alike_whatever_is_asked(index: Index) -> None:
    random = Random(20)
    new = [some_study(number, random) for number in range(120)]
    index.add(new, "reject")
    compared = 0
    for _ in range(1500):
        pairs = some_query(random)
        try:
            query = parse_query(Level.STUDY, pairs, max_results=1000)
        except BadRequest:
            continue
        expected = {
            study.attributes["0020000D"]["Value"][0]
            for study in new
            if all(matches(match, study.attributes) for match in query.matches)
        }
        assert {study for study, _, _ in index.search(query).uids} == expected, pairs
        compared += bool(expected) and len(expected) < len(new)
    assert compared > 500


def test_many_are_found_as_few_are(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(21)
    index.add([some_study(number, random) for number in range(120)], "reject")
    names = [("fuzzymatching", "true"), ("PatientName", "ab"), ("ReferringPhysicianName", "b*"), ("PatientName", "山*")]
    merged = 0
    for number in range(600):
        pairs = some_query(random) if number % 2 else [names[0], random.choice(names[1:]), *some_query(random)[:1]]
        page = [("limit", str(random.randint(1, 9))), ("offset", str(random.choice([0, 0, 3, 70])))]
        try:
            query = parse_query(Level.STUDY, pairs + page, max_results=1000)
        except BadRequest:
            continue
        expected = index.search(query)
        with monkeypatch.context() as thresholds:  # as if nothing were few, and every page far away
            for name in ("_FEW", "_VERY_FEW_WITH_WORD", *random.choice([("_FEW_WITH_WORD",), ()]), "_FAR"):
                thresholds.setattr(f"dicomcloud.index.search.{name}", 0)
            merged += Search(index._database, query)._words_of_choice() is not None
            found = index.search(query)
        assert found.uids == expected.uids, pairs + page
        assert found.total == expected.total or not found.exact, pairs + page
    assert merged > 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "32145"),
        ("orderby=StudyDate", "54123"),
        ("orderby=-StudyDate", "32145"),
        ("orderby=PatientName", "51432"),
        ("orderby=-PatientName", "23415"),
        ("orderby=00100010&ModalitiesInStudy=CT", "14"),
        ("orderby=-PatientName&ModalitiesInStudy=CT&limit=1&offset=1", "1"),
        ("orderby=-AccessionNumber&PatientName=D*", "14"),
        ("orderby=-StudyDescription&StudyDescription=*kopf*", "12"),
    ],
)
def test_studies_are_sorted_by_what_is_asked(studies: Index, find: Find, text: str, expected: str) -> None:
    assert uids(find(text)) == expected


@pytest.mark.parametrize(
    "text", ["orderby=Rows", "orderby=nonsense", "orderby=--PatientName", "orderby=ModalitiesInStudy"]
)
def test_what_cannot_be_sorted_by_is_refused(studies: Index, find: Find, text: str) -> None:
    with pytest.raises(BadRequest, match="PatientName"):
        find(text)
    with pytest.raises(BadRequest, match="orderby"):
        find("orderby=PatientName", Level.SERIES)


def test_a_study_row_has_all_required_attributes_in_order(studies: Index, find: Find) -> None:
    (row,) = find("StudyInstanceUID=1.1&includefield=StudyDescription").rows
    assert list(row) == sorted(row)
    assert row["00080061"] == {"vr": "CS", "Value": ["CT", "MR"]}
    assert row["00080056"] == {"vr": "CS", "Value": ["ONLINE"]}
    assert (row["00201206"]["Value"], row["00201208"]["Value"]) == ([2], [2])
    assert row["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^John"}]}
    assert row["00081030"] == {"vr": "LO", "Value": ["CT Kopf"]}
    required = "00080020 00080030 00080050 00080056 00080061 00080090 00100010 00100020 00100030 00100040 0020000D"
    assert set(f"{required} 00200010 00201206 00201208".split()) <= set(row)


def test_required_attributes_without_a_value_are_there_and_empty_but_not_the_modalities(
    studies: Index, find: Find
) -> None:
    (row,) = find("StudyInstanceUID=1.5&ModalitiesInStudy=").rows
    assert row["00100010"] == {"vr": "PN"}
    assert row["00100040"] == {"vr": "CS"}
    assert "00080061" not in row
    assert "00080201" not in row


def test_matched_keys_and_all_fields_are_returned(studies: Index, find: Find) -> None:
    assert "00081048" in find("PhysiciansOfRecord=baker").rows[0]
    assert "00081048" in find("StudyInstanceUID=1.1&includefield=all").rows[0]
    assert "00081048" not in find("StudyInstanceUID=1.1").rows[0]
    assert find("StudyInstanceUID=1.2").rows[0]["00080201"]["Value"] == ["-0500"]


def test_ohif_asks_for_its_list(studies: Index, find: Find) -> None:
    text = "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"
    result = find(text)
    assert uids(result) == "32145"
    assert "00080060" not in result.rows[0]


def test_the_demo_client_sends_a_whole_parent(studies: Index, find: Find) -> None:
    text = (
        "00080020=20200101&00080030=101500&00080050=A%251&00080056=ONLINE&00080061=CT%2CMR&00100010=Doe%5EJohn"
        "&00100020=ID_1&0020000D=1.1&00201206=2&00201208=2&00020010=1.2.840.10008.1.2.1&00081190=http%3A%2F%2Fx&limit=12"
    )
    result = find(text, Level.SERIES)
    assert [series for _, series, _ in result.uids] == ["1.1.1", "1.1.2"]
    assert {row["0020000D"]["Value"][0] for row in result.rows} == {"1.1"}


# Series and instances


@pytest.fixture
def series(index: Index) -> Index:
    """Study 1.1 with series 10, 2 and one without a number, of 2, 1 and 1 instances; study 1.2 with one."""
    request = {"00400009": {"vr": "SH", "Value": ["SPS"]}, "00401001": {"vr": "SH", "Value": ["RP"]}}
    other = {"00400009": {"vr": "SH", "Value": ["SPS2"]}, "00401001": {"vr": "SH", "Value": ["RP2"]}}
    index.add(
        [
            new_instance(SeriesInstanceUID="1.1.10", SeriesNumber=10, InstanceNumber=2, SOPInstanceUID="1.1.10.2"),
            new_instance(
                SeriesInstanceUID="1.1.10", SeriesNumber=10, InstanceNumber=1, SOPInstanceUID="1.1.10.1", Rows=512
            ),
            new_instance(
                SeriesInstanceUID="1.1.2",
                SeriesNumber="2",
                SOPInstanceUID="1.1.2.1",
                Modality="SR",
                SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11",
                RequestAttributesSequence=[request, other],
                PerformedProcedureStepStartDate="20200102",
                PerformedProcedureStepStartTime="0900",
                SeriesDescription="Bericht",
                ContentLabel="X",
            ),
            new_instance(SeriesInstanceUID="1.1.3", SOPInstanceUID="1.1.3.1", Modality="MR"),
            new_study("1.2", SeriesInstanceUID="1.1.2", StudyDate="20210101", PatientID="P2"),
        ],
        "reject",
    )
    return index


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("", {}, ["1.1.2", "1.1.2", "1.1.10", "1.1.3"]),
        ("", {"study_uid": "1.1"}, ["1.1.2", "1.1.10", "1.1.3"]),
        ("", {"study_uid": "1.9"}, []),
        ("Modality=CT", {}, ["1.1.2", "1.1.10"]),
        ("Modality=CT,MR", {"study_uid": "1.1"}, ["1.1.10", "1.1.3"]),
        ("SeriesInstanceUID=1.1.2", {}, ["1.1.2", "1.1.2"]),
        ("SeriesInstanceUID=1.1.2", {"study_uid": "1.1"}, ["1.1.2"]),
        ("SeriesNumber=010", {}, ["1.1.10"]),
        ("SeriesNumber=9223372036854775807", {}, []),
        ("SeriesDescription=BERICHT", {}, ["1.1.2"]),
        ("PerformedProcedureStepStartDate=20200102", {}, ["1.1.2"]),
        ("00400244=20200101-20200102&00400245=1000-0930", {}, ["1.1.2"]),
        ("00400244=20200101-20200102&00400245=1000-0800", {}, []),
        ("00400245=09", {}, ["1.1.2"]),
        ("RequestAttributesSequence.ScheduledProcedureStepID=SPS", {}, ["1.1.2"]),
        ("RequestAttributesSequence.ScheduledProcedureStepID=SPS&00400275.00401001=RP2", {}, []),
        ("00400275.00400009=SPS2&00400275.00401001=RP2", {}, ["1.1.2"]),
        ("PatientID=P2", {}, ["1.1.2"]),
        ("StudyDate=2021", None, None),
        ("StudyDate=20210101", {}, ["1.1.2"]),
        ("ModalitiesInStudy=SR&Modality=MR", {}, ["1.1.3"]),
        ("SOPInstanceUID=1", {}, ["1.1.2", "1.1.2", "1.1.10", "1.1.3"]),
    ],
)
def test_series_search(series: Index, find: Find, text: str, path: Any, expected: list[str] | None) -> None:
    if expected is not None:
        result = find(text, Level.SERIES, **path)
        assert [uid for _, uid, _ in result.uids] == expected
        assert result.total == len(expected)


def test_series_rows(series: Index, find: Find) -> None:
    row = find("", Level.SERIES, study_uid="1.1").rows[1]
    assert row["0020000D"]["Value"] == ["1.1"]
    assert row["00200011"] == {"vr": "IS", "Value": [10]}
    assert row["00201209"]["Value"] == [2]
    assert "00100020" not in row
    assert list(row) == sorted(row)
    assert "00100020" in find("", Level.SERIES).rows[0]
    assert "00100020" in find("includefield=PatientID", Level.SERIES, study_uid="1.1").rows[0]


def test_a_sequence_match_returns_the_matching_items(series: Index, find: Find) -> None:
    (row,) = find("RequestAttributesSequence.RequestedProcedureID=RP2", Level.SERIES).rows
    assert [item["00400009"]["Value"] for item in row["00400275"]["Value"]] == [["SPS2"]]
    assert len(find("", Level.SERIES, study_uid="1.1").rows[0]["00400275"]["Value"]) == 2


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("", {}, ["1.2.1.1", "1.1.2.1", "1.1.10.1", "1.1.10.2", "1.1.3.1"]),
        ("", {"study_uid": "1.1"}, ["1.1.2.1", "1.1.10.1", "1.1.10.2", "1.1.3.1"]),
        ("", {"study_uid": "1.1", "series_uid": "1.1.10"}, ["1.1.10.1", "1.1.10.2"]),
        ("", {"study_uid": "1.2", "series_uid": "1.1.10"}, []),
        ("SOPInstanceUID=1.1.10.2", {}, ["1.1.10.2"]),
        ("SOPClassUID=1.2.840.10008.5.1.4.1.1.88.11", {}, ["1.1.2.1"]),
        ("InstanceNumber=1", {"study_uid": "1.1"}, ["1.1.10.1"]),
        ("Rows=512", {}, ["1.1.10.1"]),
        ("ContentLabel=X", {}, ["1.1.2.1"]),
        ("Modality=MR", {}, ["1.1.3.1"]),
        ("PatientID=P2", {}, ["1.2.1.1"]),
        ('emptyvaluematching=true&ContentLabel=""&Modality=MR', {}, ["1.1.3.1"]),
    ],
)
def test_instance_search(series: Index, find: Find, text: str, path: Any, expected: list[str]) -> None:
    result = find(text, Level.INSTANCE, **path)
    assert [uid for _, _, uid in result.uids] == expected
    assert result.total == len(expected)


def test_instance_rows(series: Index, find: Find) -> None:
    row = find("", Level.INSTANCE, study_uid="1.1", series_uid="1.1.10").rows[0]
    assert row["00280010"]["Value"] == [512]
    assert (row["0020000D"]["Value"], row["0020000E"]["Value"]) == (["1.1"], ["1.1.10"])
    assert "00280011" not in row  # conditional: not stored
    assert "00080060" not in row
    assert "00080060" in find("", Level.INSTANCE, study_uid="1.1").rows[0]
    assert {"00080060", "00100020", "00201208"} <= set(find("", Level.INSTANCE).rows[0])


def test_fields_of_an_instance_come_from_its_document(series: Index, find: Find) -> None:
    (row,) = find("SOPInstanceUID=1.1.2.1&includefield=ContentLabel,SeriesDescription", Level.INSTANCE).rows
    assert row["00700080"]["Value"] == ["X"]
    assert row["0008103E"]["Value"] == ["Bericht"]
    (row,) = find("SOPInstanceUID=1.1.2.1&includefield=all", Level.INSTANCE, study_uid="1.1").rows
    assert {"00700080", "00400275", "00100020"} <= set(row)
    assert list(row) == sorted(row)


# Paging


def test_pages_join_to_the_whole_whatever_their_size(index: Index, find: Find) -> None:
    index.add([new_study(f"1.{n}", StudyDate="20200101", StudyTime="10") for n in range(1, 24)], "reject")
    whole = [study for study, _, _ in find().uids]
    assert whole == [f"1.{n}" for n in range(23, 0, -1)]  # one moment for all: the order of storing decides
    for size in (1, 5, 23, 50):
        pages = [find(f"limit={size}&offset={offset}") for offset in range(0, 23, size)]
        assert [study for page in pages for study, _, _ in page.uids] == whole
        assert [page.total for page in pages] == [23] * len(pages)
        assert [page.remaining for page in pages] == [max(0, 23 - n - size) for n in range(0, 23, size)]


@pytest.mark.parametrize(
    ("text", "rows", "total", "remaining"),
    [
        ("limit=0", 0, 5, 5),
        ("limit=2", 2, 5, 3),
        ("offset=4", 1, 5, 0),
        ("offset=5", 0, 5, 0),
        ("offset=999999999999999999", 0, 5, 0),
        ("PatientID=P*&limit=1", 1, 2, 1),
        ("PatientID=P*&limit=0", 0, 2, 2),
        ("PatientID=nobody&limit=0", 0, 0, 0),
        ("PatientID=P*&offset=7", 0, 2, 0),
    ],
)
def test_totals(studies: Index, find: Find, text: str, rows: int, total: int, remaining: int) -> None:
    result = find(text)
    assert (len(result.rows), result.total, result.remaining) == (rows, total, remaining)


def test_no_more_rows_than_the_server_allows(studies: Index, find: Find) -> None:
    result = find("limit=100", max_results=2)
    assert (len(result.rows), result.remaining) == (2, 3)


@pytest.mark.parametrize(
    ("text", "level", "statements"),
    [
        ("", Level.STUDY, 1),
        ("PatientID=P*", Level.STUDY, 2),  # whether the pattern fits few or many, first
        (
            "PatientName=*doe*&ModalitiesInStudy=CT&PhysiciansOfRecord=*",
            Level.STUDY,
            5,
        ),  # and if there are other groups
        ("fuzzymatching=true&PatientName=jon+doe", Level.STUDY, 3),
        ("limit=1", Level.STUDY, 2),
        ("PhysiciansOfRecord=baker&StudyDate=20200101-&StudyTime=10-", Level.STUDY, 1),
        ("RequestAttributesSequence.00400009=x", Level.SERIES, 1),
        ("includefield=all&Rows=3&ContentLabel=x", Level.INSTANCE, 1),
    ],
)
@on_sqlite
def test_a_search_takes_few_statements(studies: Index, find: Find, text: str, level: Level, statements: int) -> None:
    seen: list[str] = []
    studies._database.connection().set_trace_callback(seen.append)
    find(text, level)
    studies._database.connection().set_trace_callback(None)
    assert len(seen) == statements, seen


def test_long_values_are_matched_beyond_the_length_of_their_column(index: Index, find: Find) -> None:
    long = "x" * 300
    index.add([new_study("1.1", PatientID=long + "a"), new_study("1.2", PatientID=long + "b")], "reject")
    assert uids(find(f"PatientID={long}a")) == "1"
    assert uids(find(f"PatientID={long}*")) == "21"
    assert uids(find(f"PatientName={long}*")) == ""
    assert index.counts()["patients"] == 2
