"""What a run will still use, and whether shared budgets have that much left."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Spend
from service.db.tables import AccountRow, RunRow
from service.domain.budgets import (
    Key,
    LiveUse,
    Usage,
    accounts,
    budget_of,
    commitments,
    limits_of,
    settled,
    title,
)


def expected(run: RunRow, spent: Spend, forecast: Mapping[str, Any] | None = None) -> Spend:
    """What a run will still use: by formula and forecast, never more than its own budget leaves."""
    forecast = forecast or run.forecast
    planned = (run.planned or {}).values()
    total = Spend(
        device_seconds=forecast["device_seconds"] if forecast else 0.0,
        flops=sum(stage["flops"] for stage in planned),
        training_images=sum(stage["training_images"] for stage in planned),
    )
    return _left(total, spent, budget_of(run))


def _left(total: Spend, spent: Spend, budget: Budget) -> Spend:
    def left(name: str) -> float:
        limit, amount = getattr(budget, name), float(getattr(total, name))
        most = amount if limit is None else min(amount or limit, limit)
        return float(max(0.0, most - getattr(spent, name)))

    images = int(left("training_images"))
    return Spend(device_seconds=left("device_seconds"), flops=left("flops"), training_images=images)


class Budgets:
    """Shared budgets as they were when they were first asked for; each account is read once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._accounts: dict[Key, tuple[Budget | None, Usage]] = {}

    def prepare(self, keys: Collection[Key]) -> None:
        """Read those that have not been read."""
        missing = set(keys) - self._accounts.keys()
        found = accounts(self._session, missing) if missing else {}
        self._accounts |= {key: _read(found.get(key)) for key in missing}

    def limits(self, key: Key) -> Budget | None:
        """None where they cannot be read."""
        return self._accounts[key][0]

    def spent(self, key: Key) -> str | None:
        """Why nothing more may be used, or None."""
        limits, used = self._accounts[key]
        if limits is None:
            return f"the budget of {title(key)} cannot be read; set it anew"
        reached = used.reached(limits)
        return f"the budget of {title(key)} is spent: {reached}" if reached else None

    def claimed(self, key: Key, live: Sequence[LiveUse], want: Usage) -> bool:
        """Whether runs under way leave too little for this.

        A run that wants more than is left starts when nobody else has a claim, and is cut short.
        """
        limits, used = self._accounts[key]
        others = commitments(key, live)
        return (
            limits is not None
            and others != Usage()
            and (used + others + want).reached(limits, beyond=True) is not None
        )


def _read(account: AccountRow | None) -> tuple[Budget | None, Usage]:
    if account is None:
        return Budget(), Usage()
    try:
        return limits_of(account), settled(account)
    except (TypeError, ValueError):
        return None, Usage()
