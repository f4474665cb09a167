"""Routes that control runs, singly and in bulk; the explained queue; accounts and their budgets."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field
from sqlalchemy.orm import Session

from grafting_core.specs.base import Frozen
from service.api.deps import AppContext, LabDep
from service.api.documents import DocumentRoute
from service.api.idempotency import IdempotencyKey
from service.api.problems import ApiError
from service.db.tables import RunRow
from service.domain import budget_limits
from service.domain.artifact_dependencies import is_there
from service.domain.budget_limits import AccountLimits
from service.domain.budgets import LAB, AccountId, Scope
from service.domain.queue_explain import queue_view
from service.domain.run_controls import MAX_PRIORITY, Action, apply_action, extend, prioritise
from service.domain.run_lifecycle import IllegalMove
from service.domain.submission import KeyReused
from service.domain.visibility import queue_to
from service.schemas.runs import AccountView, ActionResult, QueueView, RunDetail

router = APIRouter(tags=["actions"], route_class=DocumentRoute)
BULK = 1000
RunId = Annotated[str, Field(min_length=1, max_length=32, pattern="^[0-9a-z]+$")]
Name = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]


class Extension(Frozen):
    """More device-seconds for one run."""

    device_seconds: Annotated[float, Field(gt=0, le=1e9)]


class Priority(Frozen):
    """Priority in the queue; higher ones run first, 0 is the default."""

    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


class BulkAction(Frozen):
    """One action on many runs."""

    action: Literal["pause", "resume", "cancel", "kill", "retry", "extend", "priority"]
    runs: Annotated[tuple[RunId, ...], Field(min_length=1, max_length=BULK)]
    device_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None


Change = Callable[[Session, RunRow], bool]


def _change(lab: AppContext, run_id: str, change: Change) -> bool:
    """Apply a change to a run. Raises ApiError: not-found, forbidden, illegal-transition or key-reused."""
    try:
        with lab.database.writing() as session:
            return change(session, lab.run_to_change(session, run_id))
    except IllegalMove as error:
        raise ApiError("illegal-transition", str(error)) from error
    except KeyReused as error:
        raise ApiError("key-reused", str(error)) from error


@router.post("/runs/{run_id}/extend")
def extend_run(
    run_id: str,
    body: Extension,
    lab: LabDep,
    key: IdempotencyKey = None,
) -> RunDetail:
    """Grant more device-seconds, once per Idempotency-Key; a run that stopped on its budget continues."""
    _change(lab, run_id, lambda session, run: extend(session, run, body.device_seconds, key))
    return lab.run_detail(run_id)


@router.put("/runs/{run_id}/priority")
def set_priority(run_id: str, body: Priority, lab: LabDep) -> RunDetail:
    """Set the priority of a run in the queue."""
    _change(lab, run_id, lambda session, run: prioritise(session, run, body.priority))
    return lab.run_detail(run_id)


@router.post("/runs/{run_id}/{action}")
def act_on_run(run_id: str, action: Action, lab: LabDep) -> RunDetail:
    """Pause or cancel after the next checkpoint, kill now, resume, or retry. Repeating it changes nothing."""
    _change(lab, run_id, lambda session, run: apply_action(session, run, action))
    return lab.run_detail(run_id)


@router.post("/actions")
def act_on_runs(body: BulkAction, lab: LabDep, key: IdempotencyKey = None) -> list[ActionResult]:
    """Apply one action to each of many runs; a run that refuses it does not affect the others."""
    return [_result(lab, run_id, _bulk_change(body, key)) for run_id in dict.fromkeys(body.runs)]


def _bulk_change(body: BulkAction, key: str | None) -> Change:
    match body.action:
        case "extend":
            seconds = body.device_seconds
            if seconds is None:
                raise ApiError("invalid", "the action extend needs the field device_seconds")
            return lambda session, run: extend(session, run, seconds, key)
        case "priority":
            priority = body.priority
            if priority is None:
                raise ApiError("invalid", "the action priority needs the field priority")
            return lambda session, run: prioritise(session, run, priority)
        case action:
            return lambda session, run: apply_action(session, run, action)


def _result(lab: AppContext, run_id: str, change: Change) -> ActionResult:
    try:
        changed = _change(lab, run_id, change)
    except ApiError as error:
        return ActionResult(run_id=run_id, problem=error.detail)
    return ActionResult(run_id=run_id, state=lab.run_detail(run_id).state, changed=changed)


@router.get("/queue")
def show_queue(
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    run: Annotated[str | None, Query(max_length=32, pattern="^[0-9a-z]+$")] = None,
) -> QueueView:
    """Return the queue in order, with what each run waits for and its expected start; all, or one run."""
    with lab.database.reading() as session:
        view = queue_view(
            session,
            lab.settings.cpus,
            lab.settings.gpus,
            limit,
            run,
            published=lambda *place: is_there(lab.storage, *place),
            hold_line_seconds=lab.settings.hold_line_seconds,
        )
        return queue_to(session, lab.principal.only_owner, view)


@router.get("/accounts")
def list_accounts(lab: LabDep) -> list[AccountView]:
    """List limits and use of the lab, users and tags; a key that sees only its own gets its own
    account.
    """
    with lab.database.reading() as session:
        return budget_limits.all_accounts(session, lab.principal.only_owner)


@router.put("/accounts/{scope}/{name}")
def set_limits(scope: Scope, name: Name, body: AccountLimits, lab: LabDep) -> AccountView:
    """Replace an account's limits; those left out become unlimited. Admins only."""
    return _limit(lab, (scope, name), body, budget_limits.set_limits)


@router.patch("/accounts/{scope}/{name}")
def change_limits(scope: Scope, name: Name, body: AccountLimits, lab: LabDep) -> AccountView:
    """Change the given limits of an account; null removes one. Admins only."""
    return _limit(lab, (scope, name), body, budget_limits.change_limits)


def _limit(
    lab: AppContext,
    key: AccountId,
    body: AccountLimits,
    change: Callable[[Session, AccountId, AccountLimits], AccountView],
) -> AccountView:
    if not lab.principal.may("admin"):
        raise ApiError("forbidden", "setting limits needs a key of role admin")
    if key[0] == "lab" and key != LAB:
        raise ApiError("not-found", f"there is no account lab/{key[1]}; the lab's own is lab/lab")
    with lab.database.writing() as session:
        return change(session, key, body)
