"""Budgets of users, tags and the lab: reserved at admission, metered while running, charged after."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.budget import Budget, Usage
from service.db.engine import insert_if_absent
from service.db.tables import AccountRow, AttemptRow, RunRow, now
from service.domain.pretraining import backbone_of, card_of_revision, share_of_pretraining
from service.domain.run_lifecycle import LIVE
from service.log_once import Once, brief

say = Once(logging.getLogger("graftlab.accounts"))
Scope = Literal["lab", "user", "tag"]
AccountId = tuple[str, str]
LAB: AccountId = ("lab", "lab")
HALF_LIFE_SECONDS = 86_400.0


@dataclass(frozen=True)
class AccountUsage:
    """Amounts used, with the share of pretraining; shares of several backbones add up."""

    device_seconds: float = 0.0
    flops: float = 0.0
    training_images: float = 0.0
    share_of_pretraining: float = 0.0

    def __add__(self, other: "AccountUsage") -> "AccountUsage":
        return AccountUsage(
            *(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def most(self, other: "AccountUsage") -> "AccountUsage":
        """Return the larger of both, field by field."""
        return AccountUsage(
            *(max(mine, theirs) for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def reached(self, limits: Budget, beyond: bool = False) -> str | None:
        """Describe the first limit that this use has reached (or exceeded, with `beyond`); None if there is
        none.
        """
        for name in type(self).__dataclass_fields__:
            limit, used = getattr(limits, name), getattr(self, name)
            if limit is not None and (used > limit if beyond else used >= limit):
                return f"{used:,.6g} of {limit:,.6g} {name.replace('_', ' ')}"
        return None


def usage_of(backbone: BackboneRef, spend: Usage) -> AccountUsage:
    """Convert the use of a run on this revision of a backbone to that of an account."""
    share = share_of_pretraining(backbone, spend.flops) or 0.0
    return AccountUsage(spend.device_seconds, spend.flops, spend.training_images, share)


def keys_of(owner: str, tag: str | None) -> tuple[AccountId, ...]:
    """List the accounts charged for a run of this owner and tag. Runs of a study have its id as tag."""
    more: tuple[AccountId, ...] = (("tag", tag),) if tag else ()
    return (LAB, ("user", owner), *more)


def open_accounts(session: Session, keys: Iterable[AccountId]) -> dict[AccountId, int | None]:
    """Create missing accounts, without limits. Returns the limit of queued runs by account; None: no
    limit.
    """
    ids = set(keys)
    # Only columns are read: a row read here would hide charges that other transactions make before it is
    # locked.
    query = select(AccountRow.scope, AccountRow.name, AccountRow.max_queued).where(_among(ids))
    quotas = {(scope, name): most for scope, name, most in session.execute(query)}
    for scope, name in sorted(ids - quotas.keys()):
        insert_if_absent(session, AccountRow, scope=scope, name=name, **_EMPTY)
    return quotas


_EMPTY = {
    "limits": {},
    "device_seconds": 0.0,
    "flops": 0.0,
    "training_images": 0,
    "share_of_pretraining": 0.0,
    "recent_seconds": 0.0,
    "recent_at": 0.0,
}


def accounts(session: Session, keys: Iterable[AccountId]) -> dict[AccountId, AccountRow]:
    """Return those of the accounts that exist."""
    query = select(AccountRow).where(_among(keys))
    return {(row.scope, row.name): row for row in session.scalars(query)}


def _among(keys: Iterable[AccountId]) -> ColumnElement[bool]:
    return tuple_(AccountRow.scope, AccountRow.name).in_(list(keys))


def limits_of(account: AccountRow) -> Budget:
    return Budget(**account.limits)


def settled(account: AccountRow) -> AccountUsage:
    """Return the use of ended attempts."""
    return AccountUsage(
        account.device_seconds, account.flops, account.training_images, account.share_of_pretraining
    )


def charge_attempt(session: Session, run: RunRow, attempt: AttemptRow, reason: str | None) -> None:
    """End an attempt and charge it; repeating it changes nothing."""
    if attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.reason = now(), reason
    used = usage_of(backbone_of(run.experiment), attempt.spend)
    open_accounts(session, keys_of(run.owner, run.tag))
    for scope, name in sorted(keys_of(run.owner, run.tag)):
        _charge(session.get_one(AccountRow, (scope, name), with_for_update=True), used)


def _charge(account: AccountRow, used: AccountUsage) -> None:
    account.device_seconds += used.device_seconds
    account.flops += used.flops
    account.training_images += int(used.training_images)
    account.share_of_pretraining += used.share_of_pretraining
    account.recent_seconds = recent_seconds(account) + used.device_seconds
    account.recent_at = time.time()


def recent_seconds(account: AccountRow | None) -> float:
    """Return the device-seconds used recently: past use halves every day."""
    if account is None or not account.recent_seconds:
        return 0.0
    age = max(0.0, time.time() - account.recent_at)
    return float(account.recent_seconds * 0.5 ** (age / HALF_LIFE_SECONDS))


def budget_of(run: RunRow) -> Budget:
    """Return the run's own budget as its worker meters it: extensions added, the share converted to FLOPs."""
    budget = Budget(**run.experiment.spec["budget"])
    card = card_of_revision(backbone_of(run.experiment))
    if budget.device_seconds is not None and run.extra_device_seconds:
        more = budget.device_seconds + run.extra_device_seconds
        budget = budget.model_copy(update={"device_seconds": more})
    return budget.resolved(card.pretraining.flops) if card and card.pretraining else budget


@dataclass(frozen=True)
class LiveUse:
    """Use of one live attempt so far, and its reservation."""

    run_id: str
    keys: tuple[AccountId, ...]
    spent: AccountUsage
    reserved: AccountUsage


def live_use(session: Session) -> list[LiveUse]:
    """List the use of every live attempt; there are only as many as the cluster can run at a time."""
    query = (
        select(RunRow, AttemptRow)
        .join(AttemptRow, (AttemptRow.run_id == RunRow.id) & (AttemptRow.number == RunRow.attempt))
        .where(RunRow.state.in_(LIVE))
    )
    return [_live(run, attempt) for run, attempt in session.execute(query)]


def _live(run: RunRow, attempt: AttemptRow) -> LiveUse:
    reserved = Usage(
        device_seconds=run.reserved_device_seconds,
        flops=run.reserved_flops,
        training_images=run.reserved_images,
    )
    backbone = backbone_of(run.experiment)
    spent = usage_of(backbone, attempt.spend)
    return LiveUse(run.id, keys_of(run.owner, run.tag), spent, usage_of(backbone, reserved))


def spent_accounts(session: Session, live: Sequence[LiveUse]) -> dict[str, str]:
    """Return the live runs that must stop, with the shared budget that is spent."""
    rows = accounts(session, {key for use in live for key in use.keys})
    stops: dict[str, str] = {}
    for key, row in rows.items():
        members = [use for use in live if key in use.keys]
        total = sum((use.spent for use in members), settled(row))
        try:
            reached = total.reached(limits_of(row))
        except (TypeError, ValueError) as error:  # admission starts no run on it
            say(key, f"the budget of {title(key)} cannot be read: {brief(error)}")
            continue
        if reached:
            stops |= {use.run_id: f"the budget of {title(key)} is spent: {reached}" for use in members}
    return stops


def commitments(key: AccountId, live: Sequence[LiveUse]) -> AccountUsage:
    """Sum the use or the reservation, whichever is larger, of an account's live attempts."""
    return sum((use.spent.most(use.reserved) for use in live if key in use.keys), AccountUsage())


def title(key: AccountId) -> str:
    """Name an account in messages: `the lab`, `user ann`, `tag s1`."""
    return "the lab" if key == LAB else f"{key[0]} {key[1]}"
