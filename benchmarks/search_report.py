"""Results of `benchmarks/search.py` as tables, and the interval of its rank correlation."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grafting_core.specs.studies.rank_correlation import rank_correlation

BOOTSTRAP = 2_000


def interval(ones: Sequence[float], others: Sequence[float], seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of Spearman's coefficient."""
    draw, size = random.Random(seed), len(ones)
    found = []
    for _ in range(BOOTSTRAP):
        rows = [draw.randrange(size) for _ in range(size)]
        value = rank_correlation([ones[row] for row in rows], [others[row] for row in rows])
        found += [value] if value is not None else []
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def show(figures: Mapping[str, Any]) -> None:
    """Print the results as tables."""
    costs, rank = figures["costs"], figures["rank"]
    print("| part | device-s |\n|---|---|")
    for name, value in costs.items():
        print(f"| {name} | {value:.1f} |")
    print(f"| one full graft | {figures['full_graft']:.1f} |")
    print(f"\ncost ratio {figures['cost_ratio']:.3f} over {figures['trials']} hybrids")
    low, high = rank["interval"]
    print(f"Spearman {rank['spearman']:.3f} [{low:.3f}, {high:.3f}] over {rank['designs']} designs")
    print(f"(over all {rank['all_designs']} finished: {rank['all']:.3f})\n")
    print("| design | FID |\n|---|---|")
    print(f"| best promoted | {figures['best']:.3f} |\n| teacher, full cost | {figures['teacher']:.3f} |")
    for name, value in sorted(figures["baselines"].items(), key=lambda pair: pair[1]):
        print(f"| {name} | {value:.3f} |")
    milp = figures["milp"]
    print(f"\nMILP: equal to exhaustive search in {milp['equal']}; ", end="")
    print(f"56 x 8 in {milp['seconds']:.3f} s (worst {milp['worst']:.3f})")
