"""Fast forward of a DiT for sampling: equals `transformer(...)` up to rounding, in half the time on a CPU.

All samples of a batch have the same timestep, and classes repeat. So the embedder and adaLN modulation of a
block, which depend on (timestep, label), are computed once per class and looked up per sample. Blocks process
tiles of samples whose activations stay in the CPU's cache. Modules are the network's own and nothing is
copied, so a network may be edited or trained between two calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from grafting_core.backbones.base import Forward
from grafting_core.backbones.conditions import Conditions
from grafting_core.backbones.kernels import apply, linear
from grafting_core.backbones.original_dit import OriginalDiT, guided_here
from grafting_core.operators.parallel import ParallelBlocks

LABELS = "class_labels"
"""Argument name of the labels [B] in diffusers' DiT and its blocks."""
TILE_BYTES = 3 * 2**19
"""Size of the widest activation, chosen so that it and its input fit into a core's cache."""


def forward_of(transformer: nn.Module) -> Forward:
    """Fast forward of a DiT in evaluation mode without hooks, else the network's own forward."""
    known = type(transformer) in (DiTTransformer2DModel, OriginalDiT)
    if known and not transformer.training and not _has_hooks(transformer):
        return FastForward(transformer)
    return PlainForward(transformer)


def _has_hooks(transformer: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in transformer.modules())


@dataclass(frozen=True)
class PlainForward:
    """The network's own forward."""

    transformer: nn.Module

    def __call__(self, latents_BCHW: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        timesteps_B = torch.full((len(latents_BCHW),), timestep, device=latents_BCHW.device)
        with guided_here():
            output: Tensor = self.transformer(
                latents_BCHW, timestep=timesteps_B, **conditions.arguments
            ).sample
        return output


@dataclass(frozen=True)
class FastForward:
    """Fast forward; see the module's docstring. Inference only, without gradients."""

    transformer: Any

    @torch.no_grad()
    def __call__(self, latents_BCHW: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        network = self.transformer
        # The patch convolution puts channels outermost; without a copy all later sums would keep that order.
        hidden_BTD = network.pos_embed(latents_BCHW).contiguous()
        batch = _Labels(timestep, *_vocabulary(network, conditions.by_row[LABELS]))
        steps = [_step_of(block, batch, hidden_BTD.dtype) for block in network.transformer_blocks]
        last = _last_step(network, batch, hidden_BTD.dtype)
        tiles = [
            _through(steps, last, tile, rows)
            for tile, rows in zip(*_tiled(hidden_BTD, batch.rows), strict=True)
        ]
        return _unpatchified(network, torch.cat(tiles))


@dataclass(frozen=True)
class _Labels:
    """One timestep, labels [K], and the label of each sample: rows [B]."""

    timestep: float
    labels: Tensor
    rows: Tensor


def _vocabulary(network: Any, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """All labels of the network if they are fewer than the samples, else the samples' own.

    Not the distinct labels: their number would change shapes, and so low bits, from batch to batch.
    """
    known = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings
    if known <= len(labels_B):
        return torch.arange(known, device=labels_B.device), labels_B
    return labels_B, torch.arange(len(labels_B), device=labels_B.device)


class _Step(Protocol):
    """A part of the network on a tile [n, T, D]; `rows` [n] select the conditions of its samples."""

    def __call__(self, hidden_BTD: Tensor, rows: Tensor) -> Tensor: ...


def _through(steps: Sequence[_Step], last: _Step, hidden_BTD: Tensor, rows: Tensor) -> Tensor:
    for step in steps:
        hidden_BTD = step(hidden_BTD, rows)
    return last(hidden_BTD, rows)


def _tiled(hidden_BTD: Tensor, rows: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Tiles of equal size except the last; a single tile on devices that are fastest that way."""
    batch, tokens, width = hidden_BTD.shape
    if hidden_BTD.device.type != "cpu":
        return [hidden_BTD], [rows]
    most = max(1, TILE_BYTES // (tokens * 4 * width * hidden_BTD.element_size()))
    size = -(-batch // -(-batch // most))
    return hidden_BTD.split(size), rows.split(size)


def _step_of(block: Any, batch: _Labels, dtype: torch.dtype) -> _Step:
    if isinstance(block, ParallelBlocks):
        return _PairStep([_step_of(side, batch, dtype) for side in block.sides], block.merge)
    if not _is_known(block):
        return _OwnStep(block, batch)
    embedded_KD = _embedded(block.norm1.emb, batch, dtype)
    modulation = linear(block.norm1.linear, silu(embedded_KD)).unflatten(1, (6, 1, -1))
    modulation[:, 1::3] += 1
    return _BlockStep(block, modulation)


def _is_known(block: Any) -> bool:
    """Whether it is a diffusers adaLN-zero block with only self-attention and feed-forward."""
    if type(block) is not BasicTransformerBlock or type(block.norm1) is not AdaLayerNormZero:
        return False
    extras = (block.attn2, block.pos_embed, block._chunk_size)
    plain: bool = all(extra is None for extra in extras) and block.norm1.emb is not None
    return plain and not block.only_cross_attention


def _embedded(embedder: Any, batch: _Labels, dtype: torch.dtype) -> Tensor:
    """Sum of timestep and label embedding [K, D]; the timestep's part is computed once."""
    timestep_1 = torch.tensor([batch.timestep], device=batch.labels.device)
    projected = embedder.time_proj(timestep_1).to(dtype)
    conditioning: Tensor = embedder.timestep_embedder(projected) + embedder.class_embedder(batch.labels)
    return conditioning


@dataclass(frozen=True)
class _BlockStep:
    """Block with `modulation` [K, 6, 1, D]: shift, 1 + scale, gate of attention, and of the feed-forward."""

    block: Any
    modulation: Tensor

    def __call__(self, hidden_BTD: Tensor, rows: Tensor) -> Tensor:
        block, parts = self.block, self.modulation[rows].unbind(1)
        normed_BTD = _normed(block.norm1.norm, hidden_BTD)
        mixed_BTD = apply(block.attn1, torch.addcmul(parts[0], normed_BTD, parts[1]))
        hidden_BTD = torch.addcmul(hidden_BTD, parts[2], mixed_BTD)
        normed_BTD = _normed(block.norm3, hidden_BTD)
        return hidden_BTD.addcmul_(parts[5], apply(block.ff, torch.addcmul(parts[3], normed_BTD, parts[4])))


def _normed(norm: Any, hidden_BTD: Tensor) -> Tensor:
    """Layer norm with weights of one, because the form without weights is half as fast on a CPU."""
    if type(norm) is not nn.LayerNorm or norm.weight is not None:
        own: Tensor = norm(hidden_BTD)
        return own
    width = hidden_BTD.shape[-1]
    return layer_norm(hidden_BTD, (width,), hidden_BTD.new_ones(width), hidden_BTD.new_zeros(width), norm.eps)


@dataclass(frozen=True)
class _PairStep:
    """Two blocks on the same input, and their merge."""

    sides: Sequence[_Step]
    merge: nn.Module

    def __call__(self, hidden_BTD: Tensor, rows: Tensor) -> Tensor:
        outputs_BTE = torch.cat([side(hidden_BTD, rows) for side in self.sides], dim=-1)
        return apply(self.merge, outputs_BTE)


@dataclass(frozen=True)
class _OwnStep:
    """A block of another kind, with its own forward."""

    block: Any
    batch: _Labels

    def __call__(self, hidden_BTD: Tensor, rows: Tensor) -> Tensor:
        timesteps_B = torch.full((len(hidden_BTD),), self.batch.timestep, device=hidden_BTD.device)
        labels_B = self.batch.labels[rows]
        out: Tensor = self.block(hidden_BTD, timestep=timesteps_B, class_labels=labels_B)
        return out


@dataclass(frozen=True)
class _LastStep:
    """Norm, modulation and projection after the last block; `modulation` [K, 2, 1, D]: shift, 1 + scale."""

    network: Any
    modulation: Tensor

    def __call__(self, hidden_BTD: Tensor, rows: Tensor) -> Tensor:
        shift, scale = self.modulation[rows].unbind(1)
        normed_BTD = _normed(self.network.norm_out, hidden_BTD)
        return linear(self.network.proj_out_2, torch.addcmul(shift, normed_BTD, scale))


def _last_step(network: Any, batch: _Labels, dtype: torch.dtype) -> _LastStep:
    """Last step, conditioned by the first block's embedder, as in diffusers."""
    embedded_KD = _embedded(network.transformer_blocks[0].norm1.emb, batch, dtype)
    modulation = linear(network.proj_out_1, silu(embedded_KD)).unflatten(1, (2, 1, -1))
    modulation[:, 1] += 1
    return _LastStep(network, modulation)


def _unpatchified(network: Any, patches_BTP: Tensor) -> Tensor:
    """Patches in raster order [B, T, p * p * C] as an image [B, C, h, w]; the grid is square."""
    side, patch = int(patches_BTP.shape[1] ** 0.5), network.patch_size
    grid = patches_BTP.reshape(-1, side, side, patch, patch, network.out_channels)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
