"""A storage adapter: files in a folder, and a second copy of each in another one.

storage_url = "mirror:///srv/dicom"      /srv/dicom/first, /srv/dicom/second
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dicomcloud.storage import Incoming
from dicomcloud.storage.filesystem import FileSystemStorage


class Mirror(FileSystemStorage):
    """The contract is `dicomcloud.storage.Storage`; this one takes most of it from the folder adapter."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / "first"))
        self._second = folder / "second"
        self._second.mkdir(parents=True, exist_ok=True)

    def commit(self, incoming: Sequence[Incoming]) -> list[str]:
        keys = super().commit(incoming)
        for key in keys:
            with self.open(key) as source, open(self._second / os.path.basename(key), "wb") as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
        return keys

    def delete(self, key: str) -> None:
        super().delete(key)
        (self._second / os.path.basename(key)).unlink(missing_ok=True)


def open_mirror(url: str, *_: object) -> Mirror:
    """Called with the URL and whatever else `dicomcloud.storage.open_storage` is given. ValueError for a bad URL."""
    folder = url.partition("://")[2]
    if not folder:
        raise ValueError("mirror:// and a folder")
    return Mirror(Path(folder))
