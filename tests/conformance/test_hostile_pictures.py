"""Pictures of hostile instances, and hostile requests: refused with a reason, the server alive, its memory bounded."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from tests.conformance.conftest import Server
from tests.data import data_set_bytes, make_dataset, make_file
from tests.dicom.made import part10

JPEG, JPEG_LS, J2K, HTJ2K, JPEG_XL, RLE, DEFLATED_FRAMES, DEFLATED = (
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
PIXELS = (np.arange(64 * 64) % 251).astype("u1").reshape(64, 64)
MOST_MEMORY = 400 << 20  # bytes of any process of the server


def compressed(stream: bytes, transfer_syntax: str, side: int = 64) -> bytes:
    dataset = make_dataset(Rows=side, Columns=side, BitsAllocated=8, BitsStored=8, HighBit=7)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = J2K
    target = io.BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return part10(data_set_bytes(target.getvalue()), transfer_syntax)


def streams() -> dict[str, bytes]:
    return {
        JPEG: imagecodecs.jpeg8_encode(PIXELS),
        JPEG_LS: imagecodecs.jpegls_encode(PIXELS),
        J2K: imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k", reversible=True),
        HTJ2K: imagecodecs.htj2k_encode(PIXELS, reversible=True),
        JPEG_XL: imagecodecs.jpegxl_encode(PIXELS, lossless=True),
        RLE: struct.pack("<16L", 1, 64, *[0] * 14) + b"\x00\x07" * 4096,
    }


def boasting(transfer_syntax: str) -> bytes:
    """A codestream that says it holds 60000 × 60000 pixels."""
    stream = bytearray(streams()[transfer_syntax])
    if transfer_syntax in (J2K, HTJ2K):
        at = stream.index(b"\xff\x51") + 6
        stream[at : at + 8] = struct.pack(">LL", 60000, 60000)
    else:
        at = stream.index(b"\xff\xc0" if transfer_syntax == JPEG else b"\xff\xf7") + 5
        stream[at : at + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(stream)


def zeros(length: int) -> bytes:
    """So many zeros, deflated, made piece by piece."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [squeeze.compress(bytes(1 << 20)) for _ in range(length >> 20)]
    return b"".join(pieces) + squeeze.flush()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(
        tmp_path_factory.mktemp("hostile"),
        DICOMCLOUD_WORKERS="1",
        DICOMCLOUD_CODEC_WORKERS="1",
        DICOMCLOUD_MAX_INFLATED_BYTES="64 MiB",
    )
    running.start()
    yield running
    running.stop()


def store(server: Server, file: bytes) -> str:
    request = Request(f"{server.root}/studies", data=file, headers={"Content-Type": "application/dicom"})
    with urlopen(request, timeout=60) as answer:
        url: str = json.load(answer)["00081199"]["Value"][0]["00081190"]["Value"][0]
    return url


def fetch(url: str, accept: str = "image/jpeg") -> tuple[int, str]:
    """Status and message."""
    try:
        with urlopen(Request(url, headers={"Accept": accept}), timeout=120) as answer:
            answer.read()
            return answer.status, ""
    except HTTPError as error:
        return error.code, error.read().decode()


def is_well(server: Server) -> bool:
    """The server renders as before, and none of its processes has had more memory than it may."""
    url = store(server, make_file(make_dataset()))
    assert fetch(f"{url}/rendered")[0] == 200
    for peak in peaks(server):
        assert peak < MOST_MEMORY, f"{peak >> 20} MiB"
    return True


def peaks(server: Server) -> list[int]:
    """The most memory that each process of the server has had, in bytes; [] where the system does not tell."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "environ").read_bytes(), (folder / "status").read_text()
        except OSError:
            continue
        if f"DICOMCLOUD_DATA_DIR={server.data}".encode() in command and (peak := re.search(r"VmHWM:\s+(\d+)", status)):
            found.append(int(peak[1]) << 10)
    return found


def wrong(transfer_syntax: str) -> list[bytes]:
    """Codestreams that end early, are turned about, or are none at all."""
    stream = streams()[transfer_syntax]
    middle = len(stream) // 2
    return [stream[: middle - middle % 2], stream[:40] + stream[40:][::-1], b"no codestream at all"]


@pytest.mark.parametrize("transfer_syntax", list(streams()))
def test_corrupt_codestreams_are_refused_or_shown_but_never_fatal(server: Server, transfer_syntax: str) -> None:
    for stream in wrong(transfer_syntax):
        status, message = fetch(f"{store(server, compressed(stream, transfer_syntax))}/rendered")
        assert status in (200, 406)  # some decoders fill in what is missing at the end
        assert status == 200 or "frame" in message
    assert is_well(server)


@pytest.mark.parametrize("transfer_syntax", [JPEG, JPEG_LS, J2K, HTJ2K])
def test_codestreams_larger_than_they_are_declared_are_not_decoded(server: Server, transfer_syntax: str) -> None:
    status, message = fetch(f"{store(server, compressed(boasting(transfer_syntax), transfer_syntax))}/rendered")
    assert status == 406
    assert re.search("60000|no sense", message)
    assert is_well(server)


@pytest.mark.parametrize("transfer_syntax", [JPEG, J2K, RLE])
def test_instances_that_declare_too_much_are_not_decoded(server: Server, transfer_syntax: str) -> None:
    for side in (20000, 65535):
        file = compressed(streams()[transfer_syntax], transfer_syntax, side)
        status, message = fetch(f"{store(server, file)}/rendered")
        assert status == 406
        assert "pixels" in message or "larger" in message
    assert is_well(server)


def test_deflated_frames_give_no_more_than_they_should(server: Server) -> None:
    status, _ = fetch(f"{store(server, compressed(zeros(256 << 20), DEFLATED_FRAMES))}/rendered")
    assert status == 200  # the first 64 × 64 bytes are all that is inflated
    assert is_well(server)


def test_a_deflated_data_set_that_is_a_bomb_is_not_stored(server: Server) -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(
        data_set_bytes(make_file(make_dataset(PixelData=None))) + b"\xe0\x7f\x10\x00OW\0\0\0\0\0\x08"
    )
    bomb += b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(128)) + squeeze.flush()
    with pytest.raises(HTTPError) as refused:
        store(server, part10(bomb, DEFLATED))
    assert refused.value.code == 409
    assert is_well(server)


@pytest.mark.parametrize(
    "attributes",
    [{"Rows": 0}, {"Columns": 0}, {"Rows": None}, {"BitsAllocated": 0}, {"BitsAllocated": 12}, {"SamplesPerPixel": 77}]
    + [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": "2147483647", "Rows": 60000, "Columns": 60000}],
    ids=str,
)
def test_images_without_sense_are_refused_with_the_reason(server: Server, attributes: dict[str, Any]) -> None:
    url = store(server, make_file(make_dataset(**attributes)))
    status, message = fetch(f"{url}/rendered")
    assert status == 406
    assert re.search("sense|no Rows|whole frame|larger|bits", message), message
    assert is_well(server)


def decimal(tag: bytes, value: str) -> bytes:
    """An element with VR DS, whatever its value."""
    padded = value.encode() + b" " * (len(value) % 2)
    return tag + b"DS" + struct.pack("<H", len(padded)) + padded


@pytest.mark.parametrize("center", ["1e308", "-1e38", "9" * 64, "NaN"])
def test_absurd_windows_of_images_do_no_harm(server: Server, center: str) -> None:
    for width in ("0", "-5", "1e-30", "Infinity", "1e308"):
        file = make_file(make_dataset())
        at = file.index(b"\xe0\x7f\x10\x00OW")
        window = decimal(b"(\0P\x10", center) + decimal(b"(\0Q\x10", width)
        assert fetch(f"{store(server, file[:at] + window + file[at:])}/rendered")[0] == 200


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("viewport=31623,31623", "pixels"),
        ("viewport=1000000000,1", "65500"),
        ("viewport=65500,65500", "pixels"),
        ("viewport=99999999999999999999,1", "viewport"),
        ("window=1e99,1,linear", "window"),
        ("window=nan,1,linear", "window"),
        ("window=1,inf,linear", "window"),
        ("window=1,0,sigmoid", "window"),
        ("quality=100000000000000000000", "quality"),
        ("annotation=" + "x" * 5000, "annotation"),
    ],
    ids=lambda value: value[:40],
)
def test_absurd_requests_are_refused_by_name(server: Server, parameter: str, named: str) -> None:
    url = store(server, make_file(make_dataset()))
    status, message = fetch(f"{url}/rendered?{parameter}")
    if parameter.startswith(("window=1e99", "annotation=")) and status == 200:
        return  # a window may lie where it likes; an unknown annotation is left out with a warning
    assert status == 400
    assert named in message
    assert len(message) < 2000


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path) -> None:
    server = Server(tmp_path, DICOMCLOUD_WORKERS="1", DICOMCLOUD_MAX_IMAGE_PIXELS="1000")
    server.start()
    try:
        url = store(server, make_file(make_dataset()))  # 256 pixels
        assert fetch(f"{url}/rendered")[0] == 200
        status, message = fetch(f"{url}/rendered?viewport=40,40")
        assert (status, "1000" in message) == (400, True)
        large = store(server, compressed(streams()[JPEG], JPEG))  # 4096
        for tail in ("/rendered", "/thumbnail", "/frames/1/rendered"):
            status, message = fetch(large + tail)
            assert (status, "1000" in message) == (406, True)
    finally:
        server.stop()
