"""All metrics of samples against a reference, by full name, with intervals and warnings."""

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
"""Minimum number of samples for metrics that use nearest neighbours."""


@dataclass
class MetricReport:
    """Values by full name, 95 % intervals for some of them, and warnings."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, interval: Interval | None = None) -> None:
        self.values[name] = value
        if interval is not None:
            self.intervals[name] = interval


def compute_metrics(reference: Reference, samples: Features, protocol: EvaluationProtocol) -> MetricReport:
    """Compute every metric that the features allow. Raises ValueError naming samples that are not finite."""
    metrics = MetricReport()
    if protocol.mode == "adm":
        _measure_adm(reference, samples, protocol, metrics)
    else:
        _frechet(reference, samples, protocol, metrics)
        _score(samples, protocol, metrics)
        _neighbours(reference, samples, protocol, metrics)
    _warn(reference, samples, metrics)
    return metrics


def _frechet(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, metrics: MetricReport
) -> None:
    rungs = [rung for rung in ladder_of(protocol).rungs if isinstance(rung, FidRung)]
    for rung in rungs:
        metrics.add(rung.metric, frechet_of_rows(reference.pool, samples.pool[: rung.samples]))
    metrics.intervals[protocol.fid_name] = frechet_interval(
        reference.pool, samples.pool, metrics.values[protocol.fid_name]
    )
    if len(samples) >= 2 * POINTS:
        line = fid_infinity(reference.pool, samples.pool)
        _add_line(_name("fid_infinity", protocol), line, reference.pool.dims, metrics)
    if reference.spatial and samples.spatial is not None:
        value = frechet_of_rows(reference.spatial, samples.spatial)
        interval = frechet_interval(reference.spatial, samples.spatial, value)
        metrics.add(_name("sfid", protocol), value, interval)


def _add_line(name: str, line: Extrapolation, dims: int, metrics: MetricReport) -> None:
    metrics.add(name, line.value, line.interval)
    if line.interval is None:
        metrics.warnings.append(
            f"{name} has no interval: with fewer than {4 * dims} samples of {dims} features, the bias of the "
            "extrapolation exceeds its sampling error"
        )


def _score(samples: Features, protocol: EvaluationProtocol, metrics: MetricReport) -> None:
    if samples.logits is not None and len(samples) >= 2 * SPLITS:
        value = inception_score(samples.logits)
        metrics.add(_name("is", protocol), value, score_interval(samples.logits, value))


def _neighbours(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, metrics: MetricReport
) -> None:
    if reference.rows is None or reference.manifold is None or len(samples) < FEWEST:
        return
    distance = kernel_distance(samples.pool, reference.rows, KID_SUBSETS)
    interval = kernel_interval(samples.pool, reference.rows, distance, KID_SUBSETS)
    metrics.add(_name("kid", protocol), distance, interval)
    found = overlap(reference.manifold, Manifold.of(samples.pool, reference.manifold.rows.device))
    means = {metric: float(getattr(found, metric).mean()) for metric in FIELDS}
    intervals = overlap_intervals(reference.rows, samples.pool, means)
    for metric, mean in means.items():
        metrics.add(_name(metric, protocol), mean, intervals.get(metric))


def _measure_adm(
    reference: Reference, samples: Features, protocol: EvaluationProtocol, metrics: MetricReport
) -> None:
    """Metrics of the guided-diffusion evaluator, without intervals, as it has none."""
    for rung in ladder_of(protocol).rungs:
        if isinstance(rung, FidRung):
            part = adm_gaussian(samples.pool[: rung.samples])
            metrics.add(rung.metric, frechet_distance(reference.pool, part))
    if reference.spatial and samples.spatial is not None:
        spatial = adm_gaussian(samples.spatial)
        metrics.add(_name("sfid", protocol), frechet_distance(reference.spatial, spatial))
    if samples.logits is not None:
        metrics.add(_name("is", protocol), adm_inception_score(samples.logits))
    if reference.rows is not None and min(len(samples), len(reference.rows)) >= FEWEST:
        precision, recall = adm_precision_recall(reference.rows, samples.pool)
        metrics.add(_name("precision", protocol), precision)
        metrics.add(_name("recall", protocol), recall)


def _name(metric: str, protocol: EvaluationProtocol) -> str:
    return counted(metric, protocol.samples, protocol.feature_network, protocol.mode)


def _warn(reference: Reference, samples: Features, metrics: MetricReport) -> None:
    """Append warnings for metrics that are easy to misread; remove values that are not finite."""
    spaces: Mapping[str, tuple[Gaussian | None, Rows | None]] = {
        "features": (reference.pool, samples.pool),
        "spatial features": (reference.spatial, samples.spatial),
    }
    for what, (gaussian, rows) in spaces.items():
        if gaussian and rows is not None and len(rows) <= gaussian.dims:
            metrics.warnings.append(
                f"{len(rows)} samples for {gaussian.dims} {what}: their covariance does not have "
                "full rank, so the distance depends more on the number of samples than on their quality"
            )
    metrics.warnings += [*reference.notes, *_lacks(reference, samples)]
    broken = sorted(name for name, value in metrics.values.items() if not np.isfinite(value))
    for name in broken:
        metrics.warnings.append(
            f"{name} is not a number: a probability underflowed in float32, as ADM's does"
        )
        del metrics.values[name]
    negative = [name for name, value in metrics.values.items() if "fid" in name and value < -1e-3]
    metrics.warnings += [f"{name} is negative beyond rounding" for name in negative if "infinity" not in name]


def _lacks(reference: Reference, samples: Features) -> list[str]:
    """Warnings about a reference that is too small or lacks data."""
    notes, images, dims = [], reference.card.images, reference.pool.dims
    if images is not None and images <= dims:
        notes.append(
            f"the reference has {images} images for {dims} features: distances from it depend "
            "more on the choice of these images than on the samples"
        )
    if reference.rows is None:
        notes.append("the reference has only statistics: no KID, precision, recall, density and coverage")
    elif len(reference.rows) < FEWEST:
        notes.append(
            f"the reference has {len(reference.rows)} images; neighbours and KID need at least {FEWEST}"
        )
    if reference.spatial is None and samples.spatial is not None:
        notes.append("the reference has no spatial statistics (mu_s, sigma_s): no sFID")
    return notes


def by_class(
    reference: Reference, samples: Features, targets: Labels, predicted: Labels | None
) -> tuple[ClassFigures, ...]:
    """Accuracy and kernel distance of every target class, in order; targets below 0 are no class."""
    labels = np.unique(targets[targets >= 0])
    return tuple(_class(reference, samples.pool, targets, predicted, int(label)) for label in labels)


def _class(
    reference: Reference, pool: Rows, targets: Labels, predicted: Labels | None, label: int
) -> ClassFigures:
    own = targets == label
    accuracy = None if predicted is None else float((predicted[own] == label).mean())
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
