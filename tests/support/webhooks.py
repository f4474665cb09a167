"""Webhooks of tests: their settings, registration, runs that have ended, and one round of delivery."""

import base64
import hashlib
import hmac

from sqlalchemy import select

from service.db.engine import Database
from service.db.webhook_tables import DeliveryRow
from service.domain.run_controls import apply_action
from service.domain.submission import QueueOptions, submit
from service.domain.webhook_outbox import register
from service.schemas.webhooks import HOOK_TYPES, WebhookRequest
from service.settings import Settings
from service.webhooks.delivery import DeliveryWorker
from tests.support.builders import experiment
from tests.support.webhook_server import ReceivedRequest

HOOKS = "/api/v1/webhooks"


def webhook_settings(settings: Settings) -> Settings:
    """Return settings of a lab that may call this machine and does not wait between attempts."""
    changes = {"webhook_hosts": ["127.0.0.1"], "webhook_retry_seconds": 0.0}
    return settings.model_copy(update={**changes, "webhook_timeout_seconds": 5.0, "webhook_attempts": 3})


def hook(database: Database, url: str, *types: str) -> str:
    """Register a webhook in the database and return its secret."""
    request = WebhookRequest.model_validate({"url": url, "types": tuple(types or HOOK_TYPES)})
    with database.writing() as session:
        return register(session, request, "ann").secret


def cancelled(database: Database) -> str:
    """Make a run that has just ended and return its id."""
    with database.writing() as session:
        options = QueueOptions(tag="sweep")
        run = submit(session, experiment(), "digest", None, owner="ann", placing=options)
        apply_action(session, run, "cancel")
        return run.id


def send(settings: Settings, database: Database) -> None:
    """Run one round of delivery to its end."""
    worker = DeliveryWorker(settings, database)
    worker.round()
    worker.wait(30)


def deliveries(database: Database) -> list[tuple[str, int, int | None]]:
    """Return (state, attempts, status) of every delivery."""
    with database.reading() as session:
        rows = session.scalars(select(DeliveryRow).order_by(DeliveryRow.id))
        return [(row.state, row.attempts, row.status) for row in rows]


def signature(secret: str, request: ReceivedRequest) -> str:
    """Compute the signature from the standard's description, without code of the service."""
    key = base64.b64decode(secret[len("whsec_") :])
    signed = b".".join(
        (request.headers["webhook-id"].encode(), request.headers["webhook-timestamp"].encode(), request.body)
    )
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
