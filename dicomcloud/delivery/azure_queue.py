"""Events as messages of an Azure Storage queue: base64 of the JSON, as queue triggers of Azure Functions expect it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from ..index.events import Event
from ..settings import SettingsError
from . import NotDelivered


class AzureQueue:
    """A queue by its URL (`https://ACCOUNT.queue.core.windows.net/QUEUE`, with a SAS or with the account's key).

    Raises SettingsError where azure-storage-queue is not installed or the URL names no queue.
    """

    def __init__(self, url: str, key: str = "") -> None:
        try:
            from azure.core.exceptions import AzureError
            from azure.storage.queue import QueueClient, TextBase64EncodePolicy
        except ImportError:
            raise SettingsError(
                "Setting event_queue_url: azure-storage-queue is not installed (requirements-objectstore.txt)"
            ) from None
        parts = urlsplit(url)
        self.name = f"queue {parts.scheme}://{parts.netloc}{parts.path}"[:200]
        self._fault: type[Exception] = AzureError
        try:
            self._client: Any = QueueClient.from_queue_url(
                url,
                credential=key or None,
                message_encode_policy=TextBase64EncodePolicy(),
                connection_timeout=10,
                read_timeout=10,
                retry_total=0,  # the outbox tries again
            )
        except ValueError as error:
            raise SettingsError(f"Setting event_queue_url: {error}") from None

    def deliver(self, event: Event) -> None:
        """Raises NotDelivered."""
        try:
            self._client.send_message(event.payload().decode(), time_to_live=-1)
        except self._fault as error:
            reason = " ".join(str(error).split())[:300]
            raise NotDelivered(f"{type(error).__name__}: {reason}", unreachable=True) from None
