"""Validity of leases by the database's clock, also after that clock was set back."""

from collections.abc import Mapping
from typing import Literal

from sqlalchemy.orm import Session

from service.db.tables import LeaderRow

LeaseName = Literal["scheduler", "studies"]
LEASES: Mapping[LeaseName, int] = {"scheduler": 1, "studies": 2}
"""Kind of process -> row of its lease. Two processes of one kind never act at the same time."""
NOUNS: Mapping[LeaseName, str] = {"scheduler": "scheduler", "studies": "process of the studies"}
LEAST = 60.0


def longest(seconds: float) -> float:
    """Return how many seconds ahead a lease of `seconds` can end at most.

    A lease that ends later was written before the clock was set back, and does not count.
    """
    return max(LEAST, 2 * seconds)


def missing_leader(session: Session, name: LeaseName, clock: float, seconds: float) -> str | None:
    """Return None if a process of this kind leads, else what is wrong."""
    row = session.get(LeaderRow, LEASES[name])
    if row is None or row.until <= clock:
        return f"no {NOUNS[name]} leads"
    if row.until > clock + longest(seconds):
        ahead = row.until - clock
        return f"no {NOUNS[name]} is known to lead: the lease ends in {ahead:.0f} s, the clock was set back"
    return None
