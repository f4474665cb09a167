"""Samplers from noise to latents, step by step: ancestral DDPM, DDIM, DPM-Solver++, and Euler for flows.

One object samples one batch; `timesteps` are used in order, and `step` maps the latents at a timestep and
the prediction there to the latents at the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from grafting_core.diffusion.objective import Epsilon, FlowVelocity, Objective, Prediction, VPrediction
from grafting_core.diffusion.schedule import (
    NoiseSchedule,
    learned_log_variance,
    posterior_mean,
    predict_clean,
    schedule_from_betas,
)
from grafting_core.specs.plans import SamplerName, Spacing
from grafting_core.specs.sampling_rules import SAMPLERS_OF
from grafting_core.specs.sampling_steps import timesteps_of

Draw = Callable[[], Tensor]
"""Gives new noise of the latents' shape."""


class Sampler(Protocol):
    """Sampler of one batch, from noise to latents."""

    timesteps: Sequence[int]
    """Timesteps of the full schedule, descending."""

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        """Latents after the timestep at `position`, from the prediction there."""
        ...


def respaced(schedule: NoiseSchedule, timesteps: Sequence[int]) -> NoiseSchedule:
    """Schedule with only these timesteps of the full one."""
    alphas = schedule.alphas_cumprod[list(timesteps)]
    previous = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return schedule_from_betas(1 - alphas / previous)


class _Respaced:
    """Base of DDPM and DDIM: a schedule of the used timesteps."""

    def __init__(self, objective: Epsilon, timesteps: Sequence[int]) -> None:
        self.schedule = respaced(objective.schedule, timesteps)
        self.timesteps: Sequence[int] = list(reversed(timesteps))

    def _clean(self, latents: Tensor, predicted: Prediction, where: Tensor) -> Tensor:
        if predicted.clean is not None:
            return predicted.clean
        return predict_clean(self.schedule, latents, predicted.noise, where)

    def _where(self, position: int, latents: Tensor) -> Tensor:
        place = len(self.timesteps) - 1 - position
        return torch.full((len(latents),), place, device=latents.device)


class Ancestral(_Respaced):
    """DDPM with learned-range variance if it is predicted, sampled as in ADM and DiT (no clipping).

    Otherwise the variance is the posterior's, the smallest possible (Nichol & Dhariwal 2021).
    """

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        where = self._where(position, latents)
        clean = self._clean(latents, predicted, where)
        mean = posterior_mean(self.schedule, clean, latents, where)
        if position == len(self.timesteps) - 1:
            return mean
        return mean + torch.exp(0.5 * self._log_variance(predicted, where)) * draw()

    def _log_variance(self, predicted: Prediction, where: Tensor) -> Tensor:
        if predicted.variance is None:
            return self.schedule.at("low_log_variance", where, predicted.noise)
        return learned_log_variance(self.schedule, predicted.variance, where)


class Implicit(_Respaced):
    """DDIM without noise (Song et al. 2021, eta = 0); the last step gives the clean signal."""

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        clean = self._clean(latents, predicted, self._where(position, latents))
        kept = self.schedule.alphas_cumprod_prev[len(self.timesteps) - 1 - position].to(latents)
        return kept.sqrt() * clean + (1 - kept).sqrt() * predicted.noise


class Multistep:
    """DPM-Solver++ (2M) by diffusers' scheduler; it stores the previous step, so it serves one batch."""

    def __init__(self, objective: Epsilon, timesteps: Sequence[int]) -> None:
        self.timesteps: Sequence[int] = list(reversed(timesteps))
        self.scheduler: Any = DPMSolverMultistepScheduler(
            **objective.scheduler_config,
            prediction_type="sample" if isinstance(objective, VPrediction) else "epsilon",
            algorithm_type="dpmsolver++",
            solver_order=2,
            final_sigmas_type="zero",
        )
        self.scheduler.set_timesteps(timesteps=self.timesteps)

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        output = predicted.noise if predicted.clean is None else predicted.clean
        after: Tensor = self.scheduler.step(output, self.timesteps[position], latents).prev_sample
        return after


class FlowEuler:
    """Euler's method along a rectified flow's velocity, to the clean signal."""

    def __init__(self, objective: FlowVelocity, timesteps: Sequence[int]) -> None:
        self.timesteps: Sequence[int] = list(reversed(timesteps))
        self.levels = [*objective.level(torch.tensor(self.timesteps)).tolist(), 0.0]

    def step(self, position: int, latents: Tensor, predicted: Prediction, draw: Draw) -> Tensor:
        if predicted.velocity is None:
            raise ValueError("flow_euler follows a velocity, which this objective does not predict")
        after: Tensor = latents + (self.levels[position + 1] - self.levels[position]) * predicted.velocity
        return after


SAMPLERS: Mapping[SamplerName, Callable[[Any, Sequence[int]], Sampler]] = {
    "ddpm": Ancestral,
    "ddim": Implicit,
    "dpm_solver": Multistep,
    "flow_euler": FlowEuler,
}


def sampler_of(name: SamplerName, objective: Objective, steps: int, spacing: Spacing) -> Sampler:
    """New sampler for one batch. Raises ValueError if it does not go with the objective."""
    fitting = SAMPLERS_OF.get(objective.name, ())
    if name not in fitting:
        raise ValueError(f"{name} does not sample {objective.name} models; use {' or '.join(fitting)}")
    return SAMPLERS[name](objective, timesteps_of(steps, spacing, objective.num_timesteps))
