"""A submission becomes an experiment and a queued run."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.work import Work, protocol_of
from service.api.schemas import Forecast
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
) -> RunRow:
    """The run of this submission; the same one for the same key. Raises KeyReused."""
    if idempotency_key is not None:
        earlier = _by_key(session, idempotency_key)
        if earlier is not None:
            if earlier.experiment.request_digest != request_digest:
                raise KeyReused(f"key {idempotency_key!r} was used for another submission (run {earlier.id})")
            return earlier
    return _insert(session, work, request_digest, idempotency_key, forecast)


def _by_key(session: Session, key: str) -> RunRow | None:
    query = select(RunRow).join(RunRow.experiment).where(ExperimentRow.idempotency_key == key)
    return session.scalars(query.order_by(RunRow.created_at)).first()


def _insert(
    session: Session, work: Work, request_digest: str, key: str | None, forecast: Forecast | None
) -> RunRow:
    experiment = ExperimentRow(
        kind=work.kind,
        name=work.name,
        backbone=work.backbone.name,
        digest=work.digest,
        protocol_digest=protocol_of(work),
        spec=work.model_dump(mode="json"),
        idempotency_key=key,
        request_digest=request_digest,
    )
    run = RunRow(id=new_run_id(), experiment=experiment, state="QUEUED", attempt=0, last_event=0)
    run.forecast = forecast.model_dump() if forecast else None
    session.add(run)
    session.flush()
    record(session, run, "state", {"state": "QUEUED", "reason": None, "attempt": 0, "message": None})
    return run
