"""Forward process, its posterior, and DiT's training loss (linear betas, T = 1000)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from grafting_core.specs.noise import FIRST_BETA, LAST_BETA, NUM_TIMESTEPS, TrainingSchedule, betas_of

Constant = Literal[
    "signal",
    "noise",
    "clean_from_noisy",
    "clean_from_noise",
    "mean_from_clean",
    "mean_from_noisy",
    "low_log_variance",
    "high_log_variance",
    "is_first",
]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Constants by timestep in float64, shape [T]; names follow Ho et al. 2020.

    Do not change them in place: schedules are cached and shared.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    _tables: dict[tuple[Constant, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False
    )

    @property
    def posterior_variance(self) -> Tensor:
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @property
    def posterior_log_variance(self) -> Tensor:
        """Clipped at t = 0, where the variance is zero, to the value at t = 1."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2], variance[1:]]).log() if len(variance) > 1 else self.betas.log()

    @property
    def x0_coefficient(self) -> Tensor:
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @property
    def xt_coefficient(self) -> Tensor:
        return (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    def at(self, name: Constant, timesteps_B: Tensor, like: Tensor) -> Tensor:
        """A constant at each sample's timestep, with `like`'s dtype and device, shaped to broadcast over it.

        Computed in float64 on the CPU and cached for each device and dtype.
        """
        where = (name, like.device, like.dtype)
        if where not in self._tables:
            self._tables[where] = CONSTANTS[name](self).to(like.device, like.dtype)
        return self._tables[where][timesteps_B].view(-1, *[1] * (like.dim() - 1))


CONSTANTS: Mapping[Constant, Callable[[NoiseSchedule], Tensor]] = {
    "signal": lambda schedule: schedule.alphas_cumprod.sqrt(),
    "noise": lambda schedule: (1 - schedule.alphas_cumprod).sqrt(),
    "clean_from_noisy": lambda schedule: (1 / schedule.alphas_cumprod).sqrt(),
    "clean_from_noise": lambda schedule: (1 / schedule.alphas_cumprod - 1).sqrt(),
    "mean_from_clean": lambda schedule: schedule.x0_coefficient,
    "mean_from_noisy": lambda schedule: schedule.xt_coefficient,
    "low_log_variance": lambda schedule: schedule.posterior_log_variance,
    "high_log_variance": lambda schedule: schedule.betas.log(),
    "is_first": lambda schedule: torch.arange(len(schedule.betas)) == 0,
}
"""Constants of the forward process, its inverse, the posterior and the learned variance."""


def schedule_from_betas(betas: Tensor) -> NoiseSchedule:
    """Schedule of any float64 betas [T]."""
    cumulative = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=betas.dtype), cumulative[:-1]])
    return NoiseSchedule(betas, cumulative, previous)


@lru_cache
def linear_schedule(num_timesteps: int = NUM_TIMESTEPS) -> NoiseSchedule:
    """Schedule with betas from 1e-4 to 0.02, as in DiT."""
    return schedule_from_betas(torch.linspace(FIRST_BETA, LAST_BETA, num_timesteps, dtype=torch.float64))


@lru_cache(maxsize=64)
def schedule_of(training: TrainingSchedule) -> NoiseSchedule:
    """The schedule of a backbone's card."""
    if training.beta_schedule == "linear":
        ends, total = (training.beta_start, training.beta_end), training.num_train_timesteps
        return schedule_from_betas(torch.linspace(*ends, total, dtype=torch.float64))
    return schedule_from_betas(torch.tensor(betas_of(training), dtype=torch.float64))


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """Sample of q(z_t | z) for given noise: sqrt(abar) z + sqrt(1 - abar) noise."""
    signal = schedule.at("signal", timesteps_B, clean)
    sigma = schedule.at("noise", timesteps_B, clean)
    return signal * clean + sigma * noise


def predict_clean(schedule: NoiseSchedule, noisy: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """Clean latents from noisy ones and the predicted noise; inverse of `add_noise`."""
    scaled = schedule.at("clean_from_noisy", timesteps_B, noisy) * noisy
    return scaled - schedule.at("clean_from_noise", timesteps_B, noisy) * noise


def posterior_mean(schedule: NoiseSchedule, clean: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Tensor:
    """Mean of q(z_{t-1} | z_t, z)."""
    from_clean = schedule.at("mean_from_clean", timesteps_B, noisy) * clean
    return from_clean + schedule.at("mean_from_noisy", timesteps_B, noisy) * noisy


def learned_log_variance(schedule: NoiseSchedule, fraction: Tensor, timesteps_B: Tensor) -> Tensor:
    """Log variance, interpolated by `fraction` in [-1, 1] from posterior to beta (Nichol & Dhariwal 2021)."""
    low = schedule.at("low_log_variance", timesteps_B, fraction)
    high = schedule.at("high_log_variance", timesteps_B, fraction)
    share = (fraction + 1) / 2
    return share * high + (1 - share) * low


def denoising_loss(
    schedule: NoiseSchedule, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor
) -> Tensor:
    """DiT's training loss per sample [B]: noise MSE plus the variational bound of the learned variance.

    `output` [B, 2C, h, w] has predicted noise and variance fraction. The bound gets the predicted
    noise detached, so that it trains only the variance; it is scaled by T / 1000.
    """
    predicted, fraction = output.chunk(2, dim=1)
    noisy = add_noise(schedule, clean, noise, timesteps_B)
    error = (predicted - noise).square().flatten(1).mean(1)
    bound = variational_bound(schedule, predicted.detach(), fraction, clean, noisy, timesteps_B)
    return error + bound * (len(schedule.betas) / 1000)


def variational_bound(
    schedule: NoiseSchedule,
    predicted: Tensor,
    fraction: Tensor,
    clean: Tensor,
    noisy: Tensor,
    timesteps_B: Tensor,
) -> Tensor:
    """Bits per dimension [B] of one step: KL to the true posterior, at t = 0 the discretised likelihood."""
    true_mean = posterior_mean(schedule, clean, noisy, timesteps_B)
    true_log_variance = schedule.at("low_log_variance", timesteps_B, noisy)
    mean = posterior_mean(
        schedule, predict_clean(schedule, noisy, predicted, timesteps_B), noisy, timesteps_B
    )
    log_variance = learned_log_variance(schedule, fraction, timesteps_B)
    divergence = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    likelihood = -_discretised_log_likelihood(clean, mean, 0.5 * log_variance)
    is_first = schedule.at("is_first", timesteps_B, mean).bool()
    bits = torch.where(is_first, likelihood, divergence)
    return bits.flatten(1).mean(1) / math.log(2)


def _gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    spread = log_variance_2 - log_variance_1 + torch.exp(log_variance_1 - log_variance_2)
    return 0.5 * (spread - 1 + (mean_1 - mean_2).square() * torch.exp(-log_variance_2))


def _discretised_log_likelihood(clean: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log mass of the bin of width 2/255 around `clean`, with open ends beyond +-0.999 (as in ADM)."""
    inverse = torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (clean - mean + 1 / 255))
    lower = _normal_cdf(inverse * (clean - mean - 1 / 255))
    inner = (upper - lower).clamp(min=1e-12).log()
    below = torch.where(clean < -0.999, upper.clamp(min=1e-12).log(), inner)
    return torch.where(clean > 0.999, (1 - lower).clamp(min=1e-12).log(), below)


def _normal_cdf(value: Tensor) -> Tensor:
    """ADM's tanh approximation, used so that losses agree to the digit."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value.pow(3))))
