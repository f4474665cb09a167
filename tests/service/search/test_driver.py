"""A study goes from file to finish by steps, each of which may be the last one of its process."""

from collections.abc import Callable

import pytest

from grafting_core.backbones.loader import Backbone
from grafting_core.storage import Storage
from service.search.door import open_study
from service.search.driver import Driver
from service.search.optuna_book import pinned
from service.settings import Settings
from service.store.engine import Database
from service.store.studies import create_study, trials_of
from service.store.study_models import StudyRow
from service.store.study_queries import study_detail
from tests.builders import study_document
from tests.service.search.cluster import PretendCluster

STEPS = 60


class Bench:
    """A lab with one study."""

    def __init__(self, settings: Settings, database: Database, backbone: Backbone, **changes: object) -> None:
        self.settings, self.database = settings, database
        self.storage = Storage(settings.storage)
        self.cluster = PretendCluster(database, self.storage, backbone)
        spec = open_study(study_document(**changes))
        with database.writing() as session:
            self.id = create_study(session, spec, pinned(spec.sampler), "digest", None, "lab").id

    @property
    def driver(self) -> Driver:
        """A new process each time."""
        return Driver(self.settings, self.database, self.storage)

    def study(self) -> StudyRow:
        with self.database.reading() as session:
            return session.get_one(StudyRow, self.id)

    def run(self, interrupt: Callable[[int], None] = lambda step: None) -> StudyRow:
        for step in range(STEPS):
            if self.study().state != "RUNNING":
                break
            interrupt(step)
            self.driver.round()
            self.cluster.work()
        return self.study()

    def found(self) -> list[tuple[object, ...]]:
        with self.database.reading() as session:
            trials = trials_of(session, self.id)
            return [(t.number, t.source, t.design_key, t.screened, t.state, t.final) for t in trials]


@pytest.fixture
def bench(settings: Settings, database: Database, backbone: Backbone) -> Callable[..., Bench]:
    return lambda **changes: Bench(settings, database, backbone, **changes)


def test_a_study_ends_with_its_best_designs_finished(bench: Callable[..., Bench]) -> None:
    lab = bench(baselines=["teacher", "deep", "random"], rounds=2)
    study = lab.run()
    assert (study.state, study.message, study.round) == ("DONE", None, 2)
    with lab.database.reading() as session:
        detail = study_detail(session, study)
    assert detail.trials == 6
    assert len([run for run in detail.runs if run.role == "promote"]) == 2
    assert {run.label for run in detail.runs if run.role == "baseline"} >= {"teacher"}
    assert all(run.state == "SUCCEEDED" for run in detail.runs)
    assert detail.best is not None
