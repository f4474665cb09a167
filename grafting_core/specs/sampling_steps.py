"""Timesteps of a protocol, which of them are guided, and the number of forwards per image."""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import sqrt

from grafting_core.specs.plans import EvaluationProtocol, Spacing

NUM_TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
"""First and last beta of DiT's linear schedule."""


def timesteps_of(steps: int, spacing: Spacing = "linspace", total: int = NUM_TIMESTEPS) -> list[int]:
    """Ascending, distinct timesteps, 1 to `total` of them (spacings as in Lin et al. 2024, Table 2).

    `linspace` spans the first to the last timestep and rounds as ADM's respacing does. `leading` starts at 0
    in equal strides, `trailing` ends at the last.
    """
    if spacing == "leading":
        return [index * (total // steps) for index in range(steps)]
    if spacing == "trailing":
        return [round(total - k * (total / steps)) - 1 for k in reversed(range(steps))]
    if steps == 1:
        return [total - 1]
    # Accumulated as in ADM, not multiplied: the rounding error decides values halfway between two timesteps.
    strides = [(total - 1) / (steps - 1)] * (steps - 1)
    return [round(place) for place in accumulate(strides, initial=0.0)]


@cache
def noise_levels() -> Sequence[float]:
    """sigma = sqrt((1 - abar) / abar) of every timestep: the noise's size relative to the clean signal's."""
    stride = (LAST_BETA - FIRST_BETA) / (NUM_TIMESTEPS - 1)
    alphas_bar = accumulate(
        (1 - FIRST_BETA - stride * index for index in range(NUM_TIMESTEPS)), lambda left, right: left * right
    )
    return [sqrt((1 - cumulative) / cumulative) for cumulative in alphas_bar]


def guides(protocol: EvaluationProtocol, timestep: int, levels: Sequence[float] | None = None) -> bool:
    """Whether this step needs a second forward without conditions; `levels` are DiT's by default."""
    if protocol.guidance_interval is None or protocol.guidance == 1:
        return protocol.guidance > 1
    low, high = protocol.guidance_interval
    return low < (levels or noise_levels())[timestep] <= high


def forwards_per_image(protocol: EvaluationProtocol) -> int:
    """Forwards per sampled image: two at every guided step, one at the others."""
    visited = timesteps_of(protocol.sampling_steps, protocol.spacing)
    return sum(2 if guides(protocol, timestep) else 1 for timestep in visited)
