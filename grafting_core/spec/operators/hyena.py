"""Gated causal convolutions (paper-facts: definitions section 2, cost sections 2.1 and 2.2)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.spec.dims import BlockDims, OperatorFlops, Slot
from grafting_core.spec.operators.base import OperatorBase


class HyenaX(OperatorBase):
    """y = W_out(q * k * v), [q, k, v] = split(C_K(W_in u)): featuriser convolution, no inner one."""

    kind: Literal["hyena_x"] = "hyena_x"
    slot: ClassVar[Slot] = "attention"
    summary: ClassVar[str] = "gated projections behind a short causal depthwise convolution"
    kernel_size: Annotated[int, Field(ge=1, le=1024)] = 4

    def num_params(self, dims: BlockDims) -> int:
        projections = 4 * dims.width**2 + 4 * dims.width
        return projections + 3 * dims.width * (self.kernel_size + 1)

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * dims.width
        return OperatorFlops(
            operator=2 * cells, features=8 * cells * dims.width + 6 * self.kernel_size * cells
        )
