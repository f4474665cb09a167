"""Gated causal convolutions."""

import math

import torch
from torch import Tensor, nn

from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators.hyena import HyenaX


class CausalDepthwiseConv(nn.Module):
    """Each channel's own K-tap filter over the token axis; token n sees n-K+1..n.

    Shifted multiply-adds: a depthwise `Conv1d` is several times slower on a CPU.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(kernel_size)  # what nn.Conv1d draws for one input channel a group
        self.weight_KD = nn.Parameter(torch.empty(kernel_size, channels).uniform_(-bound, bound))
        self.bias_D = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        taps, tokens = self.weight_KD.shape[0], hidden_BTD.shape[1]
        padded = nn.functional.pad(hidden_BTD, (0, 0, taps - 1, 0))
        out = torch.addcmul(self.bias_D, padded[:, taps - 1 :], self.weight_KD[taps - 1])
        for tap in range(taps - 1):
            out = torch.addcmul(out, padded[:, tap : tap + tokens], self.weight_KD[tap])
        return out


class GatedConvolution(nn.Module):
    """Hyena-X: y = W_out(q * k * v) behind a featuriser convolution of the projections (paper Table 3)."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, 3 * width)
        self.featuriser = CausalDepthwiseConv(3 * width, kernel_size)
        self.project_out = nn.Linear(width, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.featuriser(self.project_in(hidden_BTD)).chunk(3, dim=-1)
        out: Tensor = self.project_out(q_BTD * (k_BTD * v_BTD))
        return out


def build_hyena_x(spec: HyenaX, dims: BlockDims) -> nn.Module:
    return GatedConvolution(dims.width, spec.kernel_size)
