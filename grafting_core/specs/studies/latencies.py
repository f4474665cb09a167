"""Latency table of a search space: the rows that it needs, and adding their values to its items."""

from collections.abc import Sequence

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.dims import SLOTS, Slot
from grafting_core.specs.latency import PartLatency, TimedPart
from grafting_core.specs.site import GraftSite
from grafting_core.specs.studies.space import Item, Space


def timed_parts(space: Space, card: BackboneCard) -> tuple[TimedPart, ...]:
    """All rows that a space needs: the rest, the backbone's own operators, every choice, pairs."""
    parts = [TimedPart(place="rest")]
    parts += [original for slot in SLOTS for original in _originals(card, slot).values()]
    parts += [part for item in space.items if (part := part_of(item)) is not None]
    return tuple(dict.fromkeys(parts))


def _originals(card: BackboneCard, slot: Slot) -> dict[GraftSite, TimedPart]:
    """Row of the operator that the backbone has at each site of a slot."""
    sites = (site for site in card.sites if site.slot == slot)
    return {site: TimedPart(place=slot, operator=card.original(site)) for site in sites}


def part_of(item: Item) -> TimedPart | None:
    """Row of the latency table for an item; None if it keeps the backbone's own operator."""
    if item.pair is not None:
        return TimedPart(place="pairs")
    if not item.edits:
        return None
    return TimedPart(place=item.edits[0].site.slot, operator=item.edits[0].operator)


def with_latencies(space: Space, rows: Sequence[PartLatency], card: BackboneCard) -> Space:
    """Space with the latency of every item. Raises ValueError for an item without a row.

    A row's `extra` is relative to the mean of the slot's own operators. Where these differ from site to site,
    that of the replaced operator is subtracted; where they are equal, it is zero.
    """
    extras = {row.part: row.extra for row in rows}
    replaced = dict[GraftSite, float]()
    for slot in SLOTS:
        originals = _originals(card, slot)
        if len(set(originals.values())) > 1:
            replaced |= {site: extras.get(part, 0.0) for site, part in originals.items()}

    def timed(item: Item) -> Item:
        part = part_of(item)
        if part is None:
            return item
        if part not in extras:
            raise ValueError(f"the latency table has no row for {part.name}")
        taken = sum(replaced.get(edit.site, 0.0) for edit in item.edits)
        return item.model_copy(update={"latency": max(1, len(item.edits)) * extras[part] - taken})

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
