"""MLP operators (paper Table 3: ratios 3 and 6 besides the original 4)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase


class _FeedForward(OperatorBase):
    """Base of MLP specs. Inner width is ratio times D, rounded to nearest; the ratio may be fractional."""

    slots: ClassVar[tuple[Slot, ...]] = ("mlp",)
    ratio: Annotated[float, Field(gt=0, le=64)] = 4.0

    def channels(self, dims: BlockDims) -> int:
        return round(self.ratio * dims.width)

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        return 0, 0

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        if self.channels(dims) < 1:
            yield "ratio", f"at least {1 / dims.width:.4g}, which gives one channel at width {dims.width}"


class Mlp(_FeedForward):
    """Linear D -> rD, GELU(tanh), Linear rD -> D."""

    kind: Literal["mlp"] = "mlp"
    summary: ClassVar[str] = "two linear layers with GELU, any expansion ratio"
    inherits: ClassVar[bool] = True
    gives: ClassVar[bool] = True

    def num_params(self, dims: BlockDims) -> int:
        hidden = self.channels(dims)
        return 2 * hidden * dims.width + hidden + dims.width

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        tokens = num_tokens or dims.num_tokens
        return OperatorFlops(operator=0, features=4 * tokens * dims.width * self.channels(dims))


class ConvMlp(Mlp):
    """Linear D -> rD, depthwise K x K convolution on the token grid, GELU(tanh), Linear rD -> D."""

    kind: Literal["conv_mlp"] = "conv_mlp"  # type: ignore[assignment]  # the discriminator
    summary: ClassVar[str] = "MLP with a depthwise convolution over the token grid"
    inherits: ClassVar[bool] = False
    gives: ClassVar[bool] = False
    kernel_size: Annotated[int, Field(ge=1, le=63)] = 3

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        tokens = dims.farthest(self.kernel_size // 2)
        return tokens, tokens

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        yield from super().problems(dims)
        if self.kernel_size % 2 == 0:
            yield "kernel_size", "odd, so that the convolution has a middle"

    def num_params(self, dims: BlockDims) -> int:
        return super().num_params(dims) + self.channels(dims) * (self.kernel_size**2 + 1)

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * self.channels(dims)
        plain = super().flops(dims, num_tokens)
        return OperatorFlops(operator=2 * self.kernel_size**2 * cells, features=plain.features)


class MlpHyenaX(_FeedForward):
    """y = W_out(q * k * v), [q, k, v] = split(C(W_in u)); C runs along the channels (paper Table 3: r = 2).

    Each token position has its own K-tap filter, so the operator works for one token count only. The paper's
    columns leave this convolution out; so do `operator` and `features`, but totals include it.
    """

    kind: Literal["mlp_hyena_x"] = "mlp_hyena_x"
    summary: ClassVar[str] = "gated projections behind a convolution along the channels"
    ratio: Annotated[float, Field(gt=0, le=64)] = 2.0
    kernel_size: Annotated[int, Field(ge=1, le=1024)] = 4

    def num_params(self, dims: BlockDims) -> int:
        hidden, width = self.channels(dims), dims.width
        projections = 3 * hidden * (width + 1) + (hidden + 1) * width
        return projections + dims.num_tokens * (self.kernel_size + 1)

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * self.channels(dims)
        return OperatorFlops(
            operator=2 * cells, features=8 * cells * dims.width, unlisted=6 * self.kernel_size * cells
        )

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        # The convolution is computed as shifted multiply-adds, element by element.
        return self.flops(dims, num_tokens).features
