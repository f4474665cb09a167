"""Blocks of queries in window attention: what the kernel computes and its FLOPs count.

A block of queries is multiplied with all keys in any of their windows. Small blocks waste few products, but
fused kernels are only fast on blocks of some size. If blocks would need more than a third of the products of
full attention, they do not repay their copies: all products are computed, under a mask.
"""

QUERIES = 64
"""Minimum number of queries in a block."""


def band_block(half_width: int, num_tokens: int) -> int | None:
    """Queries per block of a window in raster order; None if full attention under a mask is used."""
    block = max(QUERIES, 2 * half_width)
    return block if _pays(band_products(num_tokens, half_width, block), num_tokens) else None


def band_products(num_tokens: int, half_width: int, block: int) -> int:
    """Query-key products of all blocks, each with the `half_width` tokens before and after it."""
    return _rounded_up(num_tokens, block) * (block + 2 * half_width)


def grid_block(half_width: int, grid: tuple[int, int]) -> int | None:
    """Grid rows per block of queries; None if full attention under a mask is used."""
    rows = -(-QUERIES // grid[1])
    return rows if _pays(grid_products(grid, half_width, rows), grid[0] * grid[1]) else None


def grid_products(grid: tuple[int, int], half_width: int, rows: int) -> int:
    """Query-key products of all blocks, each with the `half_width` rows above and below it."""
    reach = min(half_width, grid[0] - 1)
    return _rounded_up(grid[0], rows) * grid[1] * (rows + 2 * reach) * grid[1]


def _pays(products: int, num_tokens: int) -> bool:
    return 3 * products <= num_tokens**2


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
