"""The Bucket contract over S3 and what speaks its protocol (MinIO, Ceph, Garage, Wasabi, …), by obstore.

obstore was chosen over boto3 after measuring both (docs/performance.md): a third of the processor time of a request,
it lets other threads work meanwhile, and brings nothing with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, unquote

import obstore
from obstore import exceptions
from obstore.store import S3Store

from ..errors import Unavailable
from . import FileMissing
from .object_store import BLOCK, CONNECT_TIMEOUT, CONTENT_TYPE, RETRIES, TIMEOUT, StorageUrl

log = logging.getLogger(__name__)

_OPTIONS: Final = ("endpoint", "region", "public_endpoint", "path_style")


def open_bucket(parts: SplitResult) -> tuple[S3Bucket, str]:
    """The bucket of `s3://[KEY:SECRET@]bucket/prefix?endpoint=…&region=…&public_endpoint=…&path_style=…`, the prefix.

    Without KEY and SECRET those of the AWS_* variables, else those of the machine's or container's role.
    Raises ValueError.
    """
    url = StorageUrl.parse(parts, _OPTIONS)
    endpoint = url.options.get("endpoint", "")
    store = _store(url, endpoint)
    public = url.options.get("public_endpoint", "")
    return S3Bucket(store, _store(url, public) if public else store), url.prefix


def _store(url: StorageUrl, endpoint: str) -> S3Store:
    config: dict[str, Any] = {"checksum_algorithm": "SHA256"}
    if url.user:
        config |= {"access_key_id": unquote(url.user), "secret_access_key": unquote(url.password)}
    if region := url.options.get("region") or ("us-east-1" if endpoint else ""):
        config["region"] = region
    if endpoint:
        config["endpoint"] = endpoint
    # Servers of one's own seldom have a name for every bucket.
    path_style = url.options.get("path_style", "true" if endpoint else "false").lower() == "true"
    try:
        return S3Store(
            url.bucket,
            **config,
            virtual_hosted_style_request=not path_style,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
                "timeout": timedelta(seconds=TIMEOUT),
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=TIMEOUT),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
        )
    except exceptions.BaseError as error:
        raise ValueError(f"it cannot be used: {_short(error)}") from None


class S3Bucket:
    def __init__(self, store: S3Store, public: S3Store) -> None:
        self._store = store
        self._public = public

    def put(self, name: str, path: Path, size: int) -> None:
        with _failures(name):
            obstore.put(
                self._store,
                name,
                path if size > BLOCK else path.read_bytes(),
                attributes={"Content-Type": CONTENT_TYPE},
                use_multipart=size > BLOCK,
                chunk_size=BLOCK,
                max_concurrency=4,
            )

    def get(self, name: str, offset: int, length: int) -> tuple[bytes, int]:
        if length <= 0:
            return b"", self.size(name)
        try:
            with _failures(name):
                found = obstore.get(self._store, name, options={"range": (offset, offset + length)})
                return bytes(found.bytes()), found.meta["size"]
        except _OutOfRange:
            return b"", self.size(name)

    def size(self, name: str) -> int:
        with _failures(name):
            return obstore.head(self._store, name)["size"]

    def delete(self, name: str) -> None:
        try:
            with _failures(name):
                obstore.delete(self._store, name)
        except FileMissing:
            pass

    def list(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        with _failures(prefix):
            for page in obstore.list(self._store, prefix or None):
                for found in page:
                    yield found["path"], found["size"], found["last_modified"].timestamp()

    def presigned_url(self, name: str, seconds: int) -> str:
        with _failures(name):
            return obstore.sign(self._public, "GET", name, timedelta(seconds=seconds))

    def check(self) -> None:
        with _failures(""):
            for _ in obstore.list(self._store, chunk_size=1):
                return


class _OutOfRange(Exception):
    """The range begins behind the end of the object."""


_user: int | None = None


def _claim() -> None:
    """Raises RuntimeError in a process whose parent has used obstore: its threads are not there, all would hang."""
    global _user
    if _user is None:
        _user = os.getpid()
    elif _user != os.getpid():
        raise RuntimeError("S3 was used before this process was forked; start processes before, or by spawn")


@contextmanager
def _failures(name: str) -> Iterator[None]:
    _claim()
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise _unavailable(error) from None
        raise FileMissing(name) from None
    except exceptions.BaseError as error:
        if "status code: 416" in str(error):
            raise _OutOfRange from None
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> Unavailable:
    log.error("S3: %s", _short(error))
    unavailable = Unavailable("The object store cannot be reached at the moment")
    unavailable.detail = " ".join(_short(error).split())
    return unavailable


def _short(error: Exception) -> str:
    return str(error).partition("\n\nDebug source")[0].partition("<?xml")[0][:500]
