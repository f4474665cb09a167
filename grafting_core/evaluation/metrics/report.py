"""All figures of samples against a reference, each under its full name, with intervals and doubts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.features.base import Features, Rows
from grafting_core.evaluation.metrics.adm import adm_gaussian, adm_precision_recall
from grafting_core.evaluation.metrics.fid_infinity import POINTS, Extrapolation, fid_infinity
from grafting_core.evaluation.metrics.frechet import Gaussian, frechet_distance, frechet_of_rows
from grafting_core.evaluation.metrics.inception_score import SPLITS, adm_inception_score, inception_score
from grafting_core.evaluation.metrics.intervals import Interval, frechet_interval, score_interval
from grafting_core.evaluation.metrics.kid import kernel_distance, kernel_interval
from grafting_core.evaluation.metrics.prdc import FIELDS, Manifold, overlap
from grafting_core.evaluation.metrics.prdc_intervals import overlap_intervals
from grafting_core.evaluation.reference import Labels, Reference
from grafting_core.specs.plans import EvaluationProtocol, counted
from grafting_core.specs.results import ClassFigures
from grafting_core.specs.rungs import FidRung, ladder_of

KID_SUBSETS = 25
FEWEST = 6
"""Samples below which there are no neighbours to speak of."""


@dataclass
class MetricReport:
    """Values by full name, 95 % intervals where there are some, and what to be wary of."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, interval: Interval | None = None) -> None:
        self.values[name] = value
        if interval is not None:
            self.intervals[name] = interval


def measure(reference: Reference, samples: Features, protocol: EvaluationProtocol) -> MetricReport:
    """Everything that the features allow. Raises ValueError naming samples whose features are not finite."""
    figures = MetricReport()
    if protocol.mode == "adm":
        _measure_adm(reference, samples, protocol, figures)
    else:
        _frechet(reference, samples, protocol, figures)
        _score(samples, protocol, figures)
        _neighbours(reference, samples, protocol, figures)
    _doubt(reference, samples, figures)
    return figures


def _frechet(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, figures: MetricReport
) -> None:
    rungs = [rung for rung in ladder_of(protocol).rungs if isinstance(rung, FidRung)]
    for rung in rungs:
        figures.add(rung.metric, frechet_of_rows(reference.pool, samples.pool[: rung.samples]))
    figures.intervals[protocol.fid_name] = frechet_interval(
        reference.pool, samples.pool, figures.values[protocol.fid_name]
    )
    if len(samples) >= 2 * POINTS:
        line = fid_infinity(reference.pool, samples.pool)
        _add_line(_name("fid_infinity", protocol), line, reference.pool.dims, figures)
    if reference.spatial and samples.spatial is not None:
        value = frechet_of_rows(reference.spatial, samples.spatial)
        interval = frechet_interval(reference.spatial, samples.spatial, value)
        figures.add(_name("sfid", protocol), value, interval)


def _add_line(name: str, line: Extrapolation, dims: int, figures: MetricReport) -> None:
    figures.add(name, line.value, line.interval)
    if line.interval is None:
        figures.warnings.append(
            f"{name} has no interval: below {4 * dims} samples of {dims} features the line through FIDs is "
            "off by more than its sampling error"
        )


def _score(samples: Features, protocol: EvaluationProtocol, figures: MetricReport) -> None:
    if samples.logits is not None and len(samples) >= 2 * SPLITS:
        value = inception_score(samples.logits)
        figures.add(_name("is", protocol), value, score_interval(samples.logits, value))


def _neighbours(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, figures: MetricReport
) -> None:
    if reference.rows is None or reference.manifold is None or len(samples) < FEWEST:
        return
    distance = kernel_distance(samples.pool, reference.rows, KID_SUBSETS)
    interval = kernel_interval(samples.pool, reference.rows, distance, KID_SUBSETS)
    figures.add(_name("kid", protocol), distance, interval)
    found = overlap(reference.manifold, Manifold.of(samples.pool, reference.manifold.rows.device))
    means = {metric: float(getattr(found, metric).mean()) for metric in FIELDS}
    intervals = overlap_intervals(reference.rows, samples.pool, means)
    for metric, mean in means.items():
        figures.add(_name(metric, protocol), mean, intervals.get(metric))


def _measure_adm(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, figures: MetricReport
) -> None:
    """What the guided-diffusion evaluator prints, without intervals, as it has none."""
    for rung in ladder_of(protocol).rungs:
        if isinstance(rung, FidRung):
            part = adm_gaussian(samples.pool[: rung.samples])
            figures.add(rung.metric, frechet_distance(reference.pool, part))
    if reference.spatial and samples.spatial is not None:
        spatial = adm_gaussian(samples.spatial)
        figures.add(_name("sfid", protocol), frechet_distance(reference.spatial, spatial))
    if samples.logits is not None:
        figures.add(_name("is", protocol), adm_inception_score(samples.logits))
    if reference.rows is not None and min(len(samples), len(reference.rows)) >= FEWEST:
        precision, recall = adm_precision_recall(reference.rows, samples.pool)
        figures.add(_name("precision", protocol), precision)
        figures.add(_name("recall", protocol), recall)


def _name(metric: str, protocol: EvaluationProtocol) -> str:
    return counted(metric, protocol.samples, protocol.feature_network, protocol.mode)


def _doubt(reference: Reference, samples: Features, figures: MetricReport) -> None:
    """Values that are right and yet easily misread."""
    spaces: Mapping[str, tuple[Gaussian | None, Rows | None]] = {
        "features": (reference.pool, samples.pool),
        "spatial features": (reference.spatial, samples.spatial),
    }
    for what, (gaussian, rows) in spaces.items():
        if gaussian and rows is not None and len(rows) <= gaussian.dims:
            figures.warnings.append(
                f"{len(rows)} samples are no more than the {gaussian.dims} {what}: their covariance has not "
                "full rank, so the distance says more about the number of samples than about them"
            )
    figures.warnings += [*reference.notes, *_lacks(reference, samples)]
    broken = sorted(name for name, value in figures.values.items() if not np.isfinite(value))
    for name in broken:
        figures.warnings.append(
            f"{name} is not a number: a probability underflowed in float32, as ADM's does"
        )
        del figures.values[name]
    negative = [name for name, value in figures.values.items() if "fid" in name and value < -1e-3]
    figures.warnings += [f"{name} is negative beyond rounding" for name in negative if "infinity" not in name]


def _lacks(reference: Reference, samples: Features) -> list[str]:
    """What a reference is too small for, or does not hold."""
    notes, images, dims = [], reference.card.images, reference.pool.dims
    if images is not None and images <= dims:
        notes.append(
            f"the reference has {images} images, no more than the {dims} features: distances from it say "
            "more about which images these are than about the samples"
        )
    if reference.rows is None:
        notes.append("the reference has statistics alone: no KID, precision, recall, density and coverage")
    elif len(reference.rows) < FEWEST:
        notes.append(
            f"the reference has {len(reference.rows)} images: {FEWEST} are needed for neighbours and KID"
        )
    if reference.spatial is None and samples.spatial is not None:
        notes.append("the reference has no spatial statistics (mu_s, sigma_s): no sFID")
    return notes


def by_class(
    reference: Reference, samples: Features, asked: Labels, recognised: Labels | None
) -> tuple[ClassFigures, ...]:
    """Accuracy and kernel distance of every class that was asked for, in order."""
    return tuple(_class(reference, samples.pool, asked, recognised, int(label)) for label in np.unique(asked))


def _class(
    reference: Reference, pool: Rows, asked: Labels, recognised: Labels | None, label: int
) -> ClassFigures:
    own = asked == label
    accuracy = None if recognised is None else float((recognised[own] == label).mean())
    return ClassFigures(
        label=label,
        samples=int(own.sum()),
        accuracy=accuracy,
        kid=_class_distance(reference, pool[own], label),
    )


def _class_distance(reference: Reference, pool: Rows, label: int) -> float | None:
    if reference.rows is None or reference.labels is None:
        return None
    theirs: npt.NDArray[np.float32] = reference.rows[reference.labels == label]
    if min(len(theirs), len(pool)) < 2:
        return None
    return kernel_distance(pool, theirs, subsets=10)
