"""A submission becomes an experiment and a queued run."""

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.work import Work, protocol_of
from service.api.schemas import Forecast
from service.store.bank import record_needs
from service.store.lifecycle import new_run_id, record
from service.store.models import ExperimentRow, RunRow


class KeyReused(Exception):
    """An idempotency key came back with another body."""


def submit(
    session: Session,
    work: Work,
    request_digest: str,
    idempotency_key: str | None,
    forecast: Forecast | None = None,
    owner: str = "lab",
) -> RunRow:
    """The run of this submission; the same one for the same owner and key. Raises KeyReused.

    Two at once with one key: the second raises IntegrityError on PostgreSQL, and finds the run on a repeat.
    """
    stored = None if idempotency_key is None else _stored_key(owner, idempotency_key)
    if stored is not None:
        earlier = _by_key(session, stored)
        if earlier is not None:
            if earlier.experiment.request_digest != request_digest:
                raise KeyReused(f"key {idempotency_key!r} was used for another submission (run {earlier.id})")
            return earlier
    experiment = ExperimentRow(
        kind=work.kind,
        name=work.name,
        backbone=work.backbone.name,
        digest=work.digest,
        protocol_digest=protocol_of(work),
        spec=work.model_dump(mode="json"),
        owner=owner,
        idempotency_key=stored,
        request_digest=request_digest,
    )
    run = _insert(session, experiment, forecast)
    record_needs(session, run, work)
    return run


def _stored_key(owner: str, key: str) -> str:
    return hashlib.sha256(f"{owner}\0{key}".encode()).hexdigest()


def _by_key(session: Session, key: str) -> RunRow | None:
    query = select(RunRow).join(RunRow.experiment).where(ExperimentRow.idempotency_key == key)
    return session.scalars(query.order_by(RunRow.created_at)).first()


def _insert(session: Session, experiment: ExperimentRow, forecast: Forecast | None) -> RunRow:
    run = RunRow(id=new_run_id(), experiment=experiment, state="QUEUED", attempt=0, last_event=0)
    run.forecast = forecast.model_dump() if forecast else None
    session.add(run)
    session.flush()
    record(session, run, "state", {"state": "QUEUED", "reason": None, "attempt": 0, "message": None})
    return run
