"""Observer of a stage: writes progress events and answers whether the stage should stop."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from grafting_core.specs.budget import Budget, Usage
from grafting_core.storage.storage import Storage
from grafting_core.training.observer import StudentProgress
from workers.contract import (
    PartProgress,
    Progress,
    Reason,
    RunTicket,
    StageName,
    StageStarted,
    Stop,
    attempt_folder,
    budget_path,
)
from workers.events import EventLog
from workers.usage import UsageMeter

PROGRESS_SECONDS = 2.0
PARTS_SECONDS = 10.0
"""Interval of events with `parts`; for hundreds of operators each takes tens of kilobytes."""
STOP_CHECK_SECONDS = 1.0


class StopSource(Protocol):
    """Gives the reason to stop, or None."""

    def reason(self) -> Reason | None: ...


class AttemptStoppedEarly(Exception):
    """The attempt obeyed a stop file or an exhausted budget; the text is the reason."""


class StopCondition:
    """Checks for a stop file and an exhausted budget, at most once a second."""

    def __init__(self, storage: Storage, ticket: RunTicket, meter: UsageMeter) -> None:
        self._storage, self._ticket, self._meter = storage, ticket, meter
        self._path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/stop"
        self._checked = 0.0
        self._reason: Reason | None = None

    def reason(self) -> Reason | None:
        now = time.monotonic()
        if self._reason is None and now - self._checked > STOP_CHECK_SECONDS:
            self._checked = now
            self._reason = self._look()
        return self._reason

    def _look(self) -> Reason | None:
        if self._storage.exists(self._path):
            return self._storage.read_model(self._path, Stop).reason
        spent = self._ticket.spent + self._meter.total()
        limits = self._ticket.budget or self._ticket.work.budget
        return "budget_exhausted" if limits.exceeded_by(spent) and self._newest().exceeded_by(spent) else None

    def _newest(self) -> Budget:
        """Current budget: it may have been extended since the ticket was written."""
        path = budget_path(self._ticket.run_id, self._ticket.attempt)
        if self._storage.exists(path):
            return self._storage.read_model(path, Budget)
        return self._ticket.budget or self._ticket.work.budget


class StageObserver:
    """Observes one stage of one attempt on rank 0."""

    def __init__(
        self, stage: StageName, key: str, events: EventLog, meter: UsageMeter, stop_condition: StopSource
    ) -> None:
        self._stage, self._key = stage, key
        self._events, self._meter, self._stop_condition = events, meter, stop_condition
        self._first: int | None = None
        self._began = self._shown = time.monotonic()
        self._parts: Sequence[StudentProgress] = ()
        self._parts_shown, self._endings = -math.inf, 0

    def _begin(self, step: int, total_steps: int) -> None:
        self._first, self._began = step, time.monotonic()
        self._events.write(StageStarted(stage=self._stage, key=self._key, step=step, total_steps=total_steps))

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        if self._first is None:
            return self._begin(step, total_steps)
        self._meter.record(self._stage, step - self._first)
        now = time.monotonic()
        if now - self._shown >= PROGRESS_SECONDS or step == total_steps:
            self._shown = now
            self._events.write(self._event(step, total_steps, values, now))

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        self._parts = parts

    def _event(self, step: int, total_steps: int, values: Mapping[str, float], now: float) -> Progress:
        pace = (now - self._began) / max(1, step - (self._first or 0))
        return Progress(
            stage=self._stage,
            step=step,
            total_steps=total_steps,
            seconds_left=pace * (total_steps - step),
            values=dict(values),
            spend=self.spend(),
            parts=tuple(_progress_of(part, pace) for part in self._news(now)),
        )

    def _news(self, now: float) -> Sequence[StudentProgress]:
        """Parts to report now: all if one has ended or ten seconds have passed, else none."""
        endings = sum(part.ending is not None for part in self._parts)
        if endings == self._endings and now - self._parts_shown < PARTS_SECONDS:
            return ()
        self._parts_shown, self._endings = now, endings
        return self._parts

    def spend(self) -> Usage:
        return self._meter.total()

    def stop_requested(self) -> bool:
        return self._stop_condition.reason() is not None


def _progress_of(part: StudentProgress, pace: float) -> PartProgress:
    """Progress of one part; `pace` is seconds per step of the pass."""
    return PartProgress(
        name=part.name,
        step=part.step,
        total_steps=part.total_steps,
        loss=part.loss if math.isfinite(part.loss) else None,
        seconds_left=0.0 if part.ending else pace * (part.total_steps - part.step),
        ending=part.ending,
        reason=part.reason,
    )
