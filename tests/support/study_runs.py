"""Run the runs of a study without Ray: in this process, or with metrics computed from the design."""

from pathlib import Path

from sqlalchemy import select
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.evaluation.screening import Screener
from grafting_core.specs.canonical import digest
from grafting_core.specs.design import GraftDesign, Part
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.jobs import Job
from grafting_core.specs.latency import LatencySpec, row_path
from grafting_core.specs.rungs import ladder_of
from grafting_core.specs.scions import ScionSpec
from grafting_core.specs.screening import Screened, ScreeningSpec, result_path
from grafting_core.specs.studies.space import label_of
from grafting_core.storage.bank import Bank
from grafting_core.storage.checksums import write_with_digest
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import AttemptRow, RunRow, StageRow
from service.domain.run_lifecycle import transition
from service.domain.run_queries import work_of
from tests.support.bank import stock
from tests.support.latency import clocked_cost, timed_row
from tests.support.stages import context, events_of
from workers.contract import StageDone, StageReport
from workers.group import run_stages
from workers.stages import fill, measure
from workers.stages.context import Context
from workers.stages.distill_missing import module_of
from workers.stages.screen import RungState
from workers.stages.screening_actor import ScreeningModels

SECONDS_A_RUN = 10.0
EXTRAS = {"rest": -0.9, "attention hyena_x": -0.025, "mlp mlp(ratio=3)": -0.015, "pairs": 0.01}
"""Change of a forward by each part, relative to the backbone's, on the simulated hardware."""


def _reported(run_id: str, report: StageReport) -> StageRow:
    return StageRow(run_id=run_id, stage=report.stage, attempt=1, report=report.model_dump(mode="json"))


def harm(design: GraftDesign) -> float:
    """Return a different number for every design, larger for more changes."""
    return len(design.edits) + len(design.pairs) + int(digest(design)[:4], 16) / 65536


class SimulatedCluster:
    """Ends every queued run successfully."""

    def __init__(self, database: Database, storage: Storage, backbone: Backbone) -> None:
        self.database, self.storage, self.backbone = database, storage, backbone
        self.carried_out: list[str] = []
        self.timed = False
        """Whether a latency table was requested; only then evaluations measure latency."""

    def work(self) -> int:
        """Run all queued runs and return their number."""
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
            self._fill(work, run.id)
        elif isinstance(work, ScreeningSpec):
            self._screen(work)
        elif isinstance(work, LatencySpec):
            report = self._measure(work, run.id)
            session.add(_reported(run.id, report))
        elif isinstance(work, ExperimentSpec):
            report = self._graft(work, run.id)
            session.add(_reported(run.id, report))
        transition(session, run, "SUCCEEDED")

    def _fill(self, work: FillSpec, run: str) -> None:
        stock(Bank(self.storage), self.backbone, work.scions)

    def _measure(self, work: LatencySpec, run: str) -> StageReport:
        paths, self.timed = dict[str, str](), True
        for part in work.parts:
            row = timed_row(work, part, EXTRAS.get(part.name, 0.0), run)
            paths[part.name] = row_path(row.key)
            write_with_digest(self.storage, paths[part.name], row)
        return StageReport(stage="measure", key=work.digest, artifacts=paths)

    def _graft(self, work: ExperimentSpec, run: str) -> StageReport:
        metrics = dict.fromkeys(ladder_of(work.evaluate).metrics, harm(work.design))
        cost = clocked_cost(work, self.ratio(work.design)) if self.timed else None
        return StageReport(stage="evaluate", key="k", metrics=metrics, cost=cost)

    def ratio(self, design: GraftDesign) -> float:
        """Return the simulated measured latency relative to the backbone: the table's prediction plus a
        deviation.
        """
        names = [f"{edit.site.slot} {label_of(edit.operator)}" for edit in design.edits]
        return 1 + sum(EXTRAS[name] for name in names) + sum(EXTRAS["pairs"] for _ in design.pairs)

    def _screen(self, work: ScreeningSpec) -> None:
        rungs = RungState(work, self.storage)
        while places := list(rungs.open()):
            for index, rung in places:
                self._judge(work, index, rung)

    def _judge(self, work: ScreeningSpec, index: int, rung: int) -> None:
        design = work.designs[index]
        path = result_path(work.result_key(design, work.rungs[rung]))
        self.storage.write_model(path, Screened(value=harm(design), seconds=0.0))


class InProcessCluster(SimulatedCluster):
    """Runs everything for real, in this process."""

    def _fill(self, work: FillSpec, run: str) -> None:
        fill.run(self._context(work, run))

    def _measure(self, work: LatencySpec, run: str) -> StageReport:
        return measure.run(self._context(work, run))

    def _graft(self, work: ExperimentSpec, run: str) -> StageReport:
        at_work = self._context(work, run)
        run_stages(at_work)
        done = [event.body for event in events_of(Path(at_work.ticket.storage), run)]
        return next(b.report for b in done if isinstance(b, StageDone) and b.report.stage == "evaluate")

    def _judge(self, work: ScreeningSpec, index: int, rung: int) -> None:
        bank = Bank(self.storage)

        def scion(part: Part) -> nn.Module:
            return module_of(
                self.backbone, bank, ScionSpec(backbone=work.backbone, part=part, plan=work.distill)
            )

        ScreeningModels(work, self.storage, Screener(self.backbone, work.evaluate, scion))(index, rung)

    def _context(self, work: Job, run: str) -> Context:
        return context(Path(self.storage.uri), self.backbone, work, run)
