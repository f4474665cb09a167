"""Hyena operators: gated convolutions."""

import math

import torch
from torch import Tensor, nn

from grafting_core.operators.construction import Arguments, Construction
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.hyena import HyenaSE, HyenaX, HyenaY


class DepthwiseConv(nn.Module):
    """Filter per channel over the token axis; token n depends on n-K+1..n+ahead, with K+ahead taps.

    [B, T, D] is the channels-last layout of an image with one row, for which CPUs have fast kernels:
    at 4,096 tokens of 3,456 channels five times as fast as K shifted multiply-adds, which in turn are
    several times as fast as `Conv1d`.
    """

    def __init__(self, channels: int, kernel_size: int, ahead: int = 0) -> None:
        super().__init__()
        self.ahead = ahead
        kernel_size += ahead
        bound = 1 / math.sqrt(kernel_size)  # as nn.Conv1d for one input channel per group
        self.weight_KD = nn.Parameter(torch.empty(kernel_size, channels).uniform_(-bound, bound))
        self.bias_D = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        taps, channels = self.weight_KD.shape
        behind, tokens = taps - 1 - self.ahead, hidden_BTD.shape[1]
        # Padded on both sides by the larger of the two extents, then cut to the tokens themselves.
        padding = max(behind, self.ahead)
        out_BDT = nn.functional.conv2d(
            hidden_BTD.transpose(1, 2).unsqueeze(2),
            self.weight_KD.T[:, None, None],
            self.bias_D,
            padding=(0, padding),
            groups=channels,
        ).squeeze(2)
        return out_BDT.narrow(2, padding - behind, tokens).transpose(1, 2)

    @torch.no_grad()
    def make_identity(self) -> None:
        """Set the tap of the token itself to one and all others to zero."""
        self.weight_KD.zero_()[-1 - self.ahead] = 1.0
        self.bias_D.zero_()


class GatedConvolution(nn.Module):
    """y = W_out(q * G(k * v)), [q, k, v] = split(F(W_in u)) (paper Table 3).

    Hyena-X has only F, Hyena-Y only G, Hyena-SE both; G starts as the identity.
    """

    def __init__(
        self, width: int, kernel_size: int, *, featuriser: bool = True, inner: bool = False, ahead: int = 0
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, 3 * width)
        self.featuriser = DepthwiseConv(3 * width, kernel_size, ahead) if featuriser else nn.Identity()
        self.inner: nn.Module = nn.Identity()
        if inner:
            convolution = DepthwiseConv(width, kernel_size, ahead)
            convolution.make_identity()
            self.inner = convolution
        self.project_out = nn.Linear(width, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.featuriser(self.project_in(hidden_BTD)).chunk(3, dim=-1)
        out: Tensor = self.project_out(q_BTD * self.inner(k_BTD * v_BTD))
        return out


def _hyena(spec: HyenaX | HyenaSE | HyenaY, dims: BlockDims) -> Arguments:
    return {
        "width": dims.width,
        "kernel_size": spec.kernel_size,
        "featuriser": spec.featuriser,
        "inner": spec.inner,
        "ahead": spec.taps - spec.kernel_size,
    }


build_hyena = Construction(GatedConvolution, _hyena)
