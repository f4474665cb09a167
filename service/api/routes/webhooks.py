"""Routes of webhooks: register, list, remove, test, and show deliveries."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from grafting_core.specs.documents.errors import Problem, shown
from service.api.deps import LabDep
from service.api.documents import DocumentRoute
from service.api.problems import ApiError
from service.db.webhook_tables import WebhookRow
from service.domain.webhook_outbox import (
    Registered,
    announce_test,
    delivery_page,
    delivery_view,
    register,
    remove,
    webhook_view,
    webhook_views,
)
from service.schemas.webhooks import (
    DeliveryPage,
    DeliveryState,
    DeliveryView,
    WebhookMade,
    WebhookRequest,
    WebhookView,
)
from service.webhook_hosts import HostNotAllowed, check

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=DocumentRoute)
WebhookId = Annotated[int, Path(ge=1, lt=2**31)]


@router.post("", status_code=201)
def create_webhook(body: WebhookRequest, lab: LabDep) -> WebhookMade:
    """Register an address for messages about ended work. The signing secret is in this answer and no
    other.
    """
    _refuse_where_off(lab)
    try:
        check(body.url, lab.settings.webhook_hosts)
        with lab.database.writing() as session:
            row = register(session, body, lab.principal.owner)
            return WebhookMade(**webhook_view(session, row).model_dump(), secret=row.secret)
    except HostNotAllowed as error:
        problem = Problem(pointer="/url", code="host-not-allowed", message=str(error), given=shown(body.url))
        raise ApiError("host-not-allowed", str(error), [problem]) from error
    except Registered as error:
        raise ApiError("conflict", str(error)) from error


def _refuse_where_off(lab: LabDep) -> None:
    if not lab.settings.webhook_hosts:
        raise ApiError(
            "webhooks-off",
            "this lab calls no webhooks; its operator can name hosts in GRAFTLAB_WEBHOOK_HOSTS",
        )


@router.get("")
def list_webhooks(lab: LabDep) -> list[WebhookView]:
    """List the webhooks that were not removed, newest first, without their secrets."""
    with lab.database.reading() as session:
        return webhook_views(session)


@router.delete("/{webhook_id}")
def remove_webhook(webhook_id: WebhookId, lab: LabDep) -> WebhookView:
    """Send the webhook nothing more; undelivered messages count as failed. Repeating it changes nothing."""
    with lab.database.writing() as session:
        row = _find(session, webhook_id)
        remove(session, row)
        session.flush()
        return webhook_view(session, row)


@router.post("/{webhook_id}/test", status_code=202)
def test_webhook(webhook_id: WebhookId, lab: LabDep) -> DeliveryView:
    """Put a message of type `webhook.test` into the outbox; its delivery shows the outcome."""
    _refuse_where_off(lab)
    with lab.database.writing() as session:
        row = _find(session, webhook_id)
        if row.removed_at is not None:
            raise ApiError("conflict", f"webhook {webhook_id} was removed")
        delivery = announce_test(session, row)
        session.flush()
        return delivery_view(delivery)


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    state: DeliveryState | None = None,
) -> DeliveryPage:
    """List the deliveries to a webhook, newest first, also those of a removed one."""
    with lab.database.reading() as session:
        _find(session, webhook_id)
        return delivery_page(session, webhook_id, limit=limit, before=cursor, state=state)


def _find(session: Session, webhook_id: int) -> WebhookRow:
    row = session.get(WebhookRow, webhook_id)
    if row is None:
        raise ApiError("not-found", f"there is no webhook {webhook_id}")
    return row
