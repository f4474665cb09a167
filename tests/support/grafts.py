"""Grafts of a small DiT and of the testbed: one site, a mix of kinds, pairs."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.specs.design import GraftDesign, ParallelPair, Part
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of, replacement
from tests.support.diffusers_folders import change_config, write_folder

DEPTH = 6
SHAPES: dict[str, tuple[Part, ...]] = {
    "one site": (replacement("hyena_x", 1),),
    "a mix": (
        replacement("window_attention_2d", 0),
        replacement("mlp", 0, ratio=2.5),
        replacement("mamba2", 1),
        replacement("conv_mlp", 2),
        replacement("hyena_se_bidirectional", 3),
        replacement("mlp_hyena_x", 3),
        replacement("identity", 5),
    ),
    "pairs": (ParallelPair(first=0), ParallelPair(first=3)),
    "pairs of grafts": (replacement("hyena_y", 1), replacement("mlp", 2, ratio=3.0), ParallelPair(first=1)),
}
"""Parts of a design of at least six blocks."""


def small_backbone(folder: Path) -> Backbone:
    """A DiT of six blocks with random weights, read from a folder as a registered one is."""
    card = read_card(write_folder(folder, num_layers=DEPTH), name="own/dit", licence="cc-by-4.0")
    return load_registered(card, torch.device("cpu"))


def original_backbone(folder: Path, **changes: Any) -> Backbone:
    """A DiT of the same sizes, or of others, with the arithmetic of the original implementation."""
    write_folder(folder, **{"num_layers": DEPTH, **changes})
    change_config(folder / "transformer", _class_name="GraftedDiT", arithmetic="original", norm_eps=1e-6)
    return load_registered(read_card(folder, name="own/original"), torch.device("cpu"))


def grafted(backbone: Backbone, design: GraftDesign) -> nn.Module:
    """A copy of the transformer with the design's parts, every weight of which is drawn at random."""
    graft = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    operate(graft, design)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for parameter in graft.transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return graft.transformer.eval()


def graft_of(backbone: Backbone, *parts: Part) -> tuple[GraftDesign, nn.Module]:
    design = design_of(backbone, *parts)
    return design, grafted(backbone, design)


def forward(backbone: Backbone, transformer: nn.Module, rows: int = 3) -> Tensor:
    """Output for random latents at several timesteps and labels, the null label among them."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(rows, *backbone.latent_shape, generator=generator)
    timesteps = torch.tensor([0, 417, 999])[:rows]
    labels = torch.tensor([0, 3, backbone.card.num_classes])[:rows]
    with torch.no_grad():
        output: Tensor = transformer(latents, timestep=timesteps, class_labels=labels).sample
    return output
