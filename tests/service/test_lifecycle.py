"""The life of a run: allowed moves, numbered events, fenced attempts."""

import json

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from service.cli.console import out
from service.cli.views import show_leaderboard
from service.db.engine import Database
from service.db.tables import RunRow, now
from service.domain.attempt_events import apply_event
from service.domain.leaderboard import leaderboard
from service.domain.run_lifecycle import MOVES, IllegalMove, transition
from service.domain.run_queries import events_after, run_detail
from service.domain.submission import submit
from service.schemas.leaderboard import Leaderboard
from service.schemas.runs import TERMINAL
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.runs import FIGURES, STARTED, begin, event, started_run
from workers.contract import (
    AttemptFailed,
    AttemptStopped,
    AttemptSucceeded,
    EventBody,
    Progress,
    StageDone,
    StageReport,
)


def evaluated(fid: float = 5.0) -> StageDone:
    figures = {**FIGURES, "fid40/fashion-cnn": fid}
    return StageDone(report=StageReport(stage="evaluate", key="k", metrics=figures))


def finish(session: Session, settings: Settings, run: RunRow, fid: float = 5.0) -> None:
    bodies: list[EventBody] = [STARTED, evaluated(fid), AttemptSucceeded(spend=Usage(device_seconds=9.0))]
    for seq, body in enumerate(bodies, 1):
        assert apply_event(session, settings, event(run, seq, body))


def test_every_state_has_its_moves_and_success_is_final() -> None:
    assert MOVES["SUCCEEDED"] == frozenset()
    assert all(target in MOVES for targets in MOVES.values() for target in targets)
    assert frozenset(MOVES) >= TERMINAL


def test_a_move_that_the_table_lacks_changes_nothing(database: Database) -> None:
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        with pytest.raises(IllegalMove, match="QUEUED cannot become SUCCEEDED"):
            transition(session, run, "SUCCEEDED")
        assert run.state == "QUEUED"


def test_events_are_numbered_without_gaps(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        finish(session, settings, run)
        assert [item.id for item in events_after(session, run.id, 0)] == list(range(1, run.last_event + 1))
        assert run.state == "SUCCEEDED"


def test_an_event_counts_once(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        assert apply_event(session, settings, event(run, 1, STARTED))
        assert not apply_event(session, settings, event(run, 1, STARTED))
        assert not apply_event(session, settings, event(run, 3, evaluated()))


def test_a_stale_attempt_changes_nothing(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        failed = AttemptFailed(reason="worker_lost", message="gone")
        assert apply_event(session, settings, event(run, 1, STARTED))
        assert apply_event(session, settings, event(run, 2, failed))
        assert run.state == "QUEUED"
        begin(session, run)
        before = (run.state, run.last_event)
        assert not apply_event(session, settings, event(run, 3, AttemptSucceeded(spend=Usage()), attempt=1))
        assert (run.state, run.last_event) == before


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("worker_lost", "QUEUED"),
        ("node_fault", "QUEUED"),
        ("diverged", "STOPPED"),
        ("budget_exhausted", "STOPPED"),
        ("preempted", "QUEUED"),
        ("internal_error", "FAILED"),
    ],
)
def test_the_reason_decides_whether_another_attempt_follows(
    database: Database, settings: Settings, reason: str, state: str
) -> None:
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        body = AttemptFailed(reason=reason, message="m")  # type: ignore[arg-type]  # a parameter
        apply_event(session, settings, event(run, 2, body))
        assert run.state == state


def test_attempts_are_not_endless(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        for number in range(1, settings.max_attempts + 1):
            apply_event(session, settings, event(run, 1, STARTED))
            apply_event(session, settings, event(run, 2, AttemptFailed(reason="worker_lost", message="m")))
            if number < settings.max_attempts:
                begin(session, run)
        assert (run.state, run.attempt) == ("FAILED", settings.max_attempts)


def test_a_stop_on_request_cancels(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        run.cancel_requested_at = now()
        apply_event(session, settings, event(run, 2, AttemptStopped(reason="user_request", spend=Usage())))
        assert (run.state, run.reason) == ("CANCELLED", "user_request")


def test_a_stop_whose_wish_was_withdrawn_goes_on(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        run = started_run(session)
        apply_event(session, settings, event(run, 1, STARTED))
        apply_event(session, settings, event(run, 2, AttemptStopped(reason="user_request", spend=Usage())))
        assert (run.state, run.failures, run.not_before) == ("QUEUED", 0, None)


def test_spend_of_all_attempts_is_counted_and_never_shrinks(database: Database, settings: Settings) -> None:
    def progress(seconds: float) -> Progress:
        return Progress(stage="distill", step=1, total_steps=2, spend=Usage(device_seconds=seconds))

    with database.writing() as session:
        run = started_run(session)
        bodies = [STARTED, progress(5.0), progress(3.0), AttemptFailed(reason="worker_lost", message="m")]
        for seq, body in enumerate(bodies, 1):
            apply_event(session, settings, event(run, seq, body))
        begin(session, run)
        apply_event(session, settings, event(run, 1, STARTED))
        apply_event(session, settings, event(run, 2, progress(4.0)))
        session.flush()
        detail = run_detail(session, run.id)
        assert detail is not None
        assert detail.spend.device_seconds == 9.0


def test_designs_that_cannot_be_told_apart_share_their_ranks(client: TestClient) -> None:
    """Half-widths of 0.3 and 0.4 make 0.5 of the difference."""
    name, halves = "fid40/fashion-cnn", {1.0: 0.3, 2.0: 0.4, 2.45: 0.3, 3.1: 0.4, 9.0: None}
    lab = client.app.state.lab
    with lab.database.writing() as session:
        for layer, (value, half) in enumerate(halves.items()):
            run = started_run(session, layers=[layer])
            intervals = {} if half is None else {name: (value - half, value + half)}
            report = StageReport(
                stage="evaluate", key="k", metrics={**FIGURES, name: value}, intervals=intervals
            )
            apply_event(session, lab.settings, event(run, 1, STARTED))
            apply_event(session, lab.settings, event(run, 2, StageDone(report=report)))
            apply_event(session, lab.settings, event(run, 3, AttemptSucceeded(spend=Usage())))
    [group] = client.get("/api/v1/leaderboard").json()["groups"]
    assert [(row["rank_from"], row["rank_to"]) for row in group["rows"]] == [
        (1, 1),
        (2, 3),
        (2, 3),
        (4, 4),
        (5, 5),
    ]
    assert group["rows"][1]["interval"] == pytest.approx([1.6, 2.4])
    assert group["rows"][4]["interval"] is None
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert "<td>2-3</td>" in page
    assert "do not differ significantly" in page
    with out.capture() as shown:
        show_leaderboard(Leaderboard.model_validate_json(json.dumps({"groups": [group], "cut_short": []})))
    assert "2-3" in shown.get()
    assert "do not differ significantly" in shown.get()


def test_the_leaderboard_ranks_within_a_protocol_and_against_the_teacher(
    database: Database, settings: Settings
) -> None:
    other = {"samples": 50, "sampling_steps": 3, "micro_batch": 10}
    with database.writing() as session:
        for changes, fid in (({"edits": []}, 4.0), ({}, 5.0), ({"layers": [2]}, 4.5)):
            finish(session, settings, started_run(session, **changes), fid)
        odd = started_run(session, evaluate=other)
        apply_event(session, settings, event(odd, 1, STARTED))
        body = StageDone(
            report=StageReport(stage="evaluate", key="k", metrics={**FIGURES, "fid50/fashion-cnn": 1.0})
        )
        apply_event(session, settings, event(odd, 2, body))
        apply_event(session, settings, event(odd, 3, AttemptSucceeded(spend=Usage())))
        session.flush()
        groups = {group.metric: group for group in leaderboard(session).groups}
    assert [(row.rank, row.value) for row in groups["fid40/fashion-cnn"].rows] == [
        (1, 4.0),
        (2, 4.5),
        (3, 5.0),
    ]
    assert groups["fid40/fashion-cnn"].rows[0].is_teacher
    assert groups["fid40/fashion-cnn"].rows[2].value_change == pytest.approx(0.25)
    assert groups["fid50/fashion-cnn"].rows[0].value_change is None
