"""What the REST API takes and answers about webhooks; the client parses the same classes."""

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
"""What has ended, and how."""
HOOK_TYPES: tuple[HookType, ...] = get_args(HookType)
DeliveryState = Literal["PENDING", "DELIVERED", "FAILED"]


class WebhookRequest(Frozen):
    """Whom to tell of what."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    types: Annotated[tuple[HookType, ...], Field(min_length=1, max_length=len(HOOK_TYPES))] = HOOK_TYPES


class WebhookView(View):
    """A webhook without its secret, and what has become of its deliveries."""

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
    """Of the newest delivery, where that has had one."""


class WebhookMade(WebhookView):
    """The one answer that holds the secret with which deliveries are signed."""

    secret: str


class DeliveryView(View):
    """One message to one webhook; `subject` is the run or study it tells of."""

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
    """Newest first; `next_cursor` asks for older ones."""

    deliveries: list[DeliveryView]
    next_cursor: int | None = None
