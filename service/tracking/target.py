"""MLflow as the forwarder writes to it: by small steps that may be repeated and say whose a failure is."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

AT_ONCE = {"metrics": 900, "params": 100, "tags": 100}
"""MLflow takes at most 1,000 items a call, 100 of them parameters and 100 tags."""
Item: TypeAlias = Metric | Param | RunTag


class Lost(Exception):
    """MLflow has no such run, or somebody deleted it there."""


class Away(Exception):
    """MLflow as a whole cannot be used."""


class Target:
    """An MLflow server, or in tests its database."""

    def __init__(self, url: str) -> None:
        self.client = MlflowClient(url)

    def check(self) -> None:
        """Raises Away where MLflow does not answer a simple question."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception as error:  # of requests, urllib3, SQLAlchemy and MLflow
            raise Away(str(error)) from error

    def check_run(self, run_id: str) -> None:
        """Raises Away, or Lost where the run is not there."""
        self.check()
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            raise Lost(run_id) from error
        if run.info.lifecycle_stage != "active":
            raise Lost(run_id)

    def experiment(self, name: str) -> str:
        """Its id; made where there is none, and restored where it was deleted."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def run(self, experiment_id: str, name: str, started: int, tag: str, tags: Mapping[str, str]) -> Run:
        """The run with this tag, made where there is none: a lost answer makes no second one."""
        query = f"tags.`{tag}` = '{tags[tag]}'"
        found = self.client.search_runs([experiment_id], query, ViewType.ALL, max_results=1)
        if not found:
            return self.client.create_run(experiment_id, started, dict(tags), name)
        if found[0].info.lifecycle_stage != "active":
            self.client.restore_run(found[0].info.run_id)
        self.log(found[0].info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return found[0]

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> list[str]:
        """Write these; what MLflow refuses, by name and reason. Raises Away or Lost. Twice is once."""
        refused = []
        for kind, items in (("metrics", metrics), ("params", params), ("tags", tags)):
            for start in range(0, len(items), AT_ONCE[kind]):
                refused += self._batch(run_id, kind, items[start : start + AT_ONCE[kind]])
        return refused

    def _batch(self, run_id: str, kind: str, items: Sequence[Item]) -> list[str]:
        """All in one call, or by halves where one of them is refused."""
        try:
            self.client.log_batch(run_id, **{kind: items})
        except Exception as error:  # noqa: BLE001 - what the check does not explain is the items'
            self.check_run(run_id)
            if len(items) == 1:
                return [f"{kind[:-1]} {items[0].key!r}: {plain(error)}"]
            middle = len(items) // 2
            halves = (items[:middle], items[middle:])
            return [text for half in halves for text in self._batch(run_id, kind, half)]
        return []

    def there(self, run_ids: Collection[str]) -> set[str]:
        """Which of these runs MLflow has and shows."""
        experiments = [each.experiment_id for each in self.client.search_experiments()]
        if not experiments or not run_ids:
            return set()
        names = ", ".join(f"'{run_id}'" for run_id in run_ids)
        found = self.client.search_runs(
            experiments, f"attributes.run_id IN ({names})", max_results=len(run_ids)
        )
        return {run.info.run_id for run in found}


def plain(error: BaseException | str) -> str:
    """An error in one line that every database and log takes."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    text = " ".join(text.replace("\0", "").split())
    return text.encode(errors="replace").decode()[:300]
