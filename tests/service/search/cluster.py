"""Carries out what a study queued, without Ray: figures follow from the design by a formula."""

from sqlalchemy import select

from grafting_core.backbones.loader import Backbone
from grafting_core.bank import Bank
from grafting_core.spec.canonical import digest
from grafting_core.spec.design import GraftDesign
from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.spec.filling import FillSpec
from grafting_core.spec.ladder import ladder_of
from grafting_core.spec.screening import Screened, ScreeningSpec, result_path
from grafting_core.storage import Storage
from service.store.engine import Database
from service.store.lifecycle import transition
from service.store.models import AttemptRow, RunRow, StageRow
from service.store.queries import work_of
from tests.builders import stock
from workers.contract import StageReport
from workers.screening import Rungs

SECONDS_A_RUN = 10.0


def harm(design: GraftDesign) -> float:
    """A number of its own for every design, larger where more is changed."""
    return len(design.edits) + len(design.pairs) + int(digest(design)[:4], 16) / 65536


class PretendCluster:
    """Ends every queued run in success."""

    def __init__(self, database: Database, storage: Storage, backbone: Backbone) -> None:
        self.database, self.storage, self.backbone = database, storage, backbone
        self.carried_out: list[str] = []

    def work(self) -> int:
        """Runs carried out."""
        with self.database.writing() as session:
            queued = list(session.scalars(select(RunRow).where(RunRow.state == "QUEUED").order_by(RunRow.id)))
            for run in queued:
                self._carry_out(session, run)
        return len(queued)

    def _carry_out(self, session, run: RunRow) -> None:
        work = work_of(run)
        self.carried_out.append(run.id)
        run.attempt += 1
        session.add(AttemptRow(run_id=run.id, number=run.attempt, device_seconds=SECONDS_A_RUN))
        transition(session, run, "STARTING")
        transition(session, run, "RUNNING")
        if isinstance(work, FillSpec):
            stock(Bank(self.storage), self.backbone, work.scions)
        elif isinstance(work, ScreeningSpec):
            self._screen(work)
        elif isinstance(work, ExperimentSpec):
            metrics = dict.fromkeys(ladder_of(work.evaluate).metrics, harm(work.design))
            report = StageReport(stage="evaluate", key="k", metrics=metrics)
            session.add(
                StageRow(run_id=run.id, stage="evaluate", attempt=1, report=report.model_dump(mode="json"))
            )
        transition(session, run, "SUCCEEDED")

    def _screen(self, work: ScreeningSpec) -> None:
        rungs = Rungs(work, self.storage)
        while places := list(rungs.open()):
            for index, rung in places:
                design = work.designs[index]
                path = result_path(work.result_key(design, work.rungs[rung]))
                self.storage.write_model(path, Screened(value=harm(design), seconds=0.0))
