"""Sensitivity of the teacher's prediction to grafts, which makes scions of any site and kind comparable.

The score is the mean squared difference of each part of the output (predicted noise, variance), by quarter
of the timesteps, on the same images, noise and timesteps for all. For equal variances the squared error of
the noise is the KL divergence up to a factor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Batch, Latents, predict_batch
from grafting_core.diffusion.objective import Objective
from grafting_core.distillation.held_out import TIMESTEP_BINS, bin_names, timestep_bins

SCORE_DRAWS = 64
SCORE_BATCH = 64


class Undoable(Protocol):
    """Result of surgery, which can be undone."""

    def undo(self) -> None: ...


Intervention = Callable[[], Undoable]
"""Puts operators into the backbone's transformer."""


def replace_one(
    backbone: Backbone,
    places: Mapping[str, Intervention],
    latents: Latents,
    draws: int = SCORE_DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Key -> `replace_one/noise`, `replace_one/noise/t0-249`, ..., `replace_one/variance/t750-999`.

    Interventions are made one at a time. The backbone is restored afterwards.
    """
    return {
        key: _named("replace_one", sums, latents.objective)
        for key, sums in _errors(backbone, places, latents, draws, seed).items()
    }


def restore_one(
    backbone: Backbone,
    parts: Mapping[str, Callable[[Sequence[str]], Undoable]],
    latents: Latents,
    draws: int = SCORE_DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Key -> `restore_one/...`: decrease of the error of all parts together when this one is left out.

    `parts[key]` puts in every part except those whose keys it receives.
    """
    places: dict[str, Intervention] = {"": partial(next(iter(parts.values())), ())}
    places |= {key: partial(place, (key,)) for key, place in parts.items()}
    sums = _errors(backbone, places, latents, draws, seed)
    full = _named("restore_one", sums.pop(""), latents.objective)
    return {
        key: {
            name: full[name] - value for name, value in _named("restore_one", each, latents.objective).items()
        }
        for key, each in sums.items()
    }


@dataclass
class _Sums:
    """Sums of squared differences [outputs, bins], and numbers of values [bins]."""

    squares: Tensor
    counts: Tensor


@torch.no_grad()
def _errors(
    backbone: Backbone, places: Mapping[str, Intervention], latents: Latents, draws: int, seed: int
) -> dict[str, _Sums]:
    bins, outputs, total = TIMESTEP_BINS, len(latents.objective.outputs), latents.objective.num_timesteps
    sums = {
        key: _Sums(torch.zeros(outputs, bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64))
        for key in places
    }
    timesteps = (torch.arange(draws) * total + total // 2) // draws
    for index, part in enumerate(timesteps.split(SCORE_BATCH)):
        predict = _predictor(backbone, latents, seed, index, part)
        teacher = predict()
        for key, place in places.items():
            undo = place()
            try:
                _add(sums[key], teacher, predict(), timestep_bins(part, total))
            finally:
                undo.undo()
    return sums


def _predictor(
    backbone: Backbone, latents: Latents, seed: int, index: int, timesteps_B: Tensor
) -> Callable[[], Tensor]:
    batch = latents.batch("scores", seed, index, len(timesteps_B)).to(backbone.device)
    steps = timesteps_B.to(backbone.device)
    return partial(predict_batch, backbone, Batch(batch.clean, batch.noise, steps, batch.conditions))


def _add(sums: _Sums, teacher: Tensor, changed: Tensor, bins_B: Tensor) -> None:
    difference = (changed - teacher).double().square().cpu()
    for row, half in enumerate(difference.chunk(len(sums.squares), dim=1)):
        sums.squares[row].index_add_(0, bins_B, half.flatten(1).mean(1))
    sums.counts.index_add_(0, bins_B, torch.ones(len(bins_B), dtype=torch.float64))


def _named(name: str, sums: _Sums, objective: Objective) -> dict[str, float]:
    named: dict[str, float] = {}
    for row, half in enumerate(objective.outputs):
        named[f"{name}/{half}"] = float(sums.squares[row].sum() / sums.counts.sum())
        for index, label in enumerate(bin_names(f"{name}/{half}", objective.num_timesteps)):
            if sums.counts[index]:
                named[label] = float(sums.squares[row, index] / sums.counts[index])
    return named
