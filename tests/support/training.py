"""Checkpoints and observers of training loops, kept in memory."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from grafting_core.training.observer import StudentProgress


class MemoryCheckpoints:
    """Checkpointer that keeps every checkpoint; one is due after every `every` steps."""

    def __init__(self, every: int = 0) -> None:
        self.kept: dict[int, dict[str, Tensor]] = {}
        self._every, self._asked = every, 0

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        return max(self.kept.items(), default=None, key=lambda item: item[0])

    def due(self) -> bool:
        self._asked += 1
        return bool(self._every) and self._asked % self._every == 0

    def save(self, step: int, tensors: Mapping[str, Tensor], loss: float | None = None) -> None:
        self.kept[step] = {name: value.detach().clone() for name, value in tensors.items()}


class StopAfter:
    """Observer that requests a stop after this step."""

    def __init__(self, step: int, seen: Callable[[int], None] = lambda step: None) -> None:
        self._step, self._seen, self._now = step, seen, 0

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        self._now = step
        self._seen(step)

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        return None

    def stop_requested(self) -> bool:
        return self._now >= self._step
