"""Latency as a limit and an objective: the table first, then additive predictions, and at last the clock."""

from collections.abc import Callable

import pytest
import torch

from grafting_core.evaluation.cost import hardware_of
from grafting_core.evaluation.latency import LatencyBench
from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.budget import Budget
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.studies.integer_program import Proposer
from grafting_core.specs.studies.latencies import timed_parts
from grafting_core.specs.studies.study import StudySpec
from grafting_core.storage.failpoints import arm
from service.domain.studies import run_for, runs_of, spec_of_study, trials_of
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_queries import study_detail
from service.studies.finals import name_of
from service.studies.report import markdown
from service.studies.specs import latency_work, timed
from tests.support.builders import study_document
from tests.support.latency import timed_row
from tests.support.study_harness import StudyHarness
from tests.support.study_runs import EXTRAS, InProcessCluster
from workers.contract import StageReport

SPACE = {"attention": ["keep", "hyena_x"], "mlp": ["keep", {"kind": "mlp", "ratio": 3}]}


def with_table(**changes: object) -> StudySpec:
    spec = parse_feasible_study(study_document(**changes))
    work = latency_work(spec, Budget())
    return timed(spec, [timed_row(work, part, EXTRAS.get(part.name, 0.0)) for part in work.parts])


def test_the_table_has_a_row_for_everything_that_a_space_can_put_together() -> None:
    spec = parse_feasible_study(study_document(space={**SPACE, "parallel_pairs": "optional"}))
    names = [part.name for part in timed_parts(spec.space, backbone_cards()[spec.backbone.name])]
    own = ["rest", "attention mha", "mlp mlp"]
    assert names == [*own, "attention hyena_x", "mlp mlp(ratio=3)", "pairs"]


def test_predicted_latency_is_the_backbones_and_what_every_item_adds() -> None:
    groups = {"attention": [[0, 1], [2]], "mlp": [[5]]}
    space = with_table(space={**SPACE, "groups": groups}, limits={"latency": 1.0}).space
    keep = {variable.name: "keep" for variable in space.variables}
    assert space.latency(space.chosen(keep)) == 1
    mixed = keep | {"attention 0+1": "hyena_x", "mlp 5": "mlp(ratio=3)"}
    assert space.latency(space.chosen(mixed)) == pytest.approx(1 - 2 * 0.025 - 0.015)
    pairs = with_table(space={**SPACE, "parallel_pairs": "optional"}, limits={"latency": 2.0}).space
    merged = {variable.name: "keep" for variable in pairs.variables} | {"pair 0+1": "merged"}
    assert pairs.latency(pairs.chosen(merged)) == pytest.approx(1.01)


def test_the_integer_program_keeps_a_limit_on_latency_at_the_least_score() -> None:
    """All 65,536 mixes: 0.9 takes four of attention, or fewer and MLPs; attention costs 3, an MLP 1."""
    spec = with_table(space=SPACE, limits={"latency": "<= 0.9x"})
    costs = {"hyena_x": 3.0, "mlp(ratio=3)": 1.0, "keep": 0.0}
    scores = {item.key: costs[item.label] for item in spec.space.items}
    chosen = Proposer(spec.space, scores, spec.limits).best()
    labels = [item.label for item in chosen]
    assert (labels.count("mlp(ratio=3)"), labels.count("hyena_x")) == (7, 0)
    assert spec.space.latency(chosen) == pytest.approx(0.895)


def test_a_limit_that_no_design_meets_is_refused_with_the_least_there_is_once_the_table_is_known() -> None:
    with pytest.raises(SpecError, match=r"least latency in this space is 0\.6800: '<= 0\.6800x'"):
        with_table(space=SPACE, limits={"latency": 0.5})


def test_a_study_orders_its_table_first_and_what_wins_keeps_the_limit(
    new_study: Callable[..., StudyHarness],
) -> None:
    lab = new_study(
        "lab", limits={"latency": "<= 0.95x"}, baselines=["teacher", "interleaved", "fewer_steps"]
    )
    assert lab.study().phase == "measure"
    lab.driver.round()
    with lab.database.reading() as session:
        run = run_for(session, lab.id, "measure", "latency table")
        assert run is not None
        assert (run.state, len(runs_of(session, lab.id))) == ("QUEUED", 1)
    assert lab.run().state == "DONE"
    with lab.database.reading() as session:
        spec, trials = spec_of_study(lab.study()), trials_of(session, lab.id)
        detail = study_detail(session, lab.study())
    assert [row.name for row in spec.latencies] == ["rest", "attention mha", "mlp mlp", "attention hyena_x"]
    assert len(trials) == 6
    for trial in trials:
        assert trial.latency == pytest.approx(spec.space.latency(spec.space.chosen(trial.assignment)))
        assert trial.latency <= 0.95
    judged = {run.label: run for run in detail.runs if run.role in ("promote", "baseline")}
    own = [run for run in judged.values() if run.role == "promote"]
    assert own
    assert all(run.measured_latency == pytest.approx(run.latency) for run in own)
    assert all(run.keeps_latency for run in own)
    text = markdown(detail, [])
    assert "| attention hyena_x | 49 | 96 | 10 | simulated, 1 threads | float32 | 2.500 |" in text
    assert f"| {name_of(own[0])} | promote | {own[0].latency:.3f}x | {own[0].latency:.3f}x |" in text
    assert "| teacher | baseline | 1.000x | 1.000x | 0.990 to 1.010 | 1.000 | no |" in text
    teacher, fewer = judged["teacher"], judged["fewer_steps"]
    assert (teacher.latency, teacher.keeps_latency) == (1, False)
    assert (fewer.latency, fewer.measured_latency) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_a_design_that_breaks_the_limit_by_the_clock_has_not_won(
    new_sqlite_study: Callable[..., StudyHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table promises 0.975 and less; the clock says 0.2 more wherever block 3 is edited."""
    lab = new_sqlite_study("lab", limits={"latency": "<= 0.976x"}, promote=6)
    honest = lab.cluster.ratio

    def ratio(design: GraftDesign) -> float:
        return honest(design) + 0.2 * any(edit.site.block == 3 for edit in design.edits)

    monkeypatch.setattr(lab.cluster, "ratio", ratio)
    assert lab.run().state == "DONE"
    with lab.database.reading() as session:
        detail = study_detail(session, lab.study())
    own = [run for run in detail.runs if run.role == "promote"]
    broken = [run for run in own if run.keeps_latency is False]
    kept = [run for run in own if run.keeps_latency]
    assert broken
    assert kept
    best = min(kept, key=lambda run: run.quality)
    assert (detail.best_trial, detail.best) == (best.trial, best.quality)
    assert "0.976x" in markdown(detail, [])


def test_a_study_that_dies_when_its_table_is_measured_goes_on_as_an_undisturbed_one(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    calm, hard = (new_sqlite_study(name, limits={"latency": 1.5}) for name in ("calm", "hard"))
    calm.run()
    hard.run(lambda step: arm("study/measured:raise" if step < 4 else ""))
    assert hard.run().state == "DONE"
    assert hard.trials() == calm.trials()
    with hard.database.reading() as session:
        roles = [row.role for row, _ in runs_of(session, hard.id)]
    assert roles.count("measure") == 1


def test_latency_as_an_objective_is_weighed_like_any_cost(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab", objectives=[{"minimize": "fid40"}, {"minimize": "latency"}])
    assert lab.run().state == "DONE"
    with lab.database.reading() as session:
        detail = study_detail(session, lab.study())
    assert detail.objectives[1] == "latency"
    space, found = detail.spec.space, {trial.latency for trial in detail.trial_rows}
    assert found == {space.latency(space.chosen(trial.assignment)) for trial in detail.trial_rows}
    assert len(found) > 1
    assert lab.optuna_study().metric_names == ["loss_gap", "latency"]


def test_a_second_study_of_the_same_space_finds_the_rows_of_the_first() -> None:
    one, two = (
        parse_feasible_study(study_document(name=name, limits={"latency": 0.9})) for name in ("one", "two")
    )
    assert latency_work(one, Budget()).digest == latency_work(two, Budget()).digest
    more = parse_feasible_study(study_document(limits={"latency": 0.9}, resources={"cpus_per_worker": 2}))
    assert latency_work(more, Budget()).digest != latency_work(one, Budget()).digest


def test_a_failed_table_fails_the_study_with_the_reason(
    new_sqlite_study: Callable[..., StudyHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = new_sqlite_study("lab", limits={"latency": 0.9})
    monkeypatch.setattr(lab.cluster, "_measure", lambda work, run: StageReport(stage="measure", key="k"))
    study = lab.run()
    assert (study.state, study.phase) == ("FAILED", "measure")
    assert study.message == "the latency table has no row for attention hyena_x"


def test_a_limit_beyond_the_table_fails_the_study_with_what_the_space_reaches(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    study = new_sqlite_study("lab", limits={"latency": 0.1}).run()
    assert study.state == "FAILED"
    assert "no design meets this; the least latency in this space is 0.9000" in str(study.message)


@pytest.mark.large
def test_a_real_table_and_a_real_clock_stand_side_by_side(
    new_sqlite_study: Callable[..., StudyHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage for real, in this process; what the machine's clock says is not asserted."""
    measured = LatencyBench.measure
    monkeypatch.setattr(LatencyBench, "measure", lambda bench, part: measured(bench, part, 0.0))
    groups = {"attention": [[1, 3, 5, 7]]}
    space = {"attention": ["keep", "hyena_x"], "groups": groups}
    screening = {"trials": 2, "rungs": ["loss_gap"], "loss_draws": 64}
    lab = new_sqlite_study("lab", space=space, screening=screening, limits={"latency": 3.0}, promote=1)
    lab.cluster = InProcessCluster(lab.database, lab.storage, lab.cluster.backbone)
    assert lab.run().state == "DONE"
    with lab.database.reading() as session:
        detail = study_detail(session, lab.study())
    hardware = {row.hardware for row in detail.spec.latencies}
    assert hardware == {hardware_of(torch.device("cpu"))}
    [promoted] = [run for run in detail.runs if run.role == "promote"]
    assert promoted.latency is not None
    assert promoted.measured_latency is not None
    assert promoted.keeps_latency is True
    assert detail.best_trial == promoted.trial
