"""Measure the storage adapters beside the raw client libraries, and a frame out of the cache beside a folder.

    python -m benchmarks.object_stores            both emulators, about a minute
    python -m benchmarks.object_stores --json

The emulators are those of the tests (moto's S3 server, Azurite). Each operation is done by one after the other in turn,
on the same bytes; every answer is checked. The adapters run without their cache but for the frames.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from dicomcloud.storage import LocalSpace, Storage, open_storage
from tests.emulators import Azurite, Emulator, S3Server, install_azurite

SIZE = 528_000  # bytes: a CT slice
RANGE = (4000, 262_144)  # offset and bytes: half a megapixel of 8 bits
NUMBER = 60


@dataclass
class Figures:
    store: str
    operation: str
    who: str
    median_ms: float
    cpu_ms: float
    ratio: float | None = None  # of medians: this one through the first one


@contextmanager
def emulators(folder: Path) -> Iterator[Sequence[tuple[str, Emulator]]]:
    started: list[tuple[str, Emulator]] = [("S3", S3Server()), ("Azure", Azurite(install_azurite(), folder))]
    for _, emulator in started:
        emulator.start()
    try:
        yield started
    finally:
        for _, emulator in started:
            emulator.kill()


def raw_s3(emulator: S3Server) -> dict[str, Callable[[str, bytes], bytes | None]]:
    import obstore
    from obstore.store import S3Store

    bucket = emulator.new_storage().partition("@")[2].partition("/")[0]
    store = S3Store(
        bucket,
        endpoint=emulator.endpoint,
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        virtual_hosted_style_request=False,
        checksum_algorithm="SHA256",
        client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
    )
    first, count = RANGE
    return {
        "put": lambda key, data: obstore.put(store, key, data, use_multipart=False) and None,
        "get": lambda key, data: bytes(obstore.get(store, key).bytes()),
        "ranged get": lambda key, data: bytes(obstore.get_range(store, key, start=first, length=count)),
    }


def raw_boto3(emulator: S3Server) -> dict[str, Callable[[str, bytes], bytes | None]]:
    import boto3
    from botocore.config import Config

    bucket = emulator.new_storage().partition("@")[2].partition("/")[0]
    client: Any = boto3.client(
        "s3",
        endpoint_url=emulator.endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    wanted = f"bytes={RANGE[0]}-{sum(RANGE) - 1}"
    return {
        "put": lambda key, data: client.put_object(Bucket=bucket, Key=key, Body=data) and None,
        "get": lambda key, data: client.get_object(Bucket=bucket, Key=key)["Body"].read(),
        "ranged get": lambda key, data: client.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read(),
    }


def raw_azure(emulator: Azurite) -> dict[str, Callable[[str, bytes], bytes | None]]:
    from azure.storage.blob import BlobServiceClient

    name = emulator.new_storage().removeprefix("azure://").partition("/")[0]
    container = BlobServiceClient.from_connection_string(emulator.connection_string).get_container_client(name)
    return {
        "put": lambda key, data: container.upload_blob(key, data, validate_content=True) and None,
        "get": lambda key, data: container.download_blob(key).readall(),
        "ranged get": lambda key, data: container.download_blob(key, *RANGE).readall(),
    }


def adapter(storage: Storage) -> dict[str, Callable[[str, bytes], bytes | None]]:
    keys: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        incoming = storage.receive()
        incoming.write(data)
        (keys[name],) = storage.commit([incoming])
        storage.confirm([keys[name]])

    def get(name: str, data: bytes) -> bytes:
        with storage.open(keys[name]) as file:
            return file.read()

    return {"put": put, "get": get, "ranged get": lambda name, data: storage.read(keys[name], *RANGE)}


def compare(store: str, operation: str, sides: dict[str, Callable[[int], object]], number: int) -> Iterator[Figures]:
    """Time the sides in turn; the first one is what the others are compared with."""
    walls: dict[str, list[float]] = {who: [] for who in sides}
    processor = dict.fromkeys(sides, 0.0)
    for count in range(number + 3):
        for who, act in sides.items():
            wall, cpu = perf_counter(), process_time()
            act(count)
            if count >= 3:  # the first ones open connections
                walls[who].append(perf_counter() - wall)
                processor[who] += process_time() - cpu
    base = statistics.median(next(iter(walls.values())))
    for position, who in enumerate(sides):
        median = statistics.median(walls[who])
        ratio = median / base if position else None
        yield Figures(store, operation, who, median * 1000, processor[who] / number * 1000, ratio)


def clients(store: str, emulator: Any, folder: Path) -> Iterator[Figures]:
    storage = open_storage(emulator.new_storage(), LocalSpace(folder / store / "in", folder / store / "cache", 0))
    if store == "S3":
        sides = {"obstore": raw_s3(emulator), "adapter": adapter(storage), "boto3": raw_boto3(emulator)}
    else:
        sides = {"azure-storage-blob": raw_azure(emulator), "adapter": adapter(storage)}
    data = os.urandom(SIZE)
    expected = {"put": None, "get": data, "ranged get": data[RANGE[0] : sum(RANGE)]}
    for operation, right in expected.items():

        def checked(do: Callable[[str, bytes], bytes | None], right: bytes | None = right) -> Callable[[int], None]:
            def act(count: int) -> None:
                assert do(f"object-{count}", data) == right

            return act

        timed = {who: checked(does[operation]) for who, does in sides.items()}
        yield from compare(store, operation, timed, NUMBER)


def frames(store: str, emulator: Any, folder: Path) -> Iterator[Figures]:
    """A stored frame over HTTP (in process): from a folder, and from the cache in front of a store."""
    from app import create_app
    from dicomcloud.settings import load
    from tests.data import make_dataset, make_file

    dataset = make_dataset(Rows=512, Columns=512, PixelData=os.urandom(512 * 512 * 2))
    file = make_file(dataset)
    resource = f"/dicomweb/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
    path = f"{resource}/instances/{dataset.SOPInstanceUID}/frames/1"
    sides: dict[str, Callable[[int], object]] = {}
    for who, url in (("folder", ""), ("store, cached", emulator.new_storage())):
        settings = {"DATA_DIR": str(folder / f"{store}-{who}"), "STORAGE_URL": url, "MIN_FREE_BYTES": "0"}
        app = create_app(load(None, {f"DICOMCLOUD_{name}": value for name, value in settings.items()}))
        client = app.test_client()
        assert client.post("/dicomweb/studies", data=file, content_type="application/dicom").status_code == 200

        def act(count: int, client: Any = client) -> None:
            answer = client.get(path, headers={"Accept": 'multipart/related; type="application/octet-stream"'})
            assert dataset.PixelData in answer.data

        sides[who] = act
    yield from compare(store, "frame, 0.5 MB", sides, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as name, emulators(Path(name)) as started:
        for store, emulator in started:
            for measured in (clients, frames):
                found += measured(store, emulator, Path(name))
    if as_json:
        json.dump([asdict(each) for each in found], sys.stdout, indent=2)
        return
    print("| store | operation | | median ms | CPU ms | ratio |\n|---|---|---|---|---|---|")
    for each in found:
        ratio = f"{each.ratio:.2f}" if each.ratio else ""
        print(f"| {each.store} | {each.operation} | {each.who} | {each.median_ms:.2f} | {each.cpu_ms:.2f} | {ratio} |")


if __name__ == "__main__":
    main()
