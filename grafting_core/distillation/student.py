"""Training of one operator, with its own optimiser, clipping, learning rate, loss, curve and stop reason."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import CapturePoint, OperatorCapture
from grafting_core.diffusion.precision import autocast
from grafting_core.distillation.loss import regression_loss
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.plans import DistillPlan, Loss
from grafting_core.surgery.operate import new_operator
from grafting_core.training.optim import (
    adamw,
    clip_gradients,
    learning_rate,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)

StopReason = Literal["completed", "plateau", "diverged"]
CURVE_POINTS = 100


@dataclass(frozen=True)
class StudentSpec:
    """Description of a student: `build` makes its module, which is trained to match `capture_point`.

    `key`, the scion's, is unique within a pass; `name` is for display.
    """

    key: str
    name: str
    capture_point: CapturePoint
    build: Callable[[Backbone], nn.Module]
    plan: DistillPlan
    loss: Loss


def replacement_student(edit: ReplaceOperator, plan: DistillPlan, key: str) -> StudentSpec:
    """Student for one replaced operator."""
    build = partial(new_operator, edit=edit, seed=plan.first_weights_seed)
    loss = plan.loss_for(edit.site.slot)
    return StudentSpec(
        key, f"{edit.site} {edit.operator.kind}", OperatorCapture(edit.site), build, plan, loss
    )


@dataclass
class TrainState:
    """Training state of a student other than weights and optimiser state."""

    step: int = 0
    ending: StopReason | None = None
    reason: str = ""
    seconds: float = 0.0
    """Its share of the wall-clock time of the passes."""
    loss: float = math.nan
    curve: list[tuple[int, float]] = field(default_factory=list)
    window: float = 0.0
    """Sum of losses since the last multiple of the plan's patience."""
    best: float = math.inf
    """Lowest mean loss of such a window."""


class Student:
    """A student's module between two steps. Losses stay on the device until `record_losses` records them."""

    def __init__(self, spec: StudentSpec, backbone: Backbone, accumulation_steps: int = 1) -> None:
        self.spec, self.plan = spec, spec.plan
        self.module = spec.build(backbone).to(backbone.device).train()
        self.optimiser = adamw(self.module, self.plan.learning_rate, self.plan.weight_decay)
        self.record = TrainState(ending=None if self.plan.steps else "completed")
        self.pending_losses: list[Tensor] = []
        self.accumulation_steps = accumulation_steps
        """Parts of a batch that are computed one after another, if the whole does not fit into memory."""

    @property
    def is_training(self) -> bool:
        return self.record.ending is None

    @property
    def needs_losses(self) -> bool:
        """Whether its losses decide now whether it continues; depends only on its step."""
        step, patience = self.record.step, self.plan.patience
        return step == self.plan.steps or bool(patience and step % patience == 0)

    def train_step(self, hidden_BTD: Tensor, target_BTD: Tensor) -> None:
        """One optimiser step, called while the teacher's forward is at the capture point."""
        plan, step = self.plan, self.record.step
        loss = self._accumulate(hidden_BTD.detach(), target_BTD.detach().float())
        self.pending_losses.append(loss.detach())
        self.record.step += 1
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            return  # nothing to train
        clip_gradients(self.module, plan.clip_norm)
        rate = learning_rate(plan.learning_rate, plan.schedule, plan.warmup_steps, step, plan.steps)
        set_rate(self.optimiser, rate)
        self.optimiser.step()
        # Freed at once: the next student needs the memory before this one does again.
        self.optimiser.zero_grad(set_to_none=True)

    def _accumulate(self, hidden_BTD: Tensor, target_BTD: Tensor) -> Tensor:
        """Accumulate gradients of the mean loss, part by part; returns that mean."""
        total = torch.zeros((), device=hidden_BTD.device)
        square = target_BTD.square().mean()
        parts = zip(
            *(tensor.chunk(self.accumulation_steps) for tensor in (hidden_BTD, target_BTD)), strict=True
        )
        for hidden, target in parts:
            with torch.enable_grad(), autocast(hidden.device, self.plan.precision):
                output = self.module(hidden)
                loss = regression_loss(self.spec.loss, output.float(), target, square)
                loss = loss * (len(hidden) / len(hidden_BTD))
            total += loss.detach()
            if loss.requires_grad:
                loss.backward()
        return total

    def record_losses(self, losses: Sequence[float]) -> None:
        """Record the losses read since the last call, and stop if they require it."""
        first = self.record.step - len(losses) + 1
        self.pending_losses.clear()
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                return self.stop("diverged", f"a loss of {loss} at step {step - 1}", step)
            self._record(step, loss)
        if self.is_training and self.record.step == self.plan.steps:
            self.stop("completed", "", self.record.step)
        return None

    def _record(self, step: int, loss: float) -> None:
        record, steps, patience = self.record, self.plan.steps, self.plan.patience
        record.loss, record.window = loss, record.window + loss
        if step % max(1, steps // CURVE_POINTS) == 0 or step == steps:
            record.curve.append((step, loss))
        if patience and step % patience == 0:
            mean, record.window = record.window / patience, 0.0
            if mean >= record.best:
                self.stop("plateau", f"no lower loss in the {patience} steps before step {step}", step)
            record.best = min(record.best, mean)

    def stop(self, ending: StopReason, reason: str, step: int) -> None:
        """End training and free the optimiser state."""
        self.record.ending, self.record.reason, self.record.step = ending, reason, step
        self.optimiser.state.clear()
        self.module.eval()

    def weights(self) -> dict[str, Tensor]:
        """Weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed for resuming, under flat names; only the record if the student diverged."""
        prefix = f"{self.spec.key}/"
        tensors = {f"{prefix}record": _encoded(self.record)}
        if self.record.ending != "diverged":
            weights = self.module.state_dict().items()
            tensors |= {f"{prefix}weight/{name}": value for name, value in weights}
            tensors |= dict(optimiser_tensors(self.optimiser, f"{prefix}optimiser/"))
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`; does nothing if this student is not among them."""
        prefix = f"{self.spec.key}/"
        if f"{prefix}record" not in tensors:
            return
        self.record = _decoded(tensors[f"{prefix}record"])
        if self.record.ending != "diverged":
            names = self.module.state_dict()
            self.module.load_state_dict({name: tensors[f"{prefix}weight/{name}"] for name in names})
        if self.is_training:
            restore_optimiser(self.optimiser, tensors, f"{prefix}optimiser/")
        else:
            self.module.eval()


def _encoded(record: TrainState) -> Tensor:
    return torch.tensor(list(json.dumps(asdict(record)).encode()), dtype=torch.uint8)


def _decoded(encoded: Tensor) -> TrainState:
    fields = json.loads(bytes(encoded.tolist()))
    fields["curve"] = [(int(step), float(loss)) for step, loss in fields["curve"]]
    return TrainState(**fields)
