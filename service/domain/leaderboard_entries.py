"""Leaderboard entries, written once when a run succeeds, so that ranking parses no documents."""

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.db.tables import LeaderboardEntryRow, RunRow, StageRow
from service.domain.design_cost import cost_of_making
from service.domain.run_queries import spec_of
from workers.contract import StageReport


def upsert_entry(session: Session, run: RunRow) -> None:
    """Add a succeeded graft to the leaderboard; it replaces an earlier run of the same experiment."""
    experiment = run.experiment
    stage = session.get(StageRow, (run.id, "evaluate"))
    if experiment.kind != "graft" or stage is None:
        return
    metrics = StageReport.model_validate_json(json.dumps(stage.report)).metrics
    spec = spec_of(run)
    metric = spec.evaluate.fid_name
    if not {metric, "num_params", "flops_per_image"} <= metrics.keys():
        return
    earlier = retire_previous(session, experiment.digest)
    row = session.get(LeaderboardEntryRow, run.id) or LeaderboardEntryRow(run_id=run.id)
    row.protocol_digest, row.digest = experiment.protocol_digest, experiment.digest
    row.backbone, row.owner, row.name = experiment.backbone, experiment.owner, experiment.name
    row.metric, row.value = metric, metrics[metric]
    row.num_params, row.flops_per_image = int(metrics["num_params"]), int(metrics["flops_per_image"])
    row.is_teacher, row.is_current = spec.design.is_teacher, True
    _credit(session, row, run, earlier)
    session.add(row)


def retire_previous(session: Session, digest: str) -> LeaderboardEntryRow | None:
    """Mark the current entry of an experiment as replaced, and return it."""
    query = select(LeaderboardEntryRow).where(
        LeaderboardEntryRow.digest == digest, LeaderboardEntryRow.is_current.is_(True)
    )
    row = session.scalars(query).first()
    if row is not None:
        row.is_current = False
    return row


def _credit(
    session: Session, row: LeaderboardEntryRow, run: RunRow, earlier: LeaderboardEntryRow | None
) -> None:
    """Record who made the design first and at what cost; later runs keep that record."""
    if earlier is None:
        row.first_run_id, row.first_owner, row.first_at = run.id, run.owner, run.ended_at
    else:
        row.first_run_id, row.first_owner = earlier.first_run_id, earlier.first_owner
        row.first_at = earlier.first_at
    made = cost_known(earlier) or cost_of_making(session, run)
    if made is not None:
        row.made_device_seconds, row.made_flops = made.device_seconds, made.flops
        row.made_training_images = made.training_images


def cost_known(row: LeaderboardEntryRow | None) -> Usage | None:
    """Return the recorded cost of making a design, or None."""
    if row is None or row.made_device_seconds is None or row.made_flops is None:
        return None
    return Usage(
        device_seconds=row.made_device_seconds,
        flops=row.made_flops,
        training_images=row.made_training_images or 0,
    )
