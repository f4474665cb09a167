"""Batches and budgets of the phases, and their precision."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from grafting_core.testbed.emoji.recipe.trainer import Budget

PHASES = ("autoencoder", "detector", "base", "high")
"""`base` trains transformer and text encoder at 64 pixels, `high` continues at 192 and 256."""

CPU_BATCHES: Mapping[str, int] = {"autoencoder": 32, "detector": 32, "base": 64, "high": 16}
CPU_STEPS: Mapping[str, int] = {"autoencoder": 1_500, "detector": 3_000, "base": 16_000, "high": 2_500}
"""Most of a day on two cores."""
GPU_BATCHES: Mapping[str, int] = {"autoencoder": 512, "detector": 512, "base": 1024, "high": 256}
GPU_STEPS: Mapping[str, int] = {"autoencoder": 8_000, "detector": 6_000, "base": 12_000, "high": 6_000}


@dataclass(frozen=True)
class Settings:
    """Limits and batches of one run of the recipe."""

    seed: int = 0
    device: str = "cpu"
    batches: Mapping[str, int] = field(default_factory=lambda: CPU_BATCHES)
    budgets: Mapping[str, Budget] = field(
        default_factory=lambda: {phase: Budget(CPU_STEPS[phase]) for phase in PHASES}
    )
    compiled: bool = False


def scaled_rate(rate: float, phase: str, batch: int) -> float:
    """Learning rate for another batch size than the CPU's: scaled by the fourth root of the ratio."""
    return float(rate * (batch / CPU_BATCHES[phase]) ** 0.25)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; weights, losses and EMA stay in float32, and on a CPU everything does.

    Many CPUs have no bfloat16 arithmetic and convolve ten times slower in it.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
