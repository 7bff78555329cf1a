"""The quarantine: what could not be stored, kept with the reason until somebody has looked at it.

    <folder>/20250102T101500Z-3f9c….dcm     the bytes as they came (.multipart: metadata with their bulk data)
    <folder>/20250102T101500Z-3f9c….json    why and when

No name and no UID is part of a file's name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

#: On Windows a folder has the rights of the data directory. There 0o700 means since Python 3.13: nobody but who made it
#: and the administrators, and a folder made by an administrator's `import` would be closed to the service.
_MODE = 0o777 if os.name == "nt" else 0o700


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of the quarantine. `when` is ISO 8601 in UTC, `failure_reason` four hexadecimal digits (0008,1197)."""

    file: str
    when: str
    failure_reason: str
    message: str
    size: int
    sha256: str
    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None


class Quarantine:
    """A folder of at most `limit` bytes. What came first stays: when it is full, nothing is added."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self._limit = limit

    def keep(
        self,
        chunks: Iterable[bytes | memoryview],
        failure_reason: int,
        message: str,
        *,
        sop_class_uid: str | None = None,
        sop_instance_uid: str | None = None,
        suffix: str = ".dcm",
    ) -> Entry | None:
        """Keep these bytes with the reason; None (and a line in the log) where there is no room for them.

        Never raises OSError: a quarantine that fails must not fail the request.
        """
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"
        path = self.folder / (name + suffix)
        try:
            self.folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
            size, digest = self._write(path, chunks, self._limit - self._used())
            entry = Entry(
                path.name,
                now.isoformat(timespec="seconds"),
                f"{failure_reason:04X}",
                message,
                size,
                digest,
                sop_class_uid,
                sop_instance_uid,
            )
            path.with_suffix(".json").write_text(json.dumps(asdict(entry), indent=2) + "\n", encoding="utf-8")
        except _Full:
            log.warning("the quarantine has no room: an instance that could not be stored is not kept")
        except OSError as error:
            log.error("an instance could not be put into the quarantine: %s", error)
        else:
            return entry
        with suppress(OSError):
            path.unlink()
        return None

    def entries(self) -> Iterator[Entry]:
        """What is there, oldest first. A description that cannot be read is passed over with a line in the log."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield Entry(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s cannot be read: %s", path.name, error)

    def _used(self) -> int:
        used = 0
        with os.scandir(self.folder) as files:
            for file in files:
                with suppress(FileNotFoundError):  # somebody tidies up
                    used += file.stat().st_size
        return used

    def _write(self, path: Path, chunks: Iterable[bytes | memoryview], room: int) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > room:
                    raise _Full
                file.write(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()


class _Full(Exception):
    pass
