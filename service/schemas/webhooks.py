"""Responses and requests of webhooks; the client parses the same classes."""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from grafting_core.specs.base import Frozen
from service.schemas.runs import View

HookType = Literal[
    "run.succeeded",
    "run.stopped",
    "run.failed",
    "run.cancelled",
    "study.done",
    "study.stopped",
    "study.failed",
]
"""Message type: what has ended, and how."""
HOOK_TYPES: tuple[HookType, ...] = get_args(HookType)
DeliveryState = Literal["PENDING", "DELIVERED", "FAILED"]


class WebhookRequest(Frozen):
    """Address of a new webhook and the message types that it receives."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    types: Annotated[tuple[HookType, ...], Field(min_length=1, max_length=len(HOOK_TYPES))] = HOOK_TYPES


class WebhookView(View):
    """A webhook without its secret, with the counts of its deliveries."""

    id: int
    url: str
    types: list[HookType]
    owner: str
    created_at: datetime
    removed_at: datetime | None = None
    delivered: int = 0
    pending: int = 0
    failed: int = 0
    last_error: str | None = None
    """Error of the newest delivery, if it had one."""


class WebhookMade(WebhookView):
    """A new webhook with its signing secret, which no other answer holds."""

    secret: str


class DeliveryView(View):
    """One message to one webhook; `subject` is the run or study that it reports."""

    id: int
    message_id: str
    type: HookType | Literal["webhook.test"]
    subject: str
    state: DeliveryState
    attempts: int
    status: int | None = None
    error: str | None = None
    created_at: datetime
    ended_at: datetime | None = None


class DeliveryPage(View):
    """Deliveries, newest first; `next_cursor` requests older ones."""

    deliveries: list[DeliveryView]
    next_cursor: int | None = None
