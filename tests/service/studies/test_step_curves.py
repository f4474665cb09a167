"""The last round of a study measures quality over sampling steps, of its backbone and of its best design."""

from collections.abc import Callable

import pytest

from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.experiment import ExperimentSpec, evaluation_key, finetune_key
from grafting_core.specs.results import Hardware, MeasuredCost, Parameters
from grafting_core.specs.studies.parsing import parse_study
from service.db.study_tables import StudyRow
from service.db.tables import RunRow, StageRow
from service.domain.run_queries import work_of
from service.domain.studies import extend_study, move, runs_of
from service.domain.study_queries import study_detail
from service.schemas.studies import StudyDetail, StudyExtension
from service.studies.report import report_files, sections
from service.studies.step_curves import curve_steps
from service.studies.step_figures import SECONDS, SHARE, axis, curves, step_remarks, step_rows, steps_figure
from tests.support.builders import MIXED_SPACE, QUICK, study_document
from tests.support.study_harness import StudyHarness
from tests.support.study_runs import SECONDS_A_RUN

TEN_STEPS = {"evaluate": {**QUICK["evaluate"], "sampling_steps": 10}}


def detail_of(lab: StudyHarness) -> StudyDetail:
    with lab.database.reading() as session:
        return study_detail(session, lab.study())


def works(lab: StudyHarness, *roles: str) -> dict[str, ExperimentSpec]:
    with lab.database.reading() as session:
        return {row.label: work_of(run) for row, run in runs_of(session, lab.id, roles)}


@pytest.fixture
def lab(new_sqlite_study: Callable[..., StudyHarness]) -> StudyHarness:
    """Whose study is done. Its limit leaves out the untouched backbone, which is better than every design."""
    given = {"space": MIXED_SPACE, "limits": {"flops": "<= 0.99x"}, "baselines": ["teacher"]}
    made = new_sqlite_study("lab", step_curve=[0.2, 0.5], **given, **TEN_STEPS)
    assert made.run().state == "DONE"
    return made


def test_both_curves_are_measured_once_with_the_weights_that_are_there(lab: StudyHarness) -> None:
    best = detail_of(lab).best_trial
    measured = works(lab, "curve")
    names = {"teacher, 5 steps", "teacher, 2 steps", f"trial {best}, 5 steps", f"trial {best}, 2 steps"}
    assert set(measured) == names
    finals = works(lab, "promote", "baseline")
    (final,) = [work for label, work in finals.items() if label.endswith(f"/{best}")]
    for steps in (5, 2):
        hybrid, teacher = measured[f"trial {best}, {steps} steps"], measured[f"teacher, {steps} steps"]
        assert finetune_key(hybrid) == finetune_key(final)
        assert evaluation_key(hybrid) != evaluation_key(final)
        assert (hybrid.evaluate.sampling_steps, teacher.evaluate.sampling_steps) == (steps, steps)
        assert teacher.design.is_teacher
    _are_no_finished_designs(detail_of(lab))


def _are_no_finished_designs(detail: StudyDetail) -> None:
    assert len([run for run in detail.runs if run.role == "curve"]) == 4
    tables = dict(sections(detail))
    finished = [run for run in detail.runs if run.role in ("promote", "baseline")]
    assert len(tables["Finished designs and baselines"]) == 1 + len(finished)
    assert [each.baseline for each in detail.comparisons] == ["teacher"]
    (teacher,) = [run for run in detail.runs if run.role == "baseline"]
    assert detail.comparisons[0].run_id == teacher.run_id
    shares = {
        run.sampling_steps: run.flops for run in detail.runs if run.role == "curve" and run.trial is None
    }
    assert shares == {5: detail.spec.space.base_flops / 2, 2: detail.spec.space.base_flops / 5}


def test_a_further_round_measures_only_what_is_missing(lab: StudyHarness) -> None:
    before = works(lab, "curve")
    with lab.database.writing() as session:
        row = session.get_one(StudyRow, lab.id)
        extend_study(session, row, StudyExtension(version=row.version, trials=4, promote=1, rounds=1))
        move(session, row, "RUNNING")
    lab.run()
    best, after = detail_of(lab).best_trial, works(lab, "curve")
    assert {label: after[label] for label in before} == before
    assert {f"trial {best}, 5 steps", f"trial {best}, 2 steps"} <= set(after)
    assert len([label for label in after if label.startswith("teacher")]) == 2


def test_a_study_without_the_teacher_measures_it_at_the_protocols_steps_too(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab", step_curve=[0.5], **TEN_STEPS)
    lab.run()
    best = detail_of(lab).best_trial
    assert set(works(lab, "curve")) == {"teacher, 10 steps", "teacher, 5 steps", f"trial {best}, 5 steps"}


def test_the_budget_bounds_the_curves_and_the_report_names_what_it_did_not_allow(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    """Fill, screen, two promotions and the teacher take all but one run's seconds."""
    budget = {"device_seconds": 5.5 * SECONDS_A_RUN}
    lab = new_sqlite_study("lab", baselines=["teacher"], step_curve=[0.2, 0.5], **TEN_STEPS)
    with lab.database.writing() as session:
        row = session.get_one(StudyRow, lab.id)
        row.spec = {**row.spec, "budget": {**row.spec["budget"], **budget}}
    assert lab.run().state == "DONE"
    with lab.database.writing() as session:
        for row, run in runs_of(session, lab.id, ("curve",)):
            if row.label.endswith("2 steps"):
                session.get_one(RunRow, run.id).state = "CANCELED"
    detail = detail_of(lab)
    told = " ".join(step_remarks(detail))
    assert (
        f"Of 6 points of the step curves 2 are missing, as the study's budget (device_seconds) was spent: \
teacher, 2 steps; trial {detail.best_trial}, 2 steps."
        in told
    )
    assert [row[2] for row in step_rows(detail) if row[1] == "2"] == ["canceled", "canceled"]


def test_nothing_is_measured_beyond_a_spent_budget(new_sqlite_study: Callable[..., StudyHarness]) -> None:
    lab = new_sqlite_study("lab", budget={"device_seconds": 25.0}, **TEN_STEPS)
    assert lab.run().state == "DONE"
    assert works(lab, "curve") == {}
    detail = detail_of(lab)
    assert detail.best_trial is not None
    assert "(device_seconds) was spent" in " ".join(step_remarks(detail))
    assert {row[2] for row in step_rows(detail)[2:]} == {"not measured"}


def timed(lab: StudyHarness, processor: str = "one") -> StudyDetail:
    """The study after every evaluation was timed: a tenth of a second a step, the design 10 % faster."""
    with lab.database.writing() as session:
        for run in study_detail(session, lab.study()).runs:
            stage = session.get(StageRow, (run.run_id, "evaluate"))
            if stage is not None and run.sampling_steps is not None:
                seconds = run.sampling_steps * (0.1 if run.trial is None else 0.09)
                machine = "one" if run.trial is None else processor
                cost = clocked(1 / seconds, machine).model_dump(mode="json")
                stage.report = {**stage.report, "cost": cost}
        session.flush()
        return study_detail(session, session.get_one(StudyRow, lab.id))


def clocked(rate: float, processor: str) -> MeasuredCost:
    hardware = Hardware(device="cpu", processor=processor, cores=2, threads=1, memory_gib=8, torch="2")
    return MeasuredCost(
        hardware=hardware,
        parameters=Parameters(total=9, trainable=9, grafted=1, embedding=1, buffers=0),
        flops_per_forward=10,
        flops_per_image=100,
        latencies=(),
        cold_start_seconds=1.0,
        images_per_second=rate,
        teacher_images_per_second=rate,
        peak_bytes=1000,
    )


def test_the_report_shows_both_curves_over_seconds_and_where_fewer_steps_win(
    lab: StudyHarness,
) -> None:
    """At 10 steps of the design the backbone has time for 5 and is better; at 2 it has time for none."""
    detail = timed(lab)
    figure, files = steps_figure(detail), report_files(detail)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (SECONDS, detail.quality)
    backbone, hybrid = figure.data
    assert list(backbone.x) == pytest.approx([1.0, 0.5, 0.2])
    assert list(hybrid.x) == pytest.approx([0.9, 0.45, 0.18])
    assert list(hybrid.text) == ["10", "5", "2"]
    assert set(hybrid.y) == {detail.best}
    head, *rows = dict(sections(detail))["Fewer operations or fewer steps"]
    assert [row[1] for row in rows] == ["10", "5", "2"] * 2
    assert [row[head.index("FLOPs per image")] for row in rows[:3]] == ["1.000x", "0.500x", "0.200x"]
    rival = f"{backbone.y[0]:.4g}"
    assert [row[-1] for row in rows[3:]] == [f"{rival} in 5 steps", f"{rival} in 2 steps", "-"]
    assert step_remarks(detail) == [
        "The backbone in fewer steps has better quality for no more seconds per image than the best promoted "
        "design at 10 and 5 steps, of the 2 numbers of steps at which both can be compared."
    ]
    title = "Step curves: quality against time per image, by number of sampling steps"
    assert files["steps.png"][:4] == b"\x89PNG"
    assert f"![{title}](steps.png)" in files["report.md"].decode()
    assert f"<h2>{title}</h2>" in files["report.html"].decode()
    elsewhere = timed(lab, processor="another")
    assert axis(curves(elsewhere)) == SHARE
    assert steps_figure(elsewhere).layout.xaxis.title.text == SHARE


def test_steps_follow_from_the_protocols_and_from_the_shares() -> None:
    spec = parse_study(study_document(**TEN_STEPS))
    assert curve_steps(spec) == (10, 7, 4, 2)
    few = spec.model_copy(update={"evaluate": spec.evaluate.model_copy(update={"sampling_steps": 2})})
    assert curve_steps(few) == (2, 1)
    assert curve_steps(spec.model_copy(update={"step_curve": ()})) == ()
    assert curve_steps(spec.model_copy(update={"quality": "loss_gap"})) == ()


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_a_share_is_between_nothing_and_all_of_the_steps(share: float) -> None:
    with pytest.raises(SpecError) as refused:
        parse_study(study_document(step_curve=[0.5, share]))
    assert [each.pointer for each in refused.value.problems] == ["/step_curve/1"]


def test_the_digest_of_a_study_is_that_of_before_unless_it_asks_for_other_steps() -> None:
    spec = parse_study(study_document())
    without = fields_of(spec, exclude={"name", "budget", "resources", "step_curve"})
    assert spec.digest == digest({"study": without})
    assert parse_study(study_document(step_curve=[0.5])).digest != spec.digest
