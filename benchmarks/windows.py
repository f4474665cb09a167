"""Two-dimensional window attention compared with softmax attention and the same window in five dimensions.

`python -m benchmarks.windows`: CPU time of one thread, medians of interleaved rounds; the reference is
torch's `scaled_dot_product_attention` over all tokens. Fused kernels support only four dimensions.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from grafting_core.operators.attention import GridWindowAttention, near, to_grid

HEAD = "| tokens | what | forward | forward + backward | forward ms |\n|---|---|---|---|---|"
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Print a line per variant and grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD)
    for side in given.sides:
        compare(side, given.rounds)


def compare(side: int, rounds: int, heads: int = 16, head_dim: int = 72) -> None:
    """Compare on batches of 4,096 tokens in DiT-XL's width."""
    window = GridWindowAttention(heads * head_dim, heads, 2, (side, side))
    ways: Mapping[str, Mix] = {
        "all tokens (SDPA)": scaled_dot_product_attention,
        "window, five dimensions": lambda q, k, v: in_five_dimensions(q, k, v, window),
        "window": window.mix,
    }
    qkv = torch.randn(3, max(1, 4096 // side**2), heads, side**2, head_dim)
    forward = interleaved({name: lambda mix=mix: mix(*qkv) for name, mix in ways.items()}, rounds)
    both = interleaved({name: lambda mix=mix: _backward(mix, qkv) for name, mix in ways.items()}, rounds)
    peer = next(iter(ways))
    for name in ways:
        ratios = f"{forward[peer] / forward[name]:.2f} | {both[peer] / both[name]:.2f}"
        print(f"| {side**2} | {name} | {ratios} | {1e3 * forward[name]:.0f} |", flush=True)


def in_five_dimensions(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, window: GridWindowAttention) -> Tensor:
    """Compute the same window with rows as a separate dimension: a row of queries, 2w+1 rows of keys."""
    (rows, columns), reach = window.grid, window.half_width

    def around(values_BHTE: Tensor) -> Tensor:
        padded = nn.functional.pad(to_grid(values_BHTE, window.grid), (0, 0, 0, 0, reach, reach))
        return padded.unfold(2, 2 * reach + 1, 1).permute(0, 1, 2, 5, 3, 4).flatten(3, 4)

    seen = torch.arange(rows)[:, None] + torch.arange(-reach, reach + 1)
    real = (seen >= 0) & (seen < rows)
    mask_RCK = (real[:, None, :, None] & near(columns, reach, q_BHTE.device)[None, :, None, :]).flatten(2)
    q_BHRCE = to_grid(q_BHTE, window.grid)
    mixed = scaled_dot_product_attention(q_BHRCE, around(k_BHTE), around(v_BHTE), attn_mask=mask_RCK)
    return mixed.flatten(2, 3)


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, measured alternately, without the first round, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if number:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(kept) for name, kept in times.items()}


def _backward(mix: Mix, qkv: Tensor) -> None:
    inputs = qkv.detach().requires_grad_(True)
    mix(*inputs).sum().backward()


if __name__ == "__main__":
    main()
