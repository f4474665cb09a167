"""The table of what people have registered: backbones, data sets and feature networks, by revision."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from grafting_core.specs.registration import What
from service.db.tables import Base, now, where

RegisteredState = Literal["registering", "ready", "damaged", "removed", "failed", "repeated", "check"]
USABLE: tuple[RegisteredState, ...] = ("ready", "damaged")
"""States of revisions that have a number and files. Work that names a damaged one is refused."""


class RegisteredRow(Base):
    """One registration, and once it is done the revision that came of it.

    `repeated`: its files were those of a revision that was there already, whose number it has. `check`: its
    run reads a revision again. `damaged`: such a run has found other files than were registered.
    """

    __tablename__ = "registered"
    __table_args__ = (
        Index("ix_registered_under_way", "what", "name", unique=True, **where("state = 'registering'")),
        Index(
            "ix_registered_revision",
            "what",
            "name",
            "revision",
            unique=True,
            **where("state IN ('ready', 'removed')"),
        ),
        Index("ix_registered_owner", "owner", "state"),
        Index("ix_registered_run", "run_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[What] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(100))
    revision: Mapped[int | None]
    """From 1; None until it is done."""
    digest: Mapped[str] = mapped_column(String(64), default="")
    card: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    owner: Mapped[str] = mapped_column(String(64))
    private: Mapped[bool] = mapped_column(default=False)
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of its files; while it is being registered, those that it reserves of its owner's quota."""
    licence: Mapped[str | None] = mapped_column(String(100))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    state: Mapped[RegisteredState] = mapped_column(String(16), default="registering")
    created_at: Mapped[datetime] = mapped_column(default=now)
