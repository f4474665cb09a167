"""Leader election among processes of a kind: a lease by the database's clock, checked in every write."""

import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.db.engine import Database, insert_if_absent
from service.db.leases import LEASES, LeaseName, longest
from service.db.tables import LeaderRow


class Leadership:
    """This process's claim to the one lease of its kind."""

    def __init__(self, database: Database, seconds: float, name: LeaseName = "scheduler") -> None:
        self._database, self._seconds, self._id = database, seconds, LEASES[name]
        self.holder = f"{platform.node()[:30]}-{os.getpid()}-{secrets.token_hex(4)}"

    def claim(self) -> bool:
        """Take or renew the lease; False while another process holds it.

        A lease that ends later than any can was written before the clock was set back, and is taken over.
        """
        with self._database.writing() as session:
            clock = self._database.clock(session)
            insert_if_absent(session, LeaderRow, id=self._id, holder="", until=0.0)
            over = (LeaderRow.until < clock) | (LeaderRow.until > clock + longest(self._seconds))
            free = (LeaderRow.holder == self.holder) | over
            values = {"holder": self.holder, "until": clock + self._seconds}
            taken = session.execute(update(LeaderRow).where(LeaderRow.id == self._id, free).values(**values))
            return bool(taken.rowcount)  # type: ignore[attr-defined]  # an update has one

    def holds(self, session: Session) -> bool:
        """Check whether this transaction may still write as the leader."""
        row = session.get(LeaderRow, self._id, with_for_update=True)
        return row is not None and row.holder == self.holder and row.until > self._database.clock(session)

    def release(self) -> None:
        """Release the lease, so that another process can lead at once."""
        with self._database.writing() as session:
            session.execute(update(LeaderRow).where(LeaderRow.holder == self.holder).values(until=0.0))


class LostLeadership(Exception):
    """Another process leads now; this transaction is rolled back."""


@contextmanager
def leading(database: Database, leadership: Leadership) -> Iterator[Session]:
    """Open a write transaction that only the leader can commit. Raises LostLeadership."""
    with database.writing() as session:
        if not leadership.holds(session):
            raise LostLeadership("this process's lease has run out")
        yield session
