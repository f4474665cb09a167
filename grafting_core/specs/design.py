"""Resolved designs: an operator for each edited site, and pairs of blocks that run in parallel."""

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

    def num_params(self, dims: BlockDims) -> int:
        """Number of parameters of the merge."""
        return 2 * dims.width**2 + dims.width

    def flops(self, dims: BlockDims) -> int:
        """FLOPs of the merge on one sample."""
        return 4 * dims.num_tokens * dims.width**2


Part = ReplaceOperator | ParallelPair
"""Unit of distillation in a design: an operator, or the merge of a pair."""


class GraftDesign(Frozen):
    """A backbone with edits, at most one per site, and disjoint pairs, each sorted front to back.

    Sites are numbered as in the backbone, even inside pairs. Without edits and pairs it is the teacher.
    """

    backbone: BackboneRef
    edits: tuple[ReplaceOperator, ...] = ()
    pairs: tuple[ParallelPair, ...] = ()

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
            raise ValueError("edits are sorted by site, one a site")
        blocks = [block for pair in self.pairs for block in pair.blocks]
        if blocks != sorted(set(blocks)):
            raise ValueError("pairs are sorted and share no block")
        return self
