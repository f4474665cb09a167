"""Steps of studies in one thread each, so that a slow or hung proposal delays no other study."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.studies.driver import Driver

log = logging.getLogger("graftlab.search")
MOST = 8
"""Limit of steps that run at the same time."""
BRIEF_SECONDS = 0.05
"""Time to wait for each running step before another may start; most steps take less."""


class StepHangs(Exception):
    """A step has taken longer than allowed. Its thread cannot be stopped, but its process can."""


@dataclass(frozen=True)
class Step:
    """One running step, and its start by the monotonic clock."""

    thread: threading.Thread
    began: float


class StepThreads:
    """Advances every running study, each by one step at a time."""

    def __init__(self, driver: Driver, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create threads for steps that may take at most `seconds` each."""
        self._driver, self._seconds, self._clock = driver, seconds, clock
        self._steps: dict[str, Step] = {}
        self._began: dict[str, float] = {}
        """Study -> start of its last step; the study that has waited longest is next."""

    def round(self) -> None:
        """Start the next step of each study whose last one has ended, up to MOST at once; do not wait for
        them.

        Raises StepHangs, after its study was ended as FAILED, if a step has taken too long.
        """
        self._forget_ended()
        self._end_hung()
        running = self._driver.running()
        self._began = {study: self._began.get(study, -math.inf) for study in running}
        idle = [study for study in running if study not in self._steps]
        for study in sorted(idle, key=self._began.__getitem__):
            if not self._has_room():
                break
            self._begin(study)

    def _begin(self, study: str) -> None:
        thread = threading.Thread(target=self._take, args=(study,), name=f"study {study}", daemon=True)
        self._began[study] = self._clock()
        self._steps[study] = Step(thread, self._began[study])
        thread.start()

    def _forget_ended(self) -> None:
        self._steps = {study: step for study, step in self._steps.items() if step.thread.is_alive()}

    def _has_room(self) -> bool:
        """Check whether one more step may start."""
        if len(self._steps) >= MOST:
            for step in self._steps.values():
                step.thread.join(BRIEF_SECONDS)
            self._forget_ended()
        return len(self._steps) < MOST

    def _end_hung(self) -> None:
        hung = [study for study, step in self._steps.items() if self._clock() - step.began > self._seconds]
        for study in hung:
            reason = f"a step of the search took longer than {self._seconds:.0f} s; choose another sampler or"
            reason += " a smaller space, or a larger GRAFTLAB_STUDY_STEP_SECONDS, then resume it"
            self._driver.give_up(study, ValueError(reason))
        if hung:
            raise StepHangs(f"a step of study {', '.join(hung)} took longer than {self._seconds:.0f} s")

    def _take(self, study: str) -> None:
        try:
            self._driver.step(study)
        except Exception:
            log.exception("a step of study %s failed; the next one starts from the current state", study)

    def wait(self, seconds: float) -> None:
        """Wait until the running steps have ended, at most that long."""
        end = self._clock() + seconds
        for step in self._steps.values():
            step.thread.join(max(0.0, end - self._clock()))
