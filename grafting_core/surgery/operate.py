"""Cut operators out, put others in, and take it all back."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from grafting_core.backbones.dit import adapt, get_operator, set_operator
from grafting_core.operators.table import build
from grafting_core.specs.design import ParallelPair, ReplaceOperator
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.parallel_blocks import Unpair, check_pairs, mean_merge, pair_blocks
from grafting_core.surgery.weight_inheritance import inherit


@dataclass(frozen=True)
class Undo:
    """What stood where; `undo()` puts the very same modules back."""

    transformer: nn.Module
    originals: Mapping[GraftSite, nn.Module]
    unpair: Unpair

    def undo(self) -> None:
        self.unpair.undo()
        for site, module in self.originals.items():
            set_operator(self.transformer, site, module)


def site_seed(seed: int, site: GraftSite, purpose: str = "init") -> int:
    """A seed of its own for every site, whatever else a design edits."""
    text = f"{purpose}/{seed}/{site.block}/{site.slot}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def new_operator(edit: ReplaceOperator, dims: BlockDims, seed: int, original: nn.Module) -> nn.Module:
    """The edit's operator with weights that depend on (seed, site) and, where it inherits, on `original`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site_seed(seed, edit.site))
        operator = build(edit.operator, dims)
    if edit.init == "inherit":
        inherit(original, operator)
    return operator


def operate(
    transformer: nn.Module,
    edits: Sequence[ReplaceOperator],
    dims: BlockDims,
    *,
    operators: Mapping[GraftSite, nn.Module] | None = None,
    pairs: Sequence[ParallelPair] = (),
    merges: Mapping[ParallelPair, nn.Module] | None = None,
    seed: int = 0,
) -> Undo:
    """Put every edit's operator in place, the one given for its site, else a new one; then pair blocks.

    A pair without a merge of its own gets the mean of its sides. Edits `transformer` in place. Raises
    ValueError for a site or pair beyond the last block, before any change.
    """
    joined = {pair: (merges or {}).get(pair) or mean_merge(dims.width) for pair in pairs}
    check_pairs(transformer, pairs)
    originals = {edit.site: get_operator(transformer, edit.site) for edit in edits}
    reference = next(transformer.parameters())
    given = operators or {}
    for edit in edits:
        operator = given.get(edit.site) or new_operator(edit, dims, seed, originals[edit.site])
        set_operator(transformer, edit.site, adapt(edit.site, operator.to(reference)))
    unpair = pair_blocks(transformer, {pair: merge.to(reference) for pair, merge in joined.items()})
    return Undo(transformer, originals, unpair)
