"""Of several schedulers one leads: a lease by the database's clock, checked in every write."""

import os
import platform
import secrets

from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.store.engine import Database
from service.store.models import LeaderRow


class Leadership:
    """This process's claim to the one lease."""

    def __init__(self, database: Database, seconds: float) -> None:
        self._database, self._seconds = database, seconds
        self.holder = f"{platform.node()[:30]}-{os.getpid()}-{secrets.token_hex(4)}"

    def claim(self) -> bool:
        """Take or renew the lease; False while another holds it."""
        with self._database.writing() as session:
            clock = self._database.clock(session)
            self._ensure_row(session)
            free = (LeaderRow.holder == self.holder) | (LeaderRow.until < clock)
            values = {"holder": self.holder, "until": clock + self._seconds}
            taken = session.execute(update(LeaderRow).where(LeaderRow.id == 1, free).values(**values))
            return bool(taken.rowcount)  # type: ignore[attr-defined]  # an update has one

    def _ensure_row(self, session: Session) -> None:
        insert = sqlite.insert if self._database.engine.dialect.name == "sqlite" else postgresql.insert
        row = insert(LeaderRow).values(id=1, holder="", until=0.0)
        session.execute(row.on_conflict_do_nothing(index_elements=["id"]))

    def holds(self, session: Session) -> bool:
        """Whether this very transaction may still write in the leader's name."""
        row = session.get(LeaderRow, 1, with_for_update=True)
        return row is not None and row.holder == self.holder and row.until > self._database.clock(session)

    def release(self) -> None:
        """Let the next one lead at once."""
        with self._database.writing() as session:
            session.execute(update(LeaderRow).where(LeaderRow.holder == self.holder).values(until=0.0))
