"""MLP operators."""

import math

import torch
from torch import Tensor, nn

from grafting_core.operators.construction import Arguments, Construction
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.mlp import ConvMlp, Mlp, MlpHyenaX


class FeedForward(nn.Module):
    """Linear, GELU(tanh), Linear; [batch, tokens, width] -> the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.contract = nn.Linear(hidden, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.contract(self.act(self.expand(hidden_BTD)))
        return out


class GridFeedForward(FeedForward):
    """MLP with a depthwise convolution on the token grid before the activation."""

    def __init__(self, width: int, hidden: int, kernel_size: int, grid: tuple[int, int]) -> None:
        super().__init__(width, hidden)
        self.grid = grid
        self.mix = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Raises ValueError for another token count than the grid's."""
        if hidden_BTD.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"built for a grid of {self.grid[0]} x {self.grid[1]} tokens, not for {hidden_BTD.shape[1]}"
            )
        inner_BCRS = self.expand(hidden_BTD).transpose(1, 2).unflatten(2, self.grid)
        mixed_BTC = self.mix(inner_BCRS).flatten(2).transpose(1, 2)
        out: Tensor = self.contract(self.act(mixed_BTC))
        return out


class ChannelConv(nn.Module):
    """Filter per token position along the channels, causal with K taps: channel c depends on c-K+1..c."""

    def __init__(self, num_tokens: int, kernel_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(kernel_size)
        self.weight_KT = nn.Parameter(torch.empty(kernel_size, num_tokens).uniform_(-bound, bound))
        self.bias_T = nn.Parameter(torch.empty(num_tokens).uniform_(-bound, bound))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Raises ValueError for another token count than it was built for."""
        taps, tokens = self.weight_KT.shape
        if hidden_BTD.shape[1] != tokens:
            raise ValueError(f"built for {tokens} tokens, not for {hidden_BTD.shape[1]}")
        padded, width = nn.functional.pad(hidden_BTD, (taps - 1, 0)), hidden_BTD.shape[2]
        out = self.bias_T[:, None] + padded[:, :, taps - 1 :] * self.weight_KT[taps - 1, :, None]
        for tap in range(taps - 1):
            out = torch.addcmul(out, padded[:, :, tap : tap + width], self.weight_KT[tap, :, None])
        return out


class GatedChannels(nn.Module):
    """MLP Hyena-X: y = W_out(q * k * v), [q, k, v] = split(C(W_in u)) (paper Table 3)."""

    def __init__(self, width: int, hidden: int, kernel_size: int, num_tokens: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 3 * hidden)
        self.convolution = ChannelConv(num_tokens, kernel_size)
        self.contract = nn.Linear(hidden, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        q_BTC, k_BTC, v_BTC = self.convolution(self.expand(hidden_BTD)).chunk(3, dim=-1)
        out: Tensor = self.contract(q_BTC * (k_BTC * v_BTC))
        return out


def _mlp(spec: Mlp, dims: BlockDims) -> Arguments:
    return {"width": dims.width, "hidden": spec.channels(dims)}


def _conv_mlp(spec: ConvMlp, dims: BlockDims) -> Arguments:
    return {**_mlp(spec, dims), "kernel_size": spec.kernel_size, "grid": dims.grid}


def _mlp_hyena_x(spec: MlpHyenaX, dims: BlockDims) -> Arguments:
    sizes = {"width": dims.width, "hidden": spec.channels(dims)}
    return {**sizes, "kernel_size": spec.kernel_size, "num_tokens": dims.num_tokens}


build_mlp = Construction(FeedForward, _mlp)
build_conv_mlp = Construction(GridFeedForward, _conv_mlp)
build_mlp_hyena_x = Construction(GatedChannels, _mlp_hyena_x)
