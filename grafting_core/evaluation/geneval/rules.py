"""GenEval's verdict on one image from the detections that are kept.

The order of the checks and the reasons are the official tool's: for each included class the count, then the
colour, then, if these are right, the position; the excluded classes last.
"""

from collections.abc import Callable, Sequence

import numpy as np

from grafting_core.evaluation.geneval.detections import Box, Detection, Found
from grafting_core.specs.geneval import (
    COLORS,
    OFFICIAL_RULES,
    RELATIONS,
    Excluded,
    GenEvalRules,
    Included,
    PromptSpec,
)

Colors = Callable[[str, Sequence[Detection]], Sequence[str]]
"""Takes a class and objects of it, and names the colour of each."""
NO_RELATION = np.float32(1e-3)
"""Offset in pixels below which a centre is on a centre."""
DIRECTION = np.float32(0.5)
"""Share of the distance that an offset along an axis must exceed."""


def verdict_of(
    prompt: PromptSpec, found: Found, colors: Colors, rules: GenEvalRules = OFFICIAL_RULES
) -> tuple[bool, str]:
    """Whether an image is right, and the reasons if not, one a line.

    Colours are determined only where a colour is required and enough objects are found.
    """
    matched: list[Sequence[Detection] | None] = []
    reasons = list[str]()
    for entry in prompt.include:
        objects = found.get(entry.class_, ())[: entry.count]
        reason = _why_not(entry, objects, matched, colors, rules)
        matched.append(None if reason else objects)
        reasons += [reason] if reason else []
    reasons += filter(None, (_excluded(entry, found) for entry in prompt.exclude))
    return not reasons, "\n".join(reasons)


def _why_not(
    entry: Included,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colors: Colors,
    rules: GenEvalRules,
) -> str:
    if len(objects) < entry.count:
        return f"expected {entry.class_}>={entry.count}, found {len(objects)}"
    wrong = _wrong_color(entry, colors(entry.class_, objects)) if entry.color else ""
    return wrong or _wrong_position(entry, objects, matched, rules)


def _wrong_color(entry: Included, seen: Sequence[str]) -> str:
    right = list(seen).count(str(entry.color))
    if right >= entry.count:
        return ""
    counts = ", ".join(f"{list(seen).count(color)} {color}" for color in COLORS if color in seen)
    expected = f"{entry.color} {entry.class_}>={entry.count}"
    return f"expected {expected}, found {right} {entry.color}; and {counts}"


def _wrong_position(
    entry: Included,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    rules: GenEvalRules,
) -> str:
    if entry.position is None:
        return ""
    relation, index = entry.position
    targets = matched[index]
    if targets is None:
        return f"no target for {entry.class_} to be {relation}"
    for each in objects:
        for target in targets:
            seen = relations(each.corners, target.corners, rules.position_threshold)
            if relation not in seen:
                return f"expected {entry.class_} {relation} target, found {' and '.join(seen)} target"
    return ""


def relations(
    subject: Box, target: Box, shrink: float = OFFICIAL_RULES.position_threshold
) -> tuple[str, ...]:
    """Relations of a box to another, in the order of `RELATIONS`; a diagonal offset has two.

    The offset of the centres is reduced by a share of both sizes, and compared with the distance before that.
    """
    offset = _centre(subject) - _centre(target)
    sizes = np.abs(subject[2:] - subject[:2]) + np.abs(target[2:] - target[:2])
    reduced = np.maximum(np.abs(offset) - np.float32(shrink) * sizes, np.float32(0)) * np.sign(offset)
    if np.all(np.abs(reduced) < NO_RELATION):
        return ()
    across, down = reduced / np.linalg.norm(offset)
    holds = (across < -DIRECTION, across > DIRECTION, down < -DIRECTION, down > DIRECTION)
    return tuple(name for name, true in zip(RELATIONS, holds, strict=True) if true)


def _centre(box: Box) -> Box:
    return (box[:2] + box[2:]) / np.float32(2)


def _excluded(entry: Excluded, found: Found) -> str:
    count = len(found.get(entry.class_, ()))
    return f"expected {entry.class_}<{entry.count}, found {count}" if count >= entry.count else ""
