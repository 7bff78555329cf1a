"""Events in a queue of Azurite, the emulator of Azure Storage."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dicomcloud.delivery import NotDelivered
from dicomcloud.delivery.azure_queue import AzureQueue
from dicomcloud.index.events import new_event
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file
from tests.emulators import ACCOUNT, ACCOUNT_KEY, NODE, Emulator, install_azurite

SCRIPT = Path("node_modules/azurite/dist/src/queue/main.js")


class Queues(Emulator):
    def __init__(self, installed: Path, folder: Path) -> None:
        super().__init__()
        self._script, self._folder = str(installed / SCRIPT), str(folder)

    def command(self) -> Sequence[str]:
        address = ["--queueHost", "127.0.0.1", "--queuePort", str(self.port), "--location", self._folder]
        return [str(NODE), self._script, *address, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def client(self, name: str) -> Any:
        from azure.storage.queue import QueueClient

        account = {"account_name": ACCOUNT, "account_key": ACCOUNT_KEY}
        return QueueClient(f"{self.endpoint}/{ACCOUNT}", name, credential=account)

    def url(self, name: str) -> str:
        """The URL of a new queue, with a SAS that lets add messages."""
        from azure.storage.queue import QueueSasPermissions, generate_queue_sas

        self.client(name).create_queue()
        end = datetime.now(UTC) + timedelta(hours=1)
        sas = generate_queue_sas(ACCOUNT, name, ACCOUNT_KEY, permission=QueueSasPermissions(add=True), expiry=end)
        return f"{self.endpoint}/{ACCOUNT}/{name}?{sas}"


@pytest.fixture(scope="module")
def queues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queues]:
    server = Queues(install_azurite(), tmp_path_factory.mktemp("queues"))
    server.start()
    yield server
    server.kill()


def test_a_store_is_a_message_in_base64_and_the_sas_is_named_nowhere(queues: Queues, make_app: AppMaker) -> None:
    app = make_app(event_queue_url=queues.url("stored"))
    dataset = make_dataset()
    headers = {"Content-Type": "application/dicom"}
    assert app.test_client().post("/dicomweb/studies", data=make_file(dataset), headers=headers).status_code == 200
    deadline, found = time.monotonic() + 30, []
    while not found and time.monotonic() < deadline:
        found = list(queues.client("stored").receive_messages())
        time.sleep(0.05)
    event = json.loads(base64.b64decode(found[0].content))
    assert (event["type"], event["data"]["study"]) == ("stored", dataset.StudyInstanceUID)
    outbox = app.extensions["dicomcloud"].archive.outbox
    while outbox.counts() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert outbox.rows() == []


def test_a_queue_that_is_not_there_or_away_is_tried_again(queues: Queues) -> None:
    event = new_event("stored", "1.2.3", {})
    url = queues.url("gone")
    queue = AzureQueue(url)
    assert "sig=" not in queue.name
    queues.client("gone").delete_queue()
    with pytest.raises(NotDelivered, match="QueueNotFound|does not exist"):
        queue.deliver(event)
    with pytest.raises(NotDelivered) as raised:
        AzureQueue(f"http://127.0.0.1:9/{ACCOUNT}/none", ACCOUNT_KEY).deliver(event)
    assert raised.value.unreachable
