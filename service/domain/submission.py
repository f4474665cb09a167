"""Store a submission as an experiment and a queued run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from grafting_core.specs.cost import plan
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import Job, protocol_of
from grafting_core.specs.registration import RegistrationSpec
from grafting_core.storage.failpoints import failpoint
from service.db.tables import ExperimentRow, RunRow
from service.domain.artifact_dependencies import record_needs
from service.domain.budgets import AccountId, keys_of, open_accounts
from service.domain.registration_quota import with_reservation
from service.domain.registrations import begin
from service.domain.revision_damage import check_intact
from service.domain.run_lifecycle import enter, new_run_id
from service.schemas.runs import Forecast


class KeyReused(Exception):
    """An idempotency key was used again with another body."""


class QuotaReached(Exception):
    """The user has as many queued runs as allowed."""


@dataclass(frozen=True)
class QueueOptions:
    """Tag of a submission, and its priority: higher runs first."""

    tag: str | None = None
    priority: int = 0


DEFAULT_OPTIONS = QueueOptions()


def submit(
    session: Session,
    work: Job,
    request_digest: str,
    idempotency_key: str | None,
    forecast: Forecast | None = None,
    owner: str = "lab",
    placing: QueueOptions = DEFAULT_OPTIONS,
    accumulation_steps: int = 1,
) -> RunRow:
    """Return the run of this submission; the same owner and key get the same run.

    Raises KeyReused, QuotaReached, RegistrationQuota and DamagedRevision. Of two concurrent calls with one
    key the second raises IntegrityError on PostgreSQL, and returns the run when repeated.
    """
    stored = None if idempotency_key is None else _stored_key(owner, idempotency_key)
    if stored is not None:
        earlier = _by_key(session, stored)
        if earlier is not None:
            if earlier.experiment.request_digest != request_digest:
                raise KeyReused(f"key {idempotency_key!r} was used for another submission (run {earlier.id})")
            return earlier
    check_intact(session, work)
    _check_quota(session, owner, open_accounts(session, keys_of(owner, placing.tag)))
    if isinstance(work, RegistrationSpec):
        work = with_reservation(session, owner, work)
    experiment = ExperimentRow(
        kind=work.kind,
        tag=placing.tag,
        name=work.name,
        backbone=work.backbone.name,
        digest=work.digest,
        protocol_digest=protocol_of(work),
        spec=work.model_dump(mode="json"),
        owner=owner,
        idempotency_key=stored,
        request_digest=request_digest,
    )
    run = _queued(work, experiment, forecast, placing)
    run.accumulation_steps = accumulation_steps
    enter(session, run)
    record_needs(session, run, work)
    if isinstance(work, RegistrationSpec):
        begin(session, run, work)
    failpoint("submit")
    return run


def _stored_key(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()


def _by_key(session: Session, key: str) -> RunRow | None:
    query = select(RunRow).join(RunRow.experiment).where(ExperimentRow.idempotency_key == key)
    return session.scalars(query.order_by(RunRow.created_at)).first()


def _check_quota(session: Session, owner: str, quotas: Mapping[AccountId, int | None]) -> None:
    most = quotas.get(("user", owner))
    if most is not None:
        queued = select(func.count()).where(RunRow.state == "QUEUED", RunRow.owner == owner)
        if (session.scalar(queued) or 0) >= most:
            raise QuotaReached(f"{owner} has {most} queued runs, which is the limit")


def _queued(work: Job, experiment: ExperimentRow, forecast: Forecast | None, placing: QueueOptions) -> RunRow:
    resources = work.resources
    return RunRow(
        id=new_run_id(),
        experiment=experiment,
        owner=experiment.owner,
        name=experiment.name,
        tag=placing.tag,
        precedence=-placing.priority,
        workers=resources.workers,
        cpus=resources.workers * resources.cpus_per_worker,
        gpus=resources.workers * resources.gpus_per_worker,
        planned=planned(work),
        forecast=forecast.model_dump() if forecast else None,
        state="QUEUED",
        attempt=0,
        last_event=0,
    )


def planned(work: Job) -> dict[str, Any] | None:
    """Return FLOPs and training images by stage, by formula; None for work without a plan."""
    if not isinstance(work, ExperimentSpec):
        return None
    return {stage.stage: stage.spend.model_dump() for stage in plan(work).stages}
