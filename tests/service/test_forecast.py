"""The lab says how long new work will take, from what its own runs took."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from grafting_core.specs.cost import plan
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.forecast import forecast, outstanding
from service.domain.run_lifecycle import transition
from tests.support.builders import document, experiment
from tests.support.runs import FLOPS, RATE, STARTING, finished_run

BACKBONE = "testbed/dit-fashion"


def test_a_lab_without_history_says_nothing(database: Database) -> None:
    with database.writing() as session:
        assert forecast(session, BACKBONE, FLOPS) is None


def test_equal_runs_are_forecast_exactly_and_half_the_work_takes_half_the_time(database: Database) -> None:
    with database.writing() as session:
        for _ in range(6):
            finished_run(session)
        found = forecast(session, BACKBONE, {name: amount / 2 for name, amount in FLOPS.items()})
    assert found is not None
    assert found.runs == 6
    assert found.device_seconds == pytest.approx(STARTING + RATE * sum(FLOPS.values()) / 2)
    assert (found.low, found.high) == pytest.approx((found.device_seconds, found.device_seconds))


def test_the_interval_holds_four_of_five_runs_and_few_runs_make_it_wide(database: Database) -> None:
    slowness = [0.8, 0.9, 0.95, 1.0, 1.0, 1.0, 1.05, 1.1, 1.2, 9.0]
    with database.writing() as session:
        for value in slowness[:2]:
            finished_run(session, value)
        few = forecast(session, BACKBONE, FLOPS)
        for value in slowness[2:]:
            finished_run(session, value)
        many = forecast(session, BACKBONE, FLOPS)
    assert few is not None
    assert many is not None
    assert few.high / few.device_seconds == 2
    actual = [STARTING + value * RATE * sum(FLOPS.values()) for value in slowness]
    assert sum(many.low * 0.999 <= seconds <= many.high * 1.001 for seconds in actual) == 8


def test_every_device_of_a_run_waits_while_it_starts(database: Database) -> None:
    with database.writing() as session:
        for _ in range(6):
            finished_run(session)
        eight = forecast(session, BACKBONE, FLOPS, devices=8)
        for run in session.scalars(select(RunRow)):
            run.gpus = 4
        session.flush()
        two = forecast(session, BACKBONE, FLOPS, devices=2)
    work = RATE * sum(FLOPS.values())
    assert eight is not None
    assert two is not None
    assert eight.device_seconds == pytest.approx(work + 8 * STARTING)
    assert two.device_seconds == pytest.approx(work + 2 * STARTING / 4)


def test_runs_that_were_interrupted_do_not_count_as_slow(database: Database) -> None:
    with database.writing() as session:
        finished_run(session, attempts=2)
        assert forecast(session, BACKBONE, FLOPS) is None


def test_what_is_published_already_costs_nothing(tmp_path: Path) -> None:
    storage, planned = Storage(str(tmp_path)), plan(experiment())
    assert outstanding(planned, storage) == {stage.stage: stage.spend.flops for stage in planned.stages}
    distill = planned.stages[0]
    storage.write_bytes(f"scions/{next(iter(distill.keys.values()))}/card.json", b"{}")
    assert outstanding(planned, storage)["distill"] == distill.spend.flops / 2


def test_a_run_keeps_its_forecast_beside_what_it_used(client: TestClient) -> None:
    database = client.app.state.lab.database  # type: ignore[attr-defined]  # Starlette's application
    with database.writing() as session:
        finished_run(session)
    expected = client.post("/api/v1/experiments/plan", json=document()).json()["forecast"]
    run_id = client.post("/api/v1/experiments", json=document(name="new")).json()["run_id"]
    with database.writing() as session:
        transition(session, session.get_one(RunRow, run_id), "CANCELLED", "user_request")
    assert expected["device_seconds"] > STARTING
    assert client.get(f"/api/v1/runs/{run_id}").json()["forecast"] == expected
    assert f"forecast {expected['device_seconds']:.0f}" in client.get(f"/runs/{run_id}").text
