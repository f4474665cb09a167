"""Artifacts that runs need: the cost of shared artifacts is split, and none that is needed is deleted."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import ExperimentSpec, evaluation_key, finetune_key, scions_of
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.jobs import Job
from grafting_core.storage.artifacts import CARD
from grafting_core.storage.storage import Storage
from service.db.tables import RunDependencyRow, RunRow
from service.schemas.runs import TERMINAL
from workers.contract import StageReport

WAITS = "waits for run "
"""Beginning of the message of a queued run that waits for another, before that run's id."""
Need = tuple[str, str]
"""Folder under the storage root, and key."""


def required_artifacts(work: Job) -> list[Need]:
    """List every artifact under a content key that the work makes or reuses."""
    if isinstance(work, FillSpec):
        return [("scions", scion.key) for scion in work.scions]
    if not isinstance(work, ExperimentSpec):
        return []
    needs = [("scions", scion.key) for scion in scions_of(work)]
    if work.fresh:
        return needs  # it reuses no other run's model or evaluation, and no other run waits for its own
    if not work.design.is_teacher:
        needs.append(("models", finetune_key(work)))
    return [*needs, ("evaluations", evaluation_key(work))]


def record_needs(session: Session, run: RunRow, work: Job) -> None:
    """Record at submission which artifacts the run will need, each key once."""
    for folder, key in dict.fromkeys(required_artifacts(work)):
        session.add(RunDependencyRow(run_id=run.id, folder=folder, key=key))


def is_there(storage: Storage, folder: str, key: str) -> bool:
    """Check whether an artifact is published under this key."""
    return storage.exists(f"{folder}/{key}/{CARD}")


def share_costs(session: Session, run: RunRow, report: StageReport) -> None:
    """Split the cost of what a stage made equally among all unfinished runs that need it, including the
    maker.
    """
    for key, spend in _made(report).items():
        query = (
            select(RunDependencyRow)
            .join(RunRow, RunRow.id == RunDependencyRow.run_id)
            .where(RunDependencyRow.key == key, RunRow.state.not_in(TERMINAL))
            .order_by(RunDependencyRow.run_id)
        )
        rows = list(session.scalars(query))
        others = [row for row in rows if row.run_id != run.id]
        own = session.get(RunDependencyRow, (run.id, key))
        if own is None:
            continue
        for row in others:
            _move(own, row, spend, len(others) + 1)


def _made(report: StageReport) -> dict[str, Usage]:
    """Return the cost by key of what this stage made itself, without what it reused."""
    if report.stage == "distill" or report.stop_cause != "completed":
        return dict(report.made)
    return {report.key: report.spend}


def _move(maker: RunDependencyRow, other: RunDependencyRow, spend: Usage, sharers: int) -> None:
    seconds, flops = spend.device_seconds / sharers, spend.flops / sharers
    images = spend.training_images // sharers
    for row, sign in ((maker, -1), (other, 1)):
        row.device_seconds += sign * seconds
        row.flops += sign * flops
        row.training_images += sign * images


def transfers(session: Session, run_ids: Iterable[str]) -> dict[str, tuple[float, float, int]]:
    """Sum by run what it pays for others' work less what others pay: (device-seconds, FLOPs, images)."""
    query = (
        select(
            RunDependencyRow.run_id,
            func.sum(RunDependencyRow.device_seconds),
            func.sum(RunDependencyRow.flops),
            func.sum(RunDependencyRow.training_images),
        )
        .where(RunDependencyRow.run_id.in_(list(run_ids)), RunDependencyRow.flops != 0)
        .group_by(RunDependencyRow.run_id)
    )
    return {
        run_id: (seconds, flops, int(images)) for run_id, seconds, flops, images in session.execute(query)
    }


def needed_by_others(session: Session, keys: Iterable[str]) -> dict[str, str]:
    """Return for each key the first unfinished run that needs it."""
    query = (
        select(RunDependencyRow.key, RunDependencyRow.run_id)
        .join(RunRow, RunRow.id == RunDependencyRow.run_id)
        .where(RunDependencyRow.key.in_(list(keys)), RunRow.state.not_in(TERMINAL))
        .order_by(RunRow.id.desc())
    )
    return {row.key: row.run_id for row in session.execute(query)}
