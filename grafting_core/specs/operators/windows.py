"""How window attention is cut into blocks of queries: what the kernel computes and what its FLOPs count.

A block of queries is multiplied with all keys that any of them may see. Small blocks waste few products,
but fused kernels are fast on blocks of some size only. Where blocks would leave more than a third of the
products of attention to all tokens, they are not worth their copies: all are computed, under a mask.
"""

QUERIES = 64
"""In a block, at least."""


def band_block(half_width: int, num_tokens: int) -> int | None:
    """Queries in a block of a window along the raster; None where all tokens are computed under a mask."""
    block = max(QUERIES, 2 * half_width)
    return block if _pays(band_products(num_tokens, half_width, block), num_tokens) else None


def band_products(num_tokens: int, half_width: int, block: int) -> int:
    """Query-key products of all blocks, each with the tokens `half_width` before and behind it."""
    return _rounded_up(num_tokens, block) * (block + 2 * half_width)


def grid_block(half_width: int, grid: tuple[int, int]) -> int | None:
    """Rows of the grid in a block of queries; None where all tokens are computed under a mask."""
    rows = -(-QUERIES // grid[1])
    return rows if _pays(grid_products(grid, half_width, rows), grid[0] * grid[1]) else None


def grid_products(grid: tuple[int, int], half_width: int, rows: int) -> int:
    """Query-key products of all blocks, each with the rows `half_width` above and below it."""
    reach = min(half_width, grid[0] - 1)
    return _rounded_up(grid[0], rows) * grid[1] * (rows + 2 * reach) * grid[1]


def _pays(products: int, num_tokens: int) -> bool:
    return 3 * products <= num_tokens**2


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
