"""Predictions of the latency table compared with whole models, for random designs.

`python -m benchmarks.latency [--designs 20] [--batch 50] [--seconds 6] [--threads 1]` measures the table,
then every design interleaved with the backbone, and prints both.
"""

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.evaluation.latency import LatencyBench
from grafting_core.specs.latency import LatencySpec, PartLatency
from grafting_core.specs.studies.latencies import timed_parts, with_latencies
from grafting_core.specs.studies.parsing import parse_study
from grafting_core.specs.studies.space import Item, Space

STUDY = {
    "name": "latency",
    "backbone": "testbed/dit-fashion",
    "space": {
        "attention": ["keep", "hyena_x", "window_attention", "identity"],
        "mlp": ["keep", *({"kind": "mlp", "ratio": ratio} for ratio in (1, 2, 3, 6))],
        "parallel_pairs": "optional",
    },
    "objectives": [{"minimize": "loss_gap"}],
}


@dataclass(frozen=True)
class Compared:
    """One design: its forward relative to the backbone's, predicted and measured."""

    edits: int
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("designs", 20), ("batch", 50), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = load_backbone(STUDY["backbone"], torch.device("cpu"))
    space = parse_study(STUDY).space
    parts = timed_parts(space, backbone.card)
    bench = LatencyBench(
        backbone, LatencySpec(name="table", backbone=backbone.card.ref, parts=parts, batch=arguments.batch)
    )
    rows = [bench.measure(part, arguments.seconds) for part in parts]
    show_table(rows, backbone)
    compared = [
        check(bench, timed, arguments.seconds)
        for timed in mixes(with_latencies(space, rows, backbone.card), arguments.designs)
    ]
    show_designs(compared)


def mixes(space: Space, count: int) -> list[tuple[Space, tuple[Item, ...]]]:
    """Draw random designs that edit every second site on average; every fourth has pairs."""
    draw, found = random.Random(0), []
    for number in range(count):
        assignment = {
            each.name: draw.choice(each.labels) if draw.random() < 0.6 else "keep" for each in space.variables
        }
        if number % 4 == 3:
            assignment |= {pair.variable: draw.choice(("split", "merged")) for pair in space.pairs}
        found.append((space, space.chosen(assignment)))
    return found


def check(bench: LatencyBench, timed: tuple[Space, tuple[Item, ...]], seconds: float) -> Compared:
    """Measure the design interleaved with the backbone."""
    space, chosen = timed
    found = bench.compare(space.design(chosen), seconds)
    edits = sum(len(item.edits) for item in chosen)
    return Compared(edits, space.latency(chosen), found.ratio, found.ratio_low, found.ratio_high)


def show_table(rows: Sequence[PartLatency], backbone: Backbone) -> None:
    """Print every row, and how well the rest and the original operators add up to the whole."""
    first = rows[0]
    print(f"{first.hardware.processor}, {first.hardware.threads} threads, torch {first.hardware.torch}")
    print(f"{first.tokens} tokens, width {first.width}, batch {first.batch}, {first.precision}\n")
    print(
        "| part | ms | 20 to 80 % | original, ms | adds to a forward | 95 % | rounds |\n" + "|---" * 7 + "|"
    )
    for row in rows:
        ms = [1e3 * value for value in (row.seconds.median, row.seconds.low, row.seconds.high)]
        print(
            f"| {row.name} | {ms[0]:.3f} | {ms[1]:.3f} to {ms[2]:.3f} | {1e3 * row.original.median:.3f} | "
            f"{row.extra:+.2%} | {row.extra_low:+.2%} to {row.extra_high:+.2%} | {row.rounds} |"
        )
    named = {row.name: row.seconds.median / row.whole.median for row in rows}
    parts = named["rest"] + backbone.card.depth * (named["attention mha"] + named["mlp mlp"])
    print(f"\nrest and original operators: {parts:.3f} of the whole")


def show_designs(compared: Sequence[Compared]) -> None:
    """Print every design, then the errors."""
    print("\n| edits | predicted | measured | 95 % | predicted / measured |\n" + "|---" * 5 + "|")
    for each in sorted(compared, key=lambda each: each.measured):
        print(
            f"| {each.edits} | {each.predicted:.3f} | {each.measured:.3f} | "
            f"{each.low:.3f} to {each.high:.3f} | {each.ratio:.3f} |"
        )
    errors = [abs(each.ratio - 1) for each in compared]
    ranks = np.array([[each.predicted, each.measured] for each in compared]).argsort(axis=0).argsort(axis=0)
    correlation = np.corrcoef(ranks.T)[0, 1]
    print(
        f"\nrelative error: median {statistics.median(errors):.1%}, worst {max(errors):.1%}; "
        f"rank correlation {correlation:.3f}"
    )


if __name__ == "__main__":
    main()
