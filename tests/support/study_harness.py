"""A lab with one study, advanced step by step without Ray."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import optuna

from grafting_core.backbones.base import Backbone
from grafting_core.storage.failpoints import Failed
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.domain.studies import create_study, trials_of
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_samplers import sampler_record
from service.settings import Settings
from service.studies.driver import Driver
from tests.support.builders import study_document
from tests.support.control import studies_control
from tests.support.study_runs import SimulatedCluster

STEPS = 60


class StudyHarness:
    """A lab with one study."""

    def __init__(self, settings: Settings, database: Database, backbone: Backbone, **changes: object) -> None:
        self.settings, self.database = settings, database
        self.control = studies_control(settings, database)
        self.storage = self.control.storage
        self.cluster: SimulatedCluster = SimulatedCluster(database, self.storage, backbone)
        spec = parse_feasible_study(study_document(**changes))
        with database.writing() as session:
            self.id = create_study(session, spec, sampler_record(spec.sampler), "digest", None, "lab").id

    @property
    def driver(self) -> Driver:
        """Return a new driver, like a restarted process."""
        return Driver(replace(self.control, storage=self.storage))

    def study(self) -> StudyRow:
        with self.database.reading() as session:
            return session.get_one(StudyRow, self.id)

    def run(self, interrupt: Callable[[int], None] = lambda step: None) -> StudyRow:
        for step in range(STEPS):
            if self.study().state != "RUNNING":
                break
            interrupt(step)
            with suppress(Failed):
                self.driver.round()
            self.cluster.work()
        return self.study()

    def optuna_study(self) -> optuna.Study:
        return optuna.load_study(study_name=self.id, storage=self.settings.optuna_url)

    def trials(self) -> list[tuple[object, ...]]:
        with self.database.reading() as session:
            trials = trials_of(session, self.id)
            return [
                (t.number, t.proposed_by, t.design_key, t.screened, t.state, t.final, t.baselines)
                for t in trials
            ]
