"""Objectives: what a transformer was trained to predict, under which noise, and how samplers take it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from grafting_core.diffusion.schedule import (
    NoiseSchedule,
    add_noise,
    denoising_loss,
    schedule_of,
)
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.noise import FLOW, TrainingSchedule, noise_levels


@dataclass(frozen=True)
class Prediction:
    """A transformer's output as samplers take it.

    The noise in the latents; where it was learned, the fraction in [-1, 1] between the smallest and the
    largest variance of a step; of a predicted v the clean signal, which the noise alone gives with large
    rounding errors at high noise; of rectified flows the velocity.
    """

    noise: Tensor
    variance: Tensor | None = None
    clean: Tensor | None = None
    velocity: Tensor | None = None


class Objective(Protocol):
    """Of a backbone's pretraining, hence of stage 2, of its losses and of sampling.

    Timesteps are integers from 0, the one with the least noise.
    """

    @property
    def name(self) -> str:
        """On the cards of backbones."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the equal parts of the output along its channels."""

    @property
    def num_timesteps(self) -> int: ...

    @property
    def noise_levels(self) -> Sequence[float]:
        """Size of the noise beside the clean signal's, at every timestep."""

    def model_timesteps(self, timesteps_B: Tensor) -> Tensor:
        """Timesteps as the transformer takes them."""

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps [count] of a training batch."""

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noisy latents [B, C, h, w] as the transformer sees them."""

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the first part of the output should be."""

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        """Training loss of each sample [B]."""

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        """The output in the form that samplers take."""


@dataclass(frozen=True)
class _Trained:
    """What objectives have in common: timesteps drawn evenly, and the mean squared error as loss."""

    training: TrainingSchedule

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]] = ("noise",)

    @property
    def num_timesteps(self) -> int:
        return self.training.num_train_timesteps

    @property
    def noise_levels(self) -> Sequence[float]:
        return noise_levels(self.name, self.training)

    def model_timesteps(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, self.num_timesteps, (count,), generator=generator)

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return (output - self.target(clean, noise, timesteps_B)).square().flatten(1).mean(1)


class Epsilon(_Trained):
    """The noise, under a schedule of betas (Ho et al. 2020)."""

    name = "epsilon"

    @property
    def schedule(self) -> NoiseSchedule:
        return schedule_of(self.training)

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The noise schedule as diffusers' schedulers take it."""
        return self.training.model_dump(exclude={"shift"})

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_noise(self.schedule, clean, noise, timesteps_B)

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        return Prediction(output)


class EpsilonLearnedVariance(Epsilon):
    """Noise and the variance's fraction (DiT; Nichol & Dhariwal 2021)."""

    name = "epsilon_learned_variance"
    outputs = ("noise", "variance")

    def loss(self, output: Tensor, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return denoising_loss(self.schedule, output, clean, noise, timesteps_B)

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        return Prediction(*output.chunk(2, dim=1))


class VPrediction(Epsilon):
    """v = sqrt(abar) noise - sqrt(1 - abar) z (Salimans & Ho 2022)."""

    name = "v_prediction"
    outputs = ("velocity",)

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        signal, sigma = self._shares(timesteps_B, clean)
        return signal * noise - sigma * clean

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        signal, sigma = self._shares(timesteps_B, noisy)
        return Prediction(signal * output + sigma * noisy, clean=signal * noisy - sigma * output)

    def _shares(self, timesteps_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar)."""
        return self.schedule.at("signal", timesteps_B, like), self.schedule.at("noise", timesteps_B, like)


class FlowVelocity(_Trained):
    """Velocity, noise - z, of a rectified flow z_s = (1 - s) z + s noise (Liu et al. 2022).

    s is the noise level at a timestep, as diffusers' FlowMatchEulerDiscreteScheduler has it; the transformer
    sees s times the number of timesteps. Timesteps are drawn evenly.
    """

    name = FLOW
    outputs = ("velocity",)

    def level(self, timesteps_B: Tensor) -> Tensor:
        """s [B] in float64."""
        position, shift = (timesteps_B + 1).double() / self.num_timesteps, self.training.shift
        return shift * position / (1 + (shift - 1) * position)

    def model_timesteps(self, timesteps_B: Tensor) -> Tensor:
        return (self.level(timesteps_B) * self.num_timesteps).float()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        level = self._level_like(timesteps_B, clean)
        return (1 - level) * clean + level * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise - clean

    def prediction(self, output: Tensor, noisy: Tensor, timesteps_B: Tensor) -> Prediction:
        rest = 1 - self._level_like(timesteps_B, noisy)
        return Prediction(noisy + rest * output, velocity=output)

    def _level_like(self, timesteps_B: Tensor, like: Tensor) -> Tensor:
        return self.level(timesteps_B).to(like).view(-1, *[1] * (like.dim() - 1))


OBJECTIVES: Mapping[str, Callable[[TrainingSchedule], Objective]] = {
    objective.name: objective for objective in (EpsilonLearnedVariance, Epsilon, VPrediction, FlowVelocity)
}
"""By the name on a backbone's card; each is made of the schedule that the backbone was trained with."""


def objective_of(card: BackboneCard) -> Objective:
    """Raises ValueError for an objective that this version does not know."""
    if card.objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"{card.name} has the objective {card.objective!r}; known objectives: {known}")
    return _made(card.objective, card.schedule)


@lru_cache(maxsize=64)
def _made(name: str, schedule: TrainingSchedule) -> Objective:
    return OBJECTIVES[name](schedule)
