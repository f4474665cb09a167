"""Sizes of a backbone's blocks, and FLOPs of an operator."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.base import Frozen

Slot = Literal["attention", "mlp"]
SLOTS: tuple[Slot, ...] = ("attention", "mlp")


class BlockDims(Frozen):
    """Width D, attention heads H, MLP ratio r and token grid (rows, columns) of a transformer block."""

    width: Annotated[int, Field(ge=1)]
    num_heads: Annotated[int, Field(ge=1)]
    mlp_ratio: Annotated[float, Field(gt=0)]
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of one sample."""
        return self.grid[0] * self.grid[1]

    def farthest(self, steps: int) -> int:
        """Largest distance in raster order between two tokens at most `steps` rows and columns apart."""
        rows, columns = (min(steps, size - 1) for size in self.grid)
        return rows * self.grid[1] + columns


class OperatorFlops(Frozen):
    """FLOPs (2 a multiply-add) of one operator on one sample, split as in the paper's Table 4.

    `operator` is the mixing itself (softmax attention, gates, scans), `features` the projections
    and featurisers around it. For MLP kinds everything counts as features unless stated. `unlisted`
    counts work that the paper's columns leave out.
    """

    operator: Annotated[int, Field(ge=0)]
    features: Annotated[int, Field(ge=0)]
    unlisted: Annotated[int, Field(ge=0)] = 0

    @property
    def total(self) -> int:
        return self.operator + self.features + self.unlisted
