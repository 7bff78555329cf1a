"""What `doctor` looks at beside the index: settings, storage, disks, clock, proxies, codecs."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..diagnosis import Diagnosis, fault, good, warn
from ..errors import Unavailable
from ..setting_kinds import unix_socket
from .program import Program

_LITTLE: Final = 5 << 30  # bytes: less free space than this, or a twentieth of the disk, deserves a word
_NETWORK_DISKS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "afs", "glusterfs"})


def check_settings(program: Program) -> Iterator[Diagnosis]:
    """Settings that are valid and nevertheless unwise."""
    settings = program.settings
    yield good("settings", f"{len(settings.sources)} set, the others at their defaults")
    if settings.authentication == "none" and unix_socket(settings.bind) is None:
        yield warn(
            "authentication",
            "nobody is asked who they are (authentication = none)",
            "See that nobody but a proxy that asks for passwords reaches the server.",
        )
    if not settings.min_free_bytes:
        yield warn("min_free_bytes", "nothing keeps the disk from running full", "Set it to some gigabytes.")
    if settings.public_url.startswith("http://"):
        yield warn("public_url", "images travel without encryption", "Give it https, by a proxy with TLS.")


def check_storage(program: Program) -> Iterator[Diagnosis]:
    """The files: there, writable, on a suitable disk, closed to others."""
    settings = program.settings
    with program.archive(migrated=False) as archive:
        if archive.pending_migrations():
            return  # the index cannot be asked yet, which has been said
        archive.check_storage()
        health = archive.health()
        if "storage" in health:
            yield fault("storage", health["storage"], "See whether its disk is mounted and this user may write there.")
        else:
            yield good("storage", "it can be written, and the files of the index are there")
        left = archive.upkeep.unfinished()
    if left:
        yield warn("unfinished", f"{left} files wait to be removed or to get their rows", "The next start does it.")
    kind = _file_system(settings.data_path)
    if kind in _NETWORK_DISKS:
        yield fault(
            "data directory",
            f"{settings.data_path} lies on a network share ({kind}), on which SQLite may lose data",
            "Use a local disk for data_dir; with the index in SQL Server, only the files may lie on a share.",
        )
    if os.name != "nt" and settings.data_path.exists():
        mode = stat.S_IMODE(settings.data_path.stat().st_mode)
        if mode & 0o007:
            yield warn(
                "data directory",
                f"everybody on this computer may look into {settings.data_path} ({mode:o})",
                f"chmod o= {settings.data_path}",
            )


def check_object_store(program: Program) -> Iterator[Diagnosis]:
    """An object store: an object is written there, read and deleted, as stores and deletes do."""
    settings = program.settings
    if settings.resolved_storage_url.startswith("file://"):
        return
    with program.archive(migrated=False) as archive:
        done = []
        try:
            for step in archive.try_storage():
                done.append(step)
        except (OSError, Unavailable) as error:
            failed = next(step for step in ("written", "read", "deleted") if step not in done)
            reason = getattr(error, "detail", "") or str(error)
            yield fault("object store", f"an object could not be {failed}: {reason}", _OBJECT_STORE)
        else:
            yield good("object store", "an object was written, read and deleted")


_OBJECT_STORE: Final = (
    "See whether storage_url names the right bucket or container, and whether its credentials may read, write, list "
    "and delete there (docs/object-storage.md)."
)


def _file_system(path: Path) -> str:
    """The type of the file system of a path, '' where it cannot be told."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, name = line.split()[:3]
            if path.is_relative_to(mount.replace("\\040", " ")) and len(mount) > len(best):
                best, kind = mount, name
    return kind


def check_disk_space(program: Program) -> Iterator[Diagnosis]:
    """Room for what comes."""
    settings = program.settings
    with program.archive(migrated=False) as archive:
        free, total = archive.disk_space()
    room = f"{free / 1e9:.1f} GB of {total / 1e9:.1f} GB are free"
    if free < settings.min_free_bytes:
        yield fault("disk space", f"{room}, less than min_free_bytes: nothing is stored any more", "Make room.")
    elif free < max(_LITTLE, total // 20):
        yield warn("disk space", room, "Make room soon; `retention` lists what may go.")
    else:
        yield good("disk space", room)


def check_clock(program: Program) -> Iterator[Diagnosis]:
    """A clock that goes wrong gives wrong times in audit trail, share links and tokens."""
    now = time.time()
    written = [path.stat().st_mtime for path in program.settings.data_path.glob("index.sqlite3*")]
    newest = max(written, default=0.0)
    if now < 1_750_000_000:
        yield fault("clock", f"it says {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC", "Set it.")
    elif newest > now + 300:
        yield fault("clock", f"it is {newest - now:.0f} s behind the time at which the index was written", "Set it.")
    elif _synchronised() is False:
        yield warn("clock", "it is not synchronised with a time server", "Linux: timedatectl set-ntp true")
    else:
        yield good("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _synchronised() -> bool | None:
    """None where the system does not tell."""
    program = shutil.which("timedatectl")
    if program is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        command = [program, "show", "--property=NTPSynchronized", "--value"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        if done.returncode == 0:
            return done.stdout.strip() != "no"
    return None


def check_proxies(program: Program) -> Iterator[Diagnosis]:
    """A proxy in front: do its settings fit together, and do clients reach the server by it?"""
    settings = program.settings
    by_socket = unix_socket(settings.bind) is not None
    if by_socket and "unix" not in settings.trusted_proxies:
        yield warn("trusted_proxies", "the proxy at the socket is not believed", 'trusted_proxies = ["unix"]')
    if settings.accel_redirect and not settings.trusted_proxies:
        yield fault(
            "accel_redirect",
            "files are left to nginx to send, but no proxy is trusted: clients may get nothing",
            "Set trusted_proxies to nginx, or accel_redirect to nothing.",
        )
    if settings.trusted_proxies and not settings.public_url:
        yield good("proxies", "URLs in answers follow the headers of trusted proxies (X-Forwarded-Proto, -Host)")
    if settings.public_url:
        yield from _look_from_outside(settings.public_url)


def _look_from_outside(url: str) -> Iterator[Diagnosis]:
    try:
        with urlopen(Request(f"{url}/openapi.json"), timeout=5) as answer:
            servers = json.load(answer).get("servers", [])
    except HTTPError as error:
        yield warn("public_url", f"{url} answers {error.code}", "See whether the proxy passes everything on.")
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        advice = "Start the server, or see to the proxy."
        if isinstance(reason, ssl.SSLError):
            advice = "Clients will be warned of the certificate; put one in place that they trust."
        yield warn("public_url", f"{url} cannot be reached from here: {reason}", advice)
    else:
        told = servers[0].get("url") if servers else None
        if told == url:
            yield good("public_url", f"{url} leads here")
        else:
            yield warn("public_url", f"{url} leads to a server that calls itself {told}")


def check_codecs(program: Program) -> Iterator[Diagnosis]:
    """Every transfer syntax that can be written is written, and read again."""
    from ..dicom.pixel_data import EXPLICIT_VR_LITTLE_ENDIAN, transcode
    from ..dicom.transfer_syntaxes import TRANSFER_SYNTAXES

    file, pixels = _picture()
    broken = []
    tried = [each for each in TRANSFER_SYNTAXES.values() if each.encapsulated and each.encodable]
    for syntax in tried:
        there, back = BytesIO(), BytesIO()
        try:
            transcode(BytesIO(file), there, syntax.uid)
            there.seek(0)
            transcode(there, back, EXPLICIT_VR_LITTLE_ENDIAN)
            if syntax.lossless and pixels not in back.getvalue():
                broken.append(f"{syntax.name}: other pixels come back")
        except Exception as error:  # whatever a codec raises
            broken.append(f"{syntax.name}: {error}")
    if broken:
        yield fault("codecs", "; ".join(broken), "Install requirements.txt anew.")
    else:
        yield good("codecs", f"{len(tried)} compressed transfer syntaxes are written and read")


def _picture() -> tuple[bytes, bytes]:
    """An image that every encoding takes, 64 by 64 by 8 bit, as a file; and its pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    pixels = bytes(row * 2 + column for row in range(64) for column in range(64))
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue(), pixels
