"""Attention modules: full, windowed in raster order or on the grid, and linear."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grafting_core.operators.construction import Arguments, Construction
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.attention import (
    LinearAttention,
    MultiHeadAttention,
    WindowAttention,
    WindowAttention2d,
)
from grafting_core.specs.operators.windows import band_block, grid_block


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
    """Token n attends to n-w..n+w. For long sequences memory and work grow with tokens times window."""

    def __init__(self, width: int, num_heads: int, half_width: int) -> None:
        super().__init__(width, num_heads)
        self.half_width = half_width

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """One attention call, over blocks of queries and the keys in their windows, or over all tokens."""
        tokens = q_BHTE.shape[2]
        if self.half_width >= tokens - 1:
            return super().mix(q_BHTE, k_BHTE, v_BHTE)
        block = band_block(self.half_width, tokens)
        if block is None:
            band_TT = near(tokens, self.half_width, q_BHTE.device)
            return scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=band_TT)
        return self._in_blocks(q_BHTE, k_BHTE, v_BHTE, block)

    def _in_blocks(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, block: int) -> Tensor:
        tokens = q_BHTE.shape[2]
        q_XHCE = to_blocks(q_BHTE, block).flatten(0, 1)
        k_XHKE, v_XHKE = (self._around(to_blocks(values, block)) for values in (k_BHTE, v_BHTE))
        mask_XCK = self._mask(tokens, block, q_BHTE.device).repeat(len(q_BHTE), 1, 1)
        mixed_XHCE = scaled_dot_product_attention(q_XHCE, k_XHKE, v_XHKE, attn_mask=mask_XCK[:, None])
        mixed_BHNCE = mixed_XHCE.unflatten(0, (len(q_BHTE), -1)).transpose(1, 2)
        mixed_BHTE: Tensor = mixed_BHNCE.flatten(2, 3)[:, :, :tokens]
        return mixed_BHTE

    def _around(self, blocks_BNHCE: Tensor) -> Tensor:
        """Each block with the end of the previous and the beginning of the next, with blocks as a batch.

        Slices all blocks at once: slicing each block would create a gradient of the whole sequence per block.
        """
        reach = self.half_width
        if reach == 0:
            return blocks_BNHCE.flatten(0, 1)
        before = nn.functional.pad(blocks_BNHCE[:, :-1, :, -reach:], (0, 0, 0, 0, 0, 0, 1, 0))
        after = nn.functional.pad(blocks_BNHCE[:, 1:, :, :reach], (0, 0, 0, 0, 0, 0, 0, 1))
        return torch.cat([before, blocks_BNHCE, after], dim=3).flatten(0, 1)

    def _mask(self, tokens: int, block: int, device: torch.device) -> Tensor:
        """Mask of the band over existing tokens. Padding queries attend to everything, to avoid NaN."""
        starts = torch.arange(0, tokens, block, device=device)[:, None, None]
        rows = torch.arange(block, device=device)[:, None]
        keys = torch.arange(-self.half_width, block + self.half_width, device=device)
        band = (rows - keys).abs() <= self.half_width
        real = (starts + keys >= 0) & (starts + keys < tokens)
        return band & real | (starts + rows >= tokens)


def near(size: int, steps: int, device: torch.device) -> Tensor:
    """[size, size]: whether two positions are at most `steps` apart."""
    places = torch.arange(size, device=device)
    return (places[:, None] - places).abs() <= steps


def to_blocks(values_BHTE: Tensor, block: int) -> Tensor:
    """[batch, blocks, heads, block, E], without a copy unless the last block needs padding."""
    short = -values_BHTE.shape[2] % block
    padded = nn.functional.pad(values_BHTE, (0, 0, 0, short)) if short else values_BHTE
    blocks: Tensor = padded.unflatten(2, (-1, block)).transpose(1, 2)
    return blocks


class GridWindowAttention(SoftmaxAttention):
    """A token attends to tokens at most w rows and columns away, on the grid that it was built for."""

    def __init__(self, width: int, num_heads: int, half_width: int, grid: tuple[int, int]) -> None:
        super().__init__(width, num_heads)
        self.half_width, self.grid = half_width, grid

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """Attention over blocks of rows and the rows in their windows, or over all tokens under a mask.

        Raises ValueError for another token count than the grid's.
        """
        on_grid = [to_grid(values, self.grid) for values in (q_BHTE, k_BHTE, v_BHTE)]
        rows = grid_block(self.half_width, self.grid)
        if rows is None:
            mask_TT = self._mask(self.grid[0], q_BHTE.device)[0]
            return scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, attn_mask=mask_TT)
        # Blocks take the batch dimension, batch and heads the heads dimension: fused kernels need four
        # dimensions, and one mask serves all images.
        q_NXCE, k_NXKE, v_NXKE = (
            self._blocks(values.flatten(0, 1), rows, reach)
            for values, reach in zip(on_grid, (0, self._reach, self._reach), strict=True)
        )
        mask_NCK = self._mask(rows, q_BHTE.device)
        mixed_NXCE = scaled_dot_product_attention(q_NXCE, k_NXKE, v_NXKE, attn_mask=mask_NCK[:, None])
        mixed_XTE = mixed_NXCE.transpose(0, 1).flatten(1, 2)[:, : q_BHTE.shape[2]]
        mixed_BHTE: Tensor = mixed_XTE.unflatten(0, q_BHTE.shape[:2])
        return mixed_BHTE

    @property
    def _reach(self) -> int:
        """Rows to either side, at most those of the grid."""
        return min(self.half_width, self.grid[0] - 1)

    def _blocks(self, values_XRCE: Tensor, rows: int, reach: int) -> Tensor:
        """[blocks, X, tokens, E]: `rows` rows each and `reach` more to either side; zeros beyond the grid."""
        short = -self.grid[0] % rows
        padded = nn.functional.pad(values_XRCE, (0, 0, 0, 0, reach, reach + short))
        blocks: Tensor = padded.unfold(1, rows + 2 * reach, rows).permute(1, 0, 4, 2, 3).flatten(2, 3)
        return blocks

    def _mask(self, rows: int, device: torch.device) -> Tensor:
        """Mask [blocks, queries, keys] for blocks of `rows` rows; one block of all rows has all tokens.

        Padding queries attend to everything in their block, to avoid NaN.
        """
        reach = self._reach if rows < self.grid[0] else 0
        starts_N = torch.arange(0, self.grid[0], rows, device=device)
        queries_NR = starts_N[:, None] + torch.arange(rows, device=device)
        keys_NK = starts_N[:, None] + torch.arange(-reach, rows + reach, device=device)
        real_NRK = ((keys_NK >= 0) & (keys_NK < self.grid[0]))[:, None]
        near_NRK = (queries_NR[:, :, None] - keys_NK[:, None]).abs() <= self.half_width
        filling_NR1 = (queries_NR >= self.grid[0])[:, :, None]
        rows_NRK = near_NRK & real_NRK | filling_NR1
        columns_CC = near(self.grid[1], self.half_width, device)
        mask_NRCKC = rows_NRK[:, :, None, :, None] & columns_CC[:, None, :]
        return mask_NRCKC.flatten(3, 4).flatten(1, 2)


def to_grid(values_BHTE: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens in raster order as rows and columns. Raises ValueError for another number of tokens."""
    if values_BHTE.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"built for a grid of {grid[0]} x {grid[1]} tokens, not for {values_BHTE.shape[2]}")
    on_grid: Tensor = values_BHTE.unflatten(2, grid)
    return on_grid


class KernelAttention(SoftmaxAttention):
    """Linear attention (Katharopoulos et al. 2020): weights phi(q) phi(k) with phi = elu + 1."""

    def mix(self, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
        """phi(Q) (phi(K)^T V), each row divided by the sum of its weights."""
        q_BHTE, k_BHTE = nn.functional.elu(q_BHTE) + 1, nn.functional.elu(k_BHTE) + 1
        sums_BHTE = q_BHTE @ (k_BHTE.transpose(2, 3) @ v_BHTE)
        return sums_BHTE / (q_BHTE @ k_BHTE.sum(dim=2).unsqueeze(3))


def _softmax(spec: MultiHeadAttention | LinearAttention, dims: BlockDims) -> Arguments:
    return {"width": dims.width, "num_heads": spec.heads(dims)}


def _band(spec: WindowAttention, dims: BlockDims) -> Arguments:
    return {"width": dims.width, "num_heads": spec.heads(dims), "half_width": spec.half_width}


def _grid_window(spec: WindowAttention2d, dims: BlockDims) -> Arguments:
    window = {"half_width": spec.half_width, "grid": dims.grid}
    return {"width": dims.width, "num_heads": spec.heads(dims), **window}


build_mha = Construction(SoftmaxAttention, _softmax)
build_window_attention = Construction(BandAttention, _band)
build_window_attention_2d = Construction(GridWindowAttention, _grid_window)
build_linear_attention = Construction(KernelAttention, _softmax)
