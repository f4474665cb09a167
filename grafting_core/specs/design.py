"""Resolved designs: an operator for each edited site, and pairs of blocks that run in parallel."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.site import GraftSite

Init = Literal["random", "inherit"]


class ReplaceOperator(Frozen):
    """Put `operator` at `site`, with random initial weights, as in the paper, or the old operator's."""

    site: GraftSite
    operator: OperatorSpec
    init: Init = "random"

    @property
    def place(self) -> GraftSite:
        """Key of this edit among a design's modules."""
        return self.site


class ParallelPair(Frozen):
    """Run blocks `first` and `first + 1` in parallel on the same input (paper section 6).

    A merge (Linear 2D -> D with bias) combines their outputs.
    """

    first: Annotated[int, Field(ge=0)]

    def __str__(self) -> str:
        return f"pair {self.first}+{self.first + 1}"

    @property
    def blocks(self) -> tuple[int, int]:
        return self.first, self.first + 1

    @property
    def place(self) -> Self:
        """Key of this pair's merge among a design's modules."""
        return self

    def num_params(self, dims: BlockDims) -> int:
        """Number of parameters of the merge."""
        return 2 * dims.width**2 + dims.width

    def flops(self, dims: BlockDims) -> int:
        """FLOPs of the merge on one sample."""
        return 4 * dims.num_tokens * dims.width**2


Part = ReplaceOperator | ParallelPair
"""Unit of distillation in a design: an operator, or the merge of a pair."""
Place = GraftSite | ParallelPair
"""Key of a part's module: the site of an operator, or the pair of a merge."""


class GraftDesign(Frozen):
    """A backbone with edits, at most one per site, and disjoint pairs, each sorted front to back.

    Sites are numbered as in the backbone, even inside pairs. Without edits and pairs it is the teacher.
    """

    backbone: BackboneRef
    edits: tuple[ReplaceOperator, ...] = ()
    pairs: tuple[ParallelPair, ...] = ()

    @classmethod
    def of(cls, backbone: BackboneRef, parts: Iterable[Part]) -> Self:
        """Design of these parts, given in any order."""
        listed = list(parts)
        edits = [part for part in listed if isinstance(part, ReplaceOperator)]
        pairs = [part for part in listed if isinstance(part, ParallelPair)]
        return cls(
            backbone=backbone,
            edits=tuple(sorted(edits, key=lambda edit: edit.site.order)),
            pairs=tuple(sorted(pairs, key=lambda pair: pair.first)),
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that are distilled for this design."""
        return (*self.edits, *self.pairs)

    @property
    def is_teacher(self) -> bool:
        """Whether the design leaves the backbone unchanged."""
        return not self.parts

    @model_validator(mode="after")
    def _one_edit_a_site_in_order(self) -> Self:
        orders = [edit.site.order for edit in self.edits]
        if orders != sorted(set(orders)):
            raise ValueError("edits must be sorted by site, at most one per site")
        blocks = [block for pair in self.pairs for block in pair.blocks]
        if blocks != sorted(set(blocks)):
            raise ValueError("pairs must be sorted and must not share blocks")
        return self
