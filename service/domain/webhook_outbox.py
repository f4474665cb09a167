"""Webhooks and their outbox: deliveries are written when something ends, claimed, sent and kept."""

import json
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from grafting_core.specs.private_names import shown_name
from grafting_core.storage.failpoints import failpoint
from service.db.study_tables import StudyRow
from service.db.tables import RunRow, now
from service.db.webhook_tables import DeliveryRow, WebhookRow
from service.domain.registry import showing_to_everybody
from service.domain.visibility import hidden_runs, is_withheld, title_to, withheld_runs
from service.domain.webhook_signing import new_secret
from service.schemas.webhooks import DeliveryPage, DeliveryView, WebhookRequest, WebhookView

LONGEST_WAIT = 6 * 3600.0
GROWTH = 4.0
PRUNED = 500
"""Limit of deliveries that one round deletes."""


class Registered(Exception):
    """Another webhook has this address."""


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this process has claimed."""

    id: int
    message_id: str
    url: str
    secret: str
    body: bytes
    last: bool
    """Whether no attempt follows."""


@dataclass(frozen=True)
class RetrySchedule:
    """Number of attempts of a delivery and the time between them."""

    attempts: int
    seconds: float

    def wait(self, attempts: int) -> float:
        """Return the wait in seconds after this many attempts, varied at random by 10 % to spread the
        load.
        """
        return min(LONGEST_WAIT, self.seconds * GROWTH ** (attempts - 1)) * random.uniform(0.9, 1.1)  # noqa: S311


def register(session: Session, request: WebhookRequest, owner: str) -> WebhookRow:
    """Store a webhook with a new secret. Raises Registered."""
    same = select(WebhookRow.id).where(WebhookRow.url == request.url, WebhookRow.removed_at.is_(None))
    known = session.scalar(same)
    if known is not None:
        raise Registered(f"webhook {known} has this address; remove it first")
    row = WebhookRow(
        url=request.url, types=list(dict.fromkeys(request.types)), secret=new_secret(), owner=owner
    )
    session.add(row)
    session.flush()
    return row


def remove(session: Session, row: WebhookRow) -> None:
    """Stop sending to a webhook and delete its secret; its deliveries are kept. Repeating it changes
    nothing.
    """
    if row.removed_at is not None:
        return
    row.removed_at, row.secret = now(), ""
    _drop_pending(session, row)


def _drop_pending(session: Session, row: WebhookRow) -> None:
    pending = (DeliveryRow.webhook_id == row.id) & (DeliveryRow.state == "PENDING")
    values = {"state": "FAILED", "error": "the webhook was removed", "ended_at": now()}
    session.execute(update(DeliveryRow).where(pending).values(**values))


def announce_run(session: Session, run: RunRow) -> None:
    """Write the deliveries for an ended run, in the transaction that ends it.

    They name nothing private, because the lab does not know who reads them; registrations of private things
    are not announced.
    """
    with showing_to_everybody(session):
        if run.id not in hidden_runs():
            facts = _facts_of_run(run, withheld=bool(withheld_runs(session, [run.id])))
            _announce(session, f"run.{run.state.lower()}", run.id, run.last_event, facts)


def _facts_of_run(run: RunRow, withheld: bool) -> dict[str, Any]:
    return {
        "id": run.id,
        "kind": run.experiment.kind,
        "name": title_to(run.experiment.name, withheld),
        "backbone": shown_name("backbone", run.experiment.backbone),
        "owner": run.owner,
        "tag": run.tag,
        "state": run.state,
        "reason": run.reason,
        "message": None if withheld else run.message,
        "attempt": run.attempt,
        "created_at": _written(run.created_at),
        "ended_at": _written(run.ended_at),
        "path": f"/api/v1/runs/{run.id}",
    }


def announce_study(session: Session, study: StudyRow) -> None:
    """Write the deliveries for an ended study, in the transaction that ends it, as `announce_run` does."""
    with showing_to_everybody(session):
        facts = _facts_of_study(study, is_withheld(study))
    _announce(session, f"study.{study.state.lower()}", study.id, study.version, facts)


def _facts_of_study(study: StudyRow, withheld: bool) -> dict[str, Any]:
    return {
        "id": study.id,
        "name": title_to(study.name, withheld),
        "backbone": shown_name("backbone", study.backbone),
        "owner": study.owner,
        "state": study.state,
        "message": None if withheld else study.message,
        "round": study.round,
        "created_at": _written(study.created_at),
        "ended_at": _written(study.ended_at),
        "path": f"/api/v1/studies/{study.id}",
    }


def announce_test(session: Session, hook: WebhookRow) -> DeliveryRow:
    """Write a test delivery, which is sent like all others."""
    subject = f"test-{secrets.token_hex(8)}"
    return _add(session, hook, "webhook.test", subject, 0, {"webhook": hook.id})


def _written(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat(timespec="milliseconds") if at else None


def _announce(session: Session, type_: str, subject: str, number: int, facts: Mapping[str, Any]) -> None:
    hooks = session.scalars(select(WebhookRow).where(WebhookRow.removed_at.is_(None))).all()
    for hook in hooks:
        if type_ in hook.types:
            _add(session, hook, type_, subject, number, facts)
            failpoint("webhook/announced")


def _add(
    session: Session, hook: WebhookRow, type_: str, subject: str, number: int, facts: Mapping[str, Any]
) -> DeliveryRow:
    document = {"type": type_, "timestamp": _written(now()), "data": facts}
    row = DeliveryRow(
        webhook_id=hook.id,
        message_id=f"{subject}-{number}-{hook.id}",
        type=type_,
        subject=subject,
        number=number,
        body=json.dumps(document, separators=(",", ":")),
        state="PENDING",
        attempts=0,
        due=0.0,
    )
    session.add(row)
    return row


def due_webhooks(session: Session, clock: float) -> list[int]:
    """Return the ids of webhooks with a delivery that is due."""
    query = select(DeliveryRow.webhook_id).where(DeliveryRow.state == "PENDING", DeliveryRow.due <= clock)
    return sorted(session.scalars(query.distinct()))


def claim(session: Session, webhook_id: int, clock: float, patience: RetrySchedule) -> ClaimedDelivery | None:
    """Claim the next due delivery: count its attempt and schedule the next one before it is sent.

    If the process dies while sending, it is sent again later under the same id. Of two processes that
    claim at once, one gets it.
    """
    query = (
        select(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == "PENDING", DeliveryRow.due <= clock)
        .order_by(DeliveryRow.due, DeliveryRow.id)
        .limit(1)
    )
    row = session.scalars(query.with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    hook = session.get_one(WebhookRow, webhook_id)
    if hook.removed_at is not None:  # while the run's end was being written down
        _drop_pending(session, hook)
        return None
    if row.attempts >= patience.attempts:
        row.state, row.ended_at = "FAILED", now()
        row.error = row.error or "no attempt was completed"
        return None
    row.attempts += 1
    row.due = clock + patience.wait(row.attempts)
    last = row.attempts >= patience.attempts
    return ClaimedDelivery(row.id, row.message_id, hook.url, hook.secret, row.body.encode(), last)


def note(
    session: Session, delivery: ClaimedDelivery, status: int | None, error: str | None, *, final: bool
) -> None:
    """Record the result of sending; `final` means that no attempt follows. An ended delivery is unchanged."""
    delivered = status is not None and 200 <= status < 300
    values: dict[str, Any] = {"status": status, "error": None if delivered else error and error[:300]}
    if delivered or final:
        values |= {"state": "DELIVERED" if delivered else "FAILED", "ended_at": now()}
    row = (DeliveryRow.id == delivery.id) & (DeliveryRow.state == "PENDING")
    session.execute(update(DeliveryRow).where(row).values(**values))


def prune(session: Session, days: float) -> int:
    """Delete up to PRUNED deliveries that ended more than `days` ago, and return how many."""
    if not math.isfinite(days):
        return 0
    old = select(DeliveryRow.id).where(DeliveryRow.ended_at < now() - timedelta(days=days))
    ids = list(session.scalars(old.order_by(DeliveryRow.ended_at).limit(PRUNED)))
    session.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(ids)))
    return len(ids)


def webhook_views(session: Session) -> list[WebhookView]:
    """List the webhooks that have not been removed, newest first."""
    query = select(WebhookRow).where(WebhookRow.removed_at.is_(None)).order_by(WebhookRow.id.desc())
    return _webhook_views(session, session.scalars(query).all())


def webhook_view(session: Session, row: WebhookRow) -> WebhookView:
    return _webhook_views(session, [row])[0]


def _webhook_views(session: Session, rows: Sequence[WebhookRow]) -> list[WebhookView]:
    """Build the views with a fixed number of queries, however many webhooks there are."""
    mine = DeliveryRow.webhook_id.in_([row.id for row in rows])
    by_state = select(DeliveryRow.webhook_id, DeliveryRow.state, func.count()).where(mine)
    counts: dict[int, dict[str, int]] = {}
    for hook, state, count in session.execute(by_state.group_by(DeliveryRow.webhook_id, DeliveryRow.state)):
        counts.setdefault(hook, {})[state.lower()] = count
    newest = select(func.max(DeliveryRow.id)).where(mine).group_by(DeliveryRow.webhook_id)
    outcomes = select(DeliveryRow.webhook_id, DeliveryRow.error).where(DeliveryRow.id.in_(newest))
    errors: dict[int, str | None] = dict(session.execute(outcomes).tuples().all())
    return [_view_of(row, counts.get(row.id, {}), errors.get(row.id)) for row in rows]


def _view_of(row: WebhookRow, counts: Mapping[str, int], last_error: str | None) -> WebhookView:
    return WebhookView(
        id=row.id,
        url=row.url,
        types=row.types,
        owner=row.owner,
        created_at=row.created_at,
        removed_at=row.removed_at,
        last_error=last_error,
        **counts,
    )


def delivery_page(
    session: Session, webhook_id: int, *, limit: int, before: int | None, state: str | None
) -> DeliveryPage:
    """List deliveries, newest first, from those older than `before`."""
    query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id).order_by(DeliveryRow.id.desc())
    query = query if before is None else query.where(DeliveryRow.id < before)
    query = query if state is None else query.where(DeliveryRow.state == state)
    rows = session.scalars(query.limit(limit + 1)).all()
    more = rows[limit - 1].id if len(rows) > limit else None
    return DeliveryPage(deliveries=_views(rows[:limit]), next_cursor=more)


def _views(rows: Sequence[DeliveryRow]) -> list[DeliveryView]:
    return [delivery_view(row) for row in rows]


def delivery_view(row: DeliveryRow) -> DeliveryView:
    return DeliveryView.model_validate({name: getattr(row, name) for name in DeliveryView.model_fields})
