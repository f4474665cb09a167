"""Edits of a backbone: an operator at a site, and a pair of blocks that run in parallel."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import BlockDims, Slot
from grafting_core.specs.operators import OperatorBase, OperatorSpec
from grafting_core.specs.operators.attention import MultiHeadAttention
from grafting_core.specs.operators.mlp import Mlp
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


def pretrained_operator(slot: Slot, dims: BlockDims) -> OperatorBase:
    """Operator of a transformer without grafts in this slot."""
    return MultiHeadAttention() if slot == "attention" else Mlp(ratio=dims.mlp_ratio)


def check_order(edits: Sequence[ReplaceOperator], pairs: Sequence[ParallelPair]) -> None:
    """Raises ValueError unless edits are sorted, one a site, and pairs are sorted and share no block."""
    orders = [edit.site.order for edit in edits]
    if orders != sorted(set(orders)):
        raise ValueError("edits must be sorted by site, at most one per site")
    blocks = [block for pair in pairs for block in pair.blocks]
    if blocks != sorted(set(blocks)):
        raise ValueError("pairs must be sorted and must not share blocks")


def check_fit(
    edits: Sequence[ReplaceOperator], pairs: Sequence[ParallelPair], depth: int, dims: BlockDims
) -> None:
    """Raises ValueError naming an edit or pair that a transformer of these sizes cannot have."""
    check_order(edits, pairs)
    last = max([edit.site.block for edit in edits] + [pair.blocks[1] for pair in pairs], default=0)
    if last >= depth:
        raise ValueError(f"block {last} does not exist; blocks are 0 to {depth - 1}")
    for edit in edits:
        operator, site = edit.operator, edit.site
        if site.slot not in operator.slots:
            raise ValueError(f"{site}: {operator.kind} fits the {operator.slots[0]} slot")
        for field, right in operator.problems(dims):
            raise ValueError(f"{site}: {operator.kind}.{field} should be {right}")


def added_params(edits: Sequence[ReplaceOperator], pairs: Sequence[ParallelPair], dims: BlockDims) -> int:
    """Parameters that these edits and pairs add to a transformer without grafts."""
    replaced = sum(pretrained_operator(edit.site.slot, dims).num_params(dims) for edit in edits)
    placed = sum(edit.operator.num_params(dims) for edit in edits)
    return placed - replaced + sum(pair.num_params(dims) for pair in pairs)
