"""Noise schedule, sampler steps and loss agree with the ADM equations, written here a second time."""

import math

import numpy as np
import pytest
import torch

from grafting_core.diffusion.samplers import respaced
from grafting_core.diffusion.schedule import (
    CONSTANTS,
    NoiseSchedule,
    add_noise,
    denoising_loss,
    learned_log_variance,
    linear_schedule,
    posterior_mean,
    predict_clean,
    schedule_from_betas,
)
from grafting_core.specs.sampling_steps import timesteps_of

BETAS = np.linspace(1e-4, 0.02, 1000, dtype=np.float64)
CUMULATIVE = np.cumprod(1 - BETAS)


def test_the_250_timesteps_are_adms() -> None:
    steps = timesteps_of(250)
    assert steps[:4] == [0, 4, 8, 12]
    assert steps[-4:] == [987, 991, 995, 999]
    assert len(set(steps)) == 250


def test_all_thousand_timesteps_give_the_original_betas() -> None:
    np.testing.assert_allclose(respaced(linear_schedule(), range(1000)).betas.numpy(), BETAS, rtol=1e-9)


def test_a_respaced_schedule_keeps_the_cumulative_products() -> None:
    kept = respaced(linear_schedule(), [0, 300, 999])
    np.testing.assert_allclose(kept.alphas_cumprod.numpy(), CUMULATIVE[[0, 300, 999]], rtol=1e-12)


@pytest.mark.parametrize("t", [1, 17, 500, 999])
def test_a_ddpm_step_is_adms(t: int) -> None:
    """Mean and variance of p(x_{t-1} | x_t) with learned range, from the published formulas."""
    torch.manual_seed(t)
    x, noise = torch.randn(2, 1, 4, 7, 7, dtype=torch.float64)
    fraction = torch.rand(1, 4, 7, 7, dtype=torch.float64) * 2 - 1
    a, before, beta = CUMULATIVE[t], CUMULATIVE[t - 1], BETAS[t]
    clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
    mean = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - a)
    smallest = math.log(beta * (1 - before) / (1 - a))
    log_variance = (fraction + 1) / 2 * math.log(beta) + (1 - fraction) / 2 * smallest
    schedule, where = linear_schedule(), torch.tensor([t])
    ours = posterior_mean(schedule, predict_clean(schedule, x, noise, where), x, where)
    torch.testing.assert_close(ours, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        learned_log_variance(schedule, fraction, where), log_variance, rtol=1e-10, atol=1e-10
    )


def test_predicting_clean_inverts_adding_noise() -> None:
    clean, noise = torch.randn(2, 3, 4, 7, 7, dtype=torch.float64)
    where, schedule = torch.tensor([0, 400, 999]), linear_schedule()
    noisy = add_noise(schedule, clean, noise, where)
    torch.testing.assert_close(predict_clean(schedule, noisy, noise, where), clean, rtol=1e-8, atol=1e-8)


def test_the_loss_of_a_perfect_prediction_is_the_bound_alone() -> None:
    """With the true noise the means agree, and a variance at the posterior's own leaves no divergence."""
    clean, noise = torch.randn(2, 1, 4, 7, 7, dtype=torch.float64)
    output = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    loss = denoising_loss(linear_schedule(), output, clean, noise, torch.tensor([500]))
    assert loss.item() == pytest.approx(0, abs=1e-9)


def test_the_variance_teaches_itself_and_the_noise_ignores_the_bound() -> None:
    clean, noise = torch.randn(2, 2, 4, 7, 7)
    output = torch.randn(2, 8, 7, 7, requires_grad=True)
    denoising_loss(linear_schedule(), output, clean, noise, torch.tensor([10, 900])).sum().backward()
    expected = 2 * (output[:, :4] - noise).detach() / noise[0].numel()
    assert output.grad is not None
    torch.testing.assert_close(output.grad[:, :4], expected)
    assert output.grad[:, 4:].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constants_are_computed_once_for_each_device_and_dtype(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are those of the formulas, to the bit."""
    asked: list[NoiseSchedule] = []

    def computed(schedule: NoiseSchedule) -> torch.Tensor:
        asked.append(schedule)
        return signal(schedule)

    signal = CONSTANTS["signal"]
    monkeypatch.setitem(CONSTANTS, "signal", computed)  # type: ignore[arg-type]  # a dictionary after all
    schedule, where = schedule_from_betas(torch.from_numpy(BETAS)), torch.tensor([0, 400, 999])
    for _ in range(3):
        found = schedule.at("signal", where, torch.zeros(3, 4, 7, 7, dtype=dtype))
    expected = schedule.alphas_cumprod.sqrt()[where].to(dtype)
    assert asked == [schedule]
    assert torch.equal(found, expected.view(3, 1, 1, 1))
    assert linear_schedule() is linear_schedule()
