"""Scheduler and study driver among a thousand malformed items each: every one ends itself, named once."""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow, StudyRunRow, TrialRow
from service.db.tables import AttemptRow, RunRow, StageRow, now
from service.domain.run_lifecycle import transition
from service.domain.studies import create_study, run_for, spec_of_study
from service.domain.study_feasibility import parse_feasible_study
from service.scheduler.checkpoint_cleanup import CheckpointCleaner
from service.scheduler.loop import Scheduler
from service.settings import Settings
from service.studies.driver import Driver
from service.studies.specs import item_scions
from tests.support.builders import study_document
from tests.support.control import new_scheduler, studies_control
from tests.support.fakes import FakeCluster
from tests.support.runs import log_of, queue, state, write_success
from workers.contract import event_path, submission_id

SEED = 20261127
LIVE, ENDED = "STARTING", "SUCCEEDED"
HUGE = 10**40


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def scheduler(
    settings: Settings, database: Database, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> Scheduler:
    monkeypatch.setattr("service.scheduler.loop.ORPHAN_SECONDS", -1.0)
    settings.cpus, settings.lead_seconds = 10_000, 600.0
    return new_scheduler(settings, database, cluster)


def rubbish(rng: random.Random) -> bytes:
    """What is no document at all, or one of nothing that is known."""
    values: list[Any] = [None, 3, [], {}, "text", {"job": 7}, [[[]]], {"type": "?"}, {"a": {"b": [HUGE]}}]
    return rng.choice([b"", b"{", rng.randbytes(20), b"\xff\xfe{}", json.dumps(rng.choice(values)).encode()])


def event(run: str, body: Any, **changes: Any) -> bytes:
    return json.dumps({"run_id": run, "attempt": 1, "seq": 1, "at": 0.0, "body": body, **changes}).encode()


STARTED = {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu"}
PROGRESS = {"type": "progress", "stage": "distill", "step": 1, "total_steps": 2}
EVENTS: list[Callable[[str], bytes]] = [
    lambda run: event("another", STARTED),
    lambda run: event(run, STARTED, attempt=7),
    lambda run: event(run, STARTED, seq=9),
    lambda run: event(run, {**PROGRESS, "step": HUGE}),
    lambda run: event(run, {**PROGRESS, "spend": {"training_images": HUGE}}),
    lambda run: event(run, {**PROGRESS, "stage": "dream"}),
    lambda run: event(run, {"type": "attempt_failed", "reason": "mood", "message": "\0"}),
    lambda run: event(run, {"type": "stage_done", "report": {"stage": "evaluate"}}),
]


def clones(database: Database, template: str, count: int, run_state: str, **more: Any) -> list[str]:
    """Runs like the template, in this state, with one attempt that is under way or has ended."""
    with database.writing() as session:
        row = session.get_one(RunRow, template)
        base = {each.key: getattr(row, each.key) for each in RunRow.__table__.columns}
        ids = [f"{run_state[:2].lower()}{index:06d}" for index in range(count)]
        given = {"state": run_state, "attempt": 1, "ended_at": now() if run_state == ENDED else None, **more}
        session.execute(insert(RunRow), [{**base, **given, "id": run} for run in ids])
        attempt = {"number": 1, "submitted_at": now(), "lease_until": 4e9, "device_seconds": 9.0}
        attempts = [{**attempt, "run_id": run, "job": submission_id(run, 1)} for run in ids]
        session.execute(insert(AttemptRow), attempts)
    return ids


def note(rng: random.Random, job: str) -> bytes:
    """A note of an idle worker with one thing wrong."""
    right = {"job": job, "ticket_index": 1, "shape": "s", "cpus": 1, "gpus": 0}
    wrong = [
        ("job", "../../etc"),
        ("job", 5),
        ("ticket_index", -1),
        ("ticket_index", HUGE),
        ("cpus", "two"),
        ("gpus", -4),
    ]
    if rng.random() < 0.3:
        return rubbish(rng)
    return json.dumps(right | dict([rng.choice(wrong)])).encode()


def job_id(rng: random.Random, index: int) -> str:
    odd = [
        "raysubmit_{}",
        "run-{}",
        "run-{}-",
        "run-{}-0",
        "run-a-b-{}",
        "{}",
        "run--{}",
        "\n{}",
        "run-{}-1\n",
    ]
    return rng.choice(odd).format(f"x{index}")


def test_a_scheduler_among_a_thousand_malformed_items(
    scheduler: Scheduler, database: Database, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rng = random.Random(SEED)
    good = queue(database)
    failing = clones(database, good, 300, LIVE)
    reported = clones(database, good, 100, ENDED)
    for run in failing:
        if rng.random() < 0.1:  # a second start is no move that a run can make
            for seq in (1, 2):
                scheduler.control.storage.write_bytes(event_path(run, 1, seq), event(run, STARTED, seq=seq))
            continue
        written = rubbish(rng) if rng.random() < 0.3 else rng.choice(EVENTS)(run)
        scheduler.control.storage.write_bytes(event_path(run, 1, 1), written)
    with database.writing() as session:
        for run in reported:
            report = rng.choice([{}, {"spend": 3}, {"stop_cause": "completed", "spend": None}, {"spend": []}])
            session.add(StageRow(run_id=run, stage="evaluate", attempt=1, report=report))
    paths = [f"hosts/idle/run-idle{index}-1.json" for index in range(300)]
    for path in paths:
        scheduler.control.storage.write_bytes(path, note(rng, path[11:-5]))
    jobs = [job_id(rng, index) for index in range(300)]
    cluster.jobs |= dict.fromkeys(jobs, "RUNNING")

    for _ in range(4):
        scheduler.round()
    assert state(database, good) == ("STARTING", 1)
    write_success(log_of(scheduler, good))
    scheduler.round()
    assert state(database, good) == ("SUCCEEDED", 1)

    lines = [record.getMessage() for record in caplog.records]
    with database.reading() as session:
        ended = {row.id: row for row in session.scalars(select(RunRow).where(RunRow.id.in_(failing)))}
    for run in failing:
        assert ended[run].state == "FAILED"
        assert ended[run].message
        assert len([line for line in lines if f"run {run} attempt 1: ended" in line]) == 1
    for named in [
        *paths,
        *(f"job {job!r} " for job in jobs),
        *(f"run {run}: its reports" for run in reported),
    ]:
        assert len([line for line in lines if named in line]) == 1, named
    assert set(cluster.stopped) <= {submission_id(run, 1) for run in failing}


def study(session: Session, owner: str = "ann", **changes: Any) -> StudyRow:
    spec = parse_feasible_study(study_document(**changes))
    return create_study(session, spec, {}, "digest", None, owner)


ODD_STUDIES: list[dict[str, Any]] = [
    {"phase": "dream"},
    {"phase": "screen", "spec": {}},
    {"phase": "fill", "spec": {"name": 3}},
    {"phase": "promote", "spec": []},
    {"phase": "learn", "spec": "text"},
    {"phase": "screen", "spec": None},
    {"phase": ""},
]
MANY = {
    "space": {
        "attention": [
            "keep",
            *({"kind": "window_attention", "half_width": width} for width in range(1, 14)),
        ]
    }
}


def test_a_study_driver_among_a_thousand_malformed_items(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(SEED)
    driver = Driver(studies_control(settings, database))
    with database.writing() as session:
        sound, banked, judged = (study(session, **changes) for changes in ({}, MANY, {}))
        base = {each.key: getattr(sound, each.key) for each in StudyRow.__table__.columns}
        odd = [{**base, "id": f"odd{i:06d}", **rng.choice(ODD_STUDIES)} for i in range(700)]
        session.execute(insert(StudyRow), odd)
        spec = spec_of_study(banked)
    scions = {each.key for item in spec.space.items for each in item_scions(spec, item)}
    driver.round()
    template = _fill_of(database, banked.id)
    for key in scions:
        driver.storage.write_bytes(f"scions/{key}/card.json", rubbish(rng))
    runs = clones(database, template, 1000 - len(odd) - len(scions), ENDED)
    _promote(database, judged.id, runs, rng)
    for _ in range(3):
        driver.round()

    lines = [record.getMessage() for record in caplog.records]
    with database.reading() as session:
        states = Counter(session.scalars(select(StudyRow.state).where(StudyRow.id.startswith("odd"))))
        messages = session.scalars(select(StudyRow.message).where(StudyRow.id.startswith("odd"))).all()
        assert states == {"FAILED": len(odd)}
        assert all(messages)
        assert session.get_one(StudyRow, sound.id).state == "RUNNING"
        assert _fill_of(database, sound.id)
        filled = session.get_one(StudyRow, banked.id)
        assert "cannot be read" in str(filled.message)
        assert session.get_one(StudyRow, judged.id).phase != "promote"
        assert "report cannot be read" in str(session.get_one(RunRow, runs[0]).message)
    named = [f"study {row['id']} cannot continue" for row in odd]
    named += [f"the card of scion {key} cannot be read" for key in scions]
    named += [f"run {run}: its evaluation's report cannot be read" for run in runs]
    for words in named:
        assert len([line for line in lines if words in line]) == 1, words


def _fill_of(database: Database, study_id: str) -> str:
    """The study's fill, carried out."""
    with database.writing() as session:
        run = run_for(session, study_id, "fill", "bank")
        assert run is not None
        if run.state == "QUEUED":
            for to in ("STARTING", "RUNNING", "SUCCEEDED"):
                transition(session, run, to)  # type: ignore[arg-type]  # states
        return run.id


def _promote(database: Database, study_id: str, runs: list[str], rng: random.Random) -> None:
    """The study has finished trials whose reports hold all but figures."""
    with database.writing() as session:
        row = session.get_one(StudyRow, study_id, with_for_update=True)
        row.phase = "promote"
        for number, run in enumerate(runs):
            session.add(_trial(study_id, number))
            mine = {"study_id": study_id, "role": "promote", "label": f"1/{number}"}
            session.add(StudyRunRow(**mine, run_id=run, trial=number))
            report = rng.choice(
                [{}, {"metrics": 3}, {"stage": "evaluate", "key": "k", "metrics": {"a": "b"}}]
            )
            session.add(StageRow(run_id=run, stage="evaluate", attempt=1, report=report))


def _trial(study_id: str, number: int) -> TrialRow:
    given = {
        "round": 1,
        "proposed_by": "random",
        "state": "PROMOTED",
        "assignment": {},
        "params": 1,
        "flops": 1.0,
    }
    screened = {"score": 0.0, "screened": {"loss_gap": 1.0}}
    return TrialRow(study_id=study_id, number=number, design_key=f"{number:064d}", **given, **screened)


def test_a_study_whose_row_cannot_be_loaded_fails_and_leaves_no_connection_open(
    settings: Settings, database: Database
) -> None:
    driver = Driver(studies_control(settings, database))
    with database.writing() as session:
        broken, sound = study(session).id, study(session).id
        session.execute(text("UPDATE studies SET spec = '{' WHERE id = :id"), {"id": broken})
    for _ in range(3):
        driver.round()
    with database.reading() as session:
        states = dict(session.execute(select(StudyRow.id, StudyRow.state)).tuples().all())
    assert states == {broken: "FAILED", sound: "RUNNING"}
    assert _fill_of(database, sound)
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a pool that counts


def test_a_note_of_a_newer_worker_is_read_and_what_it_says_beyond_is_passed_over(
    scheduler: Scheduler, cluster: FakeCluster
) -> None:
    job = submission_id("0k3a", 1)
    known = {"job": job, "ticket_index": 1, "shape": "s", "cpus": 1, "gpus": 0}
    scheduler.control.storage.write_bytes(
        f"hosts/idle/{job}.json", json.dumps({**known, "mood": "good"}).encode()
    )
    assert [host.model_dump() for host in scheduler.hosts.idle()] == [known]


def test_runs_whose_files_refuse_to_go_keep_no_other_from_being_tidied(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.scheduler.checkpoint_cleanup.RUNS", 2)
    storage = Storage(settings.storage)
    runs = clones(database, queue(database), 5, ENDED)
    for run in runs:
        storage.write_bytes(f"runs/{run}/checkpoints/stage/00000001-a0001.safetensors", b"state")
    for run in runs[:3]:  # a folder where a file should be
        storage.write_bytes(f"runs/{run}/checkpoints/stage/00000002-a0001.safetensors/file", b"state")
    keeper = CheckpointCleaner(settings, database, storage)
    for _ in range(12):
        keeper.round()
    with database.reading() as session:
        checkpoints_pruned = {
            row.id: row.checkpoints_pruned
            for row in session.scalars(select(RunRow).where(RunRow.id.in_(runs)))
        }
    assert [bool(checkpoints_pruned[run]) for run in runs] == [False, False, False, True, True]
    for run in runs[:3]:
        assert (
            len([line for line in caplog.messages if f"run {run}: its checkpoints will be deleted" in line])
            == 1
        )
