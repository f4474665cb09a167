"""Webhooks and their outbox: what has ended is written down for each, claimed, sent, and kept."""

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

from grafting_core.storage.failpoints import failpoint
from service.db.study_tables import StudyRow
from service.db.tables import RunRow, now
from service.db.webhook_tables import DeliveryRow, WebhookRow
from service.domain.webhook_signing import new_secret
from service.schemas.webhooks import DeliveryPage, DeliveryView, WebhookRequest, WebhookView

LONGEST_WAIT = 6 * 3600.0
GROWTH = 4.0
PRUNED = 500
"""Deliveries that one round forgets."""


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
    """How often and how long apart a delivery is tried."""

    attempts: int
    seconds: float

    def wait(self, attempts: int) -> float:
        """Seconds after so many attempts, a fifth of it by chance, so that receivers are not stormed."""
        return min(LONGEST_WAIT, self.seconds * GROWTH ** (attempts - 1)) * random.uniform(0.9, 1.1)  # noqa: S311


def register(session: Session, asked: WebhookRequest, owner: str) -> WebhookRow:
    """Keep a webhook with a new secret. Raises Registered."""
    same = select(WebhookRow.id).where(WebhookRow.url == asked.url, WebhookRow.removed_at.is_(None))
    known = session.scalar(same)
    if known is not None:
        raise Registered(f"webhook {known} has this address; remove it first")
    row = WebhookRow(url=asked.url, types=list(dict.fromkeys(asked.types)), secret=new_secret(), owner=owner)
    session.add(row)
    session.flush()
    return row


def remove(session: Session, row: WebhookRow) -> None:
    """Send it nothing more and forget its secret; its deliveries stay to be looked at. Twice is once."""
    if row.removed_at is not None:
        return
    row.removed_at, row.secret = now(), ""
    _drop_pending(session, row)


def _drop_pending(session: Session, row: WebhookRow) -> None:
    pending = (DeliveryRow.webhook_id == row.id) & (DeliveryRow.state == "PENDING")
    values = {"state": "FAILED", "error": "the webhook was removed", "ended_at": now()}
    session.execute(update(DeliveryRow).where(pending).values(**values))


def announce_run(session: Session, run: RunRow) -> None:
    """Write down, in the transaction that ended the run, whom to tell."""
    facts = {
        "id": run.id,
        "kind": run.experiment.kind,
        "name": run.experiment.name,
        "backbone": run.experiment.backbone,
        "owner": run.owner,
        "study": run.study,
        "state": run.state,
        "reason": run.reason,
        "message": run.message,
        "attempt": run.attempt,
        "created_at": _written(run.created_at),
        "ended_at": _written(run.ended_at),
        "path": f"/api/v1/runs/{run.id}",
    }
    _announce(session, f"run.{run.state.lower()}", run.id, run.last_event, facts)


def announce_study(session: Session, study: StudyRow) -> None:
    """As `announce_run`, of a study."""
    facts = {
        "id": study.id,
        "name": study.name,
        "backbone": study.backbone,
        "owner": study.owner,
        "state": study.state,
        "message": study.message,
        "round": study.round,
        "created_at": _written(study.created_at),
        "ended_at": _written(study.ended_at),
        "path": f"/api/v1/studies/{study.id}",
    }
    _announce(session, f"study.{study.state.lower()}", study.id, study.version, facts)


def announce_test(session: Session, hook: WebhookRow) -> DeliveryRow:
    """A message that tells of nothing, sent as all others are."""
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
    """Those that something should be sent to now."""
    query = select(DeliveryRow.webhook_id).where(DeliveryRow.state == "PENDING", DeliveryRow.due <= clock)
    return sorted(session.scalars(query.distinct()))


def claim(session: Session, webhook_id: int, clock: float, patience: RetrySchedule) -> ClaimedDelivery | None:
    """The next delivery that is due, its attempt counted and the one after it set, before it is sent.

    Whoever dies while sending leaves it to be sent again then, under the same id; two who claim at once
    get it once.
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
        row.error = row.error or "no attempt came to its end"
        return None
    row.attempts += 1
    row.due = clock + patience.wait(row.attempts)
    last = row.attempts >= patience.attempts
    return ClaimedDelivery(row.id, row.message_id, hook.url, hook.secret, row.body.encode(), last)


def note(
    session: Session, delivery: ClaimedDelivery, status: int | None, error: str | None, *, final: bool
) -> None:
    """Record what came of sending; `final`: nothing more is tried. What was ended meanwhile stays so."""
    delivered = status is not None and 200 <= status < 300
    values: dict[str, Any] = {"status": status, "error": None if delivered else error and error[:300]}
    if delivered or final:
        values |= {"state": "DELIVERED" if delivered else "FAILED", "ended_at": now()}
    row = (DeliveryRow.id == delivery.id) & (DeliveryRow.state == "PENDING")
    session.execute(update(DeliveryRow).where(row).values(**values))


def prune(session: Session, days: float) -> int:
    """Forget deliveries that ended longer ago than that, so many at a time; how many were."""
    if not math.isfinite(days):
        return 0
    old = select(DeliveryRow.id).where(DeliveryRow.ended_at < now() - timedelta(days=days))
    ids = list(session.scalars(old.order_by(DeliveryRow.ended_at).limit(PRUNED)))
    session.execute(delete(DeliveryRow).where(DeliveryRow.id.in_(ids)))
    return len(ids)


def webhook_views(session: Session) -> list[WebhookView]:
    """Those that have not been removed, newest first."""
    query = select(WebhookRow).where(WebhookRow.removed_at.is_(None)).order_by(WebhookRow.id.desc())
    return _webhook_views(session, session.scalars(query).all())


def webhook_view(session: Session, row: WebhookRow) -> WebhookView:
    return _webhook_views(session, [row])[0]


def _webhook_views(session: Session, rows: Sequence[WebhookRow]) -> list[WebhookView]:
    """With two queries, however many there are."""
    mine = DeliveryRow.webhook_id.in_([row.id for row in rows])
    each = select(DeliveryRow.webhook_id, DeliveryRow.state, func.count()).where(mine)
    counts: dict[int, dict[str, int]] = {}
    for hook, state, count in session.execute(each.group_by(DeliveryRow.webhook_id, DeliveryRow.state)):
        counts.setdefault(hook, {})[state.lower()] = count
    newest = select(func.max(DeliveryRow.id)).where(mine).group_by(DeliveryRow.webhook_id)
    told = select(DeliveryRow.webhook_id, DeliveryRow.error).where(DeliveryRow.id.in_(newest))
    errors: dict[int, str | None] = dict(session.execute(told).tuples().all())
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
    """Newest first, from those older than `before`."""
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
