"""Transfer syntaxes: what they are called, which media type their frames have, which of them are read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class CannotTranscode(Exception):
    """The instance or frame cannot be given in the transfer syntax asked for; the message is for people."""


class CannotDecode(CannotTranscode):
    """The stored pixel data or data set cannot be read."""


class CannotEncode(CannotTranscode):
    """The pixel data, or their absence, do not suit the transfer syntax asked for; or nothing here writes it."""


IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_XL_RECOMPRESSION: Final = "1.2.840.10008.1.2.4.111"


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """A transfer syntax (PS3.5 Annex A) and the media type of its frames (PS3.18 Tables 8.7.3-2 to 8.7.3-6)."""

    uid: str
    name: str
    media_type: str
    encapsulated: bool
    lossless: bool  # cannot lose anything; False where the syntax allows both
    video: bool = False
    decodable: bool = True
    encodable: bool = False
    explicit: bool = True
    little_endian: bool = True
    deflated: bool = False  # the whole data set (PS3.5 A.5), not the frames
    codec: str = ""


def _table() -> dict[str, TransferSyntax]:
    octets = "application/octet-stream"
    root = "1.2.840.10008.1.2"
    native = (
        TransferSyntax(root, "Implicit VR Little Endian", octets, False, True, explicit=False),
        TransferSyntax(root + ".1", "Explicit VR Little Endian", octets, False, True, encodable=True),
        TransferSyntax(
            root + ".1.99", "Deflated Explicit VR Little Endian", octets, False, True, encodable=True, deflated=True
        ),
        TransferSyntax(root + ".2", "Explicit VR Big Endian", octets, False, True, little_endian=False),
    )
    # UID after the root, name, media type, lossless, codec ("" where nothing here decodes it)
    encapsulated = (
        (".1.98", "Encapsulated Uncompressed Explicit VR Little Endian", octets, True, "none"),
        (".4.50", "JPEG Baseline (Process 1)", "image/jpeg", False, "jpeg"),
        (".4.51", "JPEG Extended (Process 2 & 4)", "image/jpeg", False, "jpeg"),
        # Retired, in no table of PS3.18; old archives hold them.
        (".4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 & 8)", "image/jpeg", False, "jpeg"),
        (".4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 & 12)", "image/jpeg", False, "jpeg"),
        (".4.57", "JPEG Lossless, Non-Hierarchical (Process 14)", "image/jpeg", True, "jpeg-lossless"),
        (".4.70", "JPEG Lossless, First-Order Prediction (Process 14 SV1)", "image/jpeg", True, "jpeg-lossless"),
        (".4.80", "JPEG-LS Lossless", "image/jls", True, "jpeg-ls"),
        (".4.81", "JPEG-LS Lossy (Near-Lossless)", "image/jls", False, "jpeg-ls"),
        (".4.90", "JPEG 2000 (Lossless Only)", "image/jp2", True, "jpeg-2000"),
        (".4.91", "JPEG 2000", "image/jp2", False, "jpeg-2000"),
        (".4.92", "JPEG 2000 Part 2 Multi-component (Lossless Only)", "image/jpx", True, ""),
        (".4.93", "JPEG 2000 Part 2 Multi-component", "image/jpx", False, ""),
        (".4.110", "JPEG XL Lossless", "image/jxl", True, "jpeg-xl"),
        (".4.111", "JPEG XL JPEG Recompression", "image/jxl", False, "jpeg-xl"),
        (".4.112", "JPEG XL", "image/jxl", False, "jpeg-xl"),
        (".4.201", "High-Throughput JPEG 2000 (Lossless Only)", "image/jphc", True, "jpeg-2000"),
        (".4.202", "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", "image/jphc", True, "jpeg-2000"),
        (".4.203", "High-Throughput JPEG 2000", "image/jphc", False, "jpeg-2000"),
        (".5", "RLE Lossless", "image/dicom-rle", True, "rle"),
        (".8.1", "Deflated Image Frame Compression", "application/x-deflate", True, "deflate"),
    )
    video = (
        (".4.100", "MPEG2 Main Profile / Main Level", "video/mpeg"),
        (".4.100.1", "Fragmentable MPEG2 Main Profile / Main Level", "video/mpeg"),
        (".4.101", "MPEG2 Main Profile / High Level", "video/mpeg"),
        (".4.101.1", "Fragmentable MPEG2 Main Profile / High Level", "video/mpeg"),
        (".4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
        (".4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
        (".4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        (".4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
        (".4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        (".4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", "video/mp4"),
        (".4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        (".4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", "video/mp4"),
        (".4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        (".4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
        (".4.107", "HEVC/H.265 Main Profile / Level 5.1", "video/H265"),
        (".4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", "video/H265"),
    )
    written = {".4.50", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".4.201", ".5"}  # see `codecs.ENCODINGS`
    rows = [
        *native,
        *(
            TransferSyntax(
                root + tail,
                name,
                media,
                True,
                lossless,
                decodable=bool(codec),
                encodable=tail in written,
                codec=codec,
            )
            for tail, name, media, lossless, codec in encapsulated
        ),
        *(
            TransferSyntax(root + tail, name, media, True, False, video=True, decodable=False)
            for tail, name, media in video
        ),
    ]
    return {row.uid: row for row in rows}


TRANSFER_SYNTAXES: Final[Mapping[str, TransferSyntax]] = _table()


def leaves_as_stored(uid: str) -> bool:
    """Whether a web service may send data in this transfer syntax: Implicit VR and Big Endian never leave.

    PS3.18 8.7.3.4. Syntaxes this server does not know leave as they came: it cannot make anything else of them.
    """
    return uid not in (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
