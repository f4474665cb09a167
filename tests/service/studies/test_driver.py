"""A study goes from file to finish by steps, each of which may be the last one of its process."""

from collections.abc import Callable
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from grafting_core.storage.failpoints import arm
from grafting_core.storage.storage import Storage
from service.db.study_tables import StudyRow
from service.domain.studies import extend_study, move, runs_of
from service.domain.study_queries import study_detail
from service.schemas.studies import StudyExtension
from tests.support.study_harness import StudyHarness

pytestmark = pytest.mark.large

KILLED_IN = ("submit", "study/filled", "study/proposed", "study/screened", "study/promoted", "study/learned")


def test_a_study_ends_with_its_best_designs_finished(new_study: Callable[..., StudyHarness]) -> None:
    lab = new_study("lab", baselines=["teacher", "deep", "interleaved", "random"], rounds=2)
    study = lab.run()
    assert (study.state, study.message, study.round) == ("DONE", None, 2)
    with lab.database.reading() as session:
        detail = study_detail(session, study)
    assert detail.trials == 6
    assert len([run for run in detail.runs if run.role == "promote"]) == 2
    assert {run.label for run in detail.runs if run.role == "baseline"} >= {"teacher"}
    assert all(run.state == "SUCCEEDED" for run in detail.runs)
    assert {each.baseline for each in detail.comparisons} == set(detail.spec.baselines)
    assert detail.best is not None


def test_a_study_that_dies_in_every_phase_equals_an_undisturbed_one(
    new_study: Callable[..., StudyHarness],
) -> None:
    """A step that raises leaves what a killed process leaves: whatever was committed, and no more."""
    changes = {"baselines": ["random"], "rounds": 2}
    calm, hard = new_study("calm", **changes), new_study("hard", **changes)
    calm.run()

    def interrupt(step: int) -> None:
        arm(f"{KILLED_IN[step % len(KILLED_IN)]}:raise")

    hard.run(interrupt)
    arm("")
    study = hard.run()
    assert study.state == "DONE"
    assert hard.trials() == calm.trials()
    with hard.database.reading() as session:
        purposes = [(row.role, row.label) for row, _ in runs_of(session, hard.id)]
    assert len(purposes) == len(set(purposes)) == len(hard.cluster.carried_out)


class Watched(Storage):
    """Notes in which state the study is whenever a file of its report is written."""

    def __init__(self, lab: StudyHarness) -> None:
        super().__init__(lab.settings.storage)
        self.lab, self.states = lab, dict[str, str]()

    def write_bytes(self, path: str, data: bytes) -> None:
        super().write_bytes(path, data)
        if path.startswith("studies/"):
            self.states[Path(path).name] = self.lab.study().state


def test_whoever_waits_for_the_end_of_a_study_finds_its_whole_report(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab")
    lab.storage = watched = Watched(lab)
    assert lab.run().state == "DONE"
    assert {"report.md", "report.html", "pareto.png"} <= set(watched.states)
    assert set(watched.states.values()) == {"RUNNING"}
    assert b"| state | done, phase learn" in lab.storage.read_bytes(f"studies/{lab.id}/report.md")


def test_a_mistake_of_ours_ends_the_study_that_met_it_with_the_reason(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab")

    class Mistaken(Storage):
        def write_bytes(self, path: str, data: bytes) -> None:
            raise TypeError(f"no {path}")

    lab.storage = Mistaken(lab.settings.storage)
    study = lab.run()
    assert (study.state, study.message) == (
        "FAILED",
        f"internal error: TypeError: no studies/{lab.id}/pareto.png",
    )
    assert any(trial[5] for trial in lab.trials())


def test_a_study_extended_while_its_report_is_written_goes_on(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab")
    extended: list[str] = []

    class Extending(Storage):
        def write_bytes(self, path: str, data: bytes) -> None:
            super().write_bytes(path, data)
            if path.endswith("report.html") and not extended:
                with lab.database.writing() as session:
                    row = session.get_one(StudyRow, lab.id)
                    extend_study(
                        session, row, StudyExtension(version=row.version, trials=2, promote=1, rounds=1)
                    )
                extended.append(path)

    lab.storage = Extending(lab.settings.storage)
    study = lab.run()
    assert (study.state, study.round, len(lab.trials())) == ("DONE", 2, 8)


def test_a_lost_optuna_database_is_rebuilt_from_ours(new_sqlite_study: Callable[..., StudyHarness]) -> None:
    lab = new_sqlite_study("lab", rounds=2)
    kept: dict[object, object] = {}

    def lose(step: int) -> None:
        if (lab.study().round, lab.study().phase) == (2, "screen") and not kept:
            kept.update({t.user_attrs["graftlab_trial"]: t.values for t in complete(lab.optuna_study())})
            Path(lab.settings.optuna_url.removeprefix("sqlite:///")).unlink()

    lab.run(lose)
    again = {t.user_attrs["graftlab_trial"]: t.values for t in complete(lab.optuna_study())}
    assert kept
    assert {number: again[number] for number in kept} == kept


def complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def test_the_budget_of_a_study_is_hard_and_what_was_found_is_kept(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    lab = new_sqlite_study("lab", budget={"device_seconds": 25.0}, promote=4, rounds=2)
    study = lab.run()
    assert study.state == "DONE"
    assert "budget" in (study.message or "")
    assert any(trial[3] for trial in lab.trials())


def test_a_repeated_proposal_is_told_its_known_value_at_once(
    new_sqlite_study: Callable[..., StudyHarness],
) -> None:
    space = {"attention": ["keep", "hyena_x"], "groups": {"attention": [[1], [3]]}}
    screening = {"trials": 8, "rungs": ["loss_gap"]}
    lab = new_sqlite_study("lab", space=space, screening=screening, rounds=2, promote=2)
    study = lab.run()
    assert study.state == "DONE"
    keys = [trial[2] for trial in lab.trials()]
    assert len(keys) == len(set(keys)) <= 4


def test_an_extended_study_goes_on_from_what_it_has(new_study: Callable[..., StudyHarness]) -> None:
    lab = new_study("lab")
    lab.run()
    before = lab.trials()
    with lab.database.writing() as session:
        row = session.get_one(StudyRow, lab.id)
        extend_study(session, row, StudyExtension(version=row.version, trials=4, promote=1, rounds=1))
        move(session, row, "RUNNING")
    study = lab.run()
    after = lab.trials()
    assert (study.state, study.round) == ("DONE", 2)
    assert [trial[:4] for trial in after[: len(before)]] == [trial[:4] for trial in before]
    assert len(after) == len(before) + 4
    assert sum(trial[5] is not None for trial in after) == 3


def test_the_dashboard_opens_on_a_study(new_sqlite_study: Callable[..., StudyHarness]) -> None:
    lab = new_sqlite_study("lab")
    lab.run()
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(lab.settings.optuna_url))
    app.catchall = False
    status: list[str] = []
    environ: dict[str, object] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = "/api/studies"
    body = b"".join(app(environ, lambda line, headers, *failure: status.append(line)))
    assert status == ["200 OK"]
    assert lab.id.encode() in body
