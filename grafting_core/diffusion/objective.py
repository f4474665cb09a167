"""Objectives: the target and noise schedule of a transformer's training, and conversion for samplers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from grafting_core.diffusion.schedule import NoiseSchedule, add_noise, denoising_loss, linear_schedule
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.sampling_steps import FIRST_BETA, LAST_BETA, NUM_TIMESTEPS, noise_levels


@dataclass(frozen=True)
class Prediction:
    """A transformer's output in the form for samplers: the noise in the latents and, if learned, the position
    in [-1, 1] between the smallest and the largest log variance of a step.
    """

    noise: Tensor
    variance: Tensor | None = None


class Objective(Protocol):
    """Objective of a backbone's pretraining; stage 2, losses and sampling use it too."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the equal parts of the output along its channels."""

    @property
    def num_timesteps(self) -> int: ...

    @property
    def noise_levels(self) -> Sequence[float]:
        """Size of the noise relative to the clean signal, at every timestep."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The noise schedule as arguments of diffusers' schedulers."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps [count] of a training batch."""

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents [B, C, h, w], the transformer's input."""

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """Training target of the first part of the output."""

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """Training loss of each sample [B]."""

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        """The output in the form for samplers."""


class EpsilonLearnedVariance:
    """Predicts noise and the variance's position, with the linear schedule (DiT; Nichol & Dhariwal 2021)."""

    outputs = ("noise", "variance")
    num_timesteps = NUM_TIMESTEPS
    noise_levels = noise_levels()
    scheduler_config: Mapping[str, Any] = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_start": FIRST_BETA,
        "beta_end": LAST_BETA,
        "beta_schedule": "linear",
    }

    @property
    def schedule(self) -> NoiseSchedule:
        return linear_schedule(self.num_timesteps)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.num_timesteps, (count,), generator=generator)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_noise(self.schedule, clean, noise, timesteps_B)

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return denoising_loss(self.schedule, output, clean, noise, timesteps_B)

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        return Prediction(*output.chunk(2, dim=1))


OBJECTIVES: Mapping[str, Objective] = {"epsilon_learned_variance": EpsilonLearnedVariance()}
"""Name on a backbone's card -> objective."""


def objective_of(card: BackboneCard) -> Objective:
    """Objective of a card. Raises ValueError for one that this version does not know."""
    if card.objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"{card.name} has the objective {card.objective!r}; known objectives: {known}")
    return OBJECTIVES[card.objective]
