"""What storing costs in its forms, and what de-identification and events add: CPU and wall time for each CT instance.

    .venv/bin/python -m benchmarks.bench_store_forms [--rounds 7] [--instances 50]

Everything runs in this process, through the application and without a socket, over a temporary folder (`TMPDIR`). Each
round stores new instances; the table gives the median. The instance is a CT image of 512 × 512 with the 170 attributes
of pydicom's CT_small.dcm, 0.5 MB.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from app import create_app
from dicomcloud.dicom.deidentification import Deidentifier, parse_options
from dicomcloud.setting_kinds import ANONYMIZER_OPTIONS
from dicomcloud.settings import load

EVERYTHING = [name for name in ANONYMIZER_OPTIONS if name not in ("CleanPixelData", "RetainLongFullDates")]


def ct_image() -> pydicom.Dataset:
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))

    dataset.Rows = dataset.Columns = 512
    pixels = np.random.default_rng(1).integers(0, 2000, 512 * 512, dtype="<i2")
    dataset.PixelData = pixels.tobytes()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def written(dataset: pydicom.Dataset) -> bytes:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def binary(dataset: pydicom.Dataset, count: int) -> tuple[str, bytes]:
    parts = [b"--b\r\nContent-Type: application/dicom\r\n\r\n" + written(dataset) + b"\r\n" for _ in range(count)]
    return 'multipart/related; type="application/dicom"; boundary=b', b"".join(parts) + b"--b--\r\n"


def as_json(dataset: pydicom.Dataset, count: int) -> tuple[str, bytes]:
    documents, bulk = [], []
    for number in range(count):
        dataset.SOPInstanceUID = generate_uid()
        document: dict[str, Any] = dataset.to_json_dict(bulk_data_threshold=1 << 30)
        document["7FE00010"] = {"vr": "OW", "BulkDataURI": f"bulk/{number}"}
        documents.append(document)
        head = f"--b\r\nContent-Type: application/octet-stream\r\nContent-Location: bulk/{number}\r\n\r\n"
        bulk.append(head.encode() + dataset.PixelData + b"\r\n")
    first = b"--b\r\nContent-Type: application/dicom+json\r\n\r\n" + orjson.dumps(documents) + b"\r\n"
    return 'multipart/related; type="application/dicom+json"; boundary=b', first + b"".join(bulk) + b"--b--\r\n"


def one_file(dataset: pydicom.Dataset, _: int) -> tuple[str, bytes]:
    return "application/dicom", written(dataset)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def store(settings: dict[str, str], make: Callable[..., tuple[str, bytes]], count: int, rounds: int) -> tuple[str, str]:
    """Median milliseconds for each instance: wall, CPU."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"DICOMCLOUD_DATA_DIR": folder, "DICOMCLOUD_LOG_LEVEL": "error", "DICOMCLOUD_MIN_FREE_BYTES": "0"}
        app = create_app(
            load(None, environment | {f"DICOMCLOUD_{key.upper()}": text for key, text in settings.items()})
        )
        client, dataset, times = app.test_client(), ct_image(), []
        for _ in range(rounds + 1):
            kind, body = make(dataset, count)

            def send(kind: str = kind, body: bytes = body) -> None:
                answer = client.post("/dicomweb/studies", data=body, content_type=kind)
                assert answer.status_code in (200, 202), answer.text

            times.append(timed(send))
        app.extensions["dicomcloud"].archive.close()
    return per_instance(times[1:], count)


def deidentify(options: list[str], count: int, rounds: int) -> tuple[str, str]:
    deidentifier = Deidentifier(parse_options(options), b"sixteen secret bytes")
    file, times = written(ct_image()), []
    for _ in range(rounds + 1):

        def copy() -> None:
            for _ in range(count):
                deidentifier.deidentify(io.BytesIO(file), io.BytesIO())

        times.append(timed(copy))
    return per_instance(times[1:], count)


def per_instance(times: list[tuple[float, float]], count: int) -> tuple[str, str]:
    wall, cpu = (statistics.median(column) / count * 1000 for column in zip(*times, strict=True))
    return f"{wall:.2f}", f"{cpu:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--instances", type=int, default=50)
    asked = parser.parse_args()
    count, rounds = asked.instances, asked.rounds
    off = {"change_feed": "off"}
    hook = {"webhooks": "http://127.0.0.1:9/", "webhook_secret": "sixteen characters"}
    rows = [
        (f"STOW of {count}, DICOM files", store({}, binary, count, rounds)),
        (f"STOW of {count}, JSON and bulk data", store({}, as_json, count, rounds)),
        ("STOW of one", store({}, one_file, 1, rounds * 10)),
        ("… without the change feed", store(off, one_file, 1, rounds * 10)),
        ("… with a webhook that is away", store(hook, one_file, 1, rounds * 10)),
        ("De-identify, Basic Profile", deidentify([], count, rounds)),
        ("De-identify, all options", deidentify(EVERYTHING, count, rounds)),
    ]
    print("| for each instance | wall, ms | CPU, ms |\n|---|---|---|")
    for name, (wall, cpu) in rows:
        print(f"| {name} | {wall} | {cpu} |")


if __name__ == "__main__":
    main()
