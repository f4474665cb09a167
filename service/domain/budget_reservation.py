"""Expected further use of a run, and whether shared budgets have that much left."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from service.db.tables import AccountRow, RunRow
from service.domain.budgets import (
    AccountId,
    AccountUsage,
    LiveUse,
    accounts,
    budget_of,
    commitments,
    limits_of,
    settled,
    title,
)


def expected(run: RunRow, spent: Usage, forecast: Mapping[str, Any] | None = None) -> Usage:
    """Return the expected further use, by formula and forecast, at most what the run's own budget leaves."""
    forecast = forecast or run.forecast
    planned = (run.planned or {}).values()
    total = Usage(
        device_seconds=forecast["device_seconds"] if forecast else 0.0,
        flops=sum(stage["flops"] for stage in planned),
        training_images=sum(stage["training_images"] for stage in planned),
    )
    return _left(total, spent, budget_of(run))


def _left(total: Usage, spent: Usage, budget: Budget) -> Usage:
    def left(name: str) -> float:
        limit, amount = getattr(budget, name), float(getattr(total, name))
        most = amount if limit is None else min(amount or limit, limit)
        return float(max(0.0, most - getattr(spent, name)))

    images = int(left("training_images"))
    return Usage(device_seconds=left("device_seconds"), flops=left("flops"), training_images=images)


class Budgets:
    """Shared budgets as first read in this walk; each account is read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._accounts: dict[AccountId, tuple[Budget | None, AccountUsage]] = {}

    def prepare(self, keys: Collection[AccountId]) -> None:
        """Read those accounts that have not been read."""
        missing = set(keys) - self._accounts.keys()
        rows = accounts(self._session, missing) if missing else {}
        self._accounts |= {key: _read(rows.get(key)) for key in missing}

    def limits(self, key: AccountId) -> Budget | None:
        """Return the account's limits; None if they cannot be read."""
        return self._accounts[key][0]

    def spent(self, key: AccountId) -> str | None:
        """Return why nothing more may be used, or None."""
        limits, used = self._accounts[key]
        if limits is None:
            return f"the budget of {title(key)} cannot be read; set it again"
        reached = used.reached(limits)
        return f"the budget of {title(key)} is spent: {reached}" if reached else None

    def claimed(self, key: AccountId, live: Sequence[LiveUse], want: AccountUsage) -> bool:
        """Check whether running runs leave less than `want`.

        A run that needs more than is left starts once no other run has a reservation, and stops when the
        budget is spent.
        """
        limits, used = self._accounts[key]
        others = commitments(key, live)
        return (
            limits is not None
            and others != AccountUsage()
            and (used + others + want).reached(limits, beyond=True) is not None
        )


def _read(account: AccountRow | None) -> tuple[Budget | None, AccountUsage]:
    if account is None:
        return Budget(), AccountUsage()
    try:
        return limits_of(account), settled(account)
    except (TypeError, ValueError):
        return None, AccountUsage()
