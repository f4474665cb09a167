"""Run stages of a run in this process, without Ray."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.experiment import ExperimentSpec, finetune_key
from grafting_core.specs.jobs import Job
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from workers.contract import Event, RunTicket, attempt_folder
from workers.events import EventLog
from workers.observer import StageObserver, StopCondition
from workers.stages.context import Context, Group
from workers.usage import UsageMeter

ENCODED: dict[tuple[int, DatasetRef | None], Latents] = {}
"""Latents by number of images and data set, encoded once per process."""


def context(folder: Path, backbone: Backbone, work: Job, run: str = "r1", attempt: int = 1) -> Context:
    storage = Storage(str(folder))
    ticket = RunTicket(run_id=run, attempt=attempt, work=work, storage=str(folder))
    meter = UsageMeter(work, time.time())
    events = EventLog(storage, ticket)
    stop_condition = StopCondition(storage, ticket, meter)
    return Context(ticket, storage, backbone, Group(Shard()), meter, stop_condition, events, ENCODED)


def events_of(folder: Path, run: str = "r1", attempt: int = 1) -> list[Event]:
    storage = Storage(str(folder))
    inside = f"{attempt_folder(run, attempt)}/events"
    return [storage.read_model(f"{inside}/{name}", Event) for name in storage.names(inside)]


def model(folder: Path, spec: ExperimentSpec) -> bytes:
    return (folder / f"models/{finetune_key(spec)}/model.safetensors").read_bytes()


class Crash(Exception):
    """Simulated death of the process."""


@contextmanager
def crash_at(step: int, total_steps: int) -> Iterator[None]:
    """Raise `Crash` at this step of the loop with `total_steps` steps; the block must reach it."""

    def crashing(self: StageObserver, at: int, total: int, values: Mapping[str, float]) -> None:
        if (at, total) == (step, total_steps):
            raise Crash
        progress(self, at, total, values)

    progress = StageObserver.progress
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageObserver, "progress", crashing)
        with pytest.raises(Crash):
            yield
