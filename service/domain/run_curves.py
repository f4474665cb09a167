"""Loss curves of a run for plotting, from a bounded number of its events."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import EventRow

POINTS = 400
"""Number of events read first, spread evenly over all."""
SPANS, WITHIN = 10, 40
"""Number of spans between events of different stages that are read in detail, and of events in each."""
Bodies = dict[int, dict[str, Any]]
Curves = dict[str, list[tuple[int, float]]]


def loss_curves(session: Session, run_id: str, last: int) -> Curves:
    """Return (step, loss) by stage in ascending steps, from a bounded number of events up to number `last`.

    If there are few events, all are used. Later values of a resumed stage replace earlier ones.
    """
    bodies = _read(session, run_id, _spread(1, last, POINTS))
    with_stage = sorted(number for number, body in bodies.items() if _stage(body))
    spans = [(low, high) for low, high in pairwise([1, *with_stage, last]) if _differ(bodies, low, high)]
    more = [number for low, high in spans[:SPANS] for number in _spread(low, high, WITHIN)]
    bodies |= _read(session, run_id, [number for number in more if number not in bodies])
    return _curves(body for _, body in sorted(bodies.items()))


def _spread(low: int, high: int, count: int) -> list[int]:
    """Return at most `count` integers from `low` to `high`, including both ends."""
    if high - low < count:
        return list(range(low, high + 1))
    return [low + (high - low) * index // (count - 1) for index in range(count)]


def _read(session: Session, run_id: str, numbers: Sequence[int]) -> Bodies:
    """Read the bodies of attempt events as stored, without validation: they were validated on arrival."""
    query = select(EventRow.seq, EventRow.body).where(
        EventRow.run_id == run_id, EventRow.seq.in_(numbers), EventRow.kind == "attempt"
    )
    return {number: event["body"] for number, event in session.execute(query)}


def _stage(body: dict[str, Any] | None) -> str | None:
    return body.get("stage") if body and body["type"] == "progress" else None


def _differ(bodies: Bodies, low: int, high: int) -> bool:
    """Check whether a stage may begin or end between the two events."""
    return _stage(bodies.get(low)) != _stage(bodies.get(high))


def _curves(bodies: Iterable[dict[str, Any]]) -> Curves:
    points: dict[str, dict[int, float]] = {}
    for body in bodies:
        loss = body.get("values", {}).get("loss") if _stage(body) else None
        if loss is not None:
            points.setdefault(body["stage"], {})[body["step"]] = loss
    return {stage: sorted(curve.items()) for stage, curve in points.items()}
