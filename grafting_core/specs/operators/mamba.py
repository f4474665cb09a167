"""State-space operators (paper Table 3: state 64, expand 2; paper-facts sections 2, 2.1 and 2.2)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase

CHUNK = 32
"""Tokens per chunk of the scan."""


class Mamba2(OperatorBase):
    """The Mamba-2 block: projections, short convolution, selective scan with one decay per head, gated norm.

    FLOPs follow the paper's count of the scan. The +155.77 % that the paper prints for the features is the
    ratio of new to old FLOPs; the increase, which these formulas give, is +55.77 %.
    """

    kind: Literal["mamba2"] = "mamba2"
    slots: ClassVar[tuple[Slot, ...]] = ("attention",)
    summary: ClassVar[str] = "selective state space (SSD), causal"
    fades: ClassVar[bool] = True
    directions: ClassVar[int] = 1
    state_size: Annotated[int, Field(ge=1, le=4096)] = 64
    expand: Annotated[int, Field(ge=1, le=16)] = 2
    head_dim: Annotated[int, Field(ge=1)] = 16
    kernel_size: Annotated[int, Field(ge=1, le=64)] = 4

    def inner(self, dims: BlockDims) -> int:
        """Number of channels that are scanned."""
        return self.expand * dims.width

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        if self.inner(dims) % self.head_dim:
            yield "head_dim", f"a divisor of expand times the width, {self.inner(dims)}"

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        return dims.num_tokens - 1, dims.num_tokens - 1 if self.directions == 2 else 0

    def num_params(self, dims: BlockDims) -> int:
        inner, states = self.inner(dims), self.state_size
        heads = inner // self.head_dim
        projections = dims.width * (2 * inner + 2 * states + heads) + inner * dims.width
        return projections + (self.kernel_size + 1) * (inner + 2 * states) + 3 * heads + inner

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * dims.width
        scan = 2 * self.expand * self.state_size
        features = self.expand * (6 * dims.width + 4 * self.state_size + 2 * self.kernel_size + 2)
        return OperatorFlops(operator=self.directions * scan * cells, features=features * cells)

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        """FLOPs of the chunked scan as implemented here; a fused kernel may use other chunks."""
        tokens, inner, states = num_tokens or dims.num_tokens, self.inner(dims), self.state_size
        projections = 2 * tokens * dims.width * (3 * inner + 2 * states + inner // self.head_dim)
        # Filters padded on both sides compute K - 1 rows behind the last token, which are cut off.
        filters = 2 * self.kernel_size * (tokens + self.kernel_size - 1) * (inner + 2 * states)
        squares = tokens // CHUNK * CHUNK**2 + (tokens % CHUNK) ** 2
        scan = 4 * tokens * states * inner + 2 * squares * (states + inner)
        return projections + self.directions * (filters + scan)


class BidirectionalMamba2(Mamba2):
    """Mamba-2 that scans from both ends with the same weights; the results are averaged before the norm."""

    kind: Literal["mamba2_bidirectional"] = "mamba2_bidirectional"  # type: ignore[assignment]  # the discriminator
    summary: ClassVar[str] = "selective state space scanned from both ends"
    directions = 2
