"""MLflow shows a study as a parent run, and what serves it nested under it."""

import shutil
from pathlib import Path

from mlflow.tracking import MlflowClient

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.domain.studies import create_study, move, submit_for
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_samplers import sampler_record
from service.settings import Settings
from service.studies.specs import bank_fill_spec
from service.tracking.runs import Forwarder
from tests.support.builders import study_document


def test_runs_of_a_study_are_nested_under_one_parent(tmp_path: Path, sqlite_template: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "graftlab.db")
    settings = Settings(data_dir=tmp_path, mlflow_url=f"sqlite:///{tmp_path / 'mlflow.db'}")
    database = Database(settings.database_url)
    spec = parse_feasible_study(study_document())
    with database.writing() as session:
        study = create_study(session, spec, sampler_record(spec.sampler), "digest", None, "lab")
        work = bank_fill_spec(spec, spec.budget)
        assert work is not None
        submit_for(session, study, work, "fill", "bank")
    forwarder = Forwarder(settings, database, Storage(settings.storage))
    forwarder.round()
    with database.writing() as session:
        move(session, session.get_one(StudyRow, study.id), "STOPPED")
    forwarder.round()
    client = MlflowClient(settings.mlflow_url)
    experiment = client.get_experiment_by_name(spec.backbone.name)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("graftlab.study_id") == study.id]
    (child,) = [run for run in runs if run is not parent]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, parent.data.tags["graftlab.state"]) == ("KILLED", "STOPPED")
    database.engine.dispose()
