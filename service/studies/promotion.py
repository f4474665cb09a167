"""Submit screened designs as ordinary runs, and collect their results."""

import json
import logging
from collections import Counter
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget
from grafting_core.specs.studies.study import StudySpec
from service.db.study_tables import StudyRow, TrialRow
from service.db.tables import RunRow, StageRow
from service.domain.latency_table import clocked
from service.domain.studies import Role, runs_of, spec_of_study, submit_for, trials_of
from service.log_once import Once, brief
from service.studies.baselines import fewer_steps
from service.studies.choosing import Candidate, promoted, spread
from service.studies.specs import costs_of, graft_work
from workers.contract import StageReport

say = Once(logging.getLogger("graftlab.search"))


def submit_finals(session: Session, study: StudyRow, budget: Budget) -> int:
    """Queue the round's promotions, calibrations and, in the first round, baselines; return their number."""
    spec = spec_of_study(study)
    trials = {trial.number: trial for trial in trials_of(session, study.id)}
    candidates = [
        _candidate(spec, trial) for trial in trials.values() if trial.state in ("SCREENED", "PRUNED")
    ]
    done = Counter(row.role for row, _ in runs_of(session, study.id, ("promote", "calibrate")))
    chosen = promoted(candidates, spec.rungs, spec.share(spec.promote - done["promote"], study.round))
    rest = [trial for trial in candidates if trial.number not in chosen]
    count = spec.share(spec.calibrate - done["calibrate"], study.round)
    spread_out = spread(rest, spec.rungs[0].metric, count)
    plan: list[tuple[Role, int]] = [("promote", number) for number in chosen]
    plan += [("calibrate", number) for number in spread_out]
    for role, number in plan:
        work = graft_work(spec, trials[number], role, budget)
        submit_for(session, study, work, role, f"{study.round}/{number}", number)
        trials[number].state = "PROMOTED"
    baselines = (
        _submit_baselines(session, study, spec, list(trials.values()), budget) if study.round == 1 else 0
    )
    return len(plan) + baselines


def _candidate(spec: StudySpec, trial: TrialRow) -> Candidate:
    return Candidate(trial.number, trial.screened, costs_of(spec, trial), trial.predicted)


def _submit_baselines(
    session: Session, study: StudyRow, spec: StudySpec, trials: Sequence[TrialRow], budget: Budget
) -> int:
    """Submit baselines that were not promoted as trials, and those that are not designs of the space."""
    count = 0
    for trial in trials:
        if trial.baselines and trial.state in ("SCREENED", "PRUNED"):
            name = ", ".join(trial.baselines)
            work = graft_work(spec, trial, name, budget)
            submit_for(session, study, work, "baseline", name, trial.number)
            trial.state = "PROMOTED"
            count += 1
    teacher = spec.experiment(f"{spec.name}: teacher", spec.space.design(()), budget)
    fewer = fewer_steps(spec, teacher.model_copy(update={"name": f"{spec.name}: teacher, fewer steps"}))
    for name, spec_of_baseline in (("teacher", teacher), ("fewer_steps", fewer)):
        if spec_of_baseline is not None and name in spec.baselines:
            submit_for(session, study, spec_of_baseline, "baseline", name)
            count += 1
    return count


def collect_finals(session: Session, study: StudyRow) -> None:
    """Store the metrics of every finished run of a trial."""
    spec = spec_of_study(study)
    trials = {trial.number: trial for trial in trials_of(session, study.id)}
    for row, run in runs_of(session, study.id, ("promote", "calibrate", "baseline")):
        if row.trial is None:
            continue
        figures = final_figures(session, spec, run)
        trial = trials[row.trial]
        trial.final = figures
        trial.state = "FINISHED" if figures else ("FAILED" if run.ended_at else "PROMOTED")


def final_figures(session: Session, spec: StudySpec, run: RunRow) -> dict[str, float] | None:
    """Return the evaluation's metrics, with the measured `latency` if the study has a table; None without
    results.
    """
    stage = session.get(StageRow, (run.id, "evaluate"))
    if stage is None or run.state != "SUCCEEDED":
        return None
    try:
        report = StageReport.model_validate_json(json.dumps(stage.report))
        measured = clocked(spec, stage.report.get("cost"))
        return report.metrics | ({"latency": measured.ratio} if measured is not None else {})
    except ValidationError as error:
        run.message = f"its evaluation's report cannot be read: {brief(error)}"
        say(run.id, f"run {run.id}: {run.message}")
        return None
