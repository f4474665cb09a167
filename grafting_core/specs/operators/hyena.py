"""Hyena operators: gated convolutions (paper-facts: definitions section 2, cost sections 2.1 and 2.2)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase


class _Hyena(OperatorBase):
    """Base of the three variants: [q, k, v] = split(F(W_in u)); y = W_out(q * G(k * v)).

    F, the featuriser, and G, the inner convolution, are depthwise over the tokens in raster order and
    causal; in the bidirectional kinds they cover K - 1 tokens ahead as well, with 2K - 1 taps.
    """

    slots: ClassVar[tuple[Slot, ...]] = ("attention",)
    inherits: ClassVar[bool] = True
    featuriser: ClassVar[bool]
    inner: ClassVar[bool]
    bidirectional: ClassVar[bool] = False
    kernel_size: Annotated[int, Field(ge=1, le=1024)] = 4

    @property
    def taps(self) -> int:
        """Number of taps of each filter."""
        return 2 * self.kernel_size - 1 if self.bidirectional else self.kernel_size

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        tokens = min((self.kernel_size - 1) * (self.featuriser + self.inner), dims.num_tokens - 1)
        return tokens, tokens if self.bidirectional else 0

    def num_params(self, dims: BlockDims) -> int:
        projections = 4 * dims.width**2 + 4 * dims.width
        filtered = (3 * self.featuriser + self.inner) * dims.width
        return projections + filtered * (self.taps + 1)

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        cells = (num_tokens or dims.num_tokens) * dims.width
        return OperatorFlops(
            operator=(2 + 2 * self.taps * self.inner) * cells,
            features=8 * cells * dims.width + 6 * self.taps * self.featuriser * cells,
        )

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        tokens = num_tokens or dims.num_tokens
        # A causal filter padded on both sides computes rows behind the last token, which are cut off.
        rows = tokens if self.bidirectional else tokens + self.kernel_size - 1
        filtered = (3 * self.featuriser + self.inner) * dims.width
        return 8 * tokens * dims.width**2 + 2 * self.taps * rows * filtered


class HyenaX(_Hyena):
    """y = W_out(q * k * v), [q, k, v] = split(C_K(W_in u)): featuriser convolution, no inner one."""

    kind: Literal["hyena_x"] = "hyena_x"
    summary: ClassVar[str] = "gated projections behind a short causal depthwise convolution"
    featuriser, inner = True, False


class HyenaSE(_Hyena):
    """y = W_out(q * C'_K(k * v)), [q, k, v] = split(C_K(W_in u)): featuriser and inner convolution."""

    kind: Literal["hyena_se"] = "hyena_se"
    summary: ClassVar[str] = "Hyena-X with a second causal convolution between its gates"
    featuriser, inner = True, True


class HyenaY(_Hyena):
    """y = W_out(q * C'_K(k * v)), [q, k, v] = split(W_in u): inner convolution, no featuriser."""

    kind: Literal["hyena_y"] = "hyena_y"
    summary: ClassVar[str] = "gated projections around one causal convolution"
    featuriser, inner = False, True


class BidirectionalHyenaX(HyenaX):
    """Hyena-X with filters that cover K - 1 tokens to either side."""

    kind: Literal["hyena_x_bidirectional"] = "hyena_x_bidirectional"  # type: ignore[assignment]  # the discriminator
    summary: ClassVar[str] = "Hyena-X with filters to both sides"
    bidirectional = True


class BidirectionalHyenaSE(HyenaSE):
    """Hyena-SE with filters that cover K - 1 tokens to either side."""

    kind: Literal["hyena_se_bidirectional"] = "hyena_se_bidirectional"  # type: ignore[assignment]  # the discriminator
    summary: ClassVar[str] = "Hyena-SE with filters to both sides"
    bidirectional = True


class BidirectionalHyenaY(HyenaY):
    """Hyena-Y with filters that cover K - 1 tokens to either side."""

    kind: Literal["hyena_y_bidirectional"] = "hyena_y_bidirectional"  # type: ignore[assignment]  # the discriminator
    summary: ClassVar[str] = "Hyena-Y with filters to both sides"
    bidirectional = True
