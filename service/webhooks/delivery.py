"""Empties the outbox: a thread for each webhook that something is due for, so that none waits for another."""

import logging
import threading
import time
from datetime import UTC, datetime

from grafting_core.storage.failpoints import failpoint
from service.db.engine import Database
from service.domain.webhook_outbox import (
    PRUNED,
    ClaimedDelivery,
    RetrySchedule,
    claim,
    due_webhooks,
    note,
    prune,
)
from service.domain.webhook_signing import signed_headers
from service.log_once import brief
from service.settings import Settings
from service.webhook_hosts import HostNotAllowed, check
from service.webhooks.http import Undelivered, post

log = logging.getLogger("graftlab.webhooks")
PRUNE_SECONDS = 60.0
SENDERS = 8
"""Webhooks that are called at the same time."""
LAST_SECONDS = 3.0
"""For what is being sent when the process is to end."""


class DeliveryWorker:
    """Any number may work on one outbox, in any process: each delivery is claimed before it is sent."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._patience = RetrySchedule(settings.webhook_attempts, settings.webhook_retry_seconds)
        self._senders: dict[int, threading.Thread] = {}
        self._prune_at = 0.0
        self._closed = threading.Event()

    def round(self) -> None:
        """Let somebody begin with every webhook that has something due; returns without waiting for them."""
        self._senders = {key: sender for key, sender in self._senders.items() if sender.is_alive()}
        self._prune()
        with self._database.reading() as session:
            due = due_webhooks(session, self._database.clock(session))
        idle = [webhook_id for webhook_id in due if webhook_id not in self._senders]
        for webhook_id in idle[: SENDERS - len(self._senders)]:
            sender = threading.Thread(target=self._serve, args=(webhook_id,), name="webhook", daemon=True)
            self._senders[webhook_id] = sender
            sender.start()

    def _prune(self) -> None:
        """Now and then, and again in the next round where there was more than one round forgets."""
        if time.monotonic() < self._prune_at:
            return
        with self._database.writing() as session:
            many = prune(session, self._settings.webhook_days) == PRUNED
        self._prune_at = time.monotonic() + (0.0 if many else PRUNE_SECONDS)

    def close(self, seconds: float) -> None:
        """Begin nothing more, and give what is being sent so long to be noted."""
        self._closed.set()
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Until all who were sent out are back, or that long."""
        end = time.monotonic() + seconds
        for sender in self._senders.values():
            sender.join(max(0.0, end - time.monotonic()))

    def _serve(self, webhook_id: int) -> None:
        """All that is due for one webhook, up to the first that does not arrive."""
        try:
            while not self._closed.is_set() and (delivery := self._claim(webhook_id)) is not None:
                if not self._deliver(delivery):
                    return
        except Exception:
            log.exception("webhook %s: what was sent could not be noted, and may be sent again", webhook_id)

    def _claim(self, webhook_id: int) -> ClaimedDelivery | None:
        with self._database.writing() as session:
            return claim(session, webhook_id, self._database.clock(session), self._patience)

    def _deliver(self, delivery: ClaimedDelivery) -> bool:
        failpoint("webhook/send/before")
        try:
            check(delivery.url, self._settings.webhook_hosts)
            status, error, final = *self._send(delivery), delivery.last
        except HostNotAllowed as refused:
            status, error, final = None, str(refused), True
        failpoint("webhook/send/after")
        with self._database.writing() as session:
            note(session, delivery, status, error, final=final)
        if error is not None:
            log.warning("delivery %s: %s", delivery.message_id, error)
        return error is None

    def _send(self, delivery: ClaimedDelivery) -> tuple[int | None, str | None]:
        """(status of the answer, what was wrong): either may be missing."""
        try:
            headers = {
                "content-type": "application/json",
                "user-agent": "graftlab",
                **signed_headers(delivery.secret, delivery.message_id, datetime.now(UTC), delivery.body),
            }
            status = post(
                delivery.url, headers, delivery.body, seconds=self._settings.webhook_timeout_seconds
            )
        except Undelivered as error:
            return None, str(error)
        except Exception as error:  # a delivery that cannot be sent at all ends as FAILED, not the sender
            log.exception("delivery %s cannot be sent", delivery.message_id)
            return None, f"{type(error).__name__}: {brief(error)}"
        return status, None if 200 <= status < 300 else f"answered with status {status}"


def send_webhooks(settings: Settings, database: Database, ended: threading.Event) -> threading.Thread:
    """A thread that works beside the scheduler's rounds until `ended`, then ends within a few seconds."""
    worker = DeliveryWorker(settings, database)
    thread = threading.Thread(target=_work, args=(worker, settings, ended), name="webhooks", daemon=True)
    thread.start()
    return thread


def _work(worker: DeliveryWorker, settings: Settings, ended: threading.Event) -> None:
    while not ended.wait(settings.round_seconds):
        try:
            worker.round()
        except Exception:
            log.exception("the outbox could not be looked at; the next round does")
    worker.close(LAST_SECONDS)
