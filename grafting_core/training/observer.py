"""How a stage talks to whoever runs it. The core returns values; it neither logs, stores nor tracks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class StopRequested(Exception):
    """Raised by a stage that was asked to stop, after it has saved a checkpoint."""


class Observer(Protocol):
    """Is called at every step. Calls are cheap: the observer decides what to pass on and when."""

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        """`step` of `total_steps` are done; `values` are figures. The first call is the start."""

    def stop_requested(self) -> bool:
        """Whether the stage should save a checkpoint and raise `StopRequested`."""


@dataclass(frozen=True)
class StudentProgress:
    """One of several things that a stage trains together: where it is, or how and why it ended."""

    name: str
    step: int
    total_steps: int
    loss: float
    """Of its last step that was read; NaN before the first."""
    ending: str | None = None
    reason: str = ""


class PassObserver(Observer, Protocol):
    """Is told the progress of every student of a pass as well."""

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        """Where each part is by now; called every few steps, before `progress`."""


class Checkpointer(Protocol):
    """Keeps flat dicts of tensors by step; whole or not at all."""

    def latest(self) -> "tuple[int, dict[str, Tensor]] | None":
        """The newest intact checkpoint, or None."""

    def due(self) -> bool:
        """Whether enough time has passed since the last one."""

    def save(self, step: int, tensors: "Mapping[str, Tensor]", loss: float | None = None) -> None:
        """Keep this state; older ones may be dropped once it is durable.

        `loss`: mean over the steps since the state before, where the stage has one; the lowest is the best.
        """


class NullObserver:
    """An observer that ignores every call and never requests a stop."""

    def progress(self, step: int, total_steps: int, values: Mapping[str, float]) -> None:
        return None

    def parts(self, parts: Sequence[StudentProgress]) -> None:
        return None

    def stop_requested(self) -> bool:
        return False


class NoCheckpoints:
    """For work that is cheaper to redo than to save."""

    def latest(self) -> "tuple[int, dict[str, Tensor]] | None":
        return None

    def due(self) -> bool:
        return False

    def save(self, step: int, tensors: "Mapping[str, Tensor]", loss: float | None = None) -> None:
        return None


NO_OBSERVER = NullObserver()
NO_CHECKPOINTS = NoCheckpoints()
