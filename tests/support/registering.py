"""Things registered with a lab of a test, by a worker in this process.

A test file that assigns the fixtures `models`, `settings`, `lab` and `nothing_stays` to the same names has a
lab that registers from one folder, and whose registrations are gone from this process after every test.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from grafting_core.specs.backbone import register_cards
from grafting_core.specs.datasets import register_datasets
from grafting_core.specs.features import register_features
from grafting_core.storage.storage import Storage
from grafting_core.testbed.plugin import ASSETS
from service.db.engine import Database
from service.scheduler.loop import Scheduler
from service.scheduler.registry_cleanup import RegistryCleaner
from service.settings import Settings
from tests.support.control import new_scheduler
from tests.support.fakes import FakeCluster
from tests.support.runs import STARTED
from workers.contract import AttemptFailed, RunTicket, attempt_of, ticket_path
from workers.events import EventLog
from workers.failures import classify
from workers.group import _serve, single_process


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's only import root, outside of its data folder."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def settings(settings: Settings, models: Path) -> Settings:
    """Settings of a lab that registers from that folder."""
    return settings.model_copy(update={"import_roots": [models]})


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Forget what a test has registered."""
    yield
    forget_registered()


def forget_registered() -> None:
    """Empty this process's tables of registered things."""
    register_cards(())
    register_datasets(())
    register_features(())


def pipeline(folder: Path) -> Path:
    """The testbed's networks as diffusers saves a pipeline."""
    for part in ("transformer", "autoencoder"):
        shutil.copytree(ASSETS / part, folder / part)
    return folder


class InProcess:
    """A lab's scheduler over a cluster that starts nothing; tickets are carried out here when asked for."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.cluster = FakeCluster()
        self.scheduler: Scheduler = new_scheduler(settings, database, self.cluster)
        self.storage = Storage(settings.storage)
        self._done: set[str] = set()

    def round(self) -> None:
        """Start what is queued, carry it out to its end, and take in what came of it."""
        self.scheduler.round()
        self.scheduler.round()
        for job in [job for job in self.cluster.jobs if job not in self._done]:
            self._done.add(job)
            attempt = attempt_of(job)
            assert attempt is not None
            self._carry_out(self.storage.read_model(ticket_path(*attempt), RunTicket))
        self.scheduler.round()

    def clean(self) -> None:
        """Delete files of the registry that nothing needs."""
        RegistryCleaner(self.scheduler.control).round()

    def _carry_out(self, ticket: RunTicket) -> None:
        events = EventLog(self.storage, ticket)
        events.write(STARTED)
        try:
            _serve(ticket, time.time(), single_process(ticket.work))
        except Exception as error:  # noqa: BLE001 - as the driver of an attempt does
            reason, message = classify(error)
            EventLog(self.storage, ticket).write(AttemptFailed(reason=reason, message=message))


@pytest.fixture
def lab(settings: Settings, database: Database, client: TestClient) -> InProcess:
    """The lab's scheduler and worker; `client` talks to its API."""
    return InProcess(settings, database)


def register(client: TestClient, lab: InProcess, kind: str = "backbones", **document: Any) -> str:
    """Register something and carry the run out; the run's id."""
    answer = client.post(f"/api/v1/{kind}", json=document)
    assert answer.status_code == 202, answer.text
    lab.round()
    return str(answer.json()["run_id"])


def add(client: TestClient, lab: InProcess, source: Path, name: str = "mine", **more: Any) -> dict[str, Any]:
    """Register a backbone of the testbed's data; what the lab shows of it then."""
    run = register(client, lab, name=name, path=str(source), dataset="testbed/fashion-mnist", **more)
    assert client.get(f"/api/v1/runs/{run}").json()["state"] == "SUCCEEDED"
    shown: dict[str, Any] = client.get(f"/api/v1/backbones/{name}").json()
    return shown


def state(client: TestClient, run: str) -> tuple[str, str]:
    """State and message of a run."""
    found = client.get(f"/api/v1/runs/{run}").json()
    return found["state"], found["message"] or ""
