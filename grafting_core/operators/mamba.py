"""Selective state spaces: Mamba-2 (Dao & Gu 2024, arXiv 2405.21060)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from grafting_core.operators.hyena import DepthwiseConv
from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators.mamba import Mamba2

try:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as fused_scan
except ImportError:
    fused_scan = None

CHUNK = 64
A_RANGE, STEP_RANGE = (1.0, 16.0), (1e-3, 1e-1)
"""What decay rates and step sizes are drawn from, uniformly and log-uniformly, as Mamba-2 does."""


def scan(
    x_BTHP: Tensor, step_BTH: Tensor, rate_H: Tensor, b_BTS: Tensor, c_BTS: Tensor, chunk: int
) -> Tensor:
    """y_t = c_t h_t, h_t = exp(step_t rate) h_(t-1) + step_t b_t x_t, by chunks (paper's section 6).

    Inside a chunk it is masked attention, between chunks one small state a head: [S, P].
    `rate_H` is negative. Any number of tokens; work grows linearly with it.
    """
    tokens = x_BTHP.shape[1]
    chunk = min(chunk, tokens)
    missing = -tokens % chunk
    # Steps of zero leave the state as it is, so padding at the end changes nothing.
    x, step, b, c = (_chunked(value, missing, chunk) for value in (x_BTHP, step_BTH, b_BTS, c_BTS))
    decay_BNHC = (step * rate_H).transpose(2, 3).cumsum(dim=3)
    weighted = x * step.unsqueeze(4)
    y = _inside(weighted, decay_BNHC, b, c) + _between(weighted, decay_BNHC, b, c)
    return y.flatten(1, 2)[:, :tokens]


def _chunked(value: Tensor, missing: int, chunk: int) -> Tensor:
    """[B, T, ...] -> [B, N, C, ...], padded with zeros at the end."""
    padding = (0, 0) * (value.dim() - 2) + (0, missing)
    chunked: Tensor = nn.functional.pad(value, padding).unflatten(1, (-1, chunk))
    return chunked


def _inside(weighted_BNCHP: Tensor, decay_BNHC: Tensor, b_BNCS: Tensor, c_BNCS: Tensor) -> Tensor:
    """What tokens of the same chunk contribute."""
    fall_BNHCC = decay_BNHC.unsqueeze(4) - decay_BNHC.unsqueeze(3)
    later = torch.ones(fall_BNHCC.shape[-2:], dtype=torch.bool, device=fall_BNHCC.device).triu(1)
    # Masked before the exponential: above the diagonal it would overflow and poison the gradient.
    fall_BNHCC = fall_BNHCC.masked_fill(later, -math.inf).exp()
    scores_BNHCC = (c_BNCS @ b_BNCS.transpose(2, 3)).unsqueeze(2) * fall_BNHCC
    return (scores_BNHCC @ weighted_BNCHP.transpose(2, 3)).transpose(2, 3)


def _between(weighted_BNCHP: Tensor, decay_BNHC: Tensor, b_BNCS: Tensor, c_BNCS: Tensor) -> Tensor:
    """What earlier chunks contribute, carried by their states."""
    to_end_BNHC = (decay_BNHC[..., -1:] - decay_BNHC).exp()
    faded_BNHCP = weighted_BNCHP.transpose(2, 3) * to_end_BNHC.unsqueeze(4)
    added_BNHSP = b_BNCS.transpose(2, 3).unsqueeze(2) @ faded_BNHCP
    kept_BNH11 = decay_BNHC[..., -1:].exp().unsqueeze(4)
    state, before = torch.zeros_like(added_BNHSP[:, 0]), []
    for index in range(added_BNHSP.shape[1]):
        before.append(state)
        state = state * kept_BNH11[:, index] + added_BNHSP[:, index]
    seen_BNHCP = c_BNCS.unsqueeze(2) @ torch.stack(before, dim=1)
    return (seen_BNHCP * decay_BNHC.exp().unsqueeze(4)).transpose(2, 3)


class SelectiveStateSpace(nn.Module):
    """The Mamba-2 block, [batch, tokens, width] -> the same; parameters are named as in `mamba_ssm`."""

    def __init__(self, width: int, spec: Mamba2, inner: int) -> None:
        super().__init__()
        self.inner, self.states, self.heads = inner, spec.state_size, inner // spec.head_dim
        self.both_ways = spec.directions == 2
        convolved = inner + 2 * spec.state_size
        self.in_proj = nn.Linear(width, inner + convolved + self.heads, bias=False)
        self.conv1d = DepthwiseConv(convolved, spec.kernel_size)
        low, high = (math.log(bound) for bound in STEP_RANGE)
        steps = torch.empty(self.heads).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(steps.expm1().log())  # the softplus of it is the step
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


def build_mamba2(spec: Mamba2, dims: BlockDims) -> nn.Module:
    return SelectiveStateSpace(dims.width, spec, spec.inner(dims))
