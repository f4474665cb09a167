"""State machine of studies: the allowed moves, and the functions that make them."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.jobs import Job
from grafting_core.specs.studies.study import StudySpec
from service.db.study_tables import StudyRow, StudyRunRow, TrialRow
from service.db.tables import AttemptRow, RunRow, now
from service.domain.budgets import accounts, open_accounts
from service.domain.run_controls import Action, apply_action
from service.domain.run_lifecycle import IllegalMove, new_run_id
from service.domain.submission import KeyReused, QueueOptions, submit
from service.domain.webhook_outbox import announce_study
from service.log_once import plain
from service.schemas.runs import TERMINAL, StudyPhase, StudyState
from service.schemas.studies import StudyExtension

Role = Literal["measure", "fill", "screen", "promote", "calibrate", "baseline", "curve"]
MOVES: dict[StudyState, frozenset[StudyState]] = {
    "RUNNING": frozenset({"PAUSED", "DONE", "STOPPED", "FAILED"}),
    "PAUSED": frozenset({"RUNNING", "STOPPED"}),
    "DONE": frozenset({"RUNNING"}),
    "STOPPED": frozenset({"RUNNING"}),
    "FAILED": frozenset({"RUNNING"}),
}
"""An ended study runs again when it is extended or resumed; its results are kept."""
ENDED: frozenset[StudyState] = frozenset({"DONE", "STOPPED", "FAILED"})


class IllegalStudyMove(Exception):
    """A study's state does not allow this change."""


def create_study(
    session: Session,
    spec: StudySpec,
    sampler: dict[str, object],
    request_digest: str,
    key: str | None,
    owner: str,
) -> StudyRow:
    """Store a study; the same owner and key get the same study. Raises KeyReused."""
    stored = None if key is None else hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()
    earlier = stored and session.scalars(select(StudyRow).where(StudyRow.idempotency_key == stored)).first()
    if earlier:
        if earlier.request_digest != request_digest:
            raise KeyReused(f"key {key!r} was used for another study ({earlier.id})")
        return earlier
    study = StudyRow(
        id=new_run_id(),
        name=spec.name,
        backbone=spec.backbone.name,
        owner=owner,
        digest=spec.digest,
        spec=spec.model_dump(mode="json"),
        state="RUNNING",
        phase="measure" if spec.needs_latency else "fill",
        sampler=sampler,
        scores={},
        findings={},
        idempotency_key=stored,
        request_digest=request_digest,
        round=1,
        version=0,
        mlflow_version=-1,
    )
    session.add(study)
    session.flush()
    set_budget(session, study, spec.budget)
    return study


def set_budget(session: Session, study: StudyRow, budget: Budget) -> None:
    """Set the limits of the account that all runs of the study are charged to."""
    key = ("tag", study.id)
    open_accounts(session, [key])
    accounts(session, [key])[key].limits = budget.model_dump(mode="json", exclude_none=True)


def spec_of_study(study: StudyRow) -> StudySpec:
    return StudySpec.model_validate_json(json.dumps(study.spec))


def move(session: Session, study: StudyRow, to: StudyState, message: str | None = None) -> None:
    """Change a study's state. Raises IllegalStudyMove."""
    if to not in MOVES[study.state]:
        raise IllegalStudyMove(f"a study that is {study.state} cannot become {to}")
    study.state, study.message = to, message and plain(message)[:500]
    study.ended_at = now() if to in ENDED else None
    touch(study)
    if to in ENDED:
        announce_study(session, study)


def fail_unread(session: Session, study_id: str, message: str) -> None:
    """Mark a study whose row cannot be loaded as failed; only its state is written, its runs are
    unchanged.
    """
    values = {"state": "FAILED", "message": plain(message)[:500], "ended_at": now()}
    one = update(StudyRow).where(StudyRow.id == study_id, StudyRow.state == "RUNNING")
    session.execute(one.values(**values, version=StudyRow.version + 1))


def advance(study: StudyRow, phase: StudyPhase) -> None:
    """Enter a phase; going from learning back to screening starts the next round."""
    if study.phase == "learn" and phase == "screen":
        study.round += 1
    study.phase = phase
    touch(study)


def touch(study: StudyRow) -> None:
    study.version += 1


def trials_of(session: Session, study_id: str) -> list[TrialRow]:
    """Return the trials in the order of proposal."""
    query = select(TrialRow).where(TrialRow.study_id == study_id).order_by(TrialRow.number)
    return list(session.scalars(query))


def run_for(session: Session, study_id: str, role: Role, label: str) -> RunRow | None:
    """Return the run that was submitted for this purpose, or None."""
    row = session.get(StudyRunRow, (study_id, role, label))
    return session.get(RunRow, row.run_id) if row else None


def runs_of(session: Session, study_id: str, roles: Sequence[Role] = ()) -> list[tuple[StudyRunRow, RunRow]]:
    """Return all runs that were submitted for a study, oldest first."""
    query = select(StudyRunRow, RunRow).join(RunRow, RunRow.id == StudyRunRow.run_id)
    query = query.where(StudyRunRow.study_id == study_id).order_by(RunRow.id)
    if roles:
        query = query.where(StudyRunRow.role.in_(roles))
    return [(row, run) for row, run in session.execute(query)]


def submit_for(
    session: Session, study: StudyRow, work: Job, role: Role, label: str, trial: int | None = None
) -> RunRow:
    """Queue a run for one purpose of the study, once, in the caller's transaction."""
    earlier = run_for(session, study.id, role, label)
    if earlier is not None:
        return earlier
    options = QueueOptions(tag=study.id)
    key = f"study {study.id} {role} {label}"
    run = submit(session, work, work.digest, key, owner=study.owner, placing=options)
    session.add(StudyRunRow(study_id=study.id, role=role, label=label, run_id=run.id, trial=trial))
    touch(study)
    return run


def study_spend(session: Session, study_id: str) -> Usage:
    """Return the use of all runs of a study."""
    return study_spends(session, [study_id]).get(study_id, Usage())


def study_spends(session: Session, study_ids: Sequence[str]) -> dict[str, Usage]:
    """Return the use of all runs of each study."""
    query = (
        select(
            StudyRunRow.study_id,
            func.coalesce(func.sum(AttemptRow.device_seconds), 0.0),
            func.coalesce(func.sum(AttemptRow.flops), 0.0),
            func.coalesce(func.sum(AttemptRow.training_images), 0),
        )
        .join(StudyRunRow, StudyRunRow.run_id == AttemptRow.run_id)
        .where(StudyRunRow.study_id.in_(study_ids))
        .group_by(StudyRunRow.study_id)
    )
    return {
        study: Usage(device_seconds=float(seconds), flops=float(flops), training_images=int(images))
        for study, seconds, flops, images in session.execute(query)
    }


def remaining(budget: Budget, spent: Usage) -> Budget:
    """Return what is left of each limit; at least a tiny amount, as a budget of zero is not allowed."""
    left = {
        name: max(limit - getattr(spent, name), 1 if name == "training_images" else 1e-3)
        for name in ("device_seconds", "flops", "training_images")
        if (limit := getattr(budget, name)) is not None
    }
    return Budget(**left)


def apply_to_runs(session: Session, study_id: str, action: Action) -> None:
    """Apply an action to every unfinished run of a study; runs that do not allow it are left as they are."""
    ids = [run.id for _, run in runs_of(session, study_id) if run.state not in TERMINAL]
    for run_id in ids:
        run = session.get_one(RunRow, run_id, with_for_update=True, populate_existing=True)
        with suppress(IllegalMove):  # it has ended or started since the look-up
            apply_action(session, run, action)


def extend_study(session: Session, study: StudyRow, more: StudyExtension) -> None:
    """Add designs, promotions, rounds and budget to a study; added rounds share what is added."""
    spec = spec_of_study(study)
    budget = spec.budget
    if more.device_seconds and budget.device_seconds is not None:
        longer = budget.device_seconds + more.device_seconds
        budget = budget.model_copy(update={"device_seconds": longer})
    further = spec.model_copy(
        update={
            "trials": spec.trials + more.trials,
            "promote": spec.promote + more.promote,
            "rounds": spec.rounds + more.rounds,
            "budget": budget,
        }
    )
    study.spec = further.model_dump(mode="json")
    set_budget(session, study, budget)
    touch(study)
