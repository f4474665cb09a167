"""Latency table of a search space: the rows that it needs, and adding their values to its items."""

from collections.abc import Sequence

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.dims import SLOTS
from grafting_core.specs.latency import PartLatency, TimedPart
from grafting_core.specs.studies.space import Item, Space


def timed_parts(space: Space, card: BackboneCard) -> tuple[TimedPart, ...]:
    """All rows that a space needs: the rest, the backbone's own operators, every choice, pairs."""
    parts = [TimedPart(place="rest")]
    parts += [TimedPart(place=slot, operator=card.original(slot)) for slot in SLOTS]
    parts += [part for item in space.items if (part := part_of(item)) is not None]
    return tuple(dict.fromkeys(parts))


def part_of(item: Item) -> TimedPart | None:
    """Row of the latency table for an item; None if it keeps the backbone's own operator."""
    if item.pair is not None:
        return TimedPart(place="pairs")
    if not item.edits:
        return None
    return TimedPart(place=item.edits[0].site.slot, operator=item.edits[0].operator)


def with_latencies(space: Space, rows: Sequence[PartLatency]) -> Space:
    """Space with the latency of every item. Raises ValueError for an item without a row."""
    extras = {row.part: row.extra for row in rows}

    def timed(item: Item) -> Item:
        part = part_of(item)
        if part is None:
            return item
        if part not in extras:
            raise ValueError(f"the latency table has no row for {part.name}")
        return item.model_copy(update={"latency": max(1, len(item.edits)) * extras[part]})

    variables = tuple(
        variable.model_copy(update={"items": tuple(map(timed, variable.items))})
        for variable in space.variables
    )
    # Not `model_copy`: that would also copy cached properties computed from the old items.
    return Space(
        backbone=space.backbone,
        base_params=space.base_params,
        base_flops=space.base_flops,
        variables=variables,
        pairs=tuple(map(timed, space.pairs)),
    )
