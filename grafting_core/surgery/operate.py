"""Put a design's operators into a backbone, pair its blocks, and undo both."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.block_list import check_pairs
from grafting_core.operators.parallel import mean_merge
from grafting_core.operators.table import build_operator
from grafting_core.specs.design import GraftDesign, ParallelPair, Part, Place, ReplaceOperator
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.parallel_blocks import Unpair, pair_blocks
from grafting_core.surgery.weight_inheritance import inherit


@dataclass(frozen=True)
class Undo:
    """The original modules; `undo()` puts the same objects back."""

    backbone: Backbone
    originals: Mapping[GraftSite, nn.Module]
    unpair: Unpair

    def undo(self) -> None:
        self.unpair.undo()
        _put_back(self.backbone, self.originals)


def site_seed(seed: int, site: GraftSite, purpose: str = "init") -> int:
    """Seed of 32 bits for a site; it does not depend on other edits of a design."""
    text = f"{purpose}/{seed}/{site.block}/{site.slot}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def new_operator(backbone: Backbone, edit: ReplaceOperator, seed: int) -> nn.Module:
    """The edit's operator; weights depend on (seed, site) and, if inherited, on the original."""
    original = backbone.get_operator(edit.site)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site_seed(seed, edit.site))
        operator = build_operator(edit.operator, backbone.sites[edit.site])
    if edit.init == "inherit":
        inherit(backbone.family.projections(original), operator)
    return operator


def new_module(backbone: Backbone, part: Part, seed: int) -> nn.Module:
    """Untrained module of a part: a new operator, or for a pair the merge that takes the mean."""
    if isinstance(part, ParallelPair):
        return mean_merge(backbone.card.dims.width)
    return new_operator(backbone, part, seed)


def operate(
    backbone: Backbone,
    design: GraftDesign,
    modules: Mapping[Place, nn.Module] | None = None,
    *,
    seed: int = 0,
) -> Undo:
    """Put the design's operators in place and pair its blocks. Edits the transformer in place.

    `modules` has operators by site and merges by pair; parts that it lacks get untrained ones. On failure
    the transformer is left as it was. Raises ValueError for a site or pair beyond the last block, for a pair
    of a block that is in one already, and what building an operator or inheriting weights raises.
    """
    check_pairs(backbone.family, backbone.transformer, design.pairs)
    originals = {edit.site: backbone.get_operator(edit.site) for edit in design.edits}
    reference = next(backbone.transformer.parameters())
    given = modules or {}
    placed = {
        part.place: given[part.place] if part.place in given else new_module(backbone, part, seed)
        for part in design.parts
    }
    try:
        for site in originals:
            operator = placed[site].to(reference)
            backbone.set_operator(site, backbone.family.adapt(site, operator))
        unpair = pair_blocks(backbone, {pair: placed[pair].to(reference) for pair in design.pairs})
    except BaseException:
        _put_back(backbone, originals)
        raise
    return Undo(backbone, originals, unpair)


def _put_back(backbone: Backbone, originals: Mapping[GraftSite, nn.Module]) -> None:
    for site, module in originals.items():
        backbone.set_operator(site, module)
