"""Embedders of timestep and label, which diffusers' DiT repeats in every block.

A DiT has one, and diffusers' conversion writes it into each block. Where all are equal, blocks have it in
common: it takes memory once, its gradients are summed, and it is averaged once.
"""

from typing import Any

from torch import Tensor, nn

from grafting_core.operators.parallel import flat_blocks


def share_embedders(transformer: Any) -> None:
    """Give every block the first block's embedder."""
    first, *others = flat_blocks(transformer.transformer_blocks)
    for block in others:
        block.norm1.emb = first.norm1.emb


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without the further names of parameters that several modules have in common."""
    seen, unique = set[int](), dict[str, Tensor]()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[name] = value.detach()
    return unique


def load_unique_state(module: nn.Module, state: dict[str, Tensor], *, assign: bool = False) -> None:
    """Undo `unique_state`; a complete state dict is taken too.

    `assign` takes the tensors themselves, for a module whose parameters are on the meta device.
    Raises RuntimeError, as `load_state_dict` does, for names that are missing or superfluous.
    """
    first: dict[int, str] = {}
    complete = dict(state)
    for name, value in module.state_dict(keep_vars=True).items():
        origin = first.setdefault(id(value), name)
        if name not in complete and origin in complete:
            complete[name] = complete[origin]
    module.load_state_dict(complete, assign=assign)
