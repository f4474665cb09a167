"""Tensors of Mask2Former with a Swin backbone, named and shaped as mmdet 2 saves them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]
SMALL = {"width": 24, "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 8)}
OFFICIAL = {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
WINDOW, DIM, LEVELS, POINTS, HEADS, QUERIES, CLASSES = 7, 256, 3, 4, 8, 100, 80


def layer(name: str, outputs: int, *inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, *inputs)
    yield f"{name}.bias", (outputs,)


def swin(width: int, depths: Sequence[int], heads: Sequence[int]) -> Shapes:
    yield from layer("backbone.patch_embed.projection", width, 3, 4, 4)
    yield from layer("backbone.patch_embed.norm", width)
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        dim = width * 2**stage
        for number in range(depth):
            block = f"backbone.stages.{stage}.blocks.{number}"
            yield from layer(f"{block}.norm1", dim)
            yield f"{block}.attn.w_msa.relative_position_bias_table", ((2 * WINDOW - 1) ** 2, head)
            yield f"{block}.attn.w_msa.relative_position_index", (WINDOW**2, WINDOW**2)
            yield from layer(f"{block}.attn.w_msa.qkv", 3 * dim, dim)
            yield from layer(f"{block}.attn.w_msa.proj", dim, dim)
            yield from layer(f"{block}.norm2", dim)
            yield from layer(f"{block}.ffn.layers.0.0", 4 * dim, dim)
            yield from layer(f"{block}.ffn.layers.1", dim, 4 * dim)
        if stage < 3:
            yield f"backbone.stages.{stage}.downsample.reduction.weight", (2 * dim, 4 * dim)
            yield from layer(f"backbone.stages.{stage}.downsample.norm", 4 * dim)
        yield from layer(f"backbone.norm{stage}", dim)


def pixel_decoder(width: int) -> Shapes:
    head = "panoptic_head.pixel_decoder"
    for number in range(LEVELS):
        yield from layer(f"{head}.input_convs.{number}.conv", DIM, width * 2 ** (3 - number), 1, 1)
        yield from layer(f"{head}.input_convs.{number}.gn", DIM)
    for number in range(6):
        encoder = f"{head}.encoder.layers.{number}"
        samples = HEADS * LEVELS * POINTS
        yield from layer(f"{encoder}.attentions.0.sampling_offsets", 2 * samples, DIM)
        yield from layer(f"{encoder}.attentions.0.attention_weights", samples, DIM)
        yield from layer(f"{encoder}.attentions.0.value_proj", DIM, DIM)
        yield from layer(f"{encoder}.attentions.0.output_proj", DIM, DIM)
        yield from layer(f"{encoder}.ffns.0.layers.0.0", 1024, DIM)
        yield from layer(f"{encoder}.ffns.0.layers.1", DIM, 1024)
        for norm in range(2):
            yield from layer(f"{encoder}.norms.{norm}", DIM)
    yield f"{head}.level_encoding.weight", (LEVELS, DIM)
    yield f"{head}.lateral_convs.0.conv.weight", (DIM, width, 1, 1)
    yield from layer(f"{head}.lateral_convs.0.gn", DIM)
    yield f"{head}.output_convs.0.conv.weight", (DIM, DIM, 3, 3)
    yield from layer(f"{head}.output_convs.0.gn", DIM)
    yield from layer(f"{head}.mask_feature", DIM, DIM, 1, 1)


def queries() -> Shapes:
    for number in range(9):
        decoder = f"panoptic_head.transformer_decoder.layers.{number}"
        for attention in range(2):
            yield f"{decoder}.attentions.{attention}.attn.in_proj_weight", (3 * DIM, DIM)
            yield f"{decoder}.attentions.{attention}.attn.in_proj_bias", (3 * DIM,)
            yield from layer(f"{decoder}.attentions.{attention}.attn.out_proj", DIM, DIM)
        yield from layer(f"{decoder}.ffns.0.layers.0.0", 2048, DIM)
        yield from layer(f"{decoder}.ffns.0.layers.1", DIM, 2048)
        for norm in range(3):
            yield from layer(f"{decoder}.norms.{norm}", DIM)
    yield from layer("panoptic_head.transformer_decoder.post_norm", DIM)
    yield "panoptic_head.query_embed.weight", (QUERIES, DIM)
    yield "panoptic_head.query_feat.weight", (QUERIES, DIM)
    yield "panoptic_head.level_embed.weight", (LEVELS, DIM)
    yield from layer("panoptic_head.cls_embed", CLASSES + 1, DIM)
    for number in (0, 2, 4):
        yield from layer(f"panoptic_head.mask_embed.{number}", DIM, DIM)


def shapes(width: int, depths: Sequence[int], heads: Sequence[int]) -> dict[str, tuple[int, ...]]:
    return dict([*swin(width, depths, heads), *pixel_decoder(width), *queries()])


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the small network; norms near one, so that activations stay finite."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes(**SMALL).items():
        tensor = 0.05 * torch.randn(shape, generator=generator)
        is_scale = name.endswith("weight") and len(shape) == 1
        state[name] = tensor + 1 if is_scale else tensor
        if name.endswith("relative_position_index"):
            state[name] = torch.zeros(shape, dtype=torch.long)
    return state
