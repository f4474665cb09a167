"""Held-out error of ways to initialise the merge of a pair, before any training.

`python -m benchmarks.merging` prints a table for the testbed: normalised squared error of every pair under
the mean of both branches (the reference), either branch alone, and the least-squares fit that stage 1
starts from.
"""

import argparse

import torch
from torch import nn

from grafting_core.backbones.registry import load_backbone
from grafting_core.data.datasets import encode_latents
from grafting_core.distillation.held_out import held_out_errors
from grafting_core.distillation.merge_init import fit_merges
from grafting_core.operators.parallel import mean_merge
from grafting_core.specs.design import ParallelPair
from grafting_core.specs.plans import DistillPlan
from grafting_core.surgery.parallel_blocks import PairCapture


def main() -> None:
    """Measure every pair of neighbours 2i, 2i + 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="testbed/dit-fashion")
    given = parser.parse_args()
    backbone = load_backbone(given.backbone)
    latents, width = encode_latents(backbone, 600), backbone.card.dims.width
    pairs = [ParallelPair(first=first) for first in range(0, backbone.card.depth - 1, 2)]
    fitted = fit_merges(backbone, pairs, latents, seed=0)
    print("| pair | mean | first side | second side | least squares |\n|---|---|---|---|---|")
    for pair in pairs:
        starts = {"mean": mean_merge(width), "first": side(width, 0), "second": side(width, 1)}
        modules = {
            name: (PairCapture(pair), merge) for name, merge in {**starts, "fit": fitted[pair]}.items()
        }
        errors = held_out_errors(backbone, modules, DistillPlan(held_out=256), latents)
        cells = [f"{found['nmse']:.4f}" for found in errors.values()]
        print(f"| {' | '.join([str(pair), *cells])} |", flush=True)


def side(width: int, which: int) -> nn.Linear:
    """Return a map that outputs one branch unchanged."""
    merge = mean_merge(width)
    parts = [torch.zeros(width, width), torch.zeros(width, width)]
    parts[which] = torch.eye(width)
    merge.weight.data = torch.cat(parts, dim=1)
    return merge


if __name__ == "__main__":
    main()
