"""Stage 1: new operators learn to imitate the old ones on the unedited backbone's activations (Eq. 2).

One teacher forward serves all operators. Each has its own optimiser, clipping, rate and seed, and its
backward runs inside the teacher's hook, so memory does not grow with their number and the weights are
those of distilling it alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from grafting_core.activations import visited
from grafting_core.backbones.dit import get_operator
from grafting_core.backbones.loader import Backbone
from grafting_core.data import Batch, Latents
from grafting_core.diffusion import NUM_TIMESTEPS, add_noise, linear_schedule
from grafting_core.observing import Checkpoints, Observer, StopRequested
from grafting_core.optimisation import (
    Diverged,
    adamw,
    autocast,
    learning_rate,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)
from grafting_core.spec.design import ReplaceOperator
from grafting_core.spec.plans import DistillPlan, Loss
from grafting_core.spec.site import GraftSite
from grafting_core.surgery import new_operator

TIMESTEP_BINS = 4
HELD_OUT_BATCH = 64


@dataclass(frozen=True)
class ScionResult:
    """A distilled operator: its weights, and its normalised squared error on held-out draws.

    `errors` holds `nmse` over all timesteps and `nmse/t0-249` ... by quarter; 0 is perfect, 1 is as good
    as predicting zero. `curve` is (step, loss) pairs.
    """

    state: dict[str, Tensor]
    errors: dict[str, float]
    curve: list[tuple[int, float]]


def distill(
    backbone: Backbone,
    edits: Sequence[ReplaceOperator],
    plan: DistillPlan,
    latents: Latents,
    *,
    observer: Observer,
    checkpoints: Checkpoints,
) -> dict[GraftSite, ScionResult]:
    """Distil every edit's operator in one pass of the teacher.

    Raises Diverged where a loss is not finite, StopRequested (after a checkpoint) when asked to stop.
    """
    apprentices = {edit.site: _Apprentice(edit, backbone, plan) for edit in edits}
    step = _resume(apprentices, checkpoints)
    observer.progress(step, plan.steps, {})
    while step < plan.steps:
        batch = latents.batch("distill", plan.seed, step, plan.batch_size)
        _teach(backbone, batch, {site: a.learner(step) for site, a in apprentices.items()})
        step += 1
        _record(apprentices, step, plan.steps)
        observer.progress(step, plan.steps, _losses(apprentices))
        stopping = step < plan.steps and observer.stop_requested()
        if stopping or checkpoints.due():
            checkpoints.save(step, _tensors(apprentices))
        if stopping:
            raise StopRequested
    errors = held_out_errors(backbone, {s: a.operator for s, a in apprentices.items()}, plan, latents)
    return {site: a.result(errors[site]) for site, a in apprentices.items()}


@dataclass
class _Apprentice:
    """One operator in training."""

    edit: ReplaceOperator
    backbone: Backbone
    plan: DistillPlan
    curve: list[tuple[int, float]] = field(default_factory=list)
    loss: float = 0.0

    def __post_init__(self) -> None:
        original = get_operator(self.backbone.transformer, self.edit.site)
        operator = new_operator(self.edit, self.backbone.card.dims, self.plan.seed, original)
        self.operator = operator.to(self.backbone.device).train()
        self.optimiser = adamw(self.operator, self.plan.learning_rate, self.plan.weight_decay)
        self.kind = self.plan.loss_for(self.edit.site.slot)

    def learner(self, step: int) -> "_Lesson":
        plan = self.plan
        set_rate(
            self.optimiser,
            learning_rate(plan.learning_rate, plan.schedule, plan.warmup_steps, step, plan.steps),
        )
        return _Lesson(self, step)

    def result(self, errors: dict[str, float]) -> ScionResult:
        state = {name: value.detach().cpu().clone() for name, value in self.operator.state_dict().items()}
        return ScionResult(state, errors, self.curve)


@dataclass(frozen=True)
class _Lesson:
    """One optimiser step, taken while the teacher's forward passes the site."""

    apprentice: _Apprentice
    step: int

    def __call__(self, hidden_BTD: Tensor, target_BTD: Tensor) -> None:
        learner = self.apprentice
        with torch.enable_grad(), autocast(hidden_BTD.device):
            loss = regression_loss(learner.kind, learner.operator(hidden_BTD.detach()), target_BTD.detach())
        learner.loss = loss.item()
        if not torch.isfinite(loss):
            raise Diverged(
                f"distillation of {learner.edit.site} gave a loss of {learner.loss} at step {self.step}"
            )
        if not loss.requires_grad:
            return  # nothing to train
        learner.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.operator.parameters(), learner.plan.clip_norm)
        learner.optimiser.step()


def regression_loss(kind: Loss, output_BTD: Tensor, target_BTD: Tensor) -> Tensor:
    """L1, L2, Huber (delta 1) or squared error over the target's mean square."""
    if kind == "l1":
        return l1_loss(output_BTD, target_BTD)
    if kind == "huber":
        return huber_loss(output_BTD, target_BTD, delta=1.0)
    error = mse_loss(output_BTD, target_BTD)
    return error if kind == "l2" else error / target_BTD.square().mean()


@torch.no_grad()
def _teach(backbone: Backbone, batch: Batch, lessons: Mapping[GraftSite, _Lesson]) -> None:
    on_device = batch.to(backbone.device)
    noisy = add_noise(linear_schedule(), on_device.clean, on_device.noise, on_device.timesteps)
    with visited(backbone.transformer, lessons), autocast(backbone.device):
        backbone.transformer(noisy, timestep=on_device.timesteps, class_labels=on_device.labels)


@torch.no_grad()
def held_out_errors(
    backbone: Backbone, operators: Mapping[GraftSite, nn.Module], plan: DistillPlan, latents: Latents
) -> dict[GraftSite, dict[str, float]]:
    """Normalised squared error of every operator on `plan.held_out` draws that training never makes."""
    sums = {site: torch.zeros(2, TIMESTEP_BINS, dtype=torch.float64) for site in operators}
    for index in range(0, plan.held_out, HELD_OUT_BATCH):
        size = min(HELD_OUT_BATCH, plan.held_out - index)
        batch = latents.batch("held-out", plan.seed, index, size)
        bins = (batch.timesteps * TIMESTEP_BINS).div(NUM_TIMESTEPS, rounding_mode="floor")
        visitors = {site: _Examiner(operators[site], sums[site], bins) for site in operators}
        on_device = batch.to(backbone.device)
        noisy = add_noise(linear_schedule(), on_device.clean, on_device.noise, on_device.timesteps)
        with visited(backbone.transformer, visitors):
            backbone.transformer(noisy, timestep=on_device.timesteps, class_labels=on_device.labels)
    return {site: _named_errors(total) for site, total in sums.items()}


@dataclass(frozen=True)
class _Examiner:
    """Adds squared error and squared target of one site to its timestep bins."""

    operator: nn.Module
    sums: Tensor
    bins: Tensor

    def __call__(self, hidden_BTD: Tensor, target_BTD: Tensor) -> None:
        output = self.operator(hidden_BTD)
        for row, tensor in enumerate((output - target_BTD, target_BTD)):
            self.sums[row].index_add_(0, self.bins, tensor.double().square().flatten(1).sum(1).cpu())


def _named_errors(sums: Tensor) -> dict[str, float]:
    width = NUM_TIMESTEPS // TIMESTEP_BINS
    errors = {"nmse": float(sums[0].sum() / sums[1].sum())}
    for index in range(TIMESTEP_BINS):
        if sums[1, index] > 0:
            name = f"nmse/t{index * width}-{(index + 1) * width - 1}"
            errors[name] = float(sums[0, index] / sums[1, index])
    return errors


def _record(apprentices: Mapping[GraftSite, _Apprentice], step: int, steps: int) -> None:
    if step % max(1, steps // 100) == 0 or step == steps:
        for apprentice in apprentices.values():
            apprentice.curve.append((step, apprentice.loss))


def _losses(apprentices: Mapping[GraftSite, _Apprentice]) -> dict[str, float]:
    values = {f"loss/{site}": apprentice.loss for site, apprentice in apprentices.items()}
    return {"loss": sum(values.values()) / max(1, len(values)), **values}


def _prefix(site: GraftSite) -> str:
    return f"{site.block}/{site.slot}/"


def _tensors(apprentices: Mapping[GraftSite, _Apprentice]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for site, apprentice in apprentices.items():
        prefix = _prefix(site)
        tensors |= {
            f"{prefix}weight/{name}": value for name, value in apprentice.operator.state_dict().items()
        }
        tensors |= dict(optimiser_tensors(apprentice.optimiser, f"{prefix}optimiser/"))
        tensors[f"{prefix}curve"] = torch.tensor(apprentice.curve, dtype=torch.float64).reshape(-1, 2)
    return tensors


def _resume(apprentices: Mapping[GraftSite, _Apprentice], checkpoints: Checkpoints) -> int:
    found = checkpoints.latest()
    if found is None:
        return 0
    step, tensors = found
    for site, apprentice in apprentices.items():
        prefix = _prefix(site)
        names = apprentice.operator.state_dict()
        apprentice.operator.load_state_dict({name: tensors[f"{prefix}weight/{name}"] for name in names})
        restore_optimiser(apprentice.optimiser, tensors, f"{prefix}optimiser/")
        apprentice.curve[:] = [(int(at), loss) for at, loss in tensors[f"{prefix}curve"].tolist()]
    return step
