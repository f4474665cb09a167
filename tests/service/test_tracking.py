"""MLflow shows what our store says, costs nothing while it is away, and is rebuilt where it was lost."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.run_lifecycle import record, transition
from service.domain.submission import submit
from service.processes.tracking import Rounds
from service.settings import Settings
from service.tracking.runs import Forwarder
from tests.support.builders import experiment
from workers.contract import Event, Progress, StageDone, StageReport

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def tracked(settings: Settings, tmp_path: Path) -> Settings:
    """MLflow's own store, on a database of its own, without its server."""
    return settings.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'mlflow.db'}"})


def finish(database: Database) -> str:
    """A run with a curve and a report, which has succeeded."""
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        progress = Progress(stage="finetune", step=3, total_steps=4, values={"loss": 0.5})
        report = StageDone(report=StageReport(stage="evaluate", key="k", metrics={"fid40/x": 7.0}))
        for number, body in enumerate((progress, report), 1):
            event = Event(run_id=run.id, attempt=1, seq=number, at=0.0, body=body)
            record(session, run, "attempt", event.model_dump(mode="json"))
        for state in ("STARTING", "RUNNING", "SUCCEEDED"):
            transition(session, run, state)  # type: ignore[arg-type]  # three states that are
        return run.id


def shown(settings: Settings, run_id: str) -> list[Run]:
    client = MlflowClient(settings.mlflow_url)
    found = client.get_experiment_by_name("testbed/dit-fashion")
    return (
        list(client.search_runs([found.experiment_id], f"tags.`graftlab.run_id` = '{run_id}'"))
        if found
        else []
    )


def forwarder(settings: Settings, database: Database) -> Forwarder:
    return Forwarder(settings, database, Storage(settings.storage))


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_lost_mlflow_database_is_rebuilt_from_ours(
    client: TestClient, database: Database, tracked: Settings, tmp_path: Path
) -> None:
    run_id = finish(database)
    forwarder(tracked, database).round()
    forwarder(tracked, database).round()
    (run,) = shown(tracked, run_id)
    assert (run.info.status, run.data.metrics["fid40/x"]) == ("FINISHED", 7.0)
    assert client.post("/api/v1/admin/tracking/rebuild").json() == {"runs": 1, "studies": 0}
    forwarder(tracked, database).round()
    assert len(shown(tracked, run_id)) == 1
    lost = tracked.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'new.db'}"})
    client.post("/api/v1/admin/tracking/rebuild")
    forwarder(lost, database).round()
    (again,) = shown(lost, run_id)
    assert (again.info.status, again.data.metrics) == ("FINISHED", run.data.metrics)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Broken(BaseHTTPRequestHandler):
    """Answers 500 to whatever is asked."""

    def _answer(self) -> None:
        self.send_error(500)

    do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815 - the names the library calls

    def log_message(self, *words: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def failing() -> Iterator[str]:
    """A server that answers, and never well."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("trouble", ["away", "silent", "failing"])
def test_an_mlflow_in_trouble_costs_a_round_and_no_more(
    database: Database,
    settings: Settings,
    tracked: Settings,
    trouble: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run_id = finish(database)
    url = "http://127.0.0.1:9" if trouble == "away" else request.getfixturevalue(trouble)
    away = forwarder(settings.model_copy(update={"mlflow_url": url}), database)
    assert not Rounds(away, 1.0).next()
    with database.reading() as session:
        assert session.get_one(RunRow, run_id).state == "SUCCEEDED"
    # Once it is well again it learns everything.
    assert Rounds(forwarder(tracked, database), 1.0).next()
    assert [run.info.status for run in shown(tracked, run_id)] == ["FINISHED"]
