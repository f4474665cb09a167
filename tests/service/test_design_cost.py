"""What a design cost to make, who made it first, and what a later run of it paid and saved."""

import json

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from grafting_core.specs.backbone import backbone_cards
from grafting_core.specs.budget import Usage
from grafting_core.specs.cost import design_cost
from service.cli.console import out
from service.cli.views import show_leaderboard
from service.db.engine import Database
from service.db.migrate import downgrade, upgrade
from service.db.tables import LeaderboardEntryRow, RunRow
from service.domain.attempt_events import apply_event
from service.domain.leaderboard import leaderboard
from service.domain.submission import submit
from service.schemas.leaderboard import Leaderboard, LeaderboardRow
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.clients import as_user
from tests.support.runs import FIGURES, STARTED, begin, event
from workers.contract import AttemptFailed, AttemptSucceeded, EventBody, StageDone, StageReport

OTHER_PROTOCOL = {"samples": 40, "sampling_steps": 4, "micro_batch": 10}


def spend(seconds: float) -> Usage:
    """Of so many device-seconds, with FLOPs and images in proportion."""
    return Usage(device_seconds=seconds, flops=seconds * 1e9, training_images=int(seconds) * 8)


def queued(session: Session, owner: str = "ada", **changes: object) -> RunRow:
    return submit(session, experiment(**changes), "digest", None, owner=owner)


def attempt(session: Session, settings: Settings, run: RunRow, *bodies: EventBody) -> None:
    """One attempt that tells of all this."""
    begin(session, run)
    for seq, body in enumerate((STARTED, *bodies), 1):
        assert apply_event(session, settings, event(run, seq, body))
    session.flush()


def done(stage: str, seconds: float, **fields: object) -> StageDone:
    metrics = FIGURES if stage == "evaluate" else {}
    told = {"stage": stage, "key": stage, "metrics": metrics, "spend": spend(seconds), **fields}
    return StageDone(report=StageReport(**told))  # type: ignore[arg-type]  # fields of all types


def made(session: Session, settings: Settings, run: RunRow) -> None:
    """Made in full: 10 s to start, 60 of distillation, 40 of finetuning, 15 of evaluation."""
    stages = (done("distill", 60.0, made={"s1": spend(25.0)}), done("finetune", 40.0), done("evaluate", 15.0))
    attempt(session, settings, run, *stages, AttemptSucceeded(spend=spend(125.0)))


def found(session: Session, settings: Settings, run: RunRow, maker: str) -> None:
    """Everything was there: 6 s to start and to look."""
    stages = (
        done("distill", 1.0, stop_cause="reused", made_by={"a": maker}, found={"s1": spend(25.0)}),
        done("finetune", 0.0, stop_cause="reused", made_by={"model": maker}),
        done("evaluate", 1.0, stop_cause="reused", made_by={"evaluation": maker}),
    )
    attempt(session, settings, run, *stages, AttemptSucceeded(spend=spend(6.0)))


def row_of(session: Session, run: RunRow, owner: str | None = None) -> LeaderboardRow:
    rows = [row for group in leaderboard(session, owner).groups for row in group.rows]
    return next(row for row in rows if row.run_id == run.id)


def test_asking_for_a_finished_design_again_changes_neither_its_cost_nor_who_made_it(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        first = queued(session)
        made(session, settings, first)
        again = queued(session, owner="bob", name="the same design")
        found(session, settings, again, first.id)
        row = row_of(session, again)
        total = backbone_cards()[again.experiment.backbone].pretraining.flops
        assert (row.made, row.spend, row.saved) == (spend(125.0), spend(6.0), spend(119.0))
        assert row.share_of_pretraining == pytest.approx(125e9 / total)
        assert row.first is not None
        assert (row.first.run_id, row.first.owner, row.first.at) == (first.id, "ada", first.ended_at)


def test_a_design_that_reuses_scions_costs_what_they_cost(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = queued(session)
        price = {"s1": spend(25.0), "s2": spend(30.0)}
        distilled = done("distill", 1.0, stop_cause="reused", made_by={"a": "r0", "b": "r1"}, found=price)
        stages = (distilled, done("finetune", 40.0), done("evaluate", 15.0))
        attempt(session, settings, run, *stages, AttemptSucceeded(spend=spend(60.0)))
        row = row_of(session, run)
        assert (row.made, row.spend, row.saved) == (spend(115.0), spend(60.0), spend(55.0))
        assert row.first is not None
        assert row.first.run_id == run.id


def test_a_model_that_took_two_attempts_costs_both(database: Database, settings: Settings) -> None:
    """The maker spent 30 s on finetuning before it failed, and 20 s after; startings belong to it too."""
    with database.writing() as session:
        maker = queued(session)
        failed = AttemptFailed(reason="worker_lost", message="m", spend=spend(60.0))
        attempt(session, settings, maker, done("distill", 25.0), failed)
        stages = (done("finetune", 20.0), done("evaluate", 15.0))
        attempt(session, settings, maker, *stages, AttemptSucceeded(spend=spend(40.0)))
        judged = queued(session, evaluate=OTHER_PROTOCOL)
        distilled = done(
            "distill", 1.0, stop_cause="reused", made_by={"a": maker.id}, found={"s": spend(25.0)}
        )
        model = done("finetune", 0.0, stop_cause="reused", made_by={"model": maker.id})
        evaluated = done("evaluate", 7.0)
        attempt(session, settings, judged, distilled, model, evaluated, AttemptSucceeded(spend=spend(10.0)))
        assert row_of(session, maker).made == spend(100.0)
        assert row_of(session, judged).made == spend(10.0 + 25.0 + (60.0 - 25.0) + 20.0)


def test_a_cost_that_nobody_knows_is_not_shown_as_small(client: TestClient) -> None:
    lab = client.app.state.lab  # type: ignore[attr-defined]  # starlette's type is wider
    with lab.database.writing() as session:
        run = queued(session)
        model = done("finetune", 0.0, stop_cause="reused", made_by={"model": "gone"})
        ended = AttemptSucceeded(spend=spend(9.0))
        attempt(session, lab.settings, run, done("distill", 1.0), model, done("evaluate", 2.0), ended)
    [group] = client.get("/api/v1/leaderboard").json()["groups"]
    [row] = group["rows"]
    assert (row["made"], row["saved"], row["share_of_pretraining"]) == (None, None, None)
    assert row["spend"]["device_seconds"] == 9.0
    assert "0.00 %" not in client.get("/", headers={"Accept": "text/html"}).text


def test_page_and_command_line_show_cost_payment_saving_and_the_first_maker(client: TestClient) -> None:
    lab = client.app.state.lab  # type: ignore[attr-defined]  # as above
    with lab.database.writing() as session:
        first = queued(session)
        made(session, lab.settings, first)
        found(session, lab.settings, queued(session, owner="bob"), first.id)
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert f'<a href="/runs/{first.id}">ada</a>' in page
    for figure in ("125", "6", "119"):
        assert f'<td class="n">{figure}</td>' in page
    board = client.get("/api/v1/leaderboard").json()
    with out.capture() as shown:
        show_leaderboard(Leaderboard.model_validate_json(json.dumps(board)))
    assert {"125", "6", "119", "ada"} <= set(shown.get().split())


def test_a_guest_learns_that_another_was_first_and_not_who(client: TestClient) -> None:
    lab = client.app.state.lab  # type: ignore[attr-defined]  # as above
    guest = as_user(client, "guest", sees="own")
    with lab.database.writing() as session:
        first = queued(session, owner="zoe")
        made(session, lab.settings, first)
        found(session, lab.settings, queued(session, owner="guest"), first.id)
        theirs = first.id
    answer = guest.get("/api/v1/leaderboard")
    [row] = answer.json()["groups"][0]["rows"]
    assert row["made"]["device_seconds"] == 125.0
    assert (row["first"]["run_id"], row["first"]["owner"]) == ("another's", "another's")
    for text in (answer.text, guest.get("/", headers={"Accept": "text/html"}).text):
        assert "zoe" not in text
        assert theirs not in text


def test_size_and_flops_are_compared_where_no_teacher_was_measured(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        run = queued(session)
        spec = experiment()
        cost = design_cost(spec, backbone_cards()[spec.backbone.name])
        figures = {"num_params": cost.num_params, "flops_per_image": cost.flops_per_image}
        metrics = {**FIGURES, **{name: float(value) for name, value in figures.items()}}
        evaluated = done("evaluate", 1.0, metrics=metrics)
        attempt(session, settings, run, evaluated, AttemptSucceeded(spend=spend(2.0)))
        row = row_of(session, run)
    assert row.value_change is None
    assert row.params_change == pytest.approx(cost.num_params / cost.teacher_params - 1)
    assert row.flops_change == pytest.approx(cost.flops_per_image / cost.teacher_flops_per_image - 1)


def test_a_lab_of_before_gets_its_costs_where_its_reports_tell_them(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        first = queued(session)
        made(session, settings, first)
        again = queued(session, owner="bob")
        found(session, settings, again, first.id)
        other = queued(session, evaluate=OTHER_PROTOCOL)
        found(session, settings, other, first.id)
        ids = [run.id for run in (first, again, other)]
    downgrade(database, "0014")
    upgrade(database)
    with database.reading() as session:
        rows = [session.get_one(LeaderboardEntryRow, run_id) for run_id in ids]
        firsts = [(row.first_run_id, row.first_owner) for row in rows]
        costs = [row.made_device_seconds for row in rows]
        assert rows[1].first_at == session.get_one(RunRow, ids[0]).ended_at
    assert firsts == [(ids[0], "ada"), (ids[0], "ada"), (ids[2], "ada")]
    assert costs == [125.0, 125.0, None]
