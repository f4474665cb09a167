"""From noise to latents, a step at a time: ancestral DDPM, DDIM and DPM-Solver++.

One object carries one batch; `timesteps` are visited in order, and `step` turns the latents at a timestep
and the prediction there into the latents at the next.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from grafting_core.diffusion.objective import Objective, Prediction
from grafting_core.diffusion.schedule import (
    NoiseSchedule,
    learned_log_variance,
    posterior_mean,
    predict_clean,
    schedule_from_betas,
)
from grafting_core.specs.plans import SamplerName, Spacing
from grafting_core.specs.sampling_steps import timesteps_of

Draw = Callable[[], Tensor]
"""Fresh noise of the latents' shape."""


class Sampler(Protocol):
    """One batch's way from noise to latents."""

    timesteps: Sequence[int]
    """Descending; of the full schedule."""

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        """Latents after the timestep at `position`, given what was predicted there."""
        ...


def respaced(schedule: NoiseSchedule, timesteps: Sequence[int]) -> NoiseSchedule:
    """The schedule that visits only these timesteps of the full one."""
    kept = schedule.alphas_cumprod[list(timesteps)]
    previous = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    return schedule_from_betas(1 - kept / previous)


class _Respaced:
    """What DDPM and DDIM share: a schedule of the visited timesteps alone."""

    def __init__(self, objective: Objective, timesteps: Sequence[int]) -> None:
        self.schedule = respaced(objective.schedule, timesteps)
        self.timesteps: Sequence[int] = list(reversed(timesteps))

    def _where(self, position: int, latents: Tensor) -> Tensor:
        place = len(self.timesteps) - 1 - position
        return torch.full((len(latents),), place, device=latents.device)


class Ancestral(_Respaced):
    """DDPM, with learned-range variance where it is predicted, as ADM and DiT sample (no clipping).

    Without it the variance is the posterior's, the smallest there is (Nichol & Dhariwal 2021).
    """

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        where = self._where(position, latents)
        clean = predict_clean(self.schedule, latents, predicted.noise, where)
        mean = posterior_mean(self.schedule, clean, latents, where)
        if position == len(self.timesteps) - 1:
            return mean
        return mean + torch.exp(0.5 * self._log_variance(predicted, where)) * draw()

    def _log_variance(self, predicted: Prediction, where: Tensor) -> Tensor:
        if predicted.variance is None:
            return self.schedule.at("low_log_variance", where, predicted.noise)
        return learned_log_variance(self.schedule, predicted.variance, where)


class Implicit(_Respaced):
    """DDIM without noise (Song et al. 2021, eta = 0); ends on the clean signal."""

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        noise = predicted.noise
        clean = predict_clean(self.schedule, latents, noise, self._where(position, latents))
        kept = self.schedule.alphas_cumprod_prev[len(self.timesteps) - 1 - position].to(latents)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise


class Multistep:
    """DPM-Solver++ (2M) by diffusers' scheduler; it remembers the step before, so it serves one batch."""

    def __init__(self, objective: Objective, timesteps: Sequence[int]) -> None:
        self.timesteps: Sequence[int] = list(reversed(timesteps))
        self.scheduler: Any = DPMSolverMultistepScheduler(
            **objective.scheduler_config,
            algorithm_type="dpmsolver++",
            solver_order=2,
            final_sigmas_type="zero",
        )
        self.scheduler.set_timesteps(timesteps=self.timesteps)

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        after: Tensor = self.scheduler.step(predicted.noise, self.timesteps[position], latents).prev_sample
        return after


SAMPLERS: Mapping[SamplerName, Callable[[Objective, Sequence[int]], Sampler]] = {
    "ddpm": Ancestral,
    "ddim": Implicit,
    "dpm_solver": Multistep,
}


def sampler_of(name: SamplerName, objective: Objective, steps: int, spacing: Spacing) -> Sampler:
    """A sampler for one batch."""
    return SAMPLERS[name](objective, timesteps_of(steps, spacing, objective.num_timesteps))
