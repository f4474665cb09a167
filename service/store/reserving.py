"""What a run will still use, and whether shared budgets have that much left."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from grafting_core.spec.budget import Budget, Spend
from service.store.accounts import (
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
from service.store.models import AccountRow, RunRow
from service.store.queueing import Waiting


def expected(run: RunRow, spent: Spend) -> Spend:
    """What a run will still use: by formula and forecast, never more than its own budget leaves."""
    planned = (run.planned or {}).values()
    total = Spend(
        device_seconds=run.forecast["device_seconds"] if run.forecast else 0.0,
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


def budget_hold(
    session: Session,
    run: Waiting,
    live: Sequence[LiveUse],
    want: Usage,
    known: Mapping[Key, AccountRow] | None = None,
) -> str | None:
    """Why shared budgets do not admit this run now. `known` are accounts that were read already.

    A run that wants more than is left starts when nobody else has a claim, and is cut short.
    """
    read = accounts(session, run.keys) if known is None else known
    for key in sorted(set(run.keys) & read.keys()):
        account = read[key]
        limits, used = limits_of(account), settled(account)
        spent = used.reached(limits)
        if spent:
            return f"the budget of {title(key)} is spent: {spent}"
        others = commitments(key, live)
        if others != Usage() and (used + others + want).reached(limits, beyond=True):
            return f"the budget of {title(key)} is claimed by runs under way"
    return None
