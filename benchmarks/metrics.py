"""Metrics compared with the implementations that they are checked against, in one run, on equal features.

`python -m benchmarks.metrics [--dims 2048] [--count 10000] [--rounds 3] [--only frechet neighbours ...]`
prints a table: the Frechet distance against `scipy.linalg.sqrtm`, precision and recall against
torch-fidelity (with the memory that each takes beyond the features), and several networks against one
reference.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from scipy.linalg import sqrtm

from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_distance
from grafting_core.evaluation.metrics.moments import Moments
from grafting_core.evaluation.metrics.prdc import Manifold, overlap

Rows = npt.NDArray[np.float32]
STUBBED = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
)
HYBRIDS = 4


def main() -> None:
    """Parse the command line and print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=2048)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peak", choices=SIDES, help="print the memory that one side takes, MiB")
    given = parser.parse_args()
    if given.peak:
        print(peak(SIDES[given.peak], given.count, given.dims))
        return
    print("| what | ours, s | peer, s | ratio | ratio of processor time | agreement |")
    print("|---|---|---|---|---|---|")
    for part in given.only:
        PARTS[part](given.count, given.dims, given.rounds)


def rows_of(count: int, dims: int, seed: int) -> Rows:
    """Make features like those of a network: positive, correlated, with very different variances."""
    rng = np.random.default_rng(seed)
    scales = np.exp(-4 * np.arange(dims) / dims)
    mixed = (
        rng.normal(size=(count, dims))
        * scales
        @ np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0]
    )
    return np.asarray(np.abs(0.4 + mixed + 0.05 * seed * rng.normal(size=dims)), np.float32)


@dataclass
class Timed:
    """Medians of wall-clock and processor seconds over the calls so far, and the last answer."""

    walls: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)
    answer: Any = None

    def call(self, job: Callable[[], Any]) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        self.answer = job()
        self.walls.append(time.perf_counter() - wall)
        self.processors.append(time.process_time() - processor)

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def processor(self) -> float:
        return statistics.median(self.processors)


def line(what: str, ours: Timed, peer: Timed, agreement: str) -> None:
    """Print a line, with processor seconds, which stay comparable on a busy machine."""
    times = f"{ours.wall:.2f} | {peer.wall:.2f} | {peer.wall / ours.wall:.1f}"
    print(f"| {what} | {times} | {peer.processor / ours.processor:.1f} | {agreement} |", flush=True)


def compare_frechet(count: int, dims: int, rounds: int) -> None:
    """Time sqrtm once, as it takes minutes, with ours before and after it."""
    one, two = (Gaussian.of(Moments.of(rows_of(count, dims, seed))) for seed in (1, 2))
    fresh, cached, theirs = Timed(), Timed(), Timed()
    for turn in range(rounds):
        if turn == rounds // 2:
            theirs.call(partial(by_sqrtm, one, two))
        bare = Gaussian(one.mean, one.covariance, one.count)
        fresh.call(partial(frechet_distance, bare, two))
        cached.call(partial(frechet_distance, bare, two))
    error = f"{abs(cached.answer / theirs.answer - 1):.1e} relative"
    line(f"Frechet distance, {dims} features", fresh, theirs, error)
    line("the same, reference factor cached", cached, theirs, error)


def by_sqrtm(one: Gaussian, two: Gaussian) -> float:
    """Compute the distance by the textbook formula."""
    root = np.trace(sqrtm(one.covariance @ two.covariance)).real
    shift = one.mean - two.mean
    return float(shift @ shift + np.trace(one.covariance) + np.trace(two.covariance) - 2 * root)


def compare_neighbours(count: int, dims: int, rounds: int) -> None:
    """Time both alternately. torch-fidelity computes in the features' float32, ours in float64."""
    samples, reference = rows_of(count, dims, 1), rows_of(count, dims, 2)
    times = {side: Timed() for side in SIDES}
    for _ in range(rounds):
        for side, call in SIDES.items():
            times[side].call(partial(call, samples, reference))
    ours, full, part = times.values()
    memory = {side: peak_of(side, count, dims) for side in SIDES}
    agreement = f"{max(abs(a - b) for a, b in zip(ours.answer, full.answer, strict=True)):.1e} absolute"
    what = f"precision and recall, {count:,} x {count:,} x {dims}"
    line(f"{what}: {memory['ours']} against {memory['torch-fidelity']} MiB", ours, full, agreement)
    line(f"the same, sparing memory: {memory['ours']} against {memory['sparing']} MiB", ours, part, agreement)


def our_neighbours(samples: Rows, reference: Rows) -> tuple[float, float]:
    """Compute precision and recall; density and coverage are computed with them."""
    means = overlap(Manifold.of(reference), Manifold.of(samples)).means
    return means["precision"], means["recall"]


def fidelity_neighbours(samples: Rows, reference: Rows, sparing: bool = False) -> tuple[float, float]:
    """Compute torch-fidelity's precision and recall on these features."""
    module = torch_fidelity("metric_prc")
    if sparing:
        call = module.calculate_precision_recall_part
        precision, recall = call(torch.from_numpy(samples), torch.from_numpy(reference), 3, 2_000)
    else:
        call = module.calculate_precision_recall_full
        precision, recall = call(torch.from_numpy(samples), torch.from_numpy(reference), 3)
    return float(precision), float(recall)


def torch_fidelity(name: str) -> Any:
    """Import a module of torch-fidelity; torchvision, which its functions on features do not use, is
    stubbed.
    """
    for stubbed in STUBBED:
        if stubbed not in sys.modules:
            sys.modules[stubbed] = stub(stubbed)
    return import_module(f"torch_fidelity.{name}")


def stub(name: str) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    made.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


def peak_of(side: str, count: int, dims: int) -> str:
    """Return the MiB of a process that does nothing else."""
    words = ["--peak", side, "--count", str(count), "--dims", str(dims)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.metrics", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def peak(side: Callable[[Rows, Rows], Any], count: int, dims: int) -> int:
    """Return the peak of memory beyond the features, after a small warm-up."""
    samples, reference = rows_of(count, dims, 1), rows_of(count, dims, 2)
    side(samples[:50], reference[:50])
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    side(samples, reference)
    lines = Path("/proc/self/status").read_text().splitlines()
    high = next(int(text.split()[1]) for text in lines if text.startswith("VmHWM")) * 1024
    return int(high - before) // 2**20


def compare_references(count: int, dims: int, rounds: int) -> None:
    """Compare several networks with one reference, its statistics computed once, and once per network."""
    reference = rows_of(count, dims, 2)
    hybrids = [rows_of(count, dims, 3 + index) for index in range(HYBRIDS)]
    once, anew = Timed(), Timed()
    for _ in range(rounds):
        once.call(lambda: judged(hybrids, Known(reference)))
        anew.call(lambda: [judged([rows], Known(reference))[0] for rows in hybrids])
    what = f"{HYBRIDS} networks, one reference, {count:,} x {dims}: FID, precision, recall"
    line(what, once, anew, f"equal: {once.answer == anew.answer}")


class Known:
    """A reference with its cached statistics."""

    def __init__(self, rows: Rows) -> None:
        self.gaussian = Gaussian.of(Moments.of(rows))
        _ = self.gaussian.factor
        self.manifold = Manifold.of(rows)


def judged(hybrids: list[Rows], known: Known) -> list[tuple[float, float, float]]:
    """Return FID, precision and recall of each."""
    found = []
    for rows in hybrids:
        means = overlap(known.manifold, Manifold.of(rows)).means
        distance = frechet_distance(known.gaussian, Gaussian.of(Moments.of(rows)))
        found.append((distance, means["precision"], means["recall"]))
    return found


PARTS: dict[str, Callable[[int, int, int], None]] = {
    "frechet": compare_frechet,
    "neighbours": compare_neighbours,
    "reference": compare_references,
}
SIDES: dict[str, Callable[[Rows, Rows], tuple[float, float]]] = {
    "ours": our_neighbours,
    "torch-fidelity": fidelity_neighbours,
    "sparing": lambda samples, reference: fidelity_neighbours(samples, reference, sparing=True),
}

if __name__ == "__main__":
    main()
