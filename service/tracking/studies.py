"""Studies as MLflow shows them: a parent run each, under which the runs that serve it are nested."""

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy import select

from service.api.study_schemas import StudyDetail
from service.settings import Settings
from service.store.engine import Database
from service.store.studies import ENDED
from service.store.study_models import StudyRow, StudyRunRow
from service.store.study_queries import study_detail

TAG = "graftlab.study_id"
ENDINGS = {"DONE": "FINISHED", "STOPPED": "KILLED", "FAILED": "FAILED"}


class StudyForwarder:
    """Projects each study that has changed. Twice is once: a metric's step is the study's version."""

    def __init__(self, settings: Settings, database: Database, client: MlflowClient) -> None:
        self._settings, self._database, self._client = settings, database, client

    def round(self) -> None:
        """Bring MLflow up to date. Raises MlflowException or requests' errors while it is away."""
        query = select(StudyRow.id).where(StudyRow.version > StudyRow.mlflow_version).order_by(StudyRow.id)
        with self._database.reading() as session:
            behind = list(session.scalars(query))
        for study_id in behind:
            self._forward(study_id)

    def _forward(self, study_id: str) -> None:
        with self._database.reading() as session:
            study = session.get_one(StudyRow, study_id)
            detail, tracked = study_detail(session, study), study.mlflow_run_id
        experiment_id = self._experiment(detail.backbone)
        tracked = tracked or self._find_or_create(experiment_id, detail)
        self._send(tracked, detail)
        with self._database.writing() as session:
            row = session.get_one(StudyRow, study_id)
            row.mlflow_run_id, row.mlflow_version = tracked, detail.version
            row.mlflow_url = f"{self._settings.mlflow_url}/#/experiments/{experiment_id}/runs/{tracked}"

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _find_or_create(self, experiment_id: str, detail: StudyDetail) -> str:
        """The run tagged with the study, made where there is none: a lost answer makes no second one."""
        found = self._client.search_runs([experiment_id], f"tags.`{TAG}` = '{detail.id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        started = int(detail.created_at.timestamp() * 1000)
        made = self._client.create_run(experiment_id, started, {TAG: detail.id}, detail.name)
        self._client.log_batch(made.info.run_id, params=_params(detail))
        return str(made.info.run_id)

    def _send(self, tracked: str, detail: StudyDetail) -> None:
        at = int((detail.ended_at or detail.created_at).timestamp() * 1000)
        metrics = [Metric(name, value, at, detail.version) for name, value in _figures(detail).items()]
        tags = [RunTag("graftlab.state", detail.state), RunTag("graftlab.phase", detail.phase)]
        self._client.log_batch(tracked, metrics=metrics, tags=tags)
        if detail.state in ENDED:
            self._client.set_terminated(tracked, ENDINGS[detail.state], at)
        else:
            self._client.update_run(tracked, status="RUNNING")


def _params(detail: StudyDetail) -> list[Param]:
    limits = ", ".join(f"{each.cost} <= {each.of_backbone:.4g}x" for each in detail.spec.limits)
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
    """What the study's page shows, under the same names."""
    figures = {
        "trials": float(detail.trials),
        "screened": float(detail.screened),
        "finished": float(detail.finished),
        "spend.device_seconds": detail.spend.device_seconds,
    }
    if detail.best is not None:
        figures[f"best/{detail.quality}"] = detail.best
    baselines = {f"{each.baseline}/{detail.quality}": each.value for each in detail.comparisons}
    return figures | {name: value for name, value in baselines.items() if value is not None}


def parent_tags(database: Database, run_id: str) -> dict[str, str]:
    """The tag that nests a run under its study; none for a run that serves no study."""
    query = select(StudyRow.mlflow_run_id).join(StudyRunRow, StudyRunRow.study_id == StudyRow.id)
    with database.reading() as session:
        parent = session.scalar(query.where(StudyRunRow.run_id == run_id))
    return {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
