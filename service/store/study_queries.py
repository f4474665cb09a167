"""Everything the pages, the API and the reports read of studies."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from grafting_core.spec.ladder import MODELS_NEEDED, rank_correlation
from grafting_core.spec.study import StudySpec
from service.api.study_schemas import Comparison, StudyDetail, StudyPage, StudyRun, StudyTrial, StudyView
from service.store.models import RunRow, StageRow
from service.store.queries import spend_of
from service.store.studies import runs_of, spec_of_study, study_spend, trials_of
from service.store.study_models import SHARED, StudyRow, StudyRunRow, TrialRow
from service.tracking.endpoints import link


def study_page(session: Session, limit: int, only_owner: str | None = None) -> StudyPage:
    """Newest first."""
    query = select(StudyRow).order_by(StudyRow.id.desc()).limit(limit)
    if only_owner is not None:
        query = query.where(StudyRow.owner == only_owner)
    return StudyPage(studies=[study_view(session, row) for row in session.scalars(query)])


def study_view(session: Session, study: StudyRow) -> StudyView:
    """One line of the list."""
    spec, trials = spec_of_study(study), trials_of(session, study.id)
    promoted = {row.trial for row, _ in runs_of(session, study.id, ("promote", "calibrate"))}
    finals = [
        value for trial in trials if trial.number in promoted and (value := _final(spec, trial)) is not None
    ]
    return StudyView(
        id=study.id,
        name=study.name,
        backbone=study.backbone,
        owner=study.owner,
        state=study.state,
        phase=study.phase,
        round=study.round,
        rounds=spec.rounds,
        message=study.message,
        quality=spec.quality,
        objectives=list(spec.objectives),
        trials=len(trials),
        screened=sum(bool(trial.screened) for trial in trials),
        finished=sum(trial.final is not None for trial in trials),
        best=min(finals, default=None),
        budget=spec.budget,
        spend=study_spend(session, study.id),
        version=study.version,
        created_at=study.created_at,
        ended_at=study.ended_at,
        mlflow_url=link(study.mlflow_experiment_id, study.mlflow_run_id),
        mlflow_error=study.mlflow_error,
    )


def study_detail(session: Session, study: StudyRow) -> StudyDetail:
    """One study with its trials, runs and how its best stands against the baselines."""
    spec, trials = spec_of_study(study), trials_of(session, study.id)
    runs = [_run(session, spec, row, run, trials) for row, run in runs_of(session, study.id)]
    best = best_run(runs)
    return StudyDetail(
        **study_view(session, study).model_dump(exclude={"budget", "spend"}),
        budget=spec.budget,
        spend=study_spend(session, study.id),
        spec=spec,
        sampler=study.sampler,
        findings=study.findings,
        trial_rows=[_trial(trial) for trial in trials],
        runs=runs,
        comparisons=comparisons(runs, trials),
        best_trial=best.trial if best else None,
        rank_correlation=_correlation(spec, trials),
    )


def best_run(runs: Sequence[StudyRun]) -> StudyRun | None:
    """The best design that the study itself promoted, by quality."""
    own = [run for run in runs if run.role in ("promote", "calibrate") and run.quality is not None]
    return min(own, key=lambda run: run.quality or 0.0, default=None)


def comparisons(runs: Sequence[StudyRun], trials: Sequence[TrialRow]) -> list[Comparison]:
    """The best promoted against every baseline, also against one whose design was promoted itself."""
    best, by_trial = best_run(runs), {run.trial: run for run in runs if run.trial is not None}
    named = {name: run for run in runs if run.role == "baseline" for name in run.label.split(SHARED)}
    for trial in trials:
        if trial.source.startswith("baseline ") and trial.number in by_trial:
            for name in trial.source.removeprefix("baseline ").split(SHARED):
                named.setdefault(name, by_trial[trial.number])
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


def _run(
    session: Session, spec: StudySpec, row: StudyRunRow, run: RunRow, trials: Sequence[TrialRow]
) -> StudyRun:
    stage = session.get(StageRow, (run.id, "evaluate"))
    metrics = stage.report["metrics"] if stage and run.state == "SUCCEEDED" else {}
    costs = {trial.number: (trial.flops, float(trial.params)) for trial in trials}
    whole = (float(spec.space.base_flops), float(spec.space.base_params))
    flops, params = costs.get(-1 if row.trial is None else row.trial, whole)
    share = _step_share(spec, run) if row.label == "fewer_steps" else 1.0
    return StudyRun(
        role=row.role,
        label=row.label,
        run_id=run.id,
        trial=row.trial,
        state=run.state,
        quality=metrics.get(spec.quality),
        flops=flops * share if row.role in ("promote", "calibrate", "baseline") else None,
        params=params if row.role in ("promote", "calibrate", "baseline") else None,
        device_seconds=spend_of(session, run.id).device_seconds,
    )


def _step_share(spec: StudySpec, run: RunRow) -> float:
    steps: int = run.experiment.spec["evaluate"]["sampling_steps"]
    return steps / spec.evaluate.sampling_steps
