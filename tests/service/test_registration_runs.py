"""Runs that register something belong to no backbone: pages and MLflow say what they are."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mlflow.tracking import MlflowClient

from service.db.engine import Database
from service.settings import Settings
from service.tracking.runs import Forwarder
from tests.support import registering
from tests.support.registering import InProcess, add, pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
lab, models, settings = registering.lab, registering.models, registering.settings
nothing_stays = registering.nothing_stays


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_registrations_are_shown_by_mlflow_and_by_their_page(
    client: TestClient, lab: InProcess, models: Path, database: Database, settings: Settings, tmp_path: Path
) -> None:
    add(client, lab, pipeline(models / "mine"))
    mlflow = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Forwarder(settings.model_copy(update={"mlflow_url": mlflow}), database, lab.storage).round()
    [run] = client.get("/api/v1/runs").json()["runs"]
    detail = client.get(f"/api/v1/runs/{run['id']}").json()
    assert (detail["backbone"], detail["mlflow_error"]) == ("", None)
    theirs = MlflowClient(mlflow)
    experiment = theirs.get_experiment_by_name("registrations")
    assert experiment is not None
    assert [each.info.run_name for each in theirs.search_runs([experiment.experiment_id])] == ["mine"]
    page = client.get(f"/runs/{run['id']}").text
    assert "</code> registration, attempt" in page
    assert "of pretraining" not in page
