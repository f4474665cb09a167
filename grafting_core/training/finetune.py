"""Stage 2: train the whole grafted network on the denoising objective (Eq. 1) and return EMA weights."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.shared_embedders import load_unique_state, unique_state
from grafting_core.data.latents import Batch, Latents, generator_for, predict_batch
from grafting_core.diffusion.objective import objective_of
from grafting_core.diffusion.precision import autocast
from grafting_core.specs.plans import FinetunePlan
from grafting_core.training.observer import NO_CHECKPOINTS, NO_OBSERVER, Checkpointer, Observer, StopRequested
from grafting_core.training.optim import (
    Diverged,
    adamw,
    learning_rate,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)


@dataclass(frozen=True)
class Shard:
    """Rows of the global batch that this process computes."""

    rank: int = 0
    world: int = 1

    def of(self, size: int) -> slice:
        """Slice of an equal share. Raises ValueError if the batch cannot be split evenly."""
        if size % self.world:
            raise ValueError(f"batch_size {size} cannot be split over {self.world} workers; use a multiple")
        rows = size // self.world
        return slice(self.rank * rows, (self.rank + 1) * rows)


def finetune(
    graft: Backbone,
    plan: FinetunePlan,
    latents: Latents,
    *,
    observer: Observer = NO_OBSERVER,
    checkpoints: Checkpointer = NO_CHECKPOINTS,
    parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
    share: Shard = Shard(),
    accumulation_steps: int = 1,
) -> dict[str, Tensor]:
    """Train the graft's transformer in place and return its EMA weights (float32, CPU).

    Weights that several blocks share are returned once; `load_unique_state` loads them.

    Each process's rows are computed in `accumulation_steps` parts, one after another, and gradients are
    added: the same mean over the same global batch, up to rounding, in less memory.

    Raises Diverged if the loss is not finite, StopRequested, after a checkpoint, if a stop is requested.
    """
    training = _Training(graft, plan, latents, share, accumulation_steps)
    step = training.resume(checkpoints)
    network = parallel(graft.transformer.train())
    observer.progress(step, plan.steps, {})
    since: list[float] = []
    while step < plan.steps:
        loss = training.advance(network, step)
        step += 1
        since.append(loss)
        observer.progress(step, plan.steps, {"loss": loss})
        stopping = step < plan.steps and observer.stop_requested()
        if stopping or checkpoints.due():
            checkpoints.save(step, training.tensors(), sum(since) / len(since))
            since.clear()
        if stopping:
            raise StopRequested
    graft.transformer.eval()
    return {name: value.cpu() for name, value in training.average.items()}


def _unsynchronised(network: nn.Module) -> AbstractContextManager[object]:
    """Context in which DDP does not exchange gradients; a null context for a single process."""
    without: Callable[[], AbstractContextManager[object]] = getattr(network, "no_sync", nullcontext)
    return without()


class _Training:
    """Network, optimiser and EMA weights between two steps."""

    def __init__(
        self, graft: Backbone, plan: FinetunePlan, latents: Latents, share: Shard, accumulation_steps: int
    ) -> None:
        self.graft, self.plan, self.latents = graft, plan, latents
        self.share, self.accumulation_steps = share, accumulation_steps
        self.objective = objective_of(graft.card)
        transformer = self.transformer = graft.transformer
        # Position embeddings are buffers, hence frozen, as in the paper's recipe.
        transformer.requires_grad_(True)
        self.device = next(transformer.parameters()).device
        self.optimiser = adamw(transformer, plan.learning_rate, plan.weight_decay)
        # What several blocks have in common is trained, averaged and stored once.
        self.average = {name: value.clone() for name, value in unique_state(transformer).items()}

    def advance(self, network: nn.Module, step: int) -> float:
        """One optimiser step; returns this process's loss."""
        plan = self.plan
        set_rate(
            self.optimiser,
            learning_rate(plan.learning_rate, plan.schedule, plan.warmup_steps, step, plan.steps),
        )
        self.optimiser.zero_grad(set_to_none=True)
        mean = self._accumulate(network, step)
        nn.utils.clip_grad_norm_(self.transformer.parameters(), plan.clip_norm)
        self.optimiser.step()
        self._average(step + 1)
        # Read after all work is queued: one wait for the device per step, and no diverged state is saved.
        loss = float(mean.item())
        if not math.isfinite(loss):
            raise Diverged(f"finetuning gave a loss of {loss} at step {step}")
        return loss

    def _accumulate(self, network: nn.Module, step: int) -> Tensor:
        """Accumulate gradients of the mean loss over this process's rows, part by part; returns that mean."""
        batch = self._batch(step)
        rows, total = len(batch), torch.zeros((), dtype=torch.float64, device=self.device)
        size = math.ceil(rows / self.accumulation_steps)
        for first in range(0, rows, size):
            part = batch.rows(slice(first, first + size))
            weight = len(part) / rows
            # Processes exchange gradients once, with the last part.
            with _unsynchronised(network) if first + size < rows else nullcontext():
                loss = self._loss(network, part.to(self.device)) * weight
                loss.backward()
            total += loss.detach()
        return total

    def _loss(self, network: nn.Module, batch: Batch) -> Tensor:
        with autocast(self.device, self.plan.precision):
            output = predict_batch(self.graft.with_transformer(network), batch)
        return self.objective.loss(output.float(), batch.clean, batch.noise, batch.timesteps).mean()

    def _batch(self, step: int) -> Batch:
        """This process's rows. Conditions are dropped here, as each block would drop them independently."""
        plan = self.plan
        batch = self.latents.batch("finetune", plan.seed, step, plan.batch_size)
        draw = torch.rand(plan.batch_size, generator=generator_for("finetune/label-dropout", plan.seed, step))
        conditions = batch.conditions.dropped(draw < plan.label_dropout, self.graft.null_conditions())
        whole = Batch(batch.clean, batch.noise, batch.timesteps, conditions)
        return whole.rows(self.share.of(plan.batch_size))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.plan.ema_decay, (1 + step) / (10 + step))
        for name, value in unique_state(self.transformer).items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, under flat names."""
        return {
            **{f"weight/{name}": value for name, value in unique_state(self.transformer).items()},
            **{f"average/{name}": value for name, value in self.average.items()},
            **dict(optimiser_tensors(self.optimiser, "optimiser/")),
        }

    def resume(self, checkpoints: Checkpointer) -> int:
        """Load the newest checkpoint; returns the number of completed steps."""
        found = checkpoints.latest()
        if found is None:
            return 0
        step, tensors = found
        for name, value in self.average.items():
            value.copy_(tensors[f"average/{name}"])
        load_unique_state(self.transformer, {name: tensors[f"weight/{name}"] for name in self.average})
        restore_optimiser(self.optimiser, tensors, "optimiser/")
        return step
