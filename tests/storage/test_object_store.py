"""What only object stores have: the cache on this machine, outages, check sums, presigned URLs."""

from __future__ import annotations

import logging
import os
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import md5, sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import boto3
import pytest
from azure.storage.blob import BlobServiceClient

from dicomcloud.errors import Unavailable
from dicomcloud.storage import FileMissing, LocalSpace, Storage, open_storage
from tests.emulators import ACCOUNT, Azurite, S3Server, Wire

MIB = 1 << 20
Through = Callable[[str], tuple[str, Wire]]


@pytest.fixture(params=["s3", "azure"])
def emulator(request: pytest.FixtureRequest) -> S3Server | Azurite:
    made: S3Server | Azurite = request.getfixturevalue("s3_server" if request.param == "s3" else "azurite")
    return made


@pytest.fixture
def local(tmp_path: Path) -> LocalSpace:
    return LocalSpace(tmp_path / "incoming", tmp_path / "cache", 64 * MIB)


def put(storage: Storage, *contents: bytes) -> list[str]:
    incoming = []
    for content in contents:
        incoming.append(storage.receive())
        incoming[-1].write(content)
    keys = storage.commit(incoming)
    storage.confirm(keys)
    return keys


def kept(local: LocalSpace, number: int) -> bool:
    """Whether the cache comes to hold so many entries."""
    deadline = time.monotonic() + 10
    while len(list(local.cache.glob("*/*.bin"))) != number and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(list(local.cache.glob("*/*.bin"))) == number and not list(local.cache.glob("spool/*"))


def other_node(url: str, tmp_path: Path) -> tuple[Storage, LocalSpace]:
    local = LocalSpace(tmp_path / "other" / "incoming", tmp_path / "other" / "cache", 64 * MIB)
    return open_storage(url, local), local


def test_what_was_stored_here_is_read_without_a_way_to_the_store(
    emulator: Any, local: LocalSpace, wired: Through
) -> None:
    url, wire = wired(emulator.new_storage())
    storage = open_storage(url, local)
    (key,) = put(storage, b"0123456789")
    assert kept(local, 1)
    wire.cut()
    assert storage.read(key, 3, 4) == b"3456"
    with storage.open(key) as file:
        assert file.read() == b"0123456789"


def test_what_another_node_stored_is_fetched_once(
    emulator: Any, local: LocalSpace, wired: Through, tmp_path: Path
) -> None:
    url, wire = wired(emulator.new_storage())
    content = os.urandom(3 * MIB)
    (key,) = put(open_storage(url, local), content)
    storage, there = other_node(url, tmp_path)
    with storage.open(key) as file:
        file.read(100)
    assert kept(there, 0)  # not read to its end
    with storage.open(key) as file:
        assert b"".join(iter(lambda: file.read(MIB), b"")) == content
    assert kept(there, 1)
    fetched = wire.received
    with storage.open(key) as file:
        assert file.read() == content
    assert wire.received == fetched


def test_a_range_is_fetched_once_and_alone(emulator: Any, local: LocalSpace, wired: Through, tmp_path: Path) -> None:
    url, wire = wired(emulator.new_storage())
    content = os.urandom(20 * MIB)
    (key,) = put(open_storage(url, local), content)
    storage, there = other_node(url, tmp_path)
    before = wire.received
    assert storage.read(key, 7 * MIB + 1, 1000) == content[7 * MIB + 1 :][:1000]
    assert wire.received - before < 8000
    assert kept(there, 1)
    wire.cut()
    assert storage.read(key, 7 * MIB + 1, 1000) == content[7 * MIB + 1 :][:1000]


def test_the_cache_keeps_to_its_size_and_may_be_deleted(emulator: Any, tmp_path: Path) -> None:
    local = LocalSpace(tmp_path / "incoming", tmp_path / "cache", 4 * MIB)
    storage = open_storage(emulator.new_storage(), local)
    keys = put(storage, *(os.urandom(MIB) for _ in range(12)))
    deadline = time.monotonic() + 10
    while list(local.spool.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0 < sum(path.stat().st_size for path in local.cache.glob("*/*.bin")) <= 5 * MIB
    for path in local.cache.glob("*/*.bin"):
        path.unlink()
    assert all(len(storage.read(key, 0, 2 * MIB)) == MIB for key in keys)


def test_a_deleted_file_leaves_the_cache(emulator: Any, local: LocalSpace) -> None:
    storage = open_storage(emulator.new_storage(), local)
    (key,) = put(storage, b"abc")
    assert kept(local, 1)
    storage.delete(key)
    assert kept(local, 0)
    with pytest.raises(FileMissing):
        storage.open(key)


def test_a_fresh_file_comes_from_the_store_itself(emulator: Any, local: LocalSpace, tmp_path: Path) -> None:
    url = emulator.new_storage()
    storage = open_storage(url, local)
    (key,) = put(storage, b"abc")
    assert kept(local, 1)
    other_node(url, tmp_path)[0].delete(key)
    with storage.open(key) as file:
        assert file.read() == b"abc"
    with pytest.raises(FileMissing):
        storage.open(key, fresh=True)


def test_while_the_store_is_away_everything_that_needs_it_says_so(
    emulator: Any, tmp_path: Path, wired: Through, caplog: pytest.LogCaptureFixture
) -> None:
    url, wire = wired(emulator.new_storage())
    storage = open_storage(url, LocalSpace(tmp_path / "incoming", tmp_path / "cache", 0))
    (key,) = put(storage, b"abc")
    wire.cut()
    incoming = storage.receive()
    incoming.write(b"new")
    with caplog.at_level(logging.ERROR), pytest.raises(Unavailable) as raised:
        storage.commit([incoming])
    incoming.discard()
    assert (raised.value.status, raised.value.headers["Retry-After"].isdigit()) == (503, True)
    assert "secret" not in caplog.text + str(raised.value)
    for attempt in (lambda: storage.read(key, 0, 1), lambda: storage.check(), lambda: list(storage.files())):
        with pytest.raises(Unavailable):
            attempt()
    with pytest.raises(Unavailable):  # it cannot yet be undone either
        storage.unconfirmed()
    wire.mend()
    assert storage.unconfirmed() == []
    assert [file.key for file in storage.files()] == [key]
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_moment_without_the_store_is_not_noticed(emulator: Any, local: LocalSpace, wired: Through) -> None:
    import threading

    url, wire = wired(emulator.new_storage())
    storage = open_storage(url, local)
    put(storage, b"a connection is open")
    wire.cut()
    timer = threading.Timer(0.15, wire.mend)
    timer.start()
    (key,) = put(storage, b"abc")
    timer.join()
    assert storage.size(key) == 3


def test_a_bucket_that_is_not_there_is_no_missing_file(emulator: Any, local: LocalSpace) -> None:
    url = (
        emulator.new_storage().replace("://bucket-", "://no-").replace("@bucket-", "@no-").replace("container-", "no-")
    )
    storage = open_storage(url, local)
    with pytest.raises(Unavailable):  # else `verify --repair` would take the rows of all files for stale
        storage.read("0000/000/00000000000000000000000000.dcm", 0, 1)
    with pytest.raises(Unavailable):
        list(storage.files())
    incoming = storage.receive()
    incoming.write(b"abc")
    with pytest.raises(Unavailable):
        storage.commit([incoming])


def test_a_presigned_url_gives_the_file_to_anybody_for_a_time(emulator: Any, local: LocalSpace) -> None:
    storage = open_storage(emulator.new_storage(), local)
    (key,) = put(storage, b"abc")
    url = storage.presigned_url(key, 60)
    assert url is not None
    with urlopen(url, timeout=10) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"abc", "application/dicom")
    assert "secret" not in url


def test_a_presigned_url_leads_where_clients_reach_the_store(emulator: Any, local: LocalSpace) -> None:
    public = "https://images.example" + (f"/{ACCOUNT}" if isinstance(emulator, Azurite) else "")
    storage = open_storage(emulator.new_storage(f"&public_endpoint={quote(public, safe='')}"), local)
    (key,) = put(storage, b"abc")
    url = storage.presigned_url(key, 60)
    assert url is not None
    assert url.startswith(f"{public}/")
    assert f"/some/prefix/{key}?" in url


def test_s3_is_given_the_sha_256_of_what_is_sent(s3_server: S3Server, local: LocalSpace) -> None:
    url = s3_server.new_storage()
    storage = open_storage(url, local)
    large = os.urandom(17 * MIB)
    small_key, large_key = put(storage, b"abc", large)
    client: Any = boto3.client(
        "s3", endpoint_url=s3_server.endpoint, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    bucket = url.partition("@")[2].partition("/")[0]
    found = client.head_object(Bucket=bucket, Key=f"some/prefix/{small_key}", ChecksumMode="ENABLED")
    sent = found["ResponseMetadata"]["HTTPHeaders"]["x-amz-content-sha256"]
    assert sent == sha256(b"abc").hexdigest()
    parts = b"".join(sha256(large[at : at + 8 * MIB]).digest() for at in (0, 8 * MIB, 16 * MIB))
    found = client.head_object(Bucket=bucket, Key=f"some/prefix/{large_key}", ChecksumMode="ENABLED")
    assert found["ChecksumSHA256"].partition("-")[0] == b64encode(sha256(parts).digest()).decode()


def test_azure_is_given_the_md5_of_what_is_sent(azurite: Azurite, local: LocalSpace, wired: Through) -> None:
    url = azurite.new_storage()
    storage = open_storage(url, local)
    (key,) = put(storage, b"abc")
    container = url.removeprefix("azure://").partition("/")[0]
    client = BlobServiceClient.from_connection_string(azurite.connection_string)
    blob = client.get_blob_client(container, f"some/prefix/{key}").get_blob_properties()
    assert bytes(blob.content_settings.content_md5 or b"") == md5(b"abc").digest()


def test_azure_is_reached_by_a_shared_access_signature_which_cannot_sign(azurite: Azurite, local: LocalSpace) -> None:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    from tests.emulators import ACCOUNT_KEY

    container = azurite.new_storage().removeprefix("azure://").partition("/")[0]
    rights = ContainerSasPermissions(read=True, write=True, create=True, delete=True, list=True)
    until = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(ACCOUNT, container, ACCOUNT_KEY, permission=rights, expiry=until)
    endpoint = quote(f"{azurite.endpoint}/{ACCOUNT}", safe="")
    url = f"azure://{container}?account={ACCOUNT}&endpoint={endpoint}&sas={quote(sas, safe='')}"
    storage = open_storage(url, local)
    (key,) = put(storage, b"abc")
    assert [file.key for file in storage.files()] == [key]
    assert storage.presigned_url(key, 60) is None


def test_azure_is_reached_by_the_connection_string_of_the_environment(
    azurite: Azurite, local: LocalSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string)
    storage = open_storage(azurite.new_storage().partition("?")[0], local)
    assert storage.size(put(storage, b"abc")[0]) == 3
