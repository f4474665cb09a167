"""Coverage of 95 % intervals: draws of known distributions, for every metric that has an interval.

`python -m benchmarks.coverage [--dims 8 64] [--counts 50] [--draws 200] [--only kid fid] [--keep FOLDER]`
prints a table, metric x D x N, in per cent, each with the 95 % range for its number of draws. A cell has
two cases: samples of the reference's own distribution, and samples that are shifted and scaled. The true
value is the population's for `fid_infinity`, `kid` and `label_accuracy`; for the others, which are biased
at N samples, it is their mean at N.

With `--keep` every draw is stored, and a later call, with more draws or after an interruption, continues
from the stored ones.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    share_interval,
)
from grafting_core.evaluation.metrics.kid import kernel_distance, kernel_interval
from grafting_core.evaluation.metrics.prdc import FIELDS, Manifold, overlap
from grafting_core.evaluation.metrics.prdc_intervals import overlap_intervals
from grafting_core.evaluation.metrics.report import KID_SUBSETS

Rows = npt.NDArray[np.float64]
DIMS, COUNTS = (8, 24, 64), (50, 500, 5_000)
CLASSES, ACCURACY = 10, 0.9
MANY = 1_000
DRAWS: Mapping[str, tuple[int, int]] = {
    "fid": (1_000, 1_000),
    "fid_infinity": (400, 400),
    "kid": (1_000, 100),
    "overlap": (200, 100),
    "is": (1_000, 1_000),
    "label_accuracy": (1_000, 1_000),
}
"""Number of draws of a cell up to `MANY` samples, and beyond: as many as a processor makes in ten minutes."""


@dataclass(frozen=True)
class Case:
    """Samples shifted by `shift` in every feature and `scale` times as wide as the standard normal
    reference.
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
    """Value and interval of a metric in one draw."""

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
    """Draw an inception score; the logits are the first ten features, or all if there are fewer."""
    logits = 3 * case.samples(rng)[:, :CLASSES]
    value = inception_score(logits)
    return {"is": Drawn(value, score_interval(logits, value))}


def draw_accuracy(case: Case, rng: np.random.Generator) -> dict[str, Drawn]:
    verdicts = rng.random(case.count) < ACCURACY
    return {"label_accuracy": Drawn(float(verdicts.mean()), label_interval(verdicts))}


def exact_fid(case: Case) -> float:
    """Return the exact FID, |shift|^2 + (scale - 1)^2 D."""
    return case.dims * (case.shift**2 + (case.scale - 1) ** 2)


def exact_kid(case: Case) -> float:
    """Return the exact KID from expectations of (x.y / D + 1)^3, in which only even powers remain."""
    own = _cubic(case, case.shift, case.scale, case.shift, case.scale)
    return own + _cubic(case, 0, 1, 0, 1) - 2 * _cubic(case, case.shift, case.scale, 0, 1)


def _cubic(case: Case, shift: float, scale: float, other_shift: float, other_scale: float) -> float:
    """Return E (x.y / D + 1)^3 with every x_i = N(shift, scale^2) and y_i alike, from cumulants of the
    sum.
    """
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


@dataclass(frozen=True)
class Shard:
    """Number of draws, and of those whose interval covers the true value."""

    hits: int
    draws: int

    @property
    def value(self) -> float:
        return self.hits / self.draws

    @property
    def interval(self) -> Interval:
        """Return the 95 % interval of the share of covering draws."""
        return share_interval(self.value, self.draws)


def coverage(
    name: str, case: Case, draws: int, shrink: float = 1.0, kept: Path | None = None
) -> dict[str, Shard | None]:
    """Count by metric the draws whose interval covers the true value; None if the metric has no interval.

    `shrink` narrows the intervals around their values, to see whether they are wider than needed. `kept`
    is the file of this case's stored draws, which are not repeated.

    Without a closed form the true value is the mean over these draws, which is far closer to it than one
    draw.
    """
    found = _draws(name, case, draws, kept)
    return {figure: _share(case, figure, [drawn[figure] for drawn in found], shrink) for figure in found[0]}


def _draws(name: str, case: Case, draws: int, kept: Path | None) -> list[dict[str, Drawn]]:
    """Return the draws; draw i depends only on i."""
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    found = [_read(line) for line in lines[:draws]]
    for index in range(len(found), draws):
        found.append(DRAWING[name](case, np.random.default_rng((0, index))))
        if kept is not None:
            with kept.open("a") as file:
                file.write(_written(found[-1]) + "\n")
    return found


def _written(found: Mapping[str, Drawn]) -> str:
    return json.dumps({figure: [drawn.value, drawn.interval] for figure, drawn in found.items()})


def _read(line: str) -> dict[str, Drawn]:
    return {
        figure: Drawn(value, tuple(interval) if interval else None)
        for figure, (value, interval) in json.loads(line).items()
    }


def _share(case: Case, figure: str, drawn: Sequence[Drawn], shrink: float) -> Shard | None:
    intervals = [
        tuple(each.value + shrink * (end - each.value) for end in each.interval)
        for each in drawn
        if each.interval is not None
    ]
    if len(intervals) < len(drawn):
        return None
    exact = TRUTH.get(figure)
    truth = exact(case) if exact else float(np.mean([each.value for each in drawn]))
    return Shard(sum(low <= truth <= high for low, high in intervals), len(drawn))


def both_cases(
    name: str, dims: int, count: int, draws: int | None = None, folder: Path | None = None
) -> dict[str, tuple[Shard | None, ...]]:
    """Return the coverage in both cases, by metric."""
    cases = {"same": Case(dims, count), "moved": Case(dims, count, shift=0.5, scale=1.2)}
    most = draws or DRAWS[name][count > MANY]
    found = [
        coverage(name, case, most, kept=folder and folder / f"{name}-{dims}-{count}-{which}.jsonl")
        for which, case in cases.items()
    ]
    return {figure: tuple(each[figure] for each in found) for figure in found[0]}


def main() -> None:
    """Parse the command line and print one line per metric and D, and one column per number of samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--draws", type=int, help="of every cell, in place of the figure's own number")
    parser.add_argument("--keep", type=Path, help="a folder for the draws of every cell")
    parser.add_argument("--only", nargs="+", choices=DRAWING, default=list(DRAWING))
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    print(f"| figure | D | {' | '.join(f'N = {count:,}' for count in given.counts)} |")
    print("|---" * (2 + len(given.counts)) + "|", flush=True)
    for name in given.only:
        for dims in given.dims:
            columns = [both_cases(name, dims, count, given.draws, given.keep) for count in given.counts]
            print_rows(dims, columns)


def print_rows(dims: int, columns: Sequence[dict[str, tuple[Shard | None, ...]]]) -> None:
    for figure in columns[0]:
        cells = [_cell(column[figure]) for column in columns]
        print(f"| `{figure}` | {dims} | {' | '.join(cells)} |", flush=True)


def _cell(shares: tuple[Shard | None, ...]) -> str:
    """Format the cell such as `95 (93-97)` for each case; `none` without an interval."""
    return ", ".join("none" if share is None else _shown(share) for share in shares)


def _shown(share: Shard) -> str:
    low, high = share.interval
    return f"{share.value * 100:.0f} ({low * 100:.0f}-{high * 100:.0f})"


if __name__ == "__main__":
    main()
