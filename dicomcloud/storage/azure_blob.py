"""The Bucket contract over Azure Blob Storage, by azure-storage-blob.

Not by obstore, which takes less processor time here too: it sends no check sum to Azure, so that nobody would notice
what arrives damaged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import uniform
from threading import Lock
from typing import Any, Final
from urllib.parse import SplitResult, quote

from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import (
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ContentSettings,
    ExponentialRetry,
    UserDelegationKey,
    generate_blob_sas,
)

from ..errors import Unavailable
from . import FileMissing
from .object_store import BLOCK, CONNECT_TIMEOUT, CONTENT_TYPE, RETRIES, TIMEOUT, StorageUrl

log = logging.getLogger(__name__)
logging.getLogger("azure").setLevel(logging.WARNING)  # at INFO it logs every request with its headers

_OPTIONS: Final = ("account", "connection_string", "sas", "client_id", "endpoint", "public_endpoint")
_CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"  # the variable that Azure's own tools read
_KEY_LIFE: Final = timedelta(hours=6)  # of a user delegation key; Azure gives at most seven days


def open_container(parts: SplitResult) -> tuple[AzureContainer, str]:
    """The container of `azure://container/prefix?…`, and the prefix. Raises ValueError.

    One of `connection_string=…` (else the variable AZURE_STORAGE_CONNECTION_STRING), `account=…&sas=…`, and
    `account=…` alone: the managed identity of the machine, or whoever is signed in (`client_id=…`: the identity of
    that client ID). `endpoint` is the account's URL where it is not https://ACCOUNT.blob.core.windows.net,
    `public_endpoint` the one that clients are redirected to. Values with `&`, `+`, `%` or `#` are percent-encoded.
    """
    url = StorageUrl.parse(parts, _OPTIONS)
    options = url.options
    account = options.get("account", "")
    connection = options.get("connection_string") or ("" if account else os.environ.get(_CONNECTION_STRING, ""))
    limits: dict[str, Any] = {
        "retry_policy": _BackOff(retry_total=RETRIES),
        "connection_timeout": CONNECT_TIMEOUT,
        "read_timeout": TIMEOUT,
        "max_single_put_size": BLOCK,
        "max_block_size": BLOCK,
        "max_single_get_size": BLOCK,
    }
    try:
        if connection:
            service = BlobServiceClient.from_connection_string(connection, **limits)
        elif account:
            endpoint = options.get("endpoint") or f"https://{account}.blob.core.windows.net"
            credential = options["sas"].lstrip("?") if options.get("sas") else _identity(options.get("client_id"))
            service = BlobServiceClient(endpoint, credential, **limits)
        else:
            raise ValueError(f"it needs account=… or connection_string=…, or the variable {_CONNECTION_STRING}")
    except (ValueError, KeyError) as error:
        raise ValueError(str(error)) from None
    return AzureContainer(service, url.bucket, options.get("public_endpoint", "")), url.prefix


def _identity(client_id: str | None) -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(managed_identity_client_id=client_id)


class _BackOff(ExponentialRetry):
    """0.2 s to 1.6 s: the library's own takes whole seconds, in which a request would wait for its 503."""

    def get_backoff_time(self, settings: dict[str, Any]) -> float:
        return uniform(0.05, 0.1) * float(2 ** settings["count"])


class AzureContainer:
    def __init__(self, service: BlobServiceClient, container: str, public_endpoint: str) -> None:
        self._service = service
        self._container: ContainerClient = service.get_container_client(container)
        self._public_endpoint = public_endpoint.rstrip("/")
        self._delegated: tuple[UserDelegationKey, datetime] | None = None
        self._asking = Lock()

    def put(self, name: str, path: Path, size: int) -> None:
        with _failures(name), open(path, "rb") as file:
            self._container.upload_blob(
                name,
                file if size > BLOCK else file.read(),
                length=size,
                overwrite=True,  # names are unique: what is there is an earlier attempt of this upload
                validate_content=True,  # an MD5 for each block
                max_concurrency=4,
                content_settings=ContentSettings(content_type=CONTENT_TYPE),
            )

    def get(self, name: str, offset: int, length: int) -> tuple[bytes, int]:
        if length <= 0:
            return b"", self.size(name)
        try:
            with _failures(name):
                found = self._container.download_blob(name, offset, length, max_concurrency=1)
                data = found.readall()
                return data, int((found.properties.content_range or f"/{offset + len(data)}").rpartition("/")[2])
        except _OutOfRange:
            return b"", self.size(name)

    def size(self, name: str) -> int:
        with _failures(name):
            return int(self._container.get_blob_client(name).get_blob_properties().size)

    def delete(self, name: str) -> None:
        try:
            with _failures(name):
                self._container.delete_blob(name)
        except FileMissing:
            pass

    def list(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        with _failures(prefix):
            for found in self._container.list_blobs(name_starts_with=prefix or None):
                yield found.name, found.size, found.last_modified.timestamp()

    def presigned_url(self, name: str, seconds: int) -> str | None:
        account = self._service.account_name or ""
        now = datetime.now(UTC)
        secret: dict[str, Any]
        credential = self._service.credential
        if hasattr(credential, "account_key"):
            secret = {"account_key": credential.account_key}
        elif hasattr(credential, "get_token"):
            secret = {"user_delegation_key": self._delegation(now)}
        else:
            return None  # a shared access signature cannot sign, and its own rights are too wide to be given away
        with _failures(name):
            signature = generate_blob_sas(
                account,
                self._container.container_name,
                name,
                permission=BlobSasPermissions(read=True),
                expiry=now + timedelta(seconds=seconds),
                **secret,
            )
        url = f"{self._public_endpoint or self._service.url.rstrip('/')}/{self._container.container_name}/{quote(name)}"
        return f"{url}?{signature}"

    def _delegation(self, now: datetime) -> UserDelegationKey:
        with self._asking:
            if self._delegated is None or now > self._delegated[1] - _KEY_LIFE / 2:
                with _failures(""):
                    key = self._service.get_user_delegation_key(now - timedelta(minutes=5), now + _KEY_LIFE)
                self._delegated = key, now + _KEY_LIFE
            return self._delegated[0]

    def check(self) -> None:
        with _failures(""):
            self._container.get_container_properties()


class _OutOfRange(Exception):
    """The range begins behind the end of the blob."""


@contextmanager
def _failures(name: str) -> Iterator[None]:
    try:
        yield
    except ResourceNotFoundError as error:
        if getattr(error, "error_code", None) not in (None, "BlobNotFound"):  # the container
            raise _unavailable(error) from None
        raise FileMissing(name) from None
    except HttpResponseError as error:
        if error.status_code == 416:
            raise _OutOfRange from None
        raise _unavailable(error) from None
    except AzureError as error:
        raise _unavailable(error) from None


def _unavailable(error: AzureError) -> Unavailable:
    unavailable = Unavailable("The object store cannot be reached at the moment")
    unavailable.detail = str(error.message).partition("\n")[0][:500]
    log.error("Azure Blob Storage: %s", unavailable.detail)
    return unavailable
