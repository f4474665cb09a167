"""The losses of a run for a picture of them: as many points as it can show, however many events there are."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import EventRow

POINTS = 400
"""Events that are looked at first, spread evenly over all."""
SPANS, WITHIN = 10, 40
"""Between two of them that tell of different stages so many more, for the first few such spans."""
Bodies = dict[int, dict[str, Any]]
Curves = dict[str, list[tuple[int, float]]]


def loss_curves(session: Session, run_id: str, last: int) -> Curves:
    """Stage -> (step, loss) in ascending steps, from a bounded number of the events numbered up to `last`.

    All of them where there are few. A resumed stage's later values win.
    """
    bodies = _read(session, run_id, _spread(1, last, POINTS))
    told = sorted(number for number, body in bodies.items() if _stage(body))
    spans = [(low, high) for low, high in pairwise([1, *told, last]) if _differ(bodies, low, high)]
    more = [number for low, high in spans[:SPANS] for number in _spread(low, high, WITHIN)]
    bodies |= _read(session, run_id, [number for number in more if number not in bodies])
    return _curves(body for _, body in sorted(bodies.items()))


def _spread(low: int, high: int, count: int) -> list[int]:
    """At most `count` whole numbers from `low` to `high`, both ends among them."""
    if high - low < count:
        return list(range(low, high + 1))
    return [low + (high - low) * index // (count - 1) for index in range(count)]


def _read(session: Session, run_id: str, numbers: Sequence[int]) -> Bodies:
    """What attempts told, as it is stored: it was checked when it came in."""
    query = select(EventRow.seq, EventRow.body).where(
        EventRow.run_id == run_id, EventRow.seq.in_(numbers), EventRow.kind == "attempt"
    )
    return {number: told["body"] for number, told in session.execute(query)}


def _stage(body: dict[str, Any] | None) -> str | None:
    return body.get("stage") if body and body["type"] == "progress" else None


def _differ(bodies: Bodies, low: int, high: int) -> bool:
    """Whether a stage may begin or end in between."""
    return _stage(bodies.get(low)) != _stage(bodies.get(high))


def _curves(bodies: Iterable[dict[str, Any]]) -> Curves:
    points: dict[str, dict[int, float]] = {}
    for body in bodies:
        loss = body.get("values", {}).get("loss") if _stage(body) else None
        if loss is not None:
            points.setdefault(body["stage"], {})[body["step"]] = loss
    return {stage: sorted(found.items()) for stage, found in points.items()}
