"""A design with nothing left to resolve: which operator stands where, which blocks run side by side."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import OperatorSpec
from grafting_core.specs.site import GraftSite

Init = Literal["random", "inherit"]


class ReplaceOperator(Frozen):
    """Put `operator` at `site`; weights start random, as in the paper, or from the old operator's."""

    site: GraftSite
    operator: OperatorSpec
    init: Init = "random"


class ParallelPair(Frozen):
    """Blocks `first` and `first + 1` side by side on the same input (paper section 6).

    A merge with bias, Linear 2D -> D, takes the place of the step from one to the other.
    """

    first: Annotated[int, Field(ge=0)]

    def __str__(self) -> str:
        return f"pair {self.first}+{self.first + 1}"

    @property
    def blocks(self) -> tuple[int, int]:
        return self.first, self.first + 1

    def num_params(self, dims: BlockDims) -> int:
        """Parameters that the merge adds."""
        return 2 * dims.width**2 + dims.width

    def flops(self, dims: BlockDims) -> int:
        """FLOPs that the merge adds, on one sample."""
        return 4 * dims.num_tokens * dims.width**2


Part = ReplaceOperator | ParallelPair
"""What of a design is distilled: an operator, or the merge of a pair."""


class GraftDesign(Frozen):
    """Backbone, edits, one a site, front to back, and pairs, disjoint, front to back.

    Sites are those of the backbone, whatever is paired. Nothing edited or paired: the teacher itself.
    """

    backbone: BackboneRef
    edits: tuple[ReplaceOperator, ...] = ()
    pairs: tuple[ParallelPair, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is distilled for it."""
        return (*self.edits, *self.pairs)

    @property
    def is_teacher(self) -> bool:
        """Whether the backbone stays as it is."""
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
