"""What users, studies and the lab may use: reserved at admission, metered while running, settled after."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.budget import Budget, Usage
from service.db.engine import insert_if_absent
from service.db.tables import AccountRow, AttemptRow, RunRow, now
from service.domain.run_lifecycle import LIVE
from service.log_once import Once, brief

say = Once(logging.getLogger("graftlab.accounts"))
Scope = Literal["lab", "user", "study"]
AccountId = tuple[str, str]
LAB: AccountId = ("lab", "lab")
HALF_LIFE_SECONDS = 86_400.0


@dataclass(frozen=True)
class AccountUsage:
    """A spend, and what share of pretraining it was; shares of several backbones add up."""

    device_seconds: float = 0.0
    flops: float = 0.0
    training_images: float = 0.0
    share_of_pretraining: float = 0.0

    def __add__(self, other: "AccountUsage") -> "AccountUsage":
        return AccountUsage(
            *(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def most(self, other: "AccountUsage") -> "AccountUsage":
        """The larger of both, field by field."""
        return AccountUsage(
            *(max(mine, theirs) for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )

    def reached(self, limits: Budget, beyond: bool = False) -> str | None:
        """The first limit that this use has reached (or passed), as words; None where there is room."""
        for name in type(self).__dataclass_fields__:
            limit, used = getattr(limits, name), getattr(self, name)
            if limit is not None and (used > limit if beyond else used >= limit):
                return f"{used:,.6g} of {limit:,.6g} {name.replace('_', ' ')}"
        return None


def usage_of(backbone: str, spend: Usage) -> AccountUsage:
    """What a spend on this backbone comes to."""
    card = backbone_cards().get(backbone)
    share = spend.flops / card.pretraining.flops if card else 0.0
    return AccountUsage(spend.device_seconds, spend.flops, spend.training_images, share)


def keys_of(owner: str, study: str | None) -> tuple[AccountId, ...]:
    """The accounts that a run of this owner and study is charged to."""
    more: tuple[AccountId, ...] = (("study", study),) if study else ()
    return (LAB, ("user", owner), *more)


def open_accounts(session: Session, keys: Iterable[AccountId]) -> dict[AccountId, int | None]:
    """Make those that are missing, without limits. Gives how many runs each may queue; None: any number."""
    wanted = set(keys)
    # Columns, not rows: a row read here would hide what another transaction charges before it is locked.
    query = select(AccountRow.scope, AccountRow.name, AccountRow.max_queued).where(_among(wanted))
    quotas = {(scope, name): most for scope, name, most in session.execute(query)}
    for scope, name in sorted(wanted - quotas.keys()):
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
    """Those of the keys that exist."""
    query = select(AccountRow).where(_among(keys))
    return {(row.scope, row.name): row for row in session.scalars(query)}


def _among(keys: Iterable[AccountId]) -> ColumnElement[bool]:
    return tuple_(AccountRow.scope, AccountRow.name).in_(list(keys))


def limits_of(account: AccountRow) -> Budget:
    return Budget(**account.limits)


def settled(account: AccountRow) -> AccountUsage:
    """What ended attempts have used."""
    return AccountUsage(
        account.device_seconds, account.flops, account.training_images, account.share_of_pretraining
    )


def charge_attempt(session: Session, run: RunRow, attempt: AttemptRow, reason: str | None) -> None:
    """End an attempt and charge it, once however often it is asked for."""
    if attempt.ended_at is not None:
        return
    attempt.ended_at, attempt.reason = now(), reason
    used = usage_of(run.experiment.backbone, attempt.spend)
    open_accounts(session, keys_of(run.owner, run.study))
    for scope, name in sorted(keys_of(run.owner, run.study)):
        _charge(session.get_one(AccountRow, (scope, name), with_for_update=True), used)


def _charge(account: AccountRow, used: AccountUsage) -> None:
    account.device_seconds += used.device_seconds
    account.flops += used.flops
    account.training_images += int(used.training_images)
    account.share_of_pretraining += used.share_of_pretraining
    account.recent_seconds = recent_seconds(account) + used.device_seconds
    account.recent_at = time.time()


def recent_seconds(account: AccountRow | None) -> float:
    """Device-seconds used of late: they halve every day."""
    if account is None or not account.recent_seconds:
        return 0.0
    age = max(0.0, time.time() - account.recent_at)
    return float(account.recent_seconds * 0.5 ** (age / HALF_LIFE_SECONDS))


def budget_of(run: RunRow) -> Budget:
    """A run's own budget as its worker meters it: extensions added, the share told in FLOPs."""
    budget = Budget(**run.experiment.spec["budget"])
    card = backbone_cards().get(run.experiment.backbone)
    if budget.device_seconds is not None and run.extra_device_seconds:
        more = budget.device_seconds + run.extra_device_seconds
        budget = budget.model_copy(update={"device_seconds": more})
    return budget.resolved(card.pretraining.flops) if card else budget


@dataclass(frozen=True)
class LiveUse:
    """What one live attempt has used so far, and what was set aside for it."""

    run_id: str
    keys: tuple[AccountId, ...]
    spent: AccountUsage
    reserved: AccountUsage


def live_use(session: Session) -> list[LiveUse]:
    """Of every attempt under way; as many as the cluster carries at a time."""
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
    backbone = run.experiment.backbone
    spent = usage_of(backbone, attempt.spend)
    return LiveUse(run.id, keys_of(run.owner, run.study), spent, usage_of(backbone, reserved))


def spent_accounts(session: Session, live: Sequence[LiveUse]) -> dict[str, str]:
    """Live runs that must stop, with which shared budget is spent."""
    rows = accounts(session, {key for use in live for key in use.keys})
    stops: dict[str, str] = {}
    for key, row in rows.items():
        members = [use for use in live if key in use.keys]
        total = sum((use.spent for use in members), settled(row))
        try:
            reached = total.reached(limits_of(row))
        except (TypeError, ValueError) as error:  # admission starts nobody on it
            say(key, f"the budget of {title(key)} cannot be read: {brief(error)}")
            continue
        if reached:
            stops |= {use.run_id: f"the budget of {title(key)} is spent: {reached}" for use in members}
    return stops


def commitments(key: AccountId, live: Sequence[LiveUse]) -> AccountUsage:
    """What live attempts of an account have used or set aside, whichever is more."""
    return sum((use.spent.most(use.reserved) for use in live if key in use.keys), AccountUsage())


def title(key: AccountId) -> str:
    """`the lab`, `user ann`, `study s1`."""
    return "the lab" if key == LAB else f"{key[0]} {key[1]}"
