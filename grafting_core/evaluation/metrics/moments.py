"""Streaming, mergeable mean and covariance in float64 (Chan, Golub & LeVeque 1983)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of sample indices, ascending, not adjacent to each other."""


@dataclass(frozen=True)
class Moments:
    """Number of rows, their mean [D] and the sum of squared deviations [D, D].

    `ranges` has the sample indices of the rows, if known: counting a repeated shard twice would bias results
    silently.
    """

    count: int
    mean: Floats
    scatter: Floats
    ranges: Ranges = ()

    @classmethod
    def of(cls, features_ND: npt.NDArray[np.floating], first: int | None = None) -> "Moments":
        """Moments of one batch, whose first sample has index `first` if given.

        Raises ValueError with the samples whose features are NaN or infinite.
        """
        rows = finite_rows(features_ND, first or 0)
        mean = rows.mean(axis=0)
        centred = rows - mean
        ranges = () if first is None else ((first, first + len(rows)),)
        return cls(len(rows), mean, centred.T @ centred, ranges)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together; merge in index order for results reproducible to the bit.

        Raises ValueError if the sets have samples in common, or if only one of them has `ranges`.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"{self.mean.shape[0]} and {other.mean.shape[0]} features cannot be merged")
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, scatter, _joined(self.ranges, other.ranges))

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance [D, D]. Raises ValueError below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, not {self.count}")
        covariance: Floats = self.scatter / (self.count - 1)
        return covariance

    def check_cover(self, samples: int) -> None:
        """Raise ValueError, with missing or surplus samples, unless these are samples 0 .. samples - 1."""
        if self.ranges == ((0, samples),):
            return
        edges = [0, *(edge for span in self.ranges for edge in span), samples]
        gaps = [f"{low}..{high - 1}" for low, high in zip(edges[::2], edges[1::2], strict=True) if high > low]
        surplus = self.ranges[-1][1] > samples if self.ranges else False
        what = f"samples beyond {samples - 1} exist" if surplus else f"samples {', '.join(gaps)} are missing"
        raise ValueError(f"{what}; the protocol requires samples 0..{samples - 1}, each once")


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge in the order of sample indices, so that the result is reproducible to the bit."""
    return reduce(Moments.merge, sorted(parts, key=lambda part: part.ranges[:1]))


def finite_rows(features_ND: npt.NDArray[np.floating], first: int = 0) -> Floats:
    """The matrix in float64. Raises ValueError for another shape, or with samples that are not finite."""
    rows = np.asarray(features_ND, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"features are a matrix of at least one row, not of shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        named = (bad[:10] + first).tolist()
        raise ValueError(f"features of samples {named} are not finite ({len(bad)} in all)")
    return rows


def _joined(one: Ranges, other: Ranges) -> Ranges:
    if bool(one) != bool(other):
        raise ValueError("moments with known sample ranges cannot be merged with moments without them")
    spans = sorted([*one, *other])
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise ValueError(f"samples {start}..{end - 1} would be counted twice")
    joined: list[tuple[int, int]] = []
    for span in spans:
        if joined and joined[-1][1] == span[0]:
            span = (joined.pop()[0], span[1])
        joined.append(span)
    return tuple(joined)
