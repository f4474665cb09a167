"""Attention: full, windowed along the raster or on the grid, and linear."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators.attention import (
    LinearAttention,
    MultiHeadAttention,
    WindowAttention,
    WindowAttention2d,
)


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
        """One attention call over blocks of queries, each against the keys its band can reach."""
        tokens = q_BHTE.shape[2]
        if self.half_width >= tokens - 1:
            return super().mix(q_BHTE, k_BHTE, v_BHTE)
        block = min(tokens, max(64, 2 * self.half_width))
        q_XHCE = to_blocks(q_BHTE, block).flatten(0, 1)
        k_XHKE, v_XHKE = (self._around(to_blocks(values, block)) for values in (k_BHTE, v_BHTE))
        mask_XCK = self._mask(tokens, block, q_BHTE.device).repeat(len(q_BHTE), 1, 1)
        mixed_XHCE = scaled_dot_product_attention(q_XHCE, k_XHKE, v_XHKE, attn_mask=mask_XCK[:, None])
        mixed_BHNCE = mixed_XHCE.unflatten(0, (len(q_BHTE), -1)).transpose(1, 2)
        mixed_BHTE: Tensor = mixed_BHNCE.flatten(2, 3)[:, :, :tokens]
        return mixed_BHTE

    def _around(self, blocks_BNHCE: Tensor) -> Tensor:
        """Each block between the end of the one before and the beginning of the one after, blocks as a batch.

        Slices of all blocks at once: one of each block would make a gradient of the whole sequence a block.
        """
        reach = self.half_width
        if reach == 0:
            return blocks_BNHCE.flatten(0, 1)
        before = nn.functional.pad(blocks_BNHCE[:, :-1, :, -reach:], (0, 0, 0, 0, 0, 0, 1, 0))
        after = nn.functional.pad(blocks_BNHCE[:, 1:, :, :reach], (0, 0, 0, 0, 0, 0, 0, 1))
        return torch.cat([before, blocks_BNHCE, after], dim=3).flatten(0, 1)

    def _mask(self, tokens: int, block: int, device: torch.device) -> Tensor:
        """The band where there are tokens. Queries that only fill the last block see all: none is a NaN."""
        starts = torch.arange(0, tokens, block, device=device)[:, None, None]
        rows = torch.arange(block, device=device)[:, None]
        keys = torch.arange(-self.half_width, block + self.half_width, device=device)
        band = (rows - keys).abs() <= self.half_width
        real = (starts + keys >= 0) & (starts + keys < tokens)
        return band & real | (starts + rows >= tokens)


def to_blocks(values_BHTE: Tensor, block: int) -> Tensor:
    """[batch, blocks, heads, block, E], without a copy unless zeros must fill the last block."""
    short = -values_BHTE.shape[2] % block
    padded = nn.functional.pad(values_BHTE, (0, 0, 0, short)) if short else values_BHTE
    blocks: Tensor = padded.unflatten(2, (-1, block)).transpose(1, 2)
    return blocks


class GridWindowAttention(SoftmaxAttention):
    """A token attends to tokens at most w rows and columns away on the grid it was built for.

    One attention call over all rows: a row's queries against the 2w+1 rows of keys around it.
    """

    def __init__(self, width: int, num_heads: int, half_width: int, grid: tuple[int, int]) -> None:
        super().__init__(width, num_heads)
        self.half_width, self.grid = half_width, grid

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """Raises ValueError at another token count than the grid's."""
        q_BHRCE = to_grid(q_BHTE, self.grid)
        k_BHRKE, v_BHRKE = self._around(k_BHTE), self._around(v_BHTE)
        mask_RCK = self._mask(q_BHTE.device)
        mixed_BHRCE = scaled_dot_product_attention(q_BHRCE, k_BHRKE, v_BHRKE, attn_mask=mask_RCK)
        mixed_BHTE: Tensor = mixed_BHRCE.flatten(2, 3)
        return mixed_BHTE

    @property
    def _reach(self) -> int:
        """Rows to either side; more than the grid has add nothing."""
        return min(self.half_width, self.grid[0] - 1)

    def _around(self, values_BHTE: Tensor) -> Tensor:
        reach = self._reach
        padded = nn.functional.pad(to_grid(values_BHTE, self.grid), (0, 0, 0, 0, reach, reach))
        rows = padded.unfold(2, 2 * reach + 1, 1)  # [B, H, R, C, E, 2w+1]
        return rows.permute(0, 1, 2, 5, 3, 4).flatten(3, 4)

    def _mask(self, device: torch.device) -> Tensor:
        rows, columns = (torch.arange(size, device=device) for size in self.grid)
        seen = rows[:, None] + torch.arange(-self._reach, self._reach + 1, device=device)
        row_ok_RW = (seen >= 0) & (seen < self.grid[0])
        column_ok_CC = (columns[:, None] - columns).abs() <= self.half_width
        return (row_ok_RW[:, None, :, None] & column_ok_CC[None, :, None, :]).flatten(2)


def to_grid(values_BHTE: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens in raster order as rows and columns. Raises ValueError where their number is another."""
    if values_BHTE.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"built for a grid of {grid[0]} x {grid[1]} tokens, given {values_BHTE.shape[2]}")
    on_grid: Tensor = values_BHTE.unflatten(2, grid)
    return on_grid


class KernelAttention(SoftmaxAttention):
    """Linear attention (Katharopoulos et al. 2020): weights phi(q) phi(k) with phi = elu + 1."""

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """phi(Q) (phi(K)^T V), each row divided by the sum of its weights."""
        q_BHTE, k_BHTE = nn.functional.elu(q_BHTE) + 1, nn.functional.elu(k_BHTE) + 1
        sums_BHTE = q_BHTE @ (k_BHTE.transpose(2, 3) @ v_BHTE)
        return sums_BHTE / (q_BHTE @ k_BHTE.sum(dim=2).unsqueeze(3))


def build_mha(spec: MultiHeadAttention, dims: BlockDims) -> nn.Module:
    return SoftmaxAttention(dims.width, spec.heads(dims))


def build_window_attention(spec: WindowAttention, dims: BlockDims) -> nn.Module:
    return BandAttention(dims.width, spec.heads(dims), spec.half_width)


def build_window_attention_2d(spec: WindowAttention2d, dims: BlockDims) -> nn.Module:
    return GridWindowAttention(dims.width, spec.heads(dims), spec.half_width, dims.grid)


def build_linear_attention(spec: LinearAttention, dims: BlockDims) -> nn.Module:
    return KernelAttention(dims.width, spec.heads(dims))
