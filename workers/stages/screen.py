"""SCREEN: evaluate hybrids rung by rung on warm workers, driven by Ray Tune from the attempt's driver.

Each Tune trial is one hybrid on one rung. Actors are reused, so each worker loads the backbone once. A value
is published under its content key as soon as it is known, so a later attempt reuses it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, RunConfig, TuneConfig, Tuner
from ray.tune.search import Searcher

from grafting_core.specs.screening import Screened, ScreeningSpec, result_path
from grafting_core.specs.studies.selection import select
from grafting_core.storage.checksums import read_with_digest
from grafting_core.storage.storage import Storage
from grafting_core.training.observer import Observer, StopRequested
from workers.contract import RunTicket, StageDone, StageReport
from workers.events import EventLog
from workers.observer import AttemptStoppedEarly, StageObserver, StopCondition
from workers.registered import make_known
from workers.usage import UsageMeter

FINISHED: str = Searcher.FINISHED
TRIES = 3
"""Attempts for one value: a killed worker says nothing about the hybrid that it was evaluating."""
LOGGERS_OFF = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"


class RungState:
    """Rung of each hybrid, from the values known so far; promotion needs the values of a whole rung."""

    def __init__(self, spec: ScreeningSpec, storage: Storage) -> None:
        self.spec, self.storage = spec, storage
        self.values: list[dict[int, float]] = [{} for _ in spec.rungs]
        self.failed: set[int] = set()

    def on_rung(self, rung: int) -> list[int]:
        """Hybrids that belong on a rung, best first; empty while the rung below is incomplete."""
        if rung == 0:
            return list(range(len(self.spec.designs)))
        below = self.on_rung(rung - 1)
        remaining = [index for index in below if index not in self.failed]
        if not below or any(index not in self.values[rung - 1] for index in remaining):
            return []
        points = [(self.values[rung - 1][index], *self.spec.costs[index]) for index in remaining]
        return [remaining[at] for at in select(points, self.spec.survivors_of(len(below)))]

    def open(self) -> Iterator[tuple[int, int]]:
        """(hybrid, rung) pairs that can be evaluated now; reads values that storage already has."""
        for rung in range(len(self.spec.rungs)):
            for index in self.on_rung(rung):
                if (
                    index not in self.values[rung]
                    and index not in self.failed
                    and not self._known(index, rung)
                ):
                    yield index, rung

    def _known(self, index: int, rung: int) -> bool:
        key = self.spec.result_key(self.spec.designs[index], self.spec.rungs[rung])
        known = read_with_digest(self.storage, result_path(key), Screened)
        if known is not None:
            self.values[rung][index] = known.value
        return known is not None

    def metrics(self) -> dict[str, float]:
        """`12/loss_gap`: every value by hybrid and rung."""
        return {
            f"{index}/{rung.metric}": value
            for rung, values in zip(self.spec.rungs, self.values, strict=True)
            for index, value in sorted(values.items())
        }


class RungSearcher(Searcher):  # type: ignore[misc]  # ray is untyped here
    """Suggests the next (hybrid, rung) to Tune; suggests nothing while a rung is incomplete."""

    def __init__(self, rungs: RungState, observer: Observer) -> None:
        super().__init__(metric="value", mode="min")
        self._rungs, self._observer = rungs, observer
        self._running: dict[str, tuple[int, int]] = {}
        self._errors: Counter[tuple[int, int]] = Counter()
        self.stopped = False
        self._tell()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.stopped = self.stopped or self._observer.stop_requested()
        if self.stopped:
            return FINISHED
        busy = set(self._running.values())
        for place in self._rungs.open():
            if place not in busy:
                self._running[trial_id] = place
                return {"hybrid": place[0], "rung": place[1]}
        return None if busy else FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        index, rung = place = self._running.pop(trial_id)
        if error or result is None or "value" not in result:
            self._errors[place] += 1
            if self._errors[place] == TRIES:
                self._rungs.failed.add(index)
            return
        self._rungs.values[rung][index] = float(result["value"])
        self._tell()

    def _tell(self) -> None:
        done = sum(len(values) for values in self._rungs.values)
        self._observer.progress(done, evaluations(self._rungs.spec), {})

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: storage has every value."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: storage has every value."""


def evaluations(spec: ScreeningSpec) -> int:
    """Number of values that a whole screening yields."""
    total, remaining = 0, len(spec.designs)
    for _ in spec.rungs:
        total += remaining
        remaining = spec.survivors_of(remaining)
    return total


def screen(ticket: RunTicket, started: float) -> None:
    """Run a screening attempt. Raises AttemptStoppedEarly with the reason."""
    assert isinstance(ticket.work, ScreeningSpec)
    spec, storage = ticket.work, Storage(ticket.storage)
    make_known(storage, ticket.registered)
    meter, events = UsageMeter(spec, started), EventLog(storage, ticket)
    stop_condition = StopCondition(storage, ticket, meter)
    rungs = RungState(spec, storage)
    searcher = RungSearcher(rungs, StageObserver("screen", spec.digest, events, meter, stop_condition))
    if any(True for _ in rungs.open()):
        _tune(ticket, searcher)
    if searcher.stopped:
        raise AttemptStoppedEarly(str(stop_condition.reason())) from StopRequested()
    report = StageReport(stage="screen", key=spec.digest, metrics=rungs.metrics(), spend=meter.total())
    events.write(StageDone(report=report))


def _tune(ticket: RunTicket, searcher: RungSearcher) -> None:
    os.environ[LOGGERS_OFF] = "1"
    resources = ticket.work.resources
    Tuner(
        tune.with_resources(
            hybrid_trainable(ticket.model_dump_json()),
            {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker},
        ),
        tune_config=TuneConfig(
            search_alg=searcher, num_samples=-1, max_concurrent_trials=resources.workers, reuse_actors=True
        ),
        run_config=RunConfig(
            name=f"screen-{ticket.attempt}",
            storage_path=f"{ticket.storage}/runs/{ticket.run_id}/tune",
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


def hybrid_trainable(ticket: str) -> type[tune.Trainable]:
    """Trainable class for one ticket; it imports torch where it runs, since the driver needs none."""

    class Hybrid(tune.Trainable):  # type: ignore[misc]  # ray is untyped here
        """Evaluates one hybrid on one rung, then is reset to the next."""

        def setup(self, config: dict[str, Any]) -> None:
            from workers.stages.screening_actor import ScreeningModels  # noqa: PLC0415

            self.models = ScreeningModels.of(ticket)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {"value": self.models(self.config["hybrid"], self.config["rung"]), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Do nothing: storage has every value."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Do nothing."""

    return Hybrid
