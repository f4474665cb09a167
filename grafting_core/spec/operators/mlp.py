"""The feed-forward slot (paper Table 3: ratios 3 and 6 beside the original 4)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.spec.dims import BlockDims, OperatorFlops, Slot
from grafting_core.spec.operators.base import OperatorBase


class Mlp(OperatorBase):
    """Linear D -> rD, GELU(tanh), Linear rD -> D; the ratio may be fractional, channels round to nearest."""

    kind: Literal["mlp"] = "mlp"
    slot: ClassVar[Slot] = "mlp"
    summary: ClassVar[str] = "two linear layers with GELU, any expansion ratio"
    ratio: Annotated[float, Field(gt=0, le=64)] = 4.0

    def channels(self, dims: BlockDims) -> int:
        return round(self.ratio * dims.width)

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        if self.channels(dims) < 1:
            yield "ratio", f"at least {1 / dims.width:.4g}, which gives one channel at width {dims.width}"

    def num_params(self, dims: BlockDims) -> int:
        hidden = self.channels(dims)
        return 2 * hidden * dims.width + hidden + dims.width

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        tokens = num_tokens or dims.num_tokens
        return OperatorFlops(operator=0, features=4 * tokens * dims.width * self.channels(dims))
