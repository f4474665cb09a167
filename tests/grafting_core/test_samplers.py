"""The samplers are the published ones: ADM's equations written a second time, and diffusers' schedulers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.diffusion.objective import OBJECTIVES, Prediction
from grafting_core.diffusion.samplers import sampler_of
from grafting_core.diffusion.sampling import sample_generators, sample_labels, sample_latents
from grafting_core.specs.noise import TrainingSchedule
from grafting_core.specs.plans import EvaluationProtocol, SamplerName, Spacing
from grafting_core.specs.sampling_steps import timesteps_of
from grafting_core.testbed.networks import build_transformer

LINEAR: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
EPSILON = OBJECTIVES["epsilon_learned_variance"](TrainingSchedule())
SPACINGS: tuple[Spacing, ...] = ("linspace", "leading", "trailing")
COUNTS = (*range(1, 30), 50, 100, 249, 250, 333, 500, 999, 1000)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A random DiT in double precision."""
    torch.manual_seed(7)
    return build_transformer(depth=2).double().eval().requires_grad_(False)


def adm_timesteps(count: int) -> list[int]:
    """guided-diffusion's `space_timesteps(1000, [count])`: fractional strides, rounded, both ends kept."""
    stride = 1 if count <= 1 else 999 / (count - 1)
    place, found = 0.0, []
    for _ in range(count):
        found.append(round(place))
        place += stride
    return found


def adm_samples(
    network: nn.Module,
    timesteps: Sequence[int],
    guidance: float,
    channels: int,
    noises: Tensor,
    labels: Tensor,
) -> Tensor:
    """p_sample_loop of a respaced diffusion, LEARNED_RANGE and no clipping, under DiT's `forward_with_cfg`.

    `noises` [steps, n, C, h, w]: the first starts, the others are the steps'. All in float64.
    """
    full = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000, dtype=np.float64))
    betas, last = [], 1.0
    for t in timesteps:
        betas.append(1 - full[t] / last)
        last = full[t]
    beta = np.array(betas)
    bar = np.cumprod(1.0 - beta)
    before = np.append(1.0, bar[:-1])
    variance = beta * (1 - before) / (1 - bar)
    log_low = np.log(np.append(variance[1], variance[1:]))
    x = noises[0]
    both = torch.cat([labels, torch.full_like(labels, 10)])
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(both),), timesteps[i])
        out = network(torch.cat([x, x]), timestep=t, class_labels=both).sample
        eps, rest = out[:, :channels], out[:, channels:]
        cond, uncond = eps.chunk(2)
        mine = torch.cat([uncond + guidance * (cond - uncond), rest.chunk(2)[0]], dim=1)
        noise, fraction = mine[:, :4], (mine[:, 4:] + 1) / 2
        x0 = math.sqrt(1 / bar[i]) * x - math.sqrt(1 / bar[i] - 1) * noise
        mean = beta[i] * math.sqrt(before[i]) / (1 - bar[i]) * x0
        mean = mean + (1 - before[i]) * math.sqrt(1 - beta[i]) / (1 - bar[i]) * x
        log_variance = fraction * math.log(beta[i]) + (1 - fraction) * log_low[i]
        x = mean + torch.exp(0.5 * log_variance) * noises[len(timesteps) - i] if i else mean
    return x


@pytest.mark.parametrize(("steps", "channels"), [(25, "first_3"), (7, "all")])
def test_ddpm_is_adms_from_noise_to_latents(
    backbone: Backbone, network: nn.Module, steps: int, channels: Any
) -> None:
    protocol = EvaluationProtocol(
        sampling_steps=steps, guidance=1.5, guidance_channels=channels, micro_batch=3
    )
    ours = sample_latents(backbone, network, protocol, range(3))
    generators = sample_generators(protocol, range(3))
    noises = torch.stack(
        [torch.stack([torch.randn(4, 7, 7, generator=g) for g in generators]) for _ in range(steps)]
    )
    labels = sample_labels(protocol, 10, range(3))
    width = 3 if channels == "first_3" else 4
    theirs = adm_samples(network, adm_timesteps(steps), 1.5, width, noises.double(), labels)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_timesteps_are_adms_for_every_count() -> None:
    assert all(timesteps_of(count) == adm_timesteps(count) for count in range(2, 1001))
    assert timesteps_of(250)[::-1][:4] == [999, 995, 991, 987]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_distinct_and_diffusers_for_every_count(spacing: Spacing) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, **LINEAR)
    for count in COUNTS:
        scheduler.set_timesteps(count)
        ours = timesteps_of(count, spacing)
        assert len(set(ours)) == count
        if spacing != "linspace":  # where ADM's sum and numpy's product round ties apart
            assert ours == sorted(scheduler.timesteps.tolist())


def along(name: SamplerName, steps: int, spacing: Spacing, scheduler: Any) -> tuple[Tensor, Tensor]:
    """Ours and diffusers' latents for the same made-up outputs."""
    generator = torch.Generator().manual_seed(steps)
    sampler, started = sampler_of(name, EPSILON, steps, spacing), torch.randn(2, 4, 7, 7, generator=generator)
    ours = theirs = started
    for position, timestep in enumerate(sampler.timesteps):
        output = torch.randn(2, 8, 7, 7, generator=generator)
        ours = sampler.step(
            position, ours, Prediction(*output.chunk(2, dim=1)), lambda: torch.zeros(2, 4, 7, 7)
        )
        theirs = scheduler.step(output[:, :4], timestep, theirs).prev_sample
    return ours, theirs


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_is_diffusers(steps: int, spacing: Spacing) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, clip_sample=False, **LINEAR)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(*along("ddim", steps, spacing, scheduler), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_dpm_solver_is_diffusers(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing", final_sigmas_type="zero", **LINEAR)
    scheduler.set_timesteps(steps)
    assert torch.equal(*along("dpm_solver", steps, "trailing", scheduler))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver"])
def test_every_sampler_finds_a_point_from_its_exact_noise(name: SamplerName, spacing: Spacing) -> None:
    """With the noise that leads to one clean signal, and least variance, all end on that signal."""
    clean = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 2, 20, 1000):
        sampler = sampler_of(name, EPSILON, steps, spacing)
        latents = torch.ones_like(clean)
        for position, timestep in enumerate(sampler.timesteps):
            sigma = EPSILON.noise_levels[timestep]
            scale = 1 / math.sqrt(1 + sigma**2)
            noise = (latents - scale * clean) / (scale * sigma)
            predicted = Prediction(noise, torch.full_like(noise, -1.0))
            latents = sampler.step(position, latents, predicted, lambda: torch.zeros_like(clean))
        torch.testing.assert_close(latents.double(), clean, rtol=1e-3, atol=1e-3)
