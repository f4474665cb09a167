"""Delivers the outbox: one thread per webhook with due deliveries, so that none waits for another."""

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
"""Limit of webhooks that are called at the same time."""
LAST_SECONDS = 3.0
"""Time for running deliveries to finish when the process ends."""


class DeliveryWorker:
    """Sends due deliveries. Several may work on one outbox: each delivery is claimed before it is sent."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._patience = RetrySchedule(settings.webhook_attempts, settings.webhook_retry_seconds)
        self._senders: dict[int, threading.Thread] = {}
        self._prune_at = 0.0
        self._closed = threading.Event()

    def round(self) -> None:
        """Start a thread for every webhook with due deliveries; return without waiting for them."""
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
        """Delete old deliveries once a minute, or in every round while there are more than one round
        deletes.
        """
        if time.monotonic() < self._prune_at:
            return
        with self._database.writing() as session:
            many = prune(session, self._settings.webhook_days) == PRUNED
        self._prune_at = time.monotonic() + (0.0 if many else PRUNE_SECONDS)

    def close(self, seconds: float) -> None:
        """Start nothing more; wait at most `seconds` for running deliveries to be recorded."""
        self._closed.set()
        self.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Wait until all running deliveries have ended, at most that long."""
        end = time.monotonic() + seconds
        for sender in self._senders.values():
            sender.join(max(0.0, end - time.monotonic()))

    def _serve(self, webhook_id: int) -> None:
        """Send all due deliveries of one webhook, up to the first that fails."""
        try:
            while not self._closed.is_set() and (delivery := self._claim(webhook_id)) is not None:
                if not self._deliver(delivery):
                    return
        except Exception:
            log.exception(
                "webhook %s: the result of a delivery could not be recorded; it may be sent again", webhook_id
            )

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
        """Send a delivery; return (status of the answer, error), either of which may be None."""
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
        except Exception as error:  # a delivery that cannot be sent ends as FAILED without ending the thread
            log.exception("delivery %s cannot be sent", delivery.message_id)
            return None, f"{type(error).__name__}: {brief(error)}"
        return status, None if 200 <= status < 300 else f"answered with status {status}"


def send_webhooks(settings: Settings, database: Database, ended: threading.Event) -> threading.Thread:
    """Start a thread that delivers until `ended` is set, then ends within a few seconds."""
    worker = DeliveryWorker(settings, database)
    thread = threading.Thread(target=_work, args=(worker, settings, ended), name="webhooks", daemon=True)
    thread.start()
    return thread


def _work(worker: DeliveryWorker, settings: Settings, ended: threading.Event) -> None:
    while not ended.wait(settings.round_seconds):
        try:
            worker.round()
        except Exception:
            log.exception("the outbox could not be read; the next round tries again")
    worker.close(LAST_SECONDS)
