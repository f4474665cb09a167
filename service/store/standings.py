"""What the leaderboard ranks by, written once when a run succeeds, so that ranking reads no documents."""

import json

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.store.models import RunRow, StageRow, StandingRow
from service.store.queries import spec_of
from workers.contract import StageReport


def stand(session: Session, run: RunRow) -> None:
    """Give a succeeded graft its place; an earlier run of the same experiment gives up its own."""
    experiment = run.experiment
    stage = session.get(StageRow, (run.id, "evaluate"))
    if experiment.kind != "graft" or stage is None:
        return
    metrics = StageReport.model_validate_json(json.dumps(stage.report)).metrics
    spec = spec_of(run)
    metric = spec.evaluate.fid_name
    if not {metric, "num_params", "flops_per_image"} <= metrics.keys():
        return
    _give_up(session, experiment.digest)
    row = session.get(StandingRow, run.id) or StandingRow(run_id=run.id)
    row.protocol_digest, row.digest = experiment.protocol_digest, experiment.digest
    row.backbone, row.owner, row.name = experiment.backbone, experiment.owner, experiment.name
    row.metric, row.value = metric, metrics[metric]
    row.num_params, row.flops_per_image = int(metrics["num_params"]), int(metrics["flops_per_image"])
    row.is_teacher, row.is_current = spec.design.is_teacher, True
    session.add(row)


def _give_up(session: Session, digest: str) -> None:
    query = update(StandingRow).where(StandingRow.digest == digest, StandingRow.is_current.is_(True))
    session.execute(query.values(is_current=False))
