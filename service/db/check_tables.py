"""Table of checks of the whole lab, with their progress."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Base, now


class CheckRow(Base):
    """One check of the whole lab. The process that runs it renews `alive_until`."""

    __tablename__ = "checks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    quick: Mapped[bool]
    """Check only the database's invariants and the names of files; read no files."""
    state: Mapped[str] = mapped_column(String(16))
    """`RUNNING`, `DONE`, `FAILED` or `INTERRUPTED`."""
    step: Mapped[str] = mapped_column(String(64), server_default="", default="")
    done: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    total: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    violations: Mapped[list[Any]] = mapped_column(JSON, default=list)
    """The first violations; `found` counts all."""
    found: Mapped[int] = mapped_column(server_default="0", default=0)
    message: Mapped[str | None] = mapped_column(String(500))
    alive_until: Mapped[float] = mapped_column(Float)
    """Seconds since 1970 by the database's clock; a RUNNING check not renewed by then is dead."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
