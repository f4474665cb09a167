"""A study of several objectives finishes designs of the Pareto front, and its report shows which they are."""

from collections.abc import Callable

import pytest

from grafting_core.specs.studies.selection import fronts
from service.db.study_tables import TrialRow
from service.domain.studies import trials_of
from service.domain.study_queries import study_detail
from tests.support.builders import MIXED_SPACE, TWO_RUNGS
from tests.support.study_harness import StudyHarness


def point(trial: TrialRow, quality: float, costs: list[str]) -> tuple[float, ...]:
    return (quality, *(float(getattr(trial, cost)) for cost in costs))


@pytest.mark.parametrize("costs", [["flops"], ["params"], ["flops", "params"]])
def test_the_front_of_what_was_screened_is_finished_and_its_plot_and_trials_are_in_the_report(
    new_sqlite_study: Callable[..., StudyHarness], costs: list[str]
) -> None:
    objectives = [{"minimize": name} for name in ("fid40", *costs)]
    screening = {"trials": 16, "rungs": TWO_RUNGS, "reduction": 2, "loss_draws": 64}
    lab = new_sqlite_study("lab", space=MIXED_SPACE, objectives=objectives, screening=screening, promote=3)
    study = lab.run()
    assert study.state == "DONE"
    with lab.database.reading() as session:
        trials, detail = trials_of(session, lab.id), study_detail(session, study)
    climbed = [trial for trial in trials if len(trial.screened) == len(TWO_RUNGS)]
    (top,) = {metric for trial in climbed for metric in trial.screened} - {"loss_gap"}
    front = fronts([point(trial, trial.screened[top], costs) for trial in climbed])[0]
    promoted = {run.trial for run in detail.runs if run.role == "promote"}
    assert len(front) >= len(promoted) == 3
    assert promoted <= {climbed[at].number for at in front}
    done = [trial for trial in trials if trial.final]
    best = fronts([point(trial, trial.final[detail.quality], costs) for trial in done])[0]
    report = lab.storage.read_bytes(f"studies/{lab.id}/report.md").decode()
    numbers = ", ".join(str(done[at].number) for at in best)
    assert f"On the Pareto front of {' and '.join(detail.objectives)}: trials {numbers}." in report
    assert "![Quality against cost: the Pareto front](pareto.png)" in report
    assert lab.storage.read_bytes(f"studies/{lab.id}/pareto.png")[:4] == b"\x89PNG"
    assert "Pareto" in lab.storage.read_bytes(f"studies/{lab.id}/report.html").decode()
