"""A run whose checkpoints were thinned out, or let go, goes on and ends with the bits of one that was not."""

from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.specs.experiment import ExperimentSpec, finetune_key
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.migrate import upgrade
from service.db.tables import RunRow
from service.domain.run_controls import apply_action, extend
from service.domain.run_lifecycle import transition
from service.domain.submission import submit
from service.scheduler.checkpoint_cleanup import CheckpointCleaner
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.stages import context, crash_at, events_of, model
from workers.checkpoints import StoredCheckpoints
from workers.contract import StageStarted, checkpoints_folder
from workers.group import STAGES, run_stage
from workers.stages.context import Context

pytestmark = pytest.mark.large

BUDGET = {"device_seconds": 1000.0}
STOPS_AT = 5


@pytest.fixture(scope="module")
def spec() -> ExperimentSpec:
    return experiment(budget=BUDGET)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, spec: ExperimentSpec) -> bytes:
    """The model of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    train(context(folder, backbone, spec))
    return model(folder, spec)


def train(context: Context) -> None:
    """The two stages that a model comes of."""
    for stage in STAGES:
        if stage != "evaluate":
            run_stage(context, STAGES[stage])


def interrupted(folder: Path, backbone: Backbone, spec: ExperimentSpec, run: str) -> None:
    """An attempt that dies in the midst of finetuning, every step saved."""
    with pytest.MonkeyPatch.context() as patch, crash_at(STOPS_AT, spec.finetune.steps):
        patch.setattr(StoredCheckpoints, "due", lambda self: True)
        train(context(folder, backbone, spec, run=run))


@pytest.mark.parametrize(
    ("ends", "days", "resumes"), [("FAILED", 30.0, 4), ("STOPPED", 30.0, 4), ("FAILED", 0.0, 0)]
)
def test_it_is_retried_or_extended_to_the_same_bits(
    tmp_path: Path,
    backbone: Backbone,
    spec: ExperimentSpec,
    undisturbed: bytes,
    ends: str,
    days: float,
    resumes: int,
) -> None:
    settings = Settings(data_dir=tmp_path / "lab", checkpoint_days=days)
    database, storage, folder = (
        Database(settings.database_url),
        Storage(settings.storage),
        tmp_path / "lab/storage",
    )
    upgrade(database)
    keeper = CheckpointCleaner(settings, database, storage)
    with database.writing() as session:
        run = submit(session, spec, "digest", None).id
    interrupted(folder, backbone, spec, run)
    kept = f"{checkpoints_folder(run)}/{finetune_key(spec)}"
    assert len(storage.names(kept)) == 2
    _end(database, run, ends)
    keeper.round()
    assert len(storage.names(kept)) == (1 if resumes else 0)
    with database.writing() as session:
        row = session.get_one(RunRow, run)
        extend(session, row, 10.0) if ends == "STOPPED" else apply_action(session, row, "retry")
        assert row.state == "QUEUED"
    train(context(folder, backbone, spec, run=run, attempt=2))
    starts = {
        e.body.stage: e.body.step for e in events_of(folder, run, 2) if isinstance(e.body, StageStarted)
    }
    assert starts["finetune"] == resumes
    assert model(folder, spec) == undisturbed
    _end(database, run, "SUCCEEDED")
    keeper.round()
    assert storage.names(kept) == []
    assert model(folder, spec) == undisturbed
    database.engine.dispose()


def _end(database: Database, run: str, state: str) -> None:
    with database.writing() as session:
        row = session.get_one(RunRow, run)
        transition(session, row, "STARTING")
        transition(session, row, "RUNNING")
        transition(session, row, state, "budget_exhausted" if state == "STOPPED" else None)  # type: ignore[arg-type]
