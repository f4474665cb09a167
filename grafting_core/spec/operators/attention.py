"""Softmax attention, full and windowed (paper-facts: parameters section 2.1, FLOPs section 2.2)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.spec.dims import BlockDims, OperatorFlops, Slot
from grafting_core.spec.operators.base import OperatorBase


class _SoftmaxAttention(OperatorBase):
    """Shared cost of q, k, v and output projections with bias."""

    slot: ClassVar[Slot] = "attention"
    num_heads: Annotated[int, Field(ge=1)] | None = None
    """Heads; the backbone's own number where left out."""

    def heads(self, dims: BlockDims) -> int:
        return self.num_heads or dims.num_heads

    def num_params(self, dims: BlockDims) -> int:
        return 4 * dims.width**2 + 4 * dims.width

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        if dims.width % self.heads(dims):
            yield "num_heads", f"a divisor of the width {dims.width}"

    def _full_flops(self, dims: BlockDims, num_tokens: int) -> OperatorFlops:
        scores = 4 * num_tokens**2 * dims.width + 2 * num_tokens**2 * self.heads(dims)
        return OperatorFlops(operator=scores, features=8 * num_tokens * dims.width**2)


class MultiHeadAttention(_SoftmaxAttention):
    """The DiT's own softmax attention: qkv and output projections with bias, no mask."""

    kind: Literal["mha"] = "mha"
    summary: ClassVar[str] = "softmax attention over all tokens (self-graft)"

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        return self._full_flops(dims, num_tokens or dims.num_tokens)


class WindowAttention(_SoftmaxAttention):
    """Softmax attention where token n sees n-w..n+w in raster order (paper Table 3: w = 4)."""

    kind: Literal["window_attention"] = "window_attention"
    summary: ClassVar[str] = "softmax attention within +-half_width tokens in raster order"
    half_width: Annotated[int, Field(ge=0, le=1_000_000)] = 4

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        tokens = num_tokens or dims.num_tokens
        full = self._full_flops(dims, tokens)
        keys = min(2 * self.half_width + 1, tokens)
        # Borders ignored, as the paper counts.
        return OperatorFlops(operator=full.operator * keys // tokens, features=full.features)
