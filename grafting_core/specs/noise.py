"""Noise schedules that backbones are trained with, and the objectives that they are trained on."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import cos, inf, pi, sqrt
from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.base import Frozen

NUM_TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
"""Ends of DiT's linear schedule."""
MOST_BETA = 0.999

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Beta = Annotated[float, Field(gt=0, lt=1)]


class TrainingSchedule(Frozen):
    """How much noise there is at each timestep; fields are named as in diffusers' scheduler configs.

    `beta_*` are those of diffusion; `shift` is that of rectified flows, whose noise level at timestep t is
    shift * u / (1 + (shift - 1) * u) with u = (t + 1) / `num_train_timesteps`.
    """

    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = NUM_TIMESTEPS
    beta_start: Beta = FIRST_BETA
    beta_end: Beta = LAST_BETA
    beta_schedule: BetaSchedule = "linear"
    shift: Annotated[float, Field(gt=0, le=100)] = 1.0


FLOW = "flow_velocity"
LEARNED_VARIANCE = frozenset({"epsilon_learned_variance"})
"""Objectives whose output holds a variance beside the prediction, and so has twice the channels."""


def betas_of(schedule: TrainingSchedule) -> list[float]:
    """Variance that each timestep adds."""
    total = schedule.num_train_timesteps
    if schedule.beta_schedule == "squaredcos_cap_v2":
        kept = [cos((step / total + 0.008) / 1.008 * pi / 2) ** 2 for step in range(total + 1)]
        return [min(1 - after / before, MOST_BETA) for before, after in pairwise(kept)]
    power = 2 if schedule.beta_schedule == "scaled_linear" else 1
    first, last = (end ** (1 / power) for end in (schedule.beta_start, schedule.beta_end))
    stride = (last - first) / max(1, total - 1)
    return [(first + stride * index) ** power for index in range(total)]


@lru_cache(maxsize=64)
def noise_levels(objective: str, schedule: TrainingSchedule) -> Sequence[float]:
    """Size of the noise beside the clean signal's at every timestep; infinite where no signal is left."""
    if objective == FLOW:
        total, shift = schedule.num_train_timesteps, schedule.shift
        positions = ((index + 1) / total for index in range(total))
        shares = (shift * position / (1 + (shift - 1) * position) for position in positions)
        return [share / (1 - share) if share < 1 else inf for share in shares]
    kept = accumulate((1 - beta for beta in betas_of(schedule)), lambda left, each: left * each)
    return [sqrt((1 - cumulative) / cumulative) for cumulative in kept]
