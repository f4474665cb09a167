"""Attention operators: full, windowed in raster order or on the grid, linear (paper-facts 2.1 and 2.2)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase
from grafting_core.specs.operators.windows import band_block, band_products, grid_block, grid_products


class _Attention(OperatorBase):
    """Base of attention specs: cost of the q, k, v and output projections with bias."""

    slots: ClassVar[tuple[Slot, ...]] = ("attention",)
    inherits: ClassVar[bool] = True
    gives: ClassVar[bool] = True
    num_heads: Annotated[int, Field(ge=1)] | None = None
    """Number of heads; the backbone's own by default."""

    def heads(self, dims: BlockDims) -> int:
        return self.num_heads or dims.num_heads

    def num_params(self, dims: BlockDims) -> int:
        return 4 * dims.width**2 + 4 * dims.width

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        return dims.num_tokens - 1, dims.num_tokens - 1

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        if dims.width % self.heads(dims):
            yield "num_heads", f"a divisor of the width {dims.width}"

    def _full_flops(self, dims: BlockDims, num_tokens: int) -> OperatorFlops:
        scores = 4 * num_tokens**2 * dims.width + 2 * num_tokens**2 * self.heads(dims)
        return OperatorFlops(operator=scores, features=8 * num_tokens * dims.width**2)

    def _products(self, dims: BlockDims, num_tokens: int, pairs: int) -> int:
        """FLOPs of the projections and of `pairs` query-key pairs, each a score and a weighted value."""
        return 8 * num_tokens * dims.width**2 + 4 * pairs * dims.width


class MultiHeadAttention(_Attention):
    """The DiT's own softmax attention: qkv and output projections with bias, no mask."""

    kind: Literal["mha"] = "mha"
    summary: ClassVar[str] = "softmax attention over all tokens (self-graft)"

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        return self._full_flops(dims, num_tokens or dims.num_tokens)

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        tokens = num_tokens or dims.num_tokens
        return self._products(dims, tokens, tokens**2)


class WindowAttention(_Attention):
    """Softmax attention in which token n attends to n-w..n+w in raster order (paper Table 3: w = 4)."""

    kind: Literal["window_attention"] = "window_attention"
    summary: ClassVar[str] = "softmax attention within +-half_width tokens in raster order"
    half_width: Annotated[int, Field(ge=0, le=1_000_000)] = 4

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        tokens = min(self.half_width, dims.num_tokens - 1)
        return tokens, tokens

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        tokens = num_tokens or dims.num_tokens
        full = self._full_flops(dims, tokens)
        keys = min(2 * self.half_width + 1, tokens)
        # Borders are ignored, as in the paper's count.
        return OperatorFlops(operator=full.operator * keys // tokens, features=full.features)

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        tokens = num_tokens or dims.num_tokens
        block = band_block(self.half_width, tokens)
        pairs = tokens**2 if block is None else band_products(tokens, self.half_width, block)
        return self._products(dims, tokens, pairs)


class WindowAttention2d(_Attention):
    """Softmax attention to tokens at most `half_width` rows and columns away on the token grid."""

    kind: Literal["window_attention_2d"] = "window_attention_2d"
    summary: ClassVar[str] = "softmax attention within +-half_width rows and columns"
    half_width: Annotated[int, Field(ge=0, le=1_000_000)] = 2

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        tokens = dims.farthest(self.half_width)
        return tokens, tokens

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        full = self._full_flops(dims, dims.num_tokens)
        rows, columns = (min(2 * self.half_width + 1, size) for size in dims.grid)
        operator = full.operator * rows * columns // dims.num_tokens
        return OperatorFlops(operator=operator, features=full.features)

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        rows = grid_block(self.half_width, dims.grid)
        pairs = dims.num_tokens**2 if rows is None else grid_products(dims.grid, self.half_width, rows)
        return self._products(dims, dims.num_tokens, pairs)


class LinearAttention(_Attention):
    """Attention over all tokens with elu + 1 in place of the softmax's exponential: Q(K^T V), normalised."""

    kind: Literal["linear_attention"] = "linear_attention"
    summary: ClassVar[str] = "attention without softmax, linear in the number of tokens"

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * dims.width
        operator = 4 * cells * (dims.width // self.heads(dims)) + 3 * cells
        return OperatorFlops(operator=operator, features=8 * cells * dims.width)

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        cells = (num_tokens or dims.num_tokens) * dims.width
        return 8 * cells * dims.width + 4 * cells * (dims.width // self.heads(dims)) + 2 * cells
