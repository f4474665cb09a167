"""Webhooks as people see them: pages of deliveries, the command line, the doctor, and who may see them."""

import json
import threading

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.cli.main import app as graft
from service.db.engine import Database
from service.db.webhook_tables import DeliveryRow
from service.local_keys import first_key
from service.settings import Settings
from service.webhooks.delivery import send_webhooks
from tests.support.api_server import serving
from tests.support.builders import document
from tests.support.webhook_server import WebhookServer, serve_webhooks
from tests.support.webhooks import HOOKS, cancelled, hook, send, signature, webhook_settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return webhook_settings(settings)


def test_deliveries_come_in_pages(
    client: TestClient, database: Database, webhook_server: WebhookServer
) -> None:
    made = client.post(HOOKS, json={"url": webhook_server.url()}).json()
    for _ in range(3):
        cancelled(database)
    path, seen, cursor = f"{HOOKS}/{made['id']}/deliveries", [], None
    while True:
        asked = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = client.get(path, params=asked).json()
        seen += [each["id"] for each in page["deliveries"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [3, 2, 1]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_command_line_adds_tries_lists_and_removes(
    settings: Settings, database: Database, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.round_seconds = 0.05
    ended = threading.Event()
    with serving(settings) as port:
        monkeypatch.setenv("GRAFTLAB_KEY", first_key(settings.data_dir))
        thread = send_webhooks(settings, database, ended)
        outputs = [_graft(port, *words) for words in (["add", webhook_server.url()], ["test", "1"], ["ls"])]
        outputs += [_graft(port, *words) for words in (["deliveries", "1"], ["rm", "1"], ["ls", "--json"])]
        ended.set()
        thread.join()
    secret = outputs[0].split()[1]
    assert webhook_server.received[0].headers["webhook-signature"] == signature(
        secret, webhook_server.received[0]
    )
    assert json.loads(webhook_server.received[0].body)["type"] == "webhook.test"
    assert outputs[1] == "delivered: answered with status 204\n"
    assert secret not in "".join(outputs[1:])
    assert "webhook.test" in outputs[3]
    assert json.loads(outputs[5]) == []


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_the_doctor_names_what_does_not_get_through(
    settings: Settings, database: Database, webhook_server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_webhooks(500) as failing, serving(settings) as port:
        monkeypatch.setenv("GRAFTLAB_KEY", first_key(settings.data_dir))
        hook(database, webhook_server.url())
        hook(database, failing.url())
        cancelled(database)
        with database.writing() as session:
            session.get_one(DeliveryRow, 2).attempts = settings.webhook_attempts - 1
        send(settings, database)
        done = CliRunner().invoke(graft, ["doctor", "--json", "--url", f"http://127.0.0.1:{port}"])
    found = {finding["what"]: finding for finding in json.loads(done.output)}
    assert "webhook 1" not in found
    assert "status 500" in found["webhook 2"]["seen"]
    assert "graft webhook deliveries 2" in found["webhook 2"]["remedy"]


def _graft(port: int, *words: str) -> str:
    done = CliRunner().invoke(graft, ["webhook", *words, "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_webhook_tells_nobody_who_may_not_ask(client: TestClient) -> None:
    client.post("/api/v1/experiments", json=document())
    key = client.post("/api/v1/keys", json={"owner": "bob", "role": "runner"}).json()["key"]
    bob = {"Authorization": f"Bearer {key}"}
    assert client.get(HOOKS, headers=bob).status_code == 403
    assert client.post(HOOKS, json={"url": "http://127.0.0.1/"}, headers=bob).status_code == 403
