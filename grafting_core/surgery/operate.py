"""Cut operators out, put others in, and take it all back."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.operators.parallel import mean_merge
from grafting_core.operators.table import build_operator
from grafting_core.specs.design import ParallelPair, ReplaceOperator
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.parallel_blocks import Unpair, check_pairs, pair_blocks
from grafting_core.surgery.weight_inheritance import inherit


@dataclass(frozen=True)
class Undo:
    """What stood where; `undo()` puts the very same modules back."""

    backbone: Backbone
    originals: Mapping[GraftSite, nn.Module]
    unpair: Unpair

    def undo(self) -> None:
        self.unpair.undo()
        _put_back(self.backbone, self.originals)


def site_seed(seed: int, site: GraftSite, purpose: str = "init") -> int:
    """A seed of its own for every site, whatever else a design edits."""
    text = f"{purpose}/{seed}/{site.block}/{site.slot}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def new_operator(backbone: Backbone, edit: ReplaceOperator, seed: int) -> nn.Module:
    """The edit's operator; weights depend on (seed, site) and, where it inherits, on the original."""
    original = backbone.get_operator(edit.site)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site_seed(seed, edit.site))
        operator = build_operator(edit.operator, backbone.sites[edit.site])
    if edit.init == "inherit":
        inherit(backbone.family.projections(original), operator)
    return operator


def operate(
    backbone: Backbone,
    edits: Sequence[ReplaceOperator],
    *,
    operators: Mapping[GraftSite, nn.Module] | None = None,
    pairs: Sequence[ParallelPair] = (),
    merges: Mapping[ParallelPair, nn.Module] | None = None,
    seed: int = 0,
) -> Undo:
    """Put every edit's operator in place, the one given for its site, else a new one; then pair blocks.

    A pair without a merge of its own gets the mean of its sides. Edits the transformer in place; where it
    fails, the transformer is as it was. Raises ValueError for a site or pair beyond the last block, and what
    building an operator or inheriting weights raises.
    """
    width = backbone.card.dims.width
    joined = {pair: (merges or {}).get(pair) or mean_merge(width) for pair in pairs}
    check_pairs(backbone, pairs)
    originals = {edit.site: backbone.get_operator(edit.site) for edit in edits}
    reference = next(backbone.transformer.parameters())
    given = operators or {}
    made = {edit.site: given.get(edit.site) or new_operator(backbone, edit, seed) for edit in edits}
    try:
        for site, operator in made.items():
            backbone.set_operator(site, backbone.family.adapt(site, operator.to(reference)))
        unpair = pair_blocks(backbone, {pair: merge.to(reference) for pair, merge in joined.items()})
    except BaseException:
        _put_back(backbone, originals)
        raise
    return Undo(backbone, originals, unpair)


def _put_back(backbone: Backbone, originals: Mapping[GraftSite, nn.Module]) -> None:
    for site, module in originals.items():
        backbone.set_operator(site, module)
