"""Training loop of all three pretraining stages: seeded, resumable at any step, with EMA weights."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay to a hundredth of `peak`."""

    steps: int
    peak: float
    warmup: int = 200

    def rate(self, step: int) -> float:
        """Learning rate of the next step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi)))))


@dataclass
class Trainer:
    """Model, AdamW and EMA weights, with an atomically written checkpoint file."""

    name: str
    model: nn.Module
    schedule: Schedule
    loss: Callable[[int], Tensor]
    """Loss of step i; draws only from (seed, i), so that resuming needs only the step."""
    work: Path
    ema_decay: float = 0.9995
    clip_norm: float = 1.0
    save_seconds: float = 60.0
    step: int = 0
    seconds: float = 0.0
    """Training time of all processes together."""
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=self.schedule.peak, weight_decay=0.0, fused=True
        )
        self.ema = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.work.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            self._load()

    @property
    def file(self) -> Path:
        return self.work / f"{self.name}.pt"

    def run(self, until: int | None = None) -> None:
        """Train up to `until` steps (default: all), saving every minute and at the end."""
        last = min(until or self.schedule.steps, self.schedule.steps)
        saved = shown = time.monotonic()
        losses: list[float] = []
        while self.step < last:
            began = time.monotonic()
            losses.append(self._advance())
            now = time.monotonic()
            self.seconds += (now - began) * world()
            if now - shown > 10 or self.step == last:
                self._show(losses)
                shown, losses = now, []
            if now - saved > self.save_seconds or self.step == last:
                self.save()
                saved = now

    def _advance(self) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self.model.train()
        loss = self.loss(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        self.step += 1
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[key].lerp_(value, 1 - decay)
            else:
                self.ema[key].copy_(value)

    def _show(self, losses: list[float]) -> None:
        if rank() > 0:
            return
        mean = sum(losses) / len(losses)
        self.curve.append((self.step, mean))
        left = self.seconds / world() / self.step * (self.schedule.steps - self.step)
        print(f"{self.name} {self.step}/{self.schedule.steps} loss {mean:.4f}, {left:.0f} s left", flush=True)

    def save(self) -> None:
        """Write a temporary file and rename it, so that a kill leaves the old file or the new one."""
        if rank() > 0:
            return
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        temporary = self.file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.file)  # noqa: PTH105 - atomic

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = state["ema"]
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def saved_curve(work: Path, name: str) -> list[tuple[int, float]]:
    """(step, mean loss) pairs of a trainer's checkpoint, thinned to at most 200."""
    curve: list[tuple[int, float]] = torch.load(work / f"{name}.pt", weights_only=True)["curve"]
    return curve[:: max(1, len(curve) // 200)]


def rank() -> int:
    """Rank of this process among those that train together; 0 for a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes that train together; two with one thread each are fastest for these models."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rows(batch: Tensor) -> Tensor:
    """This process's share of a batch, along the first dimension."""
    return batch.chunk(world())[rank()]


@torch.no_grad()
def share_gradients(model: nn.Module) -> None:
    """Average the gradients of all processes, in one message."""
    if world() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(
        gradients, flat.div_(world()).split([g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))


def batch_indices(step: int, batch: int, total: int, seed: int) -> Tensor:
    """Rows of step i: consecutive slices of one permutation per epoch; a batch may span two epochs."""
    epoch, offset = divmod(step * batch, total)
    order = _permutation(epoch, total, seed)[offset : offset + batch]
    missing = batch - len(order)
    return torch.cat([order, _permutation(epoch + 1, total, seed)[:missing]]) if missing else order


def _permutation(epoch: int, total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Generator for all random numbers of one step."""
    return torch.Generator().manual_seed((seed * 7_919 + 1) * 10_000_019 + step)
