"""Detected objects, and which of them the rules keep."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grafting_core.specs.geneval import OFFICIAL_RULES, GenEvalRules

Mask = npt.NDArray[np.bool_]
Box = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Detection:
    """An object in an image: left, top, right, bottom in pixels; right and bottom are exclusive."""

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: Mask | None = None
    """Pixels [H, W] of the object; None if the detector gives boxes only."""
    color: str | None = None
    """Colour by a detector that knows colours; others leave it to a colour classifier."""

    @property
    def corners(self) -> Box:
        """The box in float32, the precision of the official tool's arithmetic."""
        return np.asarray(self.box, np.float32)

    def row(self) -> list[float]:
        """Box and score as the official tool writes them: float32 numbers."""
        return [float(np.float32(number)) for number in (*self.box, self.score)]


Found = Mapping[str, Sequence[Detection]]


def kept_detections(
    detections: Iterable[Detection],
    classes: Sequence[str],
    counting: bool = False,
    rules: GenEvalRules = OFFICIAL_RULES,
) -> dict[str, list[Detection]]:
    """Detections by class that count, best first, in the order of `classes`; no class without any.

    The order of the rules is part of them: threshold, at most `max_objects` of a class, then overlaps.
    """
    rows: dict[str, list[Detection]] = {name: [] for name in classes}
    for detection in detections:
        rows[detection.name].append(detection)
    threshold = np.float32(rules.counting_threshold if counting else rules.threshold)
    kept = {name: _kept(found, threshold, rules) for name, found in rows.items()}
    return {name: found for name, found in kept.items() if found}


def _kept(found: Sequence[Detection], threshold: np.float32, rules: GenEvalRules) -> list[Detection]:
    scores = np.asarray([detection.score for detection in found], np.float32)
    # Of equal scores the later row is first: an ascending order, reversed.
    order = np.argsort(scores, kind="stable")[::-1]
    best = [found[index] for index in order if scores[index] > threshold][: rules.max_objects]
    return best if rules.max_overlap == 1 else _without_overlaps(best, np.float32(rules.max_overlap))


def _without_overlaps(best: Sequence[Detection], limit: np.float32) -> list[Detection]:
    """Drop each detection that overlaps a more confident one by `limit` or more."""
    kept = list[Detection]()
    for detection in best:
        if all(overlap(better, detection) < limit for better in kept):
            kept.append(detection)
    return kept


def overlap(first: Detection, second: Detection) -> np.float32:
    """Intersection over union, with the official tool's sides of one pixel more than the difference."""
    one, other = first.corners, second.corners
    shared = _area(
        np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])]),
    )
    union = _area(one) + _area(other) - shared
    return np.float32(shared / union) if union else np.float32(0)


def _area(box: Box) -> np.float32:
    sides = np.maximum(box[2:] - box[:2] + np.float32(1), np.float32(0))
    return np.float32(sides[0] * sides[1])
