"""Moments of operators' outputs, which show the best loss for stage 1 (paper section 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import ActivationHook, capture_operators
from grafting_core.data.latents import Latents, predict_batch
from grafting_core.specs.site import GraftSite

OUTLIER_DEVIATIONS = 6.0
"""A value this many standard deviations from the mean is an outlier."""
BATCH = 64


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of all output values of one site; kurtosis is 3 for a normal distribution."""

    mean: float
    variance: float
    kurtosis: float
    maximum: float
    """Largest magnitude."""
    outlier_share: float


def activation_statistics(
    backbone: Backbone, latents: Latents, num_samples: int = 256, seed: int = 0
) -> dict[GraftSite, ActivationStatistics]:
    """Statistics of every site on noised latents at uniform timesteps; exact moments, in two passes.

    The second pass counts outliers by the mean and deviation of the first.
    """
    sites = backbone.card.sites
    sums = {site: _Sums() for site in sites}
    _pass(backbone, latents, num_samples, seed, {site: total.add for site, total in sums.items()})
    counts = {site: _Outliers(sums[site]) for site in sites}
    _pass(backbone, latents, num_samples, seed, {site: count.add for site, count in counts.items()})
    return {site: sums[site].statistics(counts[site].count) for site in sites}


@torch.no_grad()
def _pass(
    backbone: Backbone,
    latents: Latents,
    num_samples: int,
    seed: int,
    hooks: Mapping[GraftSite, ActivationHook],
) -> None:
    for index, start in enumerate(range(0, num_samples, BATCH)):
        batch = latents.batch("statistics", seed, index, min(BATCH, num_samples - start)).to(backbone.device)
        with capture_operators(backbone, hooks):
            predict_batch(backbone, batch)


@dataclass
class _Sums:
    """Power sums of values, in double precision."""

    powers: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))
    maximum: float = 0.0

    def add(self, hidden_BTD: Tensor, output_BTD: Tensor) -> None:
        values = output_BTD.double()
        self.powers += torch.stack([values.pow(power).sum() for power in range(5)]).cpu()
        self.maximum = max(self.maximum, values.abs().max().item())

    @property
    def mean(self) -> float:
        return (self.powers[1] / self.powers[0]).item()

    @property
    def variance(self) -> float:
        return (self.powers[2] / self.powers[0]).item() - self.mean**2

    def statistics(self, outliers: int) -> ActivationStatistics:
        m1, m2, m3, m4 = (self.powers[1:] / self.powers[0]).tolist()
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        variance = self.variance
        kurtosis = fourth / variance**2 if variance > 0 else 0.0
        share = outliers / self.powers[0].item()
        return ActivationStatistics(m1, variance, kurtosis, self.maximum, share)


@dataclass
class _Outliers:
    """Counts values far from the mean."""

    sums: _Sums
    count: int = 0

    def add(self, hidden_BTD: Tensor, output_BTD: Tensor) -> None:
        distance = (output_BTD.double() - self.sums.mean).abs()
        self.count += int((distance > OUTLIER_DEVIATIONS * self.sums.variance**0.5).sum())
