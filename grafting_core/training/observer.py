"""Interfaces between a stage and its caller: progress, stop requests and checkpoints.

The core returns values and calls these; it does not log, store or track anything itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from grafting_core.data import progress

if TYPE_CHECKING:
    from torch import Tensor

StopRequested = progress.StopRequested
"""Raised by a stage after a stop request, once it has saved a checkpoint."""


class Observer(Protocol):
    """Receives the progress of every step; it must return quickly and may skip steps."""

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """`step` of `total_steps` are done; `values` are metrics. The first call is the start."""

    def stop_requested(self) -> bool:
        """Whether the stage should save a checkpoint and raise `StopRequested`."""


@dataclass(frozen=True)
class StudentProgress:
    """State of one of several students that a stage trains together, or how and why it ended."""

    name: str
    step: int
    total_steps: int
    loss: float
    """Last loss that was read; NaN before the first."""
    ending: str | None = None
    reason: str = ""


class PassObserver(Observer, Protocol):
    """Observer that also receives the progress of every student of a pass."""

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        """State of each student; called every few steps, before `progress`."""


class Checkpointer(Protocol):
    """Stores flat dicts of tensors by step, atomically."""

    def latest(self) -> "tuple[int, Mapping[str, Tensor]] | None":
        """Step and tensors of the newest intact checkpoint, or None."""

    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""

    def save(self, step: int, tensors: "Mapping[str, Tensor]", loss: float | None = None) -> None:
        """Store this state; older ones may be deleted once it is durable.

        `loss`: mean over the steps since the previous checkpoint, if the stage has one; the lowest is the
        best.
        """


class NullObserver:
    """Observer that ignores every call and never requests a stop."""

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        return None

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        return None

    def stop_requested(self) -> bool:
        return False


class NoCheckpoints:
    """Checkpointer that stores nothing, for work that is cheaper to redo than to save."""

    def latest(self) -> "tuple[int, Mapping[str, Tensor]] | None":
        return None

    def due(self) -> bool:
        return False

    def save(self, step: int, tensors: "Mapping[str, Tensor]", loss: float | None = None) -> None:
        return None


NO_OBSERVER = NullObserver()
NO_CHECKPOINTS = NoCheckpoints()
