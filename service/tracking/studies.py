"""Project studies to MLflow: one parent run each, with the study's runs nested under it."""

from contextlib import suppress

from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy import select, update

from service.db.engine import Database
from service.db.study_tables import StudyRow, StudyRunRow
from service.db.tables import RunRow
from service.domain.studies import ENDED
from service.domain.study_queries import study_detail
from service.schemas.studies import StudyDetail
from service.tracking.items import Items
from service.tracking.target import Lost, Target

TAG = "graftlab.study_id"
ENDINGS = {"DONE": "FINISHED", "STOPPED": "KILLED", "FAILED": "FAILED"}


class StudyForwarder:
    """Projects each study that has changed. A metric's step is the study's version, so repetition is
    harmless.
    """

    def __init__(self, database: Database, target: Target, items: Items) -> None:
        self._database, self._target, self.items = database, target, items

    def round(self) -> None:
        """Bring MLflow up to date. Raises Away."""
        for study_id in self.items.behind():
            self.items.project(study_id, self._forward)

    def _forward(self, study_id: str) -> None:
        with self._database.reading() as session:
            study = session.get_one(StudyRow, study_id)
            detail, tracked = study_detail(session, study), study.mlflow_run_id
        tracked = tracked or self._find_or_create(detail)
        self.items.note(study_id, self._send(tracked, detail))
        self._update(study_id, mlflow_version=detail.version)

    def _find_or_create(self, detail: StudyDetail) -> str:
        """Return the run tagged with the study; runs of the study that MLflow has are nested under it
        (again).
        """
        experiment_id = self._target.experiment(detail.backbone)
        started = int(detail.created_at.timestamp() * 1000)
        parent = self._target.run(experiment_id, detail.name, started, TAG, {TAG: detail.id})
        tracked = str(parent.info.run_id)
        missing = [param for param in _params(detail) if param.key not in parent.data.params]
        self.items.note(detail.id, self._target.log(tracked, params=missing))
        self._nest(detail.id, tracked)
        self._update(detail.id, mlflow_experiment_id=experiment_id, mlflow_run_id=tracked)
        return tracked

    def _nest(self, study_id: str, parent: str) -> None:
        query = select(RunRow.mlflow_run_id).join(StudyRunRow, StudyRunRow.run_id == RunRow.id)
        with self._database.reading() as session:
            children = list(session.scalars(query.where(StudyRunRow.study_id == study_id)))
        for child in filter(None, children):
            with suppress(Lost):  # it will be created again, and then nested
                self._target.log(child, tags=[RunTag(MLFLOW_PARENT_RUN_ID, parent)])

    def _send(self, tracked: str, detail: StudyDetail) -> list[str]:
        """Send metrics and state; return what MLflow refused."""
        at = int((detail.ended_at or detail.created_at).timestamp() * 1000)
        metrics = [Metric(name, value, at, detail.version) for name, value in _figures(detail).items()]
        tags = [RunTag("graftlab.state", detail.state), RunTag("graftlab.phase", detail.phase)]
        refused = self._target.log(tracked, metrics=metrics, tags=tags)
        if detail.state in ENDED:
            self._target.client.set_terminated(tracked, ENDINGS[detail.state], at)
        else:
            self._target.client.update_run(tracked, status="RUNNING")
        return refused

    def _update(self, study_id: str, **values: object) -> None:
        with self._database.writing() as session:
            session.execute(update(StudyRow).where(StudyRow.id == study_id).values(values))


def _params(detail: StudyDetail) -> list[Param]:
    limits = ", ".join(f"{limit.cost} <= {limit.of_backbone:.4g}x" for limit in detail.spec.limits)
    flat = {
        "kind": "study",
        "objectives": ", ".join(detail.objectives),
        "limits": limits or "none",
        "designs in space": f"{detail.spec.space.size:.4g}",
        "sampler": f"{detail.sampler['class']} {detail.sampler['arguments']}",
        "seed": str(detail.sampler["seed"]),
    }
    return [Param(name, value[:6000]) for name, value in flat.items()]


def _figures(detail: StudyDetail) -> dict[str, float]:
    """Return the numbers that the study's page shows, under the same names."""
    figures = {
        "trials": float(detail.trials),
        "screened": float(detail.screened),
        "finished": float(detail.finished),
        "spend.device_seconds": detail.spend.device_seconds,
    }
    if detail.best is not None:
        figures[f"best/{detail.quality}"] = detail.best
    baselines = {f"{row.baseline}/{detail.quality}": row.value for row in detail.comparisons}
    return figures | {name: value for name, value in baselines.items() if value is not None}


def parent_tags(database: Database, run_id: str) -> dict[str, str]:
    """Return the tag that nests a run under its study; empty for a run of no study."""
    query = select(StudyRow.mlflow_run_id).join(StudyRunRow, StudyRunRow.study_id == StudyRow.id)
    with database.reading() as session:
        parent = session.scalar(query.where(StudyRunRow.run_id == run_id))
    return {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
