"""Tables of webhooks: registered addresses, and the outbox of their deliveries."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Base, now


class WebhookRow(Base):
    """An address that receives a message when something ends. The secret is stored in clear, as signing needs
    it.
    """

    __tablename__ = "webhooks"

    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(String(2000))
    types: Mapped[list[Any]] = mapped_column(JSON)
    secret: Mapped[str] = mapped_column(String(64))
    """Emptied when the webhook is removed."""
    owner: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)
    removed_at: Mapped[datetime | None]


class DeliveryRow(Base):
    """One message to one webhook, written in the transaction that ended its subject."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "due", "webhook_id"),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "id"),
        Index("ix_webhook_deliveries_state", "webhook_id", "state"),
        Index("ix_webhook_deliveries_ended", "ended_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhooks.id"))
    message_id: Mapped[str] = mapped_column(String(80), unique=True)
    """Id by which receivers detect repetitions; made from the subject, so that it cannot be made twice."""
    type: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(32))
    """Id of the run or study."""
    number: Mapped[int]
    """Number of the run's event, or version of the study, that the message reports."""
    body: Mapped[str] = mapped_column(Text)
    """The exact text that is sent and signed at every attempt."""
    state: Mapped[str] = mapped_column(String(16), default="PENDING")
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[float] = mapped_column(default=0.0)
    """Seconds since 1970 by the database's clock."""
    status: Mapped[int | None]
    """Status of the last answer."""
    error: Mapped[str | None] = mapped_column(String(300))
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
