"""What an export of a run says: its figures, and the licences of backbone and data."""

import math

from sqlalchemy.orm import Session

from grafting_core.specs.backbone import card_of
from grafting_core.specs.datasets import DATASETS
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.exports import ExportSpec
from service.db.tables import RunRow, StageRow
from service.domain.run_queries import parsed, spec_of
from workers.contract import StageReport


def export_of(session: Session, run: RunRow, licence: str | None) -> ExportSpec:
    """The job that exports this run's model. Raises ValueError for a run that has none."""
    spec = spec_of(run)
    if run.state != "SUCCEEDED":
        raise ValueError(f"run {run.id} is {run.state}; a run is exported once it has succeeded")
    stage = session.get(StageRow, (run.id, "evaluate"))
    report = parsed(StageReport, stage.report) if stage is not None else None
    figures = (
        {name: value for name, value in report.metrics.items() if math.isfinite(value)} if report else {}
    )
    return ExportSpec(
        name=f"export of {spec.name}"[:200],
        experiment=spec,
        run=run.id,
        figures=figures,
        intervals=report.intervals if report else {},
        dataset_licence=_dataset_licence(spec),
        licence=licence,
    )


def _dataset_licence(spec: ExperimentSpec) -> str | None:
    named = spec.evaluate.dataset
    entry = DATASETS.get(named.name if named else card_of(spec.backbone).dataset or "")
    return entry.card.licence if entry is not None and entry.card is not None else None
