"""How often 95 % intervals hold the truth: draws of known distributions, for every figure that has an
interval.

`python -m benchmarks.coverage [--dims 8 64] [--counts 50 5000] [--draws 200] [--only kid fid ...]` prints a
table, figure x D x N, in per cent. A cell has two cases: samples of the reference's own distribution, and
samples that are shifted and scaled. The truth is the population's own for `fid_infinity`, `kid` and
`label_accuracy`; for the others, which are biased at N samples, it is what they are on average at N. Cells
beyond 1,000 samples have a quarter of the draws.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.fid_infinity import fid_infinity
from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_of_rows
from grafting_core.evaluation.metrics.inception_score import inception_score
from grafting_core.evaluation.metrics.intervals import (
    Interval,
    frechet_interval,
    label_interval,
    score_interval,
)
from grafting_core.evaluation.metrics.kid import kernel_distance, kernel_interval
from grafting_core.evaluation.metrics.prdc import FIELDS, Manifold, overlap
from grafting_core.evaluation.metrics.prdc_intervals import overlap_intervals
from grafting_core.evaluation.metrics.report import KID_SUBSETS

Rows = npt.NDArray[np.float64]
DIMS, COUNTS, DRAWS = (8, 24, 64), (50, 500, 5_000), 100
CLASSES, ACCURACY = 10, 0.9
MANY = 1_000


@dataclass(frozen=True)
class Case:
    """Samples are `shift` off in every feature and `scale` times as wide as the reference's standard
    normal.
    """

    dims: int
    count: int
    shift: float = 0.0
    scale: float = 1.0

    def samples(self, rng: np.random.Generator) -> Rows:
        return self.shift + self.scale * rng.normal(size=(self.count, self.dims))

    def reference(self, rng: np.random.Generator) -> Rows:
        return rng.normal(size=(self.count, self.dims))

    @property
    def gaussian(self) -> Gaussian:
        return Gaussian(np.zeros(self.dims), np.eye(self.dims))


@dataclass(frozen=True)
class Drawn:
    """One draw's value and interval of a figure."""

    value: float
    interval: Interval | None


Draw = Callable[[Case, np.random.Generator], dict[str, Drawn]]


def draw_fid(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    rows = case.samples(rng)
    value = frechet_of_rows(case.gaussian, rows)
    return {"fid, sfid": Drawn(value, frechet_interval(case.gaussian, rows, value))}


def draw_fid_infinity(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    line = fid_infinity(case.gaussian, case.samples(rng))
    return {"fid_infinity": Drawn(line.value, line.interval)}


def draw_kid(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    rows, reference = case.samples(rng), case.reference(rng)
    value = kernel_distance(rows, reference, KID_SUBSETS)
    return {"kid": Drawn(value, kernel_interval(rows, reference, value, KID_SUBSETS))}


def draw_overlap(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    rows, reference = case.samples(rng), case.reference(rng)
    means = overlap(Manifold.of(reference), Manifold.of(rows)).means
    intervals = overlap_intervals(reference, rows, means)
    return {name: Drawn(means[name], intervals.get(name)) for name in FIELDS}


def draw_score(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    """Logits of ten classes: the first ten features, or all where there are fewer."""
    logits = 3 * case.samples(rng)[:, :CLASSES]
    value = inception_score(logits)
    return {"is": Drawn(value, score_interval(logits, value))}


def draw_accuracy(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    verdicts = rng.random(case.count) < ACCURACY
    return {"label_accuracy": Drawn(float(verdicts.mean()), label_interval(verdicts))}


def exact_fid(case: Case) -> float:
    """|shift|^2 + (scale - 1)^2 D."""
    return case.dims * (case.shift**2 + (case.scale - 1) ** 2)


def exact_kid(case: Case) -> float:
    """Expectations of (x.y / D + 1)^3 for independent normals: only even powers of the inner product
    remain.
    """
    own = _cubic(case, case.shift, case.scale, case.shift, case.scale)
    return own + _cubic(case, 0, 1, 0, 1) - 2 * _cubic(case, case.shift, case.scale, 0, 1)


def _cubic(case: Case, shift: float, scale: float, other_shift: float, other_scale: float) -> float:
    """E (x.y / D + 1)^3 with every x_i = N(shift, scale^2), y_i alike: from the cumulants of the sum."""
    dims = case.dims
    moments = [_moment(k, shift, scale) * _moment(k, other_shift, other_scale) for k in (1, 2, 3)]
    first = moments[0]
    second = moments[1] - first**2
    third = moments[2] - 3 * moments[1] * first + 2 * first**3
    mean, variance, skewed = 1 + first, second / dims, third / dims**2
    return mean**3 + 3 * mean * variance + skewed


def _moment(order: int, mean: float, spread: float) -> float:
    return (mean, mean**2 + spread**2, mean**3 + 3 * mean * spread**2)[order - 1]


DRAWING: Mapping[str, Draw] = {
    "fid": draw_fid,
    "fid_infinity": draw_fid_infinity,
    "kid": draw_kid,
    "overlap": draw_overlap,
    "is": draw_score,
    "label_accuracy": draw_accuracy,
}
TRUTH: Mapping[str, Callable[[Case], float]] = {
    "fid_infinity": exact_fid,
    "kid": exact_kid,
    "label_accuracy": lambda case: ACCURACY,
}


def coverage(
    name: str, case: Case, draws: int, seed: int = 0, shrink: float = 1.0
) -> dict[str, float | None]:
    """Share of draws whose interval holds the truth, by figure; None where the figure has no interval.

    `shrink` narrows the intervals around their values, to see whether they are wider than need be.

    Without a closed form the truth is the mean over these draws, which is far closer to it than one draw is.
    """
    rng = np.random.default_rng(seed)
    found = [DRAWING[name](case, rng) for _ in range(draws)]
    return {figure: _share(case, figure, [drawn[figure] for drawn in found], shrink) for figure in found[0]}


def _share(case: Case, figure: str, drawn: Sequence[Drawn], shrink: float) -> float | None:
    intervals = [
        tuple(each.value + shrink * (end - each.value) for end in each.interval)
        for each in drawn
        if each.interval is not None
    ]
    if len(intervals) < len(drawn):
        return None
    exact = TRUTH.get(figure)
    truth = exact(case) if exact else float(np.mean([each.value for each in drawn]))
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def both_cases(name: str, dims: int, count: int, draws: int) -> dict[str, tuple[float | None, ...]]:
    """Coverage in either case, by figure."""
    cases = (Case(dims, count), Case(dims, count, shift=0.5, scale=1.2))
    found = [coverage(name, case, draws if count <= MANY else draws // 4) for case in cases]
    return {figure: tuple(each[figure] for each in found) for figure in found[0]}


def main() -> None:
    """Parse the command line and print a line a figure and D, a column a number of samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", nargs="+", choices=DRAWING, default=list(DRAWING))
    given = parser.parse_args()
    print(f"| figure | D | {' | '.join(f'N = {count:,}' for count in given.counts)} |")
    print("|---" * (2 + len(given.counts)) + "|", flush=True)
    for name in given.only:
        for dims in given.dims:
            print_rows(dims, [both_cases(name, dims, count, given.draws) for count in given.counts])


def print_rows(dims: int, columns: Sequence[dict[str, tuple[float | None, ...]]]) -> None:
    for figure in columns[0]:
        cells = [_cell(column[figure]) for column in columns]
        print(f"| `{figure}` | {dims} | {' | '.join(cells)} |", flush=True)


def _cell(shares: tuple[float | None, ...]) -> str:
    """`none` where there is no interval."""
    return ", ".join("none" if share is None else f"{share * 100:.0f}" for share in shares)


if __name__ == "__main__":
    main()
