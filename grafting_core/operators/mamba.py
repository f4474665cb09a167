"""Selective state spaces: Mamba-2 (Dao & Gu 2024, arXiv 2405.21060)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from grafting_core.operators.construction import Arguments, Construction
from grafting_core.operators.hyena import DepthwiseConv
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.mamba import CHUNK, Mamba2

try:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as fused_scan
except ImportError:
    fused_scan = None

A_RANGE, STEP_RANGE = (1.0, 16.0), (1e-3, 1e-1)
"""Ranges of initial decay rates and step sizes, drawn uniformly and log-uniformly as in Mamba-2."""


def scan(
    x_BTHP: Tensor, step_BTH: Tensor, rate_H: Tensor, b_BTS: Tensor, c_BTS: Tensor, chunk: int
) -> Tensor:
    """y_t = c_t h_t, h_t = exp(step_t rate) h_(t-1) + step_t b_t x_t, by chunks (paper's section 6).

    A chunk is computed as masked attention; one state per head, [S, P], is carried from chunk to chunk.
    `rate_H` is negative. Accepts any number of tokens, with linear work, and each chunk fits into a CPU's
    cache.
    """
    batch, _, heads, size = x_BTHP.shape
    state_BSHP, parts = x_BTHP.new_zeros(batch, b_BTS.shape[2], heads, size), []
    sequences = (x_BTHP * step_BTH.unsqueeze(3), step_BTH * rate_H, b_BTS, c_BTS)
    for values in zip(*(value.split(chunk, dim=1) for value in sequences), strict=True):
        part, state_BSHP = _advance(state_BSHP, *values)
        parts.append(part)
    return torch.cat(parts, dim=1)


def _advance(
    state_BSHP: Tensor, weighted_BCHP: Tensor, decay_BCH: Tensor, b_BCS: Tensor, c_BCS: Tensor
) -> tuple[Tensor, Tensor]:
    """Output [B, C, H, P] of one chunk, and the state after it."""
    total_BCH = decay_BCH.cumsum(dim=1)
    last_B1H = total_BCH[:, -1:]
    heads = weighted_BCHP.shape[2:]
    faded = weighted_BCHP * (last_B1H - total_BCH).exp().unsqueeze(3)
    added = (b_BCS.mT @ faded.flatten(2)).unflatten(2, heads)
    earlier = (c_BCS @ state_BSHP.flatten(2)).unflatten(2, heads) * total_BCH.exp().unsqueeze(3)
    state = state_BSHP * last_B1H.exp().unsqueeze(3) + added
    return earlier + _inside(weighted_BCHP, total_BCH, b_BCS, c_BCS), state


def _inside(weighted_BCHP: Tensor, total_BCH: Tensor, b_BCS: Tensor, c_BCS: Tensor) -> Tensor:
    """Contribution of tokens of the same chunk."""
    total_BHC = total_BCH.transpose(1, 2)
    size = total_BHC.shape[2]
    never_CC = total_BHC.new_full((size, size), -math.inf).triu(1)
    # Masked before the exponential: above the diagonal it would overflow and make the gradient NaN.
    fall_BHCC = (total_BHC.unsqueeze(3) - total_BHC.unsqueeze(2) + never_CC).exp()
    scores_BHCC = (c_BCS @ b_BCS.mT).unsqueeze(1) * fall_BHCC
    return (scores_BHCC @ weighted_BCHP.transpose(1, 2)).transpose(1, 2)


class SelectiveStateSpace(nn.Module):
    """The Mamba-2 block, [batch, tokens, width] -> the same; parameters are named as in `mamba_ssm`."""

    def __init__(
        self, width: int, inner: int, states: int, head_dim: int, kernel_size: int, *, both_ways: bool
    ) -> None:
        super().__init__()
        self.inner, self.states, self.heads = inner, states, inner // head_dim
        self.both_ways = both_ways
        convolved = inner + 2 * states
        self.in_proj = nn.Linear(width, inner + convolved + self.heads, bias=False)
        self.conv1d = DepthwiseConv(convolved, kernel_size)
        low, high = (math.log(bound) for bound in STEP_RANGE)
        steps = torch.empty(self.heads).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(steps.expm1().log())  # its softplus is the step
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        sizes = (self.inner, self.inner + 2 * self.states, self.heads)
        gate_BTI, convolved_BTV, step_BTH = self.in_proj(hidden_BTD).split(sizes, dim=2)
        mixed_BTI = self._mix(convolved_BTV, step_BTH)
        if self.both_ways:
            back = self._mix(convolved_BTV.flip(1), step_BTH.flip(1)).flip(1)
            mixed_BTI = (mixed_BTI + back) / 2
        out: Tensor = self.out_proj(self.norm(mixed_BTI * nn.functional.silu(gate_BTI)))
        return out

    def _mix(self, convolved_BTV: Tensor, step_BTH: Tensor) -> Tensor:
        sizes = (self.inner, self.states, self.states)
        x_BTI, b_BTS, c_BTS = nn.functional.silu(self.conv1d(convolved_BTV)).split(sizes, dim=2)
        x_BTHP = x_BTI.unflatten(2, (self.heads, -1))
        if fused_scan is not None and x_BTHP.is_cuda:
            return self._fused(fused_scan, x_BTHP, step_BTH, b_BTS, c_BTS)
        # The scan's exponentials and sums need at least single precision.
        wide = torch.promote_types(x_BTHP.dtype, torch.float32)
        device = x_BTHP.device.type
        with torch.autocast(device if is_autocast_available(device) else "cpu", enabled=False):
            step = nn.functional.softplus(step_BTH.to(wide) + self.dt_bias.to(wide))
            rate = -self.A_log.to(wide).exp()
            y: Tensor = scan(x_BTHP.to(wide), step, rate, b_BTS.to(wide), c_BTS.to(wide), CHUNK)
            y = y + self.D.to(wide)[:, None] * x_BTHP.to(wide)
        return y.flatten(2).to(x_BTI.dtype)

    def _fused(self, kernel: Any, x_BTHP: Tensor, step_BTH: Tensor, b_BTS: Tensor, c_BTS: Tensor) -> Tensor:
        y: Tensor = kernel(
            x_BTHP.contiguous(),
            step_BTH.contiguous(),
            -self.A_log.float().exp(),
            b_BTS.unsqueeze(2).contiguous(),
            c_BTS.unsqueeze(2).contiguous(),
            chunk_size=256,
            D=self.D.float(),
            dt_bias=self.dt_bias.float(),
            dt_softplus=True,
        )
        return y.flatten(2)


def _mamba2(spec: Mamba2, dims: BlockDims) -> Arguments:
    return {
        "width": dims.width,
        "inner": spec.inner(dims),
        "states": spec.state_size,
        "head_dim": spec.head_dim,
        "kernel_size": spec.kernel_size,
        "both_ways": spec.directions == 2,
    }


build_mamba2 = Construction(SelectiveStateSpace, _mamba2)
