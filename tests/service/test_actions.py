"""Actions on runs: what each does in each state, that repeats change nothing, and the routes to them."""

import pytest
from fastapi.testclient import TestClient

from grafting_core.specs.budget import Usage
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.attempt_events import apply_event
from service.domain.leaderboard import leaderboard
from service.domain.run_controls import ACTIONS, Action, apply_action, extend, prioritise
from service.domain.run_lifecycle import IllegalMove
from service.domain.run_queries import events_after
from service.schemas.runs import RunState
from service.settings import Settings
from tests.support.builders import document
from tests.support.runs import STARTED, begin, event, started_run
from workers.contract import AttemptFailed, AttemptStopped, Progress, StageDone, StageReport

AFTER: dict[Action, dict[RunState, RunState | None]] = {
    "pause": {"QUEUED": "PAUSED", "RUNNING": "RUNNING", "PAUSED": "PAUSED", "FAILED": None},
    "resume": {"QUEUED": "QUEUED", "RUNNING": "RUNNING", "PAUSED": "QUEUED", "FAILED": None},
    "cancel": {"QUEUED": "CANCELLED", "RUNNING": "RUNNING", "CANCELLED": "CANCELLED", "STOPPED": None},
    "kill": {"QUEUED": "CANCELLED", "PAUSED": "CANCELLED", "RUNNING": "RUNNING", "SUCCEEDED": None},
    "retry": {"QUEUED": "QUEUED", "FAILED": "QUEUED", "STOPPED": "QUEUED", "SUCCEEDED": None},
}
"""Action -> state -> state after it; None where it is refused."""
CASES = [(action, state, to) for action, table in AFTER.items() for state, to in table.items()]


@pytest.mark.parametrize(("action", "state", "to"), CASES)
def test_each_action_in_each_state_and_again(
    database: Database, action: Action, state: RunState, to: RunState | None
) -> None:
    with database.writing() as session:
        run = started_run(session)
        run.state = state
        if to is None:
            with pytest.raises(IllegalMove):
                apply_action(session, run, action)
            assert run.state == state
            return
        apply_action(session, run, action)
        assert run.state == to
        assert not apply_action(session, run, action)
        assert run.state == to


def test_every_action_has_its_cases() -> None:
    assert AFTER.keys() == ACTIONS.keys()


def test_a_pause_takes_effect_at_the_checkpoint_and_the_run_goes_on_when_resumed(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        apply_action(session, run, "pause")
        apply_event(session, settings, event(run, 2, AttemptStopped(reason="user_request", spend=Usage())))
        assert (run.state, run.failures) == ("PAUSED", 0)
        apply_action(session, run, "resume")
        assert (run.state, run.pause_requested_at) == ("QUEUED", None)


def test_cancelling_wins_over_pausing(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        apply_action(session, run, "pause")
        apply_action(session, run, "cancel")
        apply_event(session, settings, event(run, 2, AttemptStopped(reason="user_request", spend=Usage())))
        assert run.state == "CANCELLED"


def test_an_extension_counts_once_a_key_and_lets_a_stopped_run_go_on(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        run = started_run(session, budget={"device_seconds": 10.0})
        apply_event(session, settings, event(run, 1, STARTED))
        stopped = AttemptStopped(reason="budget_exhausted", spend=Usage(device_seconds=10.0))
        apply_event(session, settings, event(run, 2, stopped))
        assert (run.state, run.reason) == ("STOPPED", "budget_exhausted")
        assert extend(session, run, 60.0, "k")
        assert run.state == "QUEUED"
        session.flush()
        assert not extend(session, run, 60.0, "k")
        assert run.extra_device_seconds == 60.0


def test_a_run_without_a_limit_is_not_extended(database: Database) -> None:
    with database.writing() as session, pytest.raises(IllegalMove, match="no limit"):
        extend(session, started_run(session), 5.0)


def test_a_retry_begins_a_new_count_of_attempts(database: Database, settings: Settings) -> None:
    settings.max_attempts = 1
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        apply_event(session, settings, event(run, 2, AttemptFailed(reason="worker_lost", message="m")))
        assert run.state == "FAILED"
        apply_action(session, run, "retry")
        assert (run.state, run.failures, run.attempt) == ("QUEUED", 0, 1)


def test_running_out_of_memory_halves_the_micro_batch_until_it_cannot(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        run = started_run(session)
        run.stage = "finetune"
        seen = []
        while run.state != "FAILED":
            apply_event(session, settings, event(run, 1, STARTED))
            failed = AttemptFailed(reason="out_of_memory", message="m")
            apply_event(session, settings, event(run, 2, failed))
            seen.append(run.accumulation_steps)
            if run.state == "QUEUED":
                begin(session, run)
        assert seen == [2, 4, 8, 16, 16]
        assert run.failures == 0


def test_every_wish_is_an_event(database: Database) -> None:
    with database.writing() as session:
        run = started_run(session, budget={"device_seconds": 10.0})
        prioritise(session, run, 3)
        apply_action(session, run, "pause")
        extend(session, run, 5.0)
        session.flush()
        requests = [item.request for item in events_after(session, run.id, 0) if item.kind == "request"]
    assert requests == ["priority 3", "pause", "extend by 5 device-seconds"]


def test_routes_act_on_one_and_on_many(client: TestClient) -> None:
    runs = [
        client.post("/api/v1/experiments", json=document(name=f"r{n}", layers=[n])).json()["run_id"]
        for n in (1, 2)
    ]
    assert client.post(f"/api/v1/runs/{runs[0]}/pause").json()["state"] == "PAUSED"
    bulk = {"action": "pause", "runs": [*runs, "nosuch"]}
    answers = client.post("/api/v1/actions", json=bulk).json()
    assert [(a["state"], a["changed"]) for a in answers] == [
        ("PAUSED", False),
        ("PAUSED", True),
        (None, False),
    ]
    assert "no run" in answers[2]["problem"]
    moved = client.put(f"/api/v1/runs/{runs[0]}/priority", json={"priority": 7}).json()
    assert moved["priority"] == 7
    refused = client.post(f"/api/v1/runs/{runs[0]}/extend", json={"device_seconds": 5.0})
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal-transition")
    assert client.post(f"/api/v1/runs/{runs[0]}/explode").status_code in (404, 422)


def test_the_queue_and_accounts_are_shown_and_limits_set(client: TestClient) -> None:
    placed = "/api/v1/experiments?priority=4&tag=s1"
    run = client.post(placed, json=document()).json()["run_id"]
    (entry,) = client.get("/api/v1/queue", params={"run": run}).json()["entries"]
    assert (entry["run_id"], entry["priority"], entry["position"]) == (run, 4, 1)
    limits = {"budget": {"flops": 1e15, "share_of_pretraining": 0.5}, "max_running": 2}
    kept = client.put("/api/v1/accounts/tag/s1", json=limits).json()
    assert (kept["limits"]["flops"], kept["max_running"]) == (1e15, 2)
    names = [(a["scope"], a["name"]) for a in client.get("/api/v1/accounts").json()]
    assert names == [("lab", "lab"), ("user", "lab"), ("tag", "s1")]
    assert client.put("/api/v1/accounts/galaxy/x", json={}).status_code == 422
    for name in ("other", "Lab", "LAB"):
        refused = client.put(f"/api/v1/accounts/lab/{name}", json={})
        assert (refused.status_code, "lab/lab" in refused.json()["detail"]) == (404, True)
    assert client.put("/api/v1/accounts/lab/lab", json={}).status_code == 200
    assert [(a["scope"], a["name"]) for a in client.get("/api/v1/accounts").json()] == names
    assert client.put("/api/v1/accounts/user/x", json={"budget": {"flops": -1}}).status_code == 422


def test_a_run_view_tells_where_its_budget_stands(client: TestClient, database: Database) -> None:
    run = client.post("/api/v1/experiments", json=document(budget={"device_seconds": 5.0})).json()["run_id"]
    extended = client.post(f"/api/v1/runs/{run}/extend", json={"device_seconds": 5.0})
    assert extended.status_code == 200
    with database.reading() as session:
        assert session.get_one(RunRow, run).extra_device_seconds == 5.0


def test_what_a_budget_cut_short_stays_on_the_board_at_the_rung_it_reached(
    database: Database, settings: Settings
) -> None:
    with database.writing() as session:
        run = started_run(session, budget={"device_seconds": 10.0})
        apply_event(session, settings, event(run, 1, STARTED))
        distilled = StageReport(stage="distill", key="k", metrics={"loss_gap": 0.25, "nmse/x": 1.0})
        apply_event(session, settings, event(run, 2, StageDone(report=distilled)))
        step = Progress(stage="finetune", step=3, total_steps=8, spend=Usage(device_seconds=10.0))
        apply_event(session, settings, event(run, 3, step))
        stopped = AttemptStopped(reason="budget_exhausted", spend=Usage(device_seconds=10.0))
        apply_event(session, settings, event(run, 4, stopped))
        session.flush()
        (row,) = leaderboard(session).cut_short
    assert (row.run_id, row.reason) == (run.id, "budget_exhausted")
    assert row.reached == "distill done, finetune 3/8"
    assert row.rungs == {"loss_gap": 0.25}
    assert row.spend.device_seconds == 10.0
