"""Depth to width: two blocks in a row become two side by side, their outputs merged (paper section 6)."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grafting_core.specs.design import ParallelPair

Visitor = Callable[[Tensor, Tensor], None]


class ParallelBlocks(nn.Module):
    """Stands in a block list where two blocks stood: y = W [a, b] + c, a and b on the same input [B, T, D].

    The blocks keep their weights, residual paths and conditioning.
    """

    def __init__(self, first: nn.Module, second: nn.Module, merge: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.merge = first, second, merge

    @property
    def sides(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second

    @property
    def norm1(self) -> nn.Module:
        """The first block's; a diffusers DiT takes the conditioning of its last layer from there."""
        return self.first.get_submodule("norm1")

    def forward(self, hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs = [block(hidden_BTD, *args, **kwargs) for block in self.sides]
        out: Tensor = self.merge(torch.cat(outputs, dim=-1))
        return out


def mean_merge(width: int) -> nn.Linear:
    """[I/2 I/2] and no bias: the mean of both sides."""
    merge = nn.Linear(2 * width, width)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
        merge.bias.zero_()
    return merge


@dataclass(frozen=True)
class Unpair:
    """The block list as it was; `undo()` puts the very same blocks back."""

    transformer: nn.Module
    blocks: nn.ModuleList

    def undo(self) -> None:
        self.transformer.transformer_blocks = self.blocks


def check_pairs(transformer: nn.Module, pairs: Iterable[ParallelPair]) -> None:
    """Raises ValueError for a pair beyond the last block."""
    last = len(_block_list(transformer)) - 1
    for pair in pairs:
        if pair.blocks[1] > last:
            raise ValueError(f"{pair} reaches across the end; blocks are 0 to {last}")


def _block_list(transformer: nn.Module) -> nn.ModuleList:
    blocks = transformer.get_submodule("transformer_blocks")
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"{type(transformer).__name__} has no list of blocks to restructure")
    return blocks


def pair_blocks(transformer: nn.Module, merges: Mapping[ParallelPair, nn.Module]) -> Unpair:
    """Put every pair's blocks side by side under its merge. Edits `transformer` in place.

    Raises ValueError for a pair beyond the last block, before any change.
    """
    check_pairs(transformer, merges)
    blocks = _block_list(transformer)
    paired = {
        pair.first: ParallelBlocks(blocks[pair.blocks[0]], blocks[pair.blocks[1]], merge)
        for pair, merge in merges.items()
    }
    gone = {pair.blocks[1] for pair in merges}
    kept = [paired.get(index, block) for index, block in enumerate(blocks) if index not in gone]
    transformer.transformer_blocks = nn.ModuleList(kept)
    return Unpair(transformer, blocks)


@dataclass(frozen=True)
class PairRegion:
    """What a merge learns from: both sides of the unedited pair [B, T, 2D] and its output in sequence."""

    pair: ParallelPair

    def watch(self, transformer: nn.Module, visitor: Visitor) -> Sequence[RemovableHandle]:
        """Call `visitor` in every forward, once the second block is done; removing the handles ends it."""
        first, second = (transformer.get_submodule(f"transformer_blocks.{b}") for b in self.pair.blocks)
        watch = _PairWatch(second, visitor)
        return [
            first.register_forward_pre_hook(watch.enter, with_kwargs=True),
            second.register_forward_hook(watch.leave, with_kwargs=True),
        ]


@dataclass
class _PairWatch:
    """Keeps the pair's input until the second block has run."""

    second: nn.Module
    visitor: Visitor
    entered: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entered = args[0]

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """`args[0]` is the first block's output: one side. The other takes one more forward of the second."""
        with unhooked(self.second):
            beside_BTD = self.second(self.entered, *args[1:], **kwargs)
        self.entered = None
        self.visitor(torch.cat([args[0], beside_BTD], dim=-1), output)


@contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """Within, the module and its parts call no forward hooks; afterwards they have the very same ones."""
    parts = [(part, part._forward_hooks, part._forward_pre_hooks) for part in module.modules()]
    for part, _, _ in parts:
        part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, hooks, pre_hooks in parts:
            part._forward_hooks, part._forward_pre_hooks = hooks, pre_hooks
