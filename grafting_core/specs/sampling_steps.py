"""Timesteps of a protocol, which of them are guided, and the number of forwards per image."""

from collections.abc import Sequence
from itertools import accumulate

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.noise import NUM_TIMESTEPS, noise_levels
from grafting_core.specs.plans import EvaluationProtocol, Spacing


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


def guides(protocol: EvaluationProtocol, timestep: int, levels: Sequence[float]) -> bool:
    """Whether this step needs a second forward without conditions; `levels` are those of the objective."""
    if protocol.guidance_interval is None or protocol.guidance == 1:
        return protocol.guidance > 1
    low, high = protocol.guidance_interval
    return low < levels[timestep] <= high


def forwards_per_image(protocol: EvaluationProtocol, card: BackboneCard) -> int:
    """Forwards per sampled image: two at every guided step, one at the others."""
    levels = noise_levels(card.objective, card.schedule)
    visited = timesteps_of(protocol.sampling_steps, protocol.spacing, len(levels))
    return sum(2 if guides(protocol, timestep, levels) else 1 for timestep in visited)
