"""MLflow client of the forwarder: small repeatable steps whose errors name what failed."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

AT_ONCE = {"metrics": 900, "params": 100, "tags": 100}
"""MLflow accepts at most 1,000 items per call, 100 of them parameters and 100 tags."""
Item: TypeAlias = Metric | Param | RunTag


class Lost(Exception):
    """MLflow has no such run, or it was deleted there."""


class Away(Exception):
    """MLflow as a whole cannot be used."""


class Target:
    """An MLflow server, or in tests its database."""

    def __init__(self, url: str) -> None:
        self.client = MlflowClient(url)

    def check(self) -> None:
        """Raises Away if MLflow does not answer a simple request."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception as error:  # from requests, urllib3, SQLAlchemy and MLflow
            raise Away(str(error)) from error

    def check_run(self, run_id: str) -> None:
        """Raises Away, or Lost if the run does not exist."""
        self.check()
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            raise Lost(run_id) from error
        if run.info.lifecycle_stage != "active":
            raise Lost(run_id)

    def experiment(self, name: str) -> str:
        """Return the experiment's id; it is created if missing, and restored if deleted."""
        known = self.client.get_experiment_by_name(name)
        if known is None:
            return str(self.client.create_experiment(name))
        if known.lifecycle_stage != "active":
            self.client.restore_experiment(known.experiment_id)
        return str(known.experiment_id)

    def run(self, experiment_id: str, name: str, started: int, tag: str, tags: Mapping[str, str]) -> Run:
        """Return the run with this tag, created if missing: a lost answer makes no second run."""
        query = f"tags.`{tag}` = '{tags[tag]}'"
        runs = self.client.search_runs([experiment_id], query, ViewType.ALL, max_results=1)
        if not runs:
            return self.client.create_run(experiment_id, started, dict(tags), name)
        if runs[0].info.lifecycle_stage != "active":
            self.client.restore_run(runs[0].info.run_id)
        self.log(runs[0].info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return runs[0]

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> list[str]:
        """Write these items; return what MLflow refuses, by name and reason. Raises Away or Lost.
        Repeatable.
        """
        refused = []
        for kind, items in (("metrics", metrics), ("params", params), ("tags", tags)):
            for start in range(0, len(items), AT_ONCE[kind]):
                refused += self._batch(run_id, kind, items[start : start + AT_ONCE[kind]])
        return refused

    def _batch(self, run_id: str, kind: str, items: Sequence[Item]) -> list[str]:
        """Write all items in one call, or by halves if one of them is refused."""
        try:
            self.client.log_batch(run_id, **{kind: items})
        except Exception as error:  # noqa: BLE001 - what the check does not explain is caused by the items
            self.check_run(run_id)
            if len(items) == 1:
                return [f"{kind[:-1]} {items[0].key!r}: {plain(error)}"]
            middle = len(items) // 2
            halves = (items[:middle], items[middle:])
            return [text for half in halves for text in self._batch(run_id, kind, half)]
        return []

    def there(self, run_ids: Collection[str]) -> set[str]:
        """Return those of the runs that MLflow has and shows."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        if not experiments or not run_ids:
            return set()
        names = ", ".join(f"'{run_id}'" for run_id in run_ids)
        runs = self.client.search_runs(
            experiments, f"attributes.run_id IN ({names})", max_results=len(run_ids)
        )
        return {run.info.run_id for run in runs}


def plain(error: BaseException | str) -> str:
    """Return an error in one line that every database and log accepts."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.replace("\0", "").split())
    return text.encode(errors="replace").decode()[:300]
