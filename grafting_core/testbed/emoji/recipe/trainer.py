"""Training loop of all phases: seeded, resumable, with EMA weights, limited by steps or seconds."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN_EVERY = 10.0
SAVED_EVERY = 30.0
READ_EVERY = 25
"""Steps between two transfers of the loss, each of which waits for the device."""


@dataclass(frozen=True)
class Budget:
    """End of a phase: a number of steps, or seconds of training, whichever comes first."""

    steps: int | None = None
    seconds: float | None = None

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget that is used."""
        by_steps = steps / self.steps if self.steps else 0.0
        by_seconds = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_steps, by_seconds))


@dataclass(frozen=True)
class Rate:
    """Linear warm-up, a plateau, then cosine decay to a hundredth of `peak`."""

    peak: float
    warmup: int = 200
    plateau: float = 0.3
    """Share of the budget after which the decay begins."""

    def at(self, step: int, progress: float) -> float:
        """Learning rate of the next step, counted from 0."""
        decayed = max(0.0, (progress - self.plateau) / (1 - self.plateau))
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, decayed)))
        return self.peak * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * wave)


@dataclass
class Trainer:
    """Model, AdamW and EMA weights, with an atomically written checkpoint file."""

    name: str
    model: nn.Module
    rate: Rate
    budget: Budget
    loss: Callable[[int, float], Tensor]
    """Loss of a step, from its number and the progress; draws only from (seed, step)."""
    work: Path
    batch: int
    ema_decay: float = 0.999
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    on_save: Callable[["Trainer"], None] | None = None
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trained = [value for value in self.model.parameters() if value.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=self.rate.peak, betas=self.betas, weight_decay=0.0, fused=True
        )
        self.ema = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.work.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            self._load()

    @property
    def file(self) -> Path:
        return self.work / f"{self.name}.pt"

    @property
    def progress(self) -> float:
        return self.budget.progress(self.step, self.seconds)

    def run(self) -> None:
        """Train until the budget is used, saving regularly and at the end."""
        began = saved = shown = time.monotonic()
        before = self.seconds
        while (progress := self.progress) < 1:
            loss = self._advance(progress)
            if self.step % READ_EVERY == 0:
                value = loss.item()
            self.seconds = before + time.monotonic() - began
            now = time.monotonic()
            if self.step % READ_EVERY == 0 and now - shown > SHOWN_EVERY:
                self._show(value)
                shown = now
            if now - saved > SAVED_EVERY:
                self.save()
                saved = now
        self.save()

    def _advance(self, progress: float) -> Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate.at(self.step, progress)
        self.model.train()
        loss = self.loss(self.step, progress)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimiser.step()
        self.step += 1
        self.images += self.batch
        self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        floating = [key for key, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.ema[key] for key in floating], [current[key] for key in floating], 1 - decay
        )
        for key in current.keys() - set(floating):
            self.ema[key].copy_(current[key])

    def _show(self, loss: float) -> None:
        self.curve.append((self.step, loss))
        rate = self.images / max(self.seconds, 1e-9)
        done = f"{100 * self.progress:.0f} %"
        print(f"{self.name} step {self.step} ({done}) loss {loss:.4f}, {rate:.0f} images/s", flush=True)

    def save(self) -> None:
        """Write a temporary file and rename it, so that a kill leaves the old file or the new one."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        temporary = self.file.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.file)  # noqa: PTH105 - atomic
        if self.on_save:
            self.on_save(self)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True, map_location=self.trained[0].device)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = state["ema"]
        self.step, self.images = state["step"], state["images"]
        self.seconds, self.curve = state["seconds"], state["curve"]

    def record(self) -> dict[str, Any]:
        """Entry of this phase for the card."""
        thinned = self.curve[:: max(1, len(self.curve) // 100)]
        return {
            "steps": self.step,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "peak_rate": self.rate.peak,
            "batch": self.batch,
            "curve": [[step, round(loss, 5)] for step, loss in thinned],
        }
