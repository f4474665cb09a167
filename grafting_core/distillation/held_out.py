"""Held-out error: how closely distilled modules match the teacher on images that training never uses."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import CapturePoint, capture
from grafting_core.data.latents import Latents, predict_batch
from grafting_core.specs.plans import DistillPlan

TIMESTEP_BINS = 4
HELD_OUT_BATCH = 64


def timestep_bins(timesteps_B: Tensor, total: int) -> Tensor:
    """Index of each sample's quarter of `total` timesteps."""
    return (timesteps_B * TIMESTEP_BINS).div(total, rounding_mode="floor").long()


def bin_names(name: str, total: int) -> list[str]:
    """Names of the quarters of the timesteps: `name/t0-249` and so on."""
    width = total // TIMESTEP_BINS
    return [f"{name}/t{index * width}-{(index + 1) * width - 1}" for index in range(TIMESTEP_BINS)]


@torch.no_grad()
def held_out_errors(
    backbone: Backbone,
    modules: Mapping[str, tuple[CapturePoint, nn.Module]],
    plan: DistillPlan,
    held_out: Latents,
) -> dict[str, dict[str, float]]:
    """Normalised squared error of every module, by key, on `plan.held_out` draws of held-out images.

    `nmse` over all timesteps and `nmse/t0-249` ... by quarter; 0 is perfect, 1 equals predicting zero.
    """
    total = held_out.objective.num_timesteps
    sums = {key: torch.zeros(2, TIMESTEP_BINS, dtype=torch.float64) for key in modules}
    for index in range(0, plan.held_out, HELD_OUT_BATCH):
        size = min(HELD_OUT_BATCH, plan.held_out - index)
        batch = held_out.batch("held-out", plan.seed, index, size)
        error_sums: dict[CapturePoint, _ErrorSums] = {}
        for key, (capture_point, module) in modules.items():
            bins = timestep_bins(batch.timesteps, total)
            at_point = error_sums.setdefault(capture_point, _ErrorSums(bins, []))
            at_point.modules.append((module, sums[key]))
        with capture(backbone, error_sums):
            predict_batch(backbone, batch.to(backbone.device))
    return {key: _named_errors(summed, total) for key, summed in sums.items()}


@dataclass(frozen=True)
class _ErrorSums:
    """Adds squared error and squared target of every module at one capture point to its timestep bins."""

    bins: Tensor
    modules: list[tuple[nn.Module, Tensor]]

    def __call__(self, hidden_BTD: Tensor, target_BTD: Tensor) -> None:
        for module, sums in self.modules:
            output = module(hidden_BTD)
            for row, tensor in enumerate((output - target_BTD, target_BTD)):
                sums[row].index_add_(0, self.bins, tensor.double().square().flatten(1).sum(1).cpu())


def _named_errors(sums: Tensor, total: int) -> dict[str, float]:
    errors = {"nmse": float(sums[0].sum() / sums[1].sum())}
    for index, name in enumerate(bin_names("nmse", total)):
        if sums[1, index] > 0:
            errors[name] = float(sums[0, index] / sums[1, index])
    return errors
