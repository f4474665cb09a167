"""Deliveries of webhooks: signed, at least once, under one id, only to allowed hosts and requested types."""

import json
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from grafting_core.storage.failpoints import arm
from service.db.engine import Database
from service.db.tables import RunRow, now
from service.db.webhook_tables import DeliveryRow, WebhookRow
from service.domain.invariants import verify
from service.domain.run_controls import apply_action
from service.domain.run_lifecycle import transition
from service.domain.submission import submit
from service.settings import Settings
from service.webhooks.delivery import DeliveryWorker
from tests.support.builders import experiment, study_document
from tests.support.webhook_server import WebhookServer, serve_webhooks
from tests.support.webhooks import HOOKS, cancelled, deliveries, hook, send, signature, webhook_settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return webhook_settings(settings)


def test_an_end_is_told_once_and_signed(
    client: TestClient, database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    made = client.post(HOOKS, json={"url": webhook_server.url()}).json()
    run = cancelled(database)
    send(settings, database)
    send(settings, database)
    (request,) = webhook_server.received
    assert request.headers["webhook-signature"] == signature(made["secret"], request)
    now = datetime.now(UTC).timestamp()
    assert abs(now - int(request.headers["webhook-timestamp"])) < 60
    told = json.loads(request.body)
    assert (told["type"], told["data"]["id"], told["data"]["owner"]) == ("run.cancelled", run, "ann")
    assert (told["data"]["path"], told["data"]["tag"]) == (f"/api/v1/runs/{run}", "sweep")
    (listed,) = client.get(HOOKS).json()
    assert (listed["delivered"], listed["pending"], listed["failed"]) == (1, 0, 0)
    assert made["secret"] not in client.get(HOOKS).text
    shown = client.get(f"{HOOKS}/{made['id']}/deliveries").json()["deliveries"]
    assert [(each["subject"], each["state"], each["status"]) for each in shown] == [(run, "DELIVERED", 204)]


def test_a_run_that_ends_again_is_told_again_under_another_id(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url())
    run_id = cancelled(database)
    with database.writing() as session:
        run = session.get_one(RunRow, run_id)
        apply_action(session, run, "retry")
        apply_action(session, run, "cancel")
    send(settings, database)
    assert len(set(webhook_server.ids)) == len(webhook_server.ids) == 2
    with database.reading() as session:
        assert verify(session) == []
        session.get_one(DeliveryRow, 1).number -= 1
        session.get_one(DeliveryRow, 2).status = 500
        found = {wrong.invariant for wrong in verify(session)}
    assert found == {"deliveries-tell-of-ends", "deliveries-counted"}


def test_only_what_was_asked_for_is_told_and_what_was_not_committed_never_was(
    database: Database, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url(), "run.failed")
    cancelled(database)
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        transition(session, run, "STARTING")
        transition(session, run, "FAILED", "internal_error")
        session.rollback()
    assert deliveries(database) == []


def test_a_study_that_ends_is_told(
    client: TestClient, database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url(), "study.stopped")
    study = client.post("/api/v1/studies", json=study_document()).json()["study_id"]
    client.post(f"/api/v1/studies/{study}/stop")
    send(settings, database)
    assert [json.loads(each.body)["data"]["id"] for each in webhook_server.received] == [study]


def test_after_an_error_and_a_hang_it_is_sent_again_under_the_same_id(
    database: Database, settings: Settings
) -> None:
    hasty = settings.model_copy(update={"webhook_timeout_seconds": 0.3})
    with serve_webhooks(500, 0, 200) as webhook_server:
        hook(database, webhook_server.url())
        cancelled(database)
        seen = []
        for each in (settings, hasty, settings):
            send(each, database)
            seen += deliveries(database)
    assert seen == [("PENDING", 1, 500), ("PENDING", 2, None), ("DELIVERED", 3, 200)]
    assert len(webhook_server.ids) == 3
    assert len(set(webhook_server.ids)) == 1
    assert len({each.body for each in webhook_server.received}) == 1


def test_after_the_last_attempt_it_has_failed_and_stays_to_be_looked_at(
    client: TestClient, database: Database, settings: Settings
) -> None:
    with serve_webhooks(500, 503, 500, 200) as webhook_server:
        hook(database, webhook_server.url())
        cancelled(database)
        for _ in range(5):
            send(settings, database)
    assert deliveries(database) == [("FAILED", 3, 500)]
    (view,) = client.get(HOOKS).json()
    assert (view["failed"], view["last_error"]) == (1, "answered with status 500")
    page = client.get(f"{HOOKS}/{view['id']}/deliveries", params={"state": "FAILED"}).json()
    assert len(page["deliveries"]) == 1


def test_what_ends_its_sender_every_time_is_given_up(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url())
    cancelled(database)
    database.engine.dispose()
    for _ in range(settings.webhook_attempts):
        assert _killed_while_sending(settings, "webhook/send/before:kill") == -signal.SIGKILL
    send(settings, database)
    assert deliveries(database) == [("FAILED", 3, None)]
    assert webhook_server.received == []


def test_attempts_grow_apart(database: Database, settings: Settings, webhook_server: WebhookServer) -> None:
    patient = settings.model_copy(update={"webhook_retry_seconds": 100.0})
    webhook_server.answers = [500, 500]
    hook(database, webhook_server.url())
    cancelled(database)
    waits = []
    for _ in range(2):
        send(patient, database)
        send(patient, database)  # not due
        with database.writing() as session:
            row = session.get_one(DeliveryRow, 1)
            waits.append(row.due - database.clock(session))
            row.due = 0.0
    assert len(webhook_server.received) == 2
    assert 80 < waits[0] < 115
    assert 330 < waits[1] < 445


def _killed_while_sending(settings: Settings, armed: str) -> int:
    child = os.fork()
    if not child:
        try:
            database = Database(settings.database_url)
            arm(armed)
            send(settings, database)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_between_sending_and_noting_it_is_sent_again_under_the_same_id(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url())
    cancelled(database)
    database.engine.dispose()
    assert _killed_while_sending(settings, "webhook/send/after:kill") == -signal.SIGKILL
    assert deliveries(database) == [("PENDING", 1, None)]
    send(settings, database)
    assert deliveries(database) == [("DELIVERED", 2, 204)]
    assert len(webhook_server.ids) == 2
    assert len(set(webhook_server.ids)) == 1


def test_who_claims_at_once_sends_once(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    patient = settings.model_copy(update={"webhook_retry_seconds": 100.0})
    hook(database, webhook_server.url())
    for _ in range(4):
        cancelled(database)
    workers = [DeliveryWorker(patient, database) for _ in range(3)]
    for worker in workers:
        worker.round()
    for worker in workers:
        worker.wait(30)
    assert len(webhook_server.ids) == len(set(webhook_server.ids)) == 4


def test_a_receiver_that_hangs_keeps_neither_the_round_nor_others_waiting(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    with serve_webhooks(0) as dead:
        hook(database, dead.url())
        hook(database, webhook_server.url())
        cancelled(database)
        worker = DeliveryWorker(settings, database)
        worker.round()
        assert webhook_server.arrived.wait(20)
        assert dead.arrived.wait(20)
        assert not dead.released.is_set()
        worker.round()  # nobody else is sent to where one hangs
        assert len(dead.received) == 1
        dead.released.set()
        worker.wait(30)
    assert {state for state, _, _ in deliveries(database)} == {"DELIVERED"}


def test_what_ended_long_ago_is_forgotten_and_what_waits_is_not(
    database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    hook(database, webhook_server.url())
    cancelled(database)
    send(settings, database)
    cancelled(database)
    with database.writing() as session:
        session.get_one(DeliveryRow, 1).ended_at = now() - timedelta(days=settings.webhook_days - 1)
    worker = DeliveryWorker(settings, database)
    worker._prune()
    assert len(deliveries(database)) == 2
    with database.writing() as session:
        session.get_one(DeliveryRow, 1).ended_at = now() - timedelta(days=settings.webhook_days + 1)
    DeliveryWorker(settings, database)._prune()
    with database.reading() as session:
        assert [row.id for row in session.scalars(select(DeliveryRow))] == [2]


def test_hosts_that_have_left_the_list_are_not_called(
    client: TestClient, database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    client.post(HOOKS, json={"url": webhook_server.url()})
    cancelled(database)
    settings.webhook_hosts = ["ci.internal"]
    send(settings, database)
    assert deliveries(database) == [("FAILED", 1, None)]
    (listed,) = client.get(HOOKS).json()
    host = f"127.0.0.1:{webhook_server.port}"
    assert listed["last_error"] == f"{host} is not in GRAFTLAB_WEBHOOK_HOSTS, which names ci.internal"
    refused = client.post(HOOKS, json={"url": webhook_server.url(path="/other")})
    assert (refused.status_code, refused.json()["code"]) == (422, "host-not-allowed")
    assert refused.json()["pointer"] == "/url"
    assert webhook_server.received == []


def test_redirects_are_not_followed(database: Database, settings: Settings) -> None:
    with serve_webhooks(302, 308, 301) as webhook_server:
        hook(database, webhook_server.url())
        cancelled(database)
        for _ in range(3):
            send(settings, database)
    assert [each.path for each in webhook_server.received] == ["/told"] * 3
    assert deliveries(database) == [("FAILED", 3, 301)]


def test_a_lab_calls_nobody_unless_its_operator_allows_it(
    client: TestClient, settings: Settings, webhook_server: WebhookServer
) -> None:
    settings.webhook_hosts = []
    answer = client.post(HOOKS, json={"url": webhook_server.url()})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhooks-off")
    assert Settings().webhook_hosts == []


def test_one_address_is_registered_once_and_a_removed_webhook_is_told_nothing(
    client: TestClient, database: Database, settings: Settings, webhook_server: WebhookServer
) -> None:
    made = client.post(HOOKS, json={"url": webhook_server.url()}).json()
    assert client.post(HOOKS, json={"url": webhook_server.url()}).status_code == 409
    cancelled(database)
    removed = client.delete(f"{HOOKS}/{made['id']}").json()
    assert client.delete(f"{HOOKS}/{made['id']}").json() == removed
    assert (removed["failed"], removed["pending"]) == (1, 0)
    assert client.get(HOOKS).json() == []
    assert client.post(f"{HOOKS}/{made['id']}/test").status_code == 409
    cancelled(database)
    send(settings, database)
    assert webhook_server.received == []
    with database.reading() as session:
        assert session.get_one(WebhookRow, made["id"]).secret == ""
        assert session.scalar(select(func.count()).select_from(DeliveryRow)) == 1
