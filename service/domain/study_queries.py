"""Queries of studies for pages, API and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import String, case, cast, func, select
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.studies.rank_correlation import MODELS_NEEDED, rank_correlation
from grafting_core.specs.studies.study import StudySpec
from service.db.study_tables import StudyRow, StudyRunRow, TrialRow
from service.db.tables import RunRow, StageRow
from service.domain.latency_table import clocked, keeps_limit
from service.domain.run_queries import parsed, spends_of
from service.domain.studies import Role, runs_of, spec_of_study, study_spends, trials_of
from service.domain.tracking_endpoints import link
from service.domain.visibility import is_withheld, title_to
from service.schemas.studies import Comparison, StudyDetail, StudyPage, StudyRun, StudyTrial, StudyView

FINISHING: tuple[Role, ...] = ("promote", "calibrate", "baseline")
"""Roles of runs that finish a design under the study's own protocol."""
EVALUATED: tuple[Role, ...] = (*FINISHING, "curve")
NONE = ("{}", "null")
"""Texts of a stored document that is empty."""


def study_page(
    session: Session,
    limit: int,
    only_owner: str | None = None,
    *,
    before: str | None = None,
    prefix: str | None = None,
) -> StudyPage:
    """List studies, newest first: those older than the study `before`, whose id begins with `prefix`."""
    query = select(StudyRow).order_by(StudyRow.id.desc()).limit(limit + 1)
    if only_owner is not None:
        query = query.where(StudyRow.owner == only_owner)
    if before is not None:
        query = query.where(StudyRow.id < before)
    if prefix is not None:
        query = query.where(StudyRow.id.startswith(prefix, autoescape=True))
    rows = session.scalars(query).all()
    shown = _study_views(session, rows[:limit])
    return StudyPage(studies=shown, next_cursor=shown[-1].id if len(rows) > limit else None)


def study_view(session: Session, study: StudyRow) -> StudyView:
    """Return the list entry of a study."""
    return _study_views(session, [study])[0]


def _study_views(session: Session, studies: Sequence[StudyRow]) -> list[StudyView]:
    """Build the list entries with three queries, however many studies there are."""
    ids = [study.id for study in studies]
    counts, finals, spends = _counts(session, ids), _finals(session, ids), study_spends(session, ids)
    views = (
        _view(study, counts.get(study.id, (0, 0, 0)), finals.get(study.id, []), spends.get(study.id, Usage()))
        for study in studies
    )
    return list(views)


def _counts(session: Session, ids: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return by study the number of its designs, of screened and of finished ones."""
    screened = case((cast(TrialRow.screened, String).not_in(NONE), 1), else_=0)
    finished = case((cast(TrialRow.final, String).not_in(NONE), 1), else_=0)
    query = select(TrialRow.study_id, func.count(), func.sum(screened), func.sum(finished))
    results = session.execute(query.where(TrialRow.study_id.in_(ids)).group_by(TrialRow.study_id))
    return {study: (trials, int(screened), int(finished)) for study, trials, screened, finished in results}


def _finals(session: Session, ids: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Return by study the metrics of promoted designs that have finished."""
    promoted = select(StudyRunRow.study_id, StudyRunRow.trial).where(
        StudyRunRow.study_id.in_(ids), StudyRunRow.role.in_(("promote", "calibrate"))
    )
    chosen = promoted.distinct().subquery()
    query = select(TrialRow.study_id, TrialRow.final).join(
        chosen, (chosen.c.study_id == TrialRow.study_id) & (chosen.c.trial == TrialRow.number)
    )
    by_study: dict[str, list[dict[str, float]]] = {}
    for study, final in session.execute(query):
        by_study.setdefault(study, []).append(final or {})
    return by_study


def _view(
    study: StudyRow, counts: tuple[int, int, int], finals: Sequence[Mapping[str, float]], spend: Usage
) -> StudyView:
    """Build a view from the stored document without validation: it was validated when the study was
    created.
    """
    spec, quality = study.spec, study.spec["quality"]
    trials, screened, finished = counts
    withheld = is_withheld(study)
    return StudyView(
        id=study.id,
        name=title_to(study.name, withheld),
        backbone=study.backbone,
        owner=study.owner,
        state=study.state,
        phase=study.phase,
        round=study.round,
        rounds=spec["rounds"],
        message=None if withheld else study.message,
        quality=quality,
        objectives=[quality, *spec["costs"]],
        trials=trials,
        screened=screened,
        finished=finished,
        best=min((final[quality] for final in finals if _wins(spec, final)), default=None),
        budget=parsed(Budget, spec["budget"]),
        spend=spend,
        version=study.version,
        created_at=study.created_at,
        ended_at=study.ended_at,
        mlflow_url=link(study.mlflow_experiment_id, study.mlflow_run_id),
        mlflow_error=None if withheld else study.mlflow_error,
        withheld=withheld,
    )


def _wins(spec: Mapping[str, Any], final: Mapping[str, float]) -> bool:
    """Check whether a finished design counts: its quality is known and its measured latency meets the
    limit.
    """
    bounds = [limit["at_most"] for limit in spec["limits"] if limit["cost"] == "latency"]
    return spec["quality"] in final and all(final.get("latency", 0.0) <= bound for bound in bounds)


def study_detail(session: Session, study: StudyRow) -> StudyDetail:
    """Return one study with its trials, runs, and the comparison of its best with the baselines."""
    spec, trials = spec_of_study(study), trials_of(session, study.id)
    runs = _runs(session, spec, study.id, trials)
    best, view = best_run(runs), study_view(session, study)
    return StudyDetail(
        **view.model_dump(exclude={"budget", "spend"}),
        budget=view.budget,
        spend=view.spend,
        spec=spec.model_copy(update={"name": view.name}),
        sampler=study.sampler,
        findings=study.findings,
        trial_rows=[_trial(trial) for trial in trials],
        runs=runs,
        comparisons=comparisons(runs, trials),
        best_trial=best.trial if best else None,
        rank_correlation=_correlation(spec, trials),
    )


def best_run(runs: Sequence[StudyRun]) -> StudyRun | None:
    """Return the best design by quality that the study itself promoted and that meets its limits.

    A design whose measured latency exceeds the limit does not count, whatever the table predicted.
    """
    own = [
        run
        for run in runs
        if run.role in ("promote", "calibrate") and run.quality is not None and run.keeps_latency is not False
    ]
    return min(own, key=lambda run: run.quality or 0.0, default=None)


def comparisons(runs: Sequence[StudyRun], trials: Sequence[TrialRow]) -> list[Comparison]:
    """Compare the best promoted design with every baseline, also one whose design the study promoted
    itself.
    """
    best = best_run(runs)
    by_trial = {run.trial: run for run in runs if run.trial is not None and run.role in FINISHING}
    tried = [trial for trial in trials if trial.number in by_trial]
    named = {name: by_trial[trial.number] for trial in tried for name in trial.baselines}
    named |= {run.label: run for run in runs if run.role == "baseline" and run.trial is None}
    return [_against(best, name, run) for name, run in named.items()]


def _against(best: StudyRun | None, name: str, run: StudyRun) -> Comparison:
    known = run.quality is not None and best is not None and best.quality is not None
    ahead = (run.quality or 0.0) - (best.quality or 0.0) if known and best else None
    return Comparison(baseline=name, run_id=run.run_id, value=run.quality, ahead=ahead)


def _final(spec: StudySpec, trial: TrialRow) -> float | None:
    return (trial.final or {}).get(spec.quality)


def _correlation(spec: StudySpec, trials: Sequence[TrialRow]) -> float | None:
    first = spec.rungs[0].metric
    both = [
        (trial.screened[first], final)
        for trial in trials
        if first in trial.screened and (final := _final(spec, trial)) is not None
    ]
    return rank_correlation(*zip(*both, strict=True)) if len(both) >= MODELS_NEEDED else None


def _trial(row: TrialRow) -> StudyTrial:
    names = StudyTrial.model_fields
    return StudyTrial(**{name: getattr(row, name) for name in names})


def _runs(session: Session, spec: StudySpec, study_id: str, trials: Sequence[TrialRow]) -> list[StudyRun]:
    """Build the runs' views with a fixed number of queries, however many runs the study has."""
    rows = runs_of(session, study_id)
    ids = [run.id for _, run in rows]
    reports = session.scalars(select(StageRow).where(StageRow.run_id.in_(ids), StageRow.stage == "evaluate"))
    figures = {report.run_id: report.report for report in reports}
    spends = spends_of(session, ids)
    costs = {trial.number: (trial.flops, float(trial.params), trial.latency) for trial in trials}
    return [
        _run(spec, row, run, figures.get(run.id, {}), costs, spends.get(run.id, Usage())) for row, run in rows
    ]


def _run(
    spec: StudySpec,
    row: StudyRunRow,
    run: RunRow,
    figures: Mapping[str, Any],
    costs: Mapping[int, tuple[float, float, float | None]],
    spend: Usage,
) -> StudyRun:
    metrics = figures.get("metrics", {}) if run.state == "SUCCEEDED" else {}
    cost = figures.get("cost") or {}
    whole = (float(spec.space.base_flops), float(spec.space.base_params), 1.0 if spec.latencies else None)
    flops, params, latency = costs.get(-1 if row.trial is None else row.trial, whole)
    judged = row.role in EVALUATED
    share = _step_share(spec, run) if judged else 1.0
    return StudyRun(
        role=row.role,
        label=row.label,
        run_id=run.id,
        trial=row.trial,
        state=run.state,
        quality=metrics.get(spec.quality),
        flops=flops * share if judged else None,
        params=params if judged else None,
        latency=latency * share if judged and latency is not None else None,
        **_clock(spec, cost, share),
        sampling_steps=run.experiment.spec.get("evaluate", {}).get("sampling_steps"),
        seconds_per_image=1 / cost["images_per_second"] if cost.get("images_per_second") else None,
        hardware=cost.get("hardware", {}).get("processor"),
        device_seconds=spend.device_seconds,
    )


def _clock(spec: StudySpec, cost: Mapping[str, Any], share: float) -> dict[str, float | bool | None]:
    """Return the measured latency of the network when sampled with this share of the steps."""
    latency = clocked(spec, cost)
    if latency is None:
        return {}
    return {
        "measured_latency": latency.ratio * share,
        "measured_latency_low": latency.ratio_low * share,
        "measured_latency_high": latency.ratio_high * share,
        "keeps_latency": keeps_limit(spec, latency.ratio * share),
    }


def _step_share(spec: StudySpec, run: RunRow) -> float:
    steps: int = run.experiment.spec["evaluate"]["sampling_steps"]
    return steps / spec.evaluate.sampling_steps
