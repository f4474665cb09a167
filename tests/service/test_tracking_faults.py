"""What one run or study does wrong is named once and stops no other; what MLflow lost is projected again."""

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient
from sqlalchemy import insert, text, update

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.db.tables import EventRow, RunRow, StageRow
from service.domain.run_lifecycle import record, transition
from service.domain.studies import create_study
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_samplers import sampler_record
from service.domain.submission import submit
from service.processes.tracking import Rounds
from service.settings import Settings
from service.tracking.runs import Forwarder
from tests.support.builders import experiment, study_document
from workers.contract import Event, Progress, StageDone, StageReport

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
ON_SQLITE = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
RANDOM = random.Random(12)


@pytest.fixture
def tracked(settings: Settings, tmp_path: Path) -> Settings:
    """MLflow's own store, on a database of its own, without its server."""
    return settings.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'mlflow.db'}"})


@pytest.fixture
def forwarder(tracked: Settings, database: Database) -> Forwarder:
    return Forwarder(tracked, database, Storage(tracked.storage))


def queued(database: Database) -> str:
    with database.writing() as session:
        return submit(session, experiment(), "digest", None).id


def finish(database: Database, run_id: str, artifacts: dict[str, str] | None = None) -> None:
    report = StageReport(stage="evaluate", key="k", metrics={"fid40/x": 7.0}, artifacts=artifacts or {})
    with database.writing() as session:
        run = session.get_one(RunRow, run_id)
        body = StageDone(report=report)
        event = Event(run_id=run_id, attempt=1, seq=1, at=0.0, body=body)
        record(session, run, "attempt", event.model_dump(mode="json"))
        for state in ("STARTING", "RUNNING", "SUCCEEDED"):
            transition(session, run, state)  # type: ignore[arg-type]  # three states that are


def until_done(forwarder: Forwarder) -> None:
    for _ in range(100):
        if not forwarder.round():
            return
    raise AssertionError("the forwarder finds no end")


def in_mlflow(settings: Settings, view: ViewType = ViewType.ACTIVE_ONLY) -> dict[str, Run]:
    """Runs and studies that MLflow shows, by our id."""
    client = MlflowClient(settings.mlflow_url)
    found = client.search_runs(
        [each.experiment_id for each in client.search_experiments()], run_view_type=view, max_results=5000
    )
    names = ("graftlab.run_id", "graftlab.study_id")
    assert len(found) == len(
        {run.data.tags[name] for run in found for name in names if name in run.data.tags}
    )
    return {run.data.tags[name]: run for run in found for name in names if name in run.data.tags}


def error_of(database: Database, table: type[RunRow] | type[StudyRow], item: str) -> str | None:
    with database.reading() as session:
        return session.scalar(
            text(f"SELECT mlflow_error FROM {table.__tablename__} WHERE id = :id"), {"id": item}
        )


def malformed(run_id: str, number: int) -> tuple[str, Any]:
    """Kind and body of an event that says nothing readable."""
    right = Event(
        run_id=run_id, attempt=1, seq=number, at=0.0, body=Progress(stage="finetune", step=1, total_steps=2)
    ).model_dump(mode="json")
    wrong: list[Any] = [
        None,
        7,
        "x" * RANDOM.randrange(300),
        [],
        {},
        {"body": {}},
        {"state": "NOWHERE"},
        "\ud7ff\0",
    ]
    body = RANDOM.choice(
        [
            *wrong,
            {**right, "body": RANDOM.choice(wrong)},
            {**right, "body": {**right["body"], "step": "many"}},
            {**right, "body": {**right["body"], "values": {"loss": "low"}}},
            {**right, "body": {"type": "stage_done", "report": RANDOM.choice(wrong)}},
            {**right, "attempt": -1.5, "unknown": {}},
        ]
    )
    return RANDOM.choice(["attempt", "attempt", "state", "request"]), body


def study(database: Database) -> str:
    spec = parse_feasible_study(study_document())
    with database.writing() as session:
        return create_study(session, spec, sampler_record(spec.sampler), "digest", None, "lab").id


@ON_SQLITE
def test_a_thousand_malformed_items_stop_nothing(
    database: Database, tracked: Settings, forwarder: Forwarder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "graftlab.tracking")
    bad_events = {run_id: _interleave(database, run_id) for run_id in [queued(database) for _ in range(4)]}
    specs, reports, studies = ([queued(database) for _ in range(30)] for _ in range(3))
    studies = [study(database) for _ in range(30)]
    with database.writing() as session:
        for run_id in specs:
            wrong = RANDOM.choice(["{", "7", "null", "{}", '{"kind": "graft"}', "[]"])
            session.execute(
                text(
                    "UPDATE experiments SET spec = :x "
                    "WHERE id = (SELECT experiment_id FROM runs WHERE id = :id)"
                ),
                {"x": wrong, "id": run_id},
            )
        for run_id in reports:
            session.add(
                StageRow(run_id=run_id, stage="evaluate", attempt=1, report=RANDOM.choice([{}, 7, [], "x"]))
            )
        for study_id in studies:
            column = RANDOM.choice(["spec", "sampler", "findings"])
            wrong = RANDOM.choice(["{", "7", "null", "[]", '"x"'])
            session.execute(
                text(f"UPDATE studies SET {column} = :x WHERE id = :id"), {"x": wrong, "id": study_id}
            )
    good_run, good_study = queued(database), study(database)
    finish(database, good_run)
    assert sum(map(len, bad_events.values())) + len([*specs, *reports, *studies]) >= 1000
    until_done(forwarder)

    shown = in_mlflow(tracked)
    assert shown[good_run].info.status == "FINISHED"
    assert good_study in shown
    client = MlflowClient(tracked.mlflow_url)
    said = [record.getMessage() for record in caplog.records]
    for run_id, bad in bad_events.items():
        steps = {each.step for each in client.get_metric_history(shown[run_id].info.run_id, "finetune/loss")}
        assert steps == set(range(2, 502, 2))
        named = Counter(line.split(" cannot")[0] for line in said if line.startswith(f"run {run_id}: event "))
        assert named == Counter(f"run {run_id}: event {number}" for number in bad)
        assert error_of(database, RunRow, run_id)
    for table, items in ((RunRow, specs + reports), (StudyRow, studies)):
        kind = "run" if table is RunRow else "study"
        for item in items:
            lines = [line for line in said if line.startswith(f"{kind} {item}: ")]
            assert len(lines) == 1, (item, lines)
            assert error_of(database, table, item)
    until_done(forwarder)
    assert len(caplog.records) == len(said)
    assert not forwarder.runs.behind()
    assert not forwarder.studies.items.behind()


def _interleave(database: Database, run_id: str) -> list[int]:
    """250 good events at even numbers, and 250 malformed ones between; the numbers of those."""
    rows, bad = [], []
    for number in range(2, 502):
        body = Progress(stage="finetune", step=number, total_steps=1000, values={"loss": 0.5})
        good = Event(run_id=run_id, attempt=1, seq=number, at=0.0, body=body).model_dump(mode="json")
        kind, document = ("attempt", good) if number % 2 == 0 else malformed(run_id, number)
        rows.append({"run_id": run_id, "seq": number, "kind": kind, "body": document})
        bad += [number] if number % 2 else []
    with database.writing() as session:
        session.execute(insert(EventRow), rows)
        session.execute(update(RunRow).where(RunRow.id == run_id).values(last_event=501))
        unreadable = {"run_id": run_id, "seq": bad[0]}
        session.execute(
            text("UPDATE events SET body = '{no' WHERE run_id = :run_id AND seq = :seq"), unreadable
        )
    return bad


@ON_SQLITE
@pytest.mark.parametrize("state", ["missing", "folder", "no text", "no picture"])
def test_a_file_of_one_run_stops_no_later_run(
    database: Database, tracked: Settings, forwarder: Forwarder, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(tracked.storage) / "made/report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if state == "folder":
        path.mkdir()
    elif state != "missing":
        path.write_bytes(b"\xff\xfe\x00 nothing")
    name = "samples.png" if state == "no picture" else "report.json"
    first, second = queued(database), queued(database)
    finish(database, first, {name: "made/report.json"})
    finish(database, second)
    for _ in range(3):
        forwarder.round()
    shown = in_mlflow(tracked)
    assert shown[second].info.status == "FINISHED"
    assert shown[first].data.metrics["fid40/x"] == 7.0
    said = [record.getMessage() for record in caplog.records if first in record.getMessage()]
    assert len(said) == 1
    assert "made/report.json" in said[0]
    assert "made/report.json" in (error_of(database, RunRow, first) or "")


@ON_SQLITE
def test_rebuilding_begins_runs_and_studies_anew(
    client: TestClient, database: Database, tracked: Settings, tmp_path: Path
) -> None:
    run_id, study_id = queued(database), study(database)
    finish(database, run_id)
    until_done(Forwarder(tracked, database, Storage(tracked.storage)))
    assert client.post("/api/v1/admin/tracking/rebuild").json() == {"runs": 1, "studies": 1}
    other = tracked.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'new.db'}"})
    until_done(Forwarder(other, database, Storage(other.storage)))
    assert set(in_mlflow(other)) == {run_id, study_id}


@ON_SQLITE
@pytest.mark.parametrize("what", ["run", "experiment", "database"])
def test_what_is_deleted_in_mlflow_comes_back(
    database: Database, tracked: Settings, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished, running, study_id = queued(database), queued(database), study(database)
    finish(database, finished)
    until_done(Forwarder(tracked, database, Storage(tracked.storage)))
    before = in_mlflow(tracked)
    mlflow = MlflowClient(tracked.mlflow_url)
    if what == "run":
        for run in before.values():
            mlflow.delete_run(run.info.run_id)
    elif what == "experiment":
        mlflow.delete_experiment(before[finished].info.experiment_id)
    else:
        tracked = tracked.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'empty.db'}"})
    finish(database, running)
    rounds = Rounds(Forwarder(tracked, database, Storage(tracked.storage)), 0.01)
    for _ in range(6):
        assert rounds.next()
    after = in_mlflow(tracked)
    assert set(after) == {finished, running, study_id}
    assert [after[run].info.status for run in (finished, running)] == ["FINISHED", "FINISHED"]
    assert after[finished].data.metrics == before[finished].data.metrics
    with database.reading() as session:
        assert session.get_one(RunRow, finished).mlflow_run_id == after[finished].info.run_id
    assert not [record for record in caplog.records if record.name == "graftlab.tracking"]


@ON_SQLITE
def test_a_study_that_was_lost_gets_its_children_back(
    database: Database, tracked: Settings, tmp_path: Path
) -> None:
    from service.domain.studies import submit_for
    from service.studies.specs import bank_fill_spec

    study_id, spec = study(database), parse_feasible_study(study_document())
    work = bank_fill_spec(spec, spec.budget)
    assert work is not None
    with database.writing() as session:
        run_id = submit_for(session, session.get_one(StudyRow, study_id), work, "fill", "bank").id
    until_done(Forwarder(tracked, database, Storage(tracked.storage)))
    other = tracked.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'new.db'}"})
    until_done(Forwarder(other, database, Storage(other.storage)))
    shown = in_mlflow(other)
    assert shown[run_id].data.tags["mlflow.parentRunId"] == shown[study_id].info.run_id


def test_an_absent_mlflow_is_named_once_and_asked_later_and_later(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    queued(database)
    away = settings.model_copy(update={"mlflow_url": "http://127.0.0.1:9/mlflow"})
    rounds = Rounds(Forwarder(away, database, Storage(settings.storage)), 1.0)
    waits = []
    for _ in range(8):
        assert not rounds.next()
        waits.append(rounds.wait)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert sum(record.name == "graftlab.tracking" for record in caplog.records) == 1


def test_what_is_behind_is_found_by_an_index_that_holds_nothing_else(database: Database) -> None:
    """At any number of runs that MLflow knows all of, the look costs the same."""
    first = queued(database)
    with database.writing() as session:
        experiment_id = session.get_one(RunRow, first).experiment_id
        many = [
            {
                "id": f"r{n:05}",
                "experiment_id": experiment_id,
                "state": "SUCCEEDED",
                "last_event": 9,
                "mlflow_event": 9,
            }
            for n in range(3000)
        ]
        session.execute(insert(RunRow), many)
    with database.writing() as session:
        session.execute(text("ANALYZE"))
    sqlite = database.engine.dialect.name == "sqlite"
    explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN"
    for table, condition in (("runs", "last_event > mlflow_event"), ("studies", "version > mlflow_version")):
        query = f"{explain} SELECT {table}.id FROM {table} WHERE {table}.{condition} ORDER BY {table}.id"
        with database.reading() as session:
            plan = json.dumps([list(map(str, row)) for row in session.execute(text(query))])
        if sqlite or table == "runs":  # PostgreSQL reads an empty table whole
            assert f"ix_{table}_mlflow_behind" in plan, plan
