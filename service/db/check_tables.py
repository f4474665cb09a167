"""The table of checks: each looks through the whole lab, and says how far it is."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Base, now


class CheckRow(Base):
    """One check of everything. Whoever carries it out says again and again that it is alive."""

    __tablename__ = "checks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    quick: Mapped[bool]
    """The database's invariants and the names of files alone; no file is read."""
    state: Mapped[str] = mapped_column(String(16))
    """`RUNNING`, `DONE`, `FAILED` or `INTERRUPTED`."""
    step: Mapped[str] = mapped_column(String(64), server_default="", default="")
    done: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    total: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    violations: Mapped[list[Any]] = mapped_column(JSON, default=list)
    """The first of them; `found` counts all."""
    found: Mapped[int] = mapped_column(server_default="0", default=0)
    message: Mapped[str | None] = mapped_column(String(500))
    alive_until: Mapped[float] = mapped_column(Float)
    """Seconds since 1970 by the database's clock; a RUNNING check that is not renewed by then has died."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
