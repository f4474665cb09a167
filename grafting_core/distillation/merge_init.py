"""Initial weights of a pair's merge, and its distillation in stage 1 (paper section 6).

The paper does not say how the merge is initialised. Here it is the linear map from both blocks' outputs to
the output of the pair in sequence, fitted by least squares on a few noised batches: on a small DiT its error
is 3 to 60 times lower than that of the mean of the outputs (`benchmarks.merging`).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import capture
from grafting_core.data.latents import Latents, predict_batch
from grafting_core.distillation.student import StudentSpec
from grafting_core.operators.parallel import mean_merge
from grafting_core.specs.design import ParallelPair
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.scions import PAIR_LOSS
from grafting_core.surgery.parallel_blocks import PairCapture

FIT_BATCHES, FIT_BATCH = 8, 64
"""More batches reduce the remaining error by less than 2 %."""
RIDGE = 1e-4
"""Regularisation towards the mean of the outputs, relative to the inputs' mean square."""


@torch.no_grad()
def fit_merges(
    backbone: Backbone, pairs: Sequence[ParallelPair], latents: Latents, seed: int
) -> dict[ParallelPair, nn.Linear]:
    """Least-squares merges of all pairs in one pass of the teacher, each as if fitted alone."""
    fits = {pair: _NormalEquations(backbone.card.dims.width) for pair in pairs}
    for index in range(FIT_BATCHES if pairs else 0):
        batch = latents.batch("merge", seed, index, FIT_BATCH).to(backbone.device)
        with capture(backbone, {PairCapture(pair): fit.add for pair, fit in fits.items()}):
            predict_batch(backbone, batch)
    return {pair: fit.merge() for pair, fit in fits.items()}


class _NormalEquations:
    """Normal equations of one merge, in double precision; the last input is the constant one."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.gram = torch.zeros(2 * width + 1, 2 * width + 1, dtype=torch.float64)
        self.cross = torch.zeros(2 * width + 1, width, dtype=torch.float64)

    def add(self, sides_BTD: Tensor, target_BTD: Tensor) -> None:
        rows, targets = (tensor.flatten(0, 1).double().cpu() for tensor in (sides_BTD, target_BTD))
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        self.gram += rows.T @ rows
        self.cross += rows.T @ targets

    def merge(self) -> nn.Linear:
        merge = mean_merge(self.width)
        start = torch.cat([merge.weight, merge.bias[:, None]], dim=1).double().T
        pull = RIDGE * self.gram.diagonal().mean()
        eye = torch.eye(len(self.gram), dtype=torch.float64)
        solution = torch.linalg.solve(self.gram + pull * eye, self.cross + pull * start)
        merge.weight.copy_(solution[:-1].T)
        merge.bias.copy_(solution[-1])
        return merge


def merge_student(pair: ParallelPair, plan: DistillPlan, key: str, start: nn.Linear) -> StudentSpec:
    """Student for the merge of one pair, trained together with all other students; `start` is not changed."""
    build: Callable[[Backbone], nn.Module] = partial(_copy, start=start)
    return StudentSpec(key, str(pair), PairCapture(pair), build, plan, PAIR_LOSS)


def _copy(backbone: Backbone, start: nn.Linear) -> nn.Module:
    return copy.deepcopy(start)
