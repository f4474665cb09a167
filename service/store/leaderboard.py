"""Finished runs, ranked among those measured in the very same way."""

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.api.schemas import Leaderboard, LeaderboardGroup, LeaderboardRow, RunView
from service.store.models import ExperimentRow, RunRow
from service.store.queries import run_views, spec_of

RANKED = (RunRow.state == "SUCCEEDED", ExperimentRow.kind == "graft")


def leaderboard(session: Session, owner: str | None = None) -> Leaderboard:
    """Groups by protocol digest; an experiment that ran twice counts once, by its latest run."""
    query = select(RunRow).join(RunRow.experiment).where(*RANKED).order_by(RunRow.id.desc())
    if owner is not None:
        query = query.where(ExperimentRow.owner == owner)
    rows = session.scalars(query).all()
    latest = {row.experiment.digest: row for row in reversed(rows)}
    kept = sorted(latest.values(), key=lambda row: row.experiment.protocol_digest)
    groups = groupby(kept, key=lambda row: row.experiment.protocol_digest)
    return Leaderboard(groups=[_group(session, list(members)) for _, members in groups])


def _group(session: Session, rows: Sequence[RunRow]) -> LeaderboardGroup:
    protocol = spec_of(rows[0]).evaluate
    metric = protocol.fid_name
    teachers = {row.id for row in rows if not row.experiment.spec["design"]["edits"]}
    views = sorted(run_views(session, rows), key=lambda view: view.metrics[metric])
    teacher = next((view for view in views if view.id in teachers), None)
    return LeaderboardGroup(
        backbone=rows[0].experiment.backbone,
        protocol_digest=rows[0].experiment.protocol_digest,
        protocol=protocol,
        metric=metric,
        rows=[_row(rank, view, teacher, metric, view.id in teachers) for rank, view in enumerate(views, 1)],
    )


def _row(rank: int, view: RunView, teacher: RunView | None, metric: str, is_teacher: bool) -> LeaderboardRow:
    return LeaderboardRow(
        rank=rank,
        run_id=view.id,
        name=view.name,
        is_teacher=is_teacher,
        metric=metric,
        value=view.metrics[metric],
        value_change=_change(view, teacher, metric),
        num_params=int(view.metrics["num_params"]),
        params_change=_change(view, teacher, "num_params"),
        flops_per_image=int(view.metrics["flops_per_image"]),
        flops_change=_change(view, teacher, "flops_per_image"),
        spend=view.spend,
        share_of_pretraining=view.share_of_pretraining,
    )


def _change(view: RunView, teacher: RunView | None, metric: str) -> float | None:
    if teacher is None or not teacher.metrics[metric]:
        return None
    return view.metrics[metric] / teacher.metrics[metric] - 1
