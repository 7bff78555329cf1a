"""The frames that the OHIF viewer asks for: as stored where it can decode them, else decoded by this server."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from flask.testing import FlaskClient
from PIL import Image

from dicomcloud.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from dicomcloud.web.ohif_viewer import ACCEPT, DECODED
from tests.data import make_dataset, make_file, sample_files
from tests.dicom.test_pixel_data import LOSSLESS, ROOT, image_file, picture
from tests.web.test_wado_rs import parts, store

ELE = "1.2.840.10008.1.2.1"
OCTETS = f"application/octet-stream; transfer-syntax={ELE}"
COLOUR = {"SamplesPerPixel": 3, "BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}


def frame_for_the_viewer(client: FlaskClient, file: bytes) -> tuple[str, bytes]:
    (url,) = store(client, file)
    answer = client.get(f"{url}/frames/1", headers={"Accept": ACCEPT})
    assert answer.status_code == 200, answer.text[:300]
    ((headers, data),) = parts(answer)
    return headers["Content-Type"], data


def own(**attributes: Any) -> dict[str, Any]:
    """Attributes with UIDs of their own, which `image_file` lacks."""
    made = make_dataset()
    uids = {name: made[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    return {**uids, "PatientID": "P1", **attributes}


def test_all_that_the_viewer_decodes_is_known_by_its_media_type() -> None:
    for media_type, uids in DECODED.items():
        assert {TRANSFER_SYNTAXES[uid].media_type for uid in uids} == {media_type}


@pytest.mark.parametrize("tail", [tail for tail in LOSSLESS if f"{ROOT}{tail}" in sum(DECODED.values(), ())])
def test_frames_that_the_viewer_decodes_come_as_they_are_stored(client: FlaskClient, tail: str) -> None:
    frame = LOSSLESS[tail](picture())
    kind, data = frame_for_the_viewer(client, image_file(ROOT + tail, [frame], **own()))
    assert kind == f"{TRANSFER_SYNTAXES[ROOT + tail].media_type}; transfer-syntax={ROOT}{tail}"
    assert data.rstrip(b"\0") == frame.rstrip(b"\0")


@pytest.mark.parametrize("tail", [tail for tail in LOSSLESS if f"{ROOT}{tail}" not in sum(DECODED.values(), ())])
@pytest.mark.parametrize("signed", [0, 1])
def test_frames_that_it_cannot_decode_come_decoded(client: FlaskClient, tail: str, signed: int) -> None:
    pixels = picture(top=65536)
    file = image_file(ROOT + tail, [LOSSLESS[tail](pixels)], **own(PixelRepresentation=signed))
    assert frame_for_the_viewer(client, file) == (OCTETS, pixels.tobytes())


#: What its viewer of whole slides says, which names first what costs most to make.
OF_SLIDES = ",".join(
    f'multipart/related; type="{media_type}"; transfer-syntax={syntax}'
    for media_type, syntax in (
        ("image/jls", f"{ROOT}.4.80"),
        ("image/jp2", f"{ROOT}.4.90"),
        ("image/jpx", f"{ROOT}.4.92"),
        ("application/octet-stream", "*"),
        ("image/jpeg", f"{ROOT}.4.50"),
    )
)


@pytest.mark.parametrize(("tail", "given"), [(".4.90", ".4.90"), (".4.50", ".4.50"), (".1", ".1"), (".4.110", ".4.80")])
def test_tiles_of_slides_are_encoded_only_where_they_must_be(client: FlaskClient, tail: str, given: str) -> None:
    pixels = picture(kind="u1", top=256)
    encode = LOSSLESS | {".4.50": imagecodecs.jpeg8_encode, ".1": lambda a: a.tobytes()}
    file = image_file(ROOT + tail, [encode[tail](pixels)], **own(BitsAllocated=8, BitsStored=8))
    (url,) = store(client, file)
    answer = client.get(f"{url}/frames/1", headers={"Accept": OF_SLIDES})
    ((headers, _),) = parts(answer)
    assert headers["Content-Type"].endswith(f"; transfer-syntax={ROOT}{given}")


def test_uncompressed_frames_come_uncompressed(client: FlaskClient) -> None:
    dataset = make_dataset()
    assert frame_for_the_viewer(client, make_file(dataset)) == (OCTETS, dataset.PixelData)


@pytest.mark.parametrize("photometric", ["RGB", "XYB"])
def test_lossy_colours_in_jpeg_xl_come_as_rgb(client: FlaskClient, photometric: str) -> None:
    colours = np.full((8, 16, 3), (200, 40, 90), "u1")
    frame = imagecodecs.jpegxl_encode(colours, distance=1)
    attributes = own(**COLOUR, PhotometricInterpretation=photometric)
    kind, data = frame_for_the_viewer(client, image_file(ROOT + ".4.112", [frame], **attributes))
    assert kind == OCTETS
    assert np.abs(np.frombuffer(data, "u1").reshape(8, 16, 3).astype(int) - (200, 40, 90)).max() < 8


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "RGB"])
def test_recompressed_jpeg_comes_as_the_jpeg_that_it_was(client: FlaskClient, photometric: str) -> None:
    stream = BytesIO()
    Image.fromarray(np.full((8, 16, 3), (200, 40, 90), "u1")).save(stream, "JPEG", quality=90)
    frame = imagecodecs.jpegxl_encode_jpeg(stream.getvalue())
    attributes = own(**COLOUR, PhotometricInterpretation=photometric, LossyImageCompression="01")
    kind, data = frame_for_the_viewer(client, image_file(ROOT + ".4.111", [frame], **attributes))
    assert (kind, data) == (f"image/jpeg; transfer-syntax={ROOT}.4.50", stream.getvalue())


def test_what_is_no_recompressed_jpeg_is_still_shown(client: FlaskClient) -> None:
    grey = np.full((8, 16), 90, "u1")
    frame = imagecodecs.jpegxl_encode(grey, lossless=True)  # made from pixels, whatever its transfer syntax says
    attributes = own(BitsAllocated=8, BitsStored=8)
    kind, data = frame_for_the_viewer(client, image_file(ROOT + ".4.111", [frame], **attributes))
    assert kind == f"image/jpeg; transfer-syntax={ROOT}.4.50"
    assert np.abs(imagecodecs.jpeg8_decode(data).astype(int) - 90).max() < 4


@pytest.mark.skipif(not sample_files(), reason="needs ../shared/samples")
def test_the_sample_in_jpeg_xl_comes_decoded(client: FlaskClient) -> None:
    (path,) = (path for path in sample_files() if path.name == "derived_public-jxl-lossless.dcm")
    about = pydicom.dcmread(path, stop_before_pixels=True)
    kind, data = frame_for_the_viewer(client, path.read_bytes())
    assert (kind, len(data)) == (OCTETS, about.Rows * about.Columns * about.SamplesPerPixel)
