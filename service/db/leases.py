"""Whether a scheduler's lease holds, by the database's clock, also where that clock was set back."""

from service.db.tables import LeaderRow

LEAST = 60.0


def longest(seconds: float) -> float:
    """How far from now a lease can end where leases last `seconds`: one that ends later was made by a clock
    that has been set back since, and holds nobody up.
    """
    return max(LEAST, 2 * seconds)


def is_led(row: LeaderRow | None, clock: float, seconds: float) -> str | None:
    """None where a scheduler leads, else what is wrong, in words."""
    if row is None or row.until <= clock:
        return "no scheduler leads"
    if row.until > clock + longest(seconds):
        ahead = row.until - clock
        return f"no scheduler is known to lead: the lease ends in {ahead:.0f} s, the clock was set back"
    return None
