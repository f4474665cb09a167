"""GenEval's verdict on an image from its detections, and scores by task.

The rules are those of djghosh13/geneval: thresholds, most confident boxes, colours, relations, exclusions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np

from grafting_core.testbed.emoji.detector import Detection

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST_PER_CLASS = 16
SHRINK = 0.1
"""Share of both objects' size that is subtracted from their offset before a relation is determined."""
NORMAL_95 = 1.959964

Found = Mapping[str, Sequence[Detection]]


@dataclass(frozen=True)
class Verdict:
    """Whether an image matches its caption, and what is missing."""

    correct: bool
    reason: str = ""


def kept_detections(detections: Iterable[Detection], task: str) -> dict[str, list[Detection]]:
    """Detections by class that count: score above the threshold in float32, best first, at most 16."""
    threshold = np.float32(COUNTING_THRESHOLD if task == "counting" else THRESHOLD)
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        if np.float32(detection.score) > threshold:
            found.setdefault(detection.name, []).append(detection)
    return {name: boxes[:MOST_PER_CLASS] for name, boxes in found.items()}


def judge(metadata: Mapping[str, Any], detections: Iterable[Detection]) -> Verdict:
    """GenEval's verdict for one line of metadata."""
    found = kept_detections(detections, metadata["tag"])
    matched: list[Sequence[Detection] | None] = []
    reasons: list[str] = []
    for request in metadata["include"]:
        group, reason = _included(request, found, matched)
        matched.append(group)
        reasons.extend([reason] if reason else [])
    for request in metadata.get("exclude", ()):
        if len(found.get(request["class"], ())) >= request["count"]:
            have = len(found[request["class"]])
            reasons.append(f"expected {request['class']}<{request['count']}, found {have}")
    return Verdict(not reasons, "\n".join(reasons))


def _included(
    request: Mapping[str, Any], found: Found, matched: Sequence[Sequence[Detection] | None]
) -> tuple[Sequence[Detection] | None, str]:
    """Boxes that meet a request, or None and the reason; checks counts, then colour, then position."""
    name, count = request["class"], request["count"]
    boxes = found.get(name, ())[:count]
    if len(boxes) < count:
        return None, f"expected {name}>={count}, found {len(boxes)}"
    colour = request.get("color")
    if colour is not None and sum(box.colour == colour for box in boxes) < count:
        return None, _colour_reason(name, colour, count, boxes)
    if "position" in request:
        relation, target = request["position"]
        reason = _position_reason(name, relation, boxes, matched[target])
        return (None, reason) if reason else (boxes, "")
    return boxes, ""


def _colour_reason(name: str, colour: str, count: int, boxes: Sequence[Detection]) -> str:
    seen = [box.colour or "natural" for box in boxes]
    tally = ", ".join(f"{seen.count(one)} {one}" for one in dict.fromkeys(seen))
    return f"expected {colour} {name}>={count}, found {seen.count(colour)} {colour}; and {tally}"


def _position_reason(
    name: str, relation: str, boxes: Sequence[Detection], targets: Sequence[Detection] | None
) -> str:
    """Reason if not every box has the relation to every target, else an empty string."""
    if targets is None:
        return f"no target for {name} to be {relation}"
    for box in boxes:
        for target in targets:
            seen = relations(box, target)
            if relation not in seen:
                return f"expected {name} {relation} target, found {' and '.join(sorted(seen))} target"
    return ""


def relations(subject: Detection, target: Detection) -> set[str]:
    """Relations of the subject to the target; a diagonal offset satisfies two of them."""
    offset = [_centre(subject, axis) - _centre(target, axis) for axis in (0, 1)]
    shrunk = [
        np.sign(part) * max(abs(part) - SHRINK * (_extent(subject, axis) + _extent(target, axis)), 0.0)
        for axis, part in enumerate(offset)
    ]
    if all(abs(part) < 1e-3 for part in shrunk):
        return set()
    across, down = (part / hypot(*offset) for part in shrunk)
    tests = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in tests.items() if holds}


def _centre(detection: Detection, axis: int) -> float:
    return (detection.box[axis] + detection.box[axis + 2]) / 2


def _extent(detection: Detection, axis: int) -> float:
    return detection.box[axis + 2] - detection.box[axis]


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    share, spread = right / total, NORMAL_95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = NORMAL_95 * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(verdicts: Iterable[tuple[str, bool]]) -> dict[str, Any]:
    """Scores of (task, correct) pairs by task with Wilson intervals; overall is the mean over tasks."""
    by_task: dict[str, list[bool]] = {}
    for task, correct in verdicts:
        by_task.setdefault(task, []).append(correct)
    tasks = {}
    for task, results in by_task.items():
        low, high = wilson_interval(sum(results), len(results))
        share = sum(results) / len(results)
        tasks[task] = {
            "score": round(share, 4),
            "interval": [round(low, 4), round(high, 4)],
            "images": len(results),
        }
    shares = [sum(results) / len(results) for results in by_task.values()]
    return {"overall": round(sum(shares) / len(shares), 4), "tasks": tasks}
