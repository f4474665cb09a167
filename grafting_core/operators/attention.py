"""Softmax attention, full and windowed."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators.attention import MultiHeadAttention, WindowAttention


class SoftmaxAttention(nn.Module):
    """q, k, v and output projections with bias; [batch, tokens, width] -> the same."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (self._heads(p(hidden_BTD)) for p in (self.q, self.k, self.v))
        mixed_BHTE = self.mix(q_BHTE, k_BHTE, v_BHTE)
        out: Tensor = self.out(mixed_BHTE.transpose(1, 2).flatten(2))
        return out

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """Attention over all tokens."""
        return scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE)

    def _heads(self, hidden_BTD: Tensor) -> Tensor:
        batch, tokens, _ = hidden_BTD.shape
        return hidden_BTD.view(batch, tokens, self.num_heads, -1).transpose(1, 2)


class BandAttention(SoftmaxAttention):
    """Token n attends to n-w..n+w. Memory grows with tokens times window, never with tokens squared."""

    def __init__(self, width: int, num_heads: int, half_width: int) -> None:
        super().__init__(width, num_heads)
        self.half_width = half_width

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """Attention by blocks of queries, each against the keys its band can reach."""
        tokens, reach = q_BHTE.shape[2], self.half_width
        if reach >= tokens - 1:
            return super().mix(q_BHTE, k_BHTE, v_BHTE)
        block = min(tokens, max(64, 2 * reach))
        parts = [self._block(q_BHTE, k_BHTE, v_BHTE, start, block) for start in range(0, tokens, block)]
        return torch.cat(parts, dim=2)

    def _block(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, start: int, block: int) -> Tensor:
        stop = min(start + block, q_BHTE.shape[2])
        first, last = max(0, start - self.half_width), min(q_BHTE.shape[2], stop + self.half_width)
        rows = torch.arange(start, stop, device=q_BHTE.device)[:, None]
        band = (rows - torch.arange(first, last, device=q_BHTE.device)).abs() <= self.half_width
        keys, values = k_BHTE[:, :, first:last], v_BHTE[:, :, first:last]
        return scaled_dot_product_attention(q_BHTE[:, :, start:stop], keys, values, attn_mask=band)


def build_mha(spec: MultiHeadAttention, dims: BlockDims) -> nn.Module:
    return SoftmaxAttention(dims.width, spec.heads(dims))


def build_window_attention(spec: WindowAttention, dims: BlockDims) -> nn.Module:
    return BandAttention(dims.width, spec.heads(dims), spec.half_width)
