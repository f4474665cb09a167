"""Steps of studies in threads of their own: a slow or hung proposal holds up no other study."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.studies.driver import Driver

log = logging.getLogger("graftlab.search")
MOST = 8
"""Steps that are under way at the same time."""
BRIEF_SECONDS = 0.05
"""For which each of them is waited for where others are to begin; most steps take less."""


class StepHangs(Exception):
    """A step has taken longer than allowed. Its thread cannot be ended, but its process can."""


@dataclass(frozen=True)
class Step:
    """One step under way, and when it began by the monotonic clock."""

    thread: threading.Thread
    began: float


class StepThreads:
    """Carries on every running study, one step at a time each."""

    def __init__(self, driver: Driver, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` is how long one step may take."""
        self._driver, self._seconds, self._clock = driver, seconds, clock
        self._steps: dict[str, Step] = {}
        self._began: dict[str, float] = {}
        """Study -> when its last step began: who has waited longest is next."""

    def round(self) -> None:
        """Begin the next step of each study whose last one has ended, and leave the rest for the next round
        where too many are under way. Returns without waiting for slow ones.

        Raises StepHangs, after the study has been ended as FAILED, where a step has taken too long.
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
        """Whether one more step may begin."""
        if len(self._steps) >= MOST:
            for step in self._steps.values():
                step.thread.join(BRIEF_SECONDS)
            self._forget_ended()
        return len(self._steps) < MOST

    def _end_hung(self) -> None:
        hung = [study for study, step in self._steps.items() if self._clock() - step.began > self._seconds]
        for study in hung:
            reason = f"a step in its search took longer than {self._seconds:.0f} s; choose another sampler or"
            reason += " a smaller space, or let GRAFTLAB_STUDY_STEP_SECONDS be more, then resume it"
            self._driver.give_up(study, ValueError(reason))
        if hung:
            raise StepHangs(f"a step of study {', '.join(hung)} took longer than {self._seconds:.0f} s")

    def _take(self, study: str) -> None:
        try:
            self._driver.step(study)
        except Exception:
            log.exception("a step of study %s failed; the next one starts from what is", study)

    def wait(self, seconds: float) -> None:
        """Until the steps under way have ended, or that long."""
        end = self._clock() + seconds
        for step in self._steps.values():
            step.thread.join(max(0.0, end - self._clock()))
