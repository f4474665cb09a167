"""Parallel blocks: two successive blocks run on the same input, their outputs merged (paper section 6)."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.block_list import check_pairs, pair_entries, single_entries
from grafting_core.backbones.capture import ActivationHook
from grafting_core.specs.design import ParallelPair


@dataclass(frozen=True)
class Unpair:
    """The original block list; `undo()` restores the same block objects."""

    backbone: Backbone
    blocks: nn.ModuleList

    def undo(self) -> None:
        self.backbone.family.set_blocks(self.backbone.transformer, self.blocks)


def pair_blocks(backbone: Backbone, merges: Mapping[ParallelPair, nn.Module]) -> Unpair:
    """Replace each pair's blocks by parallel blocks with its merge. Edits the transformer in place.

    Raises ValueError as `check_pairs` does, before any change.
    """
    blocks = backbone.family.blocks(backbone.transformer)
    pair_entries(backbone.family, backbone.transformer, merges)
    return Unpair(backbone, blocks)


@dataclass(frozen=True)
class PairCapture:
    """Training data of a merge: both branches of the unedited pair [B, T, 2D], and its output in sequence."""

    pair: ParallelPair

    def register(self, backbone: Backbone, hook: ActivationHook) -> Sequence[RemovableHandle]:
        """Call `hook` in every forward after the second block; removing the handles ends it."""
        check_pairs(backbone.family, backbone.transformer, [self.pair])
        blocks = backbone.family.blocks(backbone.transformer)
        single = single_entries(blocks)
        first, second = (blocks[single[block]] for block in self.pair.blocks)
        activations = _PairActivations(second, hook)
        return [
            first.register_forward_pre_hook(activations.enter, with_kwargs=True),
            second.register_forward_hook(activations.leave, with_kwargs=True),
        ]


@dataclass
class _PairActivations:
    """Holds the pair's input until the second block has run."""

    second: nn.Module
    hook: ActivationHook
    entered: Tensor | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entered = args[0]

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """One branch is `args[0]`, the first block's output; the other needs one more forward."""
        with without_hooks(self.second):
            second_BTD = self.second(self.entered, *args[1:], **kwargs)
        self.entered = None
        self.hook(torch.cat([args[0], second_BTD], dim=-1), output)


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Context without the forward hooks of a module and its parts; they are restored afterwards."""
    parts = [(part, part._forward_hooks, part._forward_pre_hooks) for part in module.modules()]
    for part, _, _ in parts:
        part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, hooks, pre_hooks in parts:
            part._forward_hooks, part._forward_pre_hooks = hooks, pre_hooks
