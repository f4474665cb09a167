"""Limits of accounts: show and set them."""

from typing import Annotated

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget, Usage
from service.db.tables import AccountRow
from service.domain.budgets import AccountId, LiveUse, commitments, live_use, open_accounts
from service.schemas.runs import AccountView

Quota = Annotated[int, Field(ge=0, le=10**9)] | None
Bytes = Annotated[int, Field(ge=0, lt=2**63)] | None


class AccountLimits(Frozen):
    """Limits of an account's total use and, for a user, of its simultaneous use."""

    budget: Budget = Budget()
    max_queued: Quota = None
    max_running: Quota = None
    max_cpus: Quota = None
    max_gpus: Quota = None
    max_registered_bytes: Bytes = None
    """Of backbones, data sets and feature networks that a user registers."""


def all_accounts(session: Session, owner: str | None = None) -> list[AccountView]:
    """List the lab's account, then users, then tags; with `owner`, only that user's account."""
    query = select(AccountRow).order_by(AccountRow.scope, AccountRow.name)
    if owner is not None:
        query = query.where(AccountRow.scope == "user", AccountRow.name == owner)
    live = live_use(session)
    order = ("lab", "user", "tag")
    rows = sorted(session.scalars(query), key=lambda row: (order.index(row.scope), row.name))
    return [_view(row, live) for row in rows]


def set_limits(session: Session, key: AccountId, new: AccountLimits) -> AccountView:
    """Replace the limits; the recorded use is kept."""
    open_accounts(session, [key])
    row = session.get_one(AccountRow, key, with_for_update=True)
    row.limits = new.budget.model_dump(exclude_none=True)
    row.max_queued, row.max_running = new.max_queued, new.max_running
    row.max_cpus, row.max_gpus = new.max_cpus, new.max_gpus
    row.max_registered_bytes = new.max_registered_bytes
    session.flush()
    return _view(row, live_use(session))


def change_limits(session: Session, key: AccountId, new: AccountLimits) -> AccountView:
    """Change the limits that are set in `new`, None to remove one; other limits and the use are kept."""
    open_accounts(session, [key])
    row = session.get_one(AccountRow, key, with_for_update=True)
    named = new.budget.model_fields_set if "budget" in new.model_fields_set else set()
    changed = row.limits | new.budget.model_dump(include=named)
    row.limits = {name: limit for name, limit in changed.items() if limit is not None}
    for name in new.model_fields_set - {"budget"}:
        setattr(row, name, getattr(new, name))
    session.flush()
    return _view(row, live_use(session))


def _view(row: AccountRow, live: list[LiveUse]) -> AccountView:
    claimed = commitments((row.scope, row.name), live)
    return AccountView(
        scope=row.scope,
        name=row.name,
        limits=Budget(**row.limits),
        max_queued=row.max_queued,
        max_running=row.max_running,
        max_cpus=row.max_cpus,
        max_gpus=row.max_gpus,
        max_registered_bytes=row.max_registered_bytes,
        spent=Usage(device_seconds=row.device_seconds, flops=row.flops, training_images=row.training_images),
        share_of_pretraining=row.share_of_pretraining,
        claimed=Usage(
            device_seconds=claimed.device_seconds,
            flops=claimed.flops,
            training_images=int(claimed.training_images),
        ),
    )
