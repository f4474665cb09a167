"""Resolved designs: an operator for each edited site, and pairs of blocks that run in parallel."""

from collections.abc import Iterable
from typing import Self

from pydantic import model_validator

from grafting_core.specs.backbone import BackboneCard, BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.edits import (
    Init,
    ParallelPair,
    Part,
    Place,
    ReplaceOperator,
    added_params,
    check_order,
)

__all__ = ["GraftDesign", "Init", "ParallelPair", "Part", "Place", "ReplaceOperator"]


class GraftDesign(Frozen):
    """A backbone with edits, at most one per site, and disjoint pairs, each sorted front to back.

    Sites are numbered as in the backbone, even inside pairs. Without edits and pairs it is the teacher.
    """

    backbone: BackboneRef
    edits: tuple[ReplaceOperator, ...] = ()
    pairs: tuple[ParallelPair, ...] = ()

    @classmethod
    def of(cls, backbone: BackboneRef, parts: Iterable[Part]) -> Self:
        """Design of these parts, given in any order."""
        listed = list(parts)
        edits = [part for part in listed if isinstance(part, ReplaceOperator)]
        pairs = [part for part in listed if isinstance(part, ParallelPair)]
        return cls(
            backbone=backbone,
            edits=tuple(sorted(edits, key=lambda edit: edit.site.order)),
            pairs=tuple(sorted(pairs, key=lambda pair: pair.first)),
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that are distilled for this design."""
        return (*self.edits, *self.pairs)

    @property
    def is_teacher(self) -> bool:
        """Whether the design leaves the backbone unchanged."""
        return not self.parts

    @model_validator(mode="after")
    def _one_edit_a_site_in_order(self) -> Self:
        check_order(self.edits, self.pairs)
        return self


def grafted_card(card: BackboneCard, design: GraftDesign) -> BackboneCard:
    """Card of the backbone with a design's edits and pairs: what a graft is when it is a backbone itself.

    Its digest is no one's yet, and how operators were initialised is left out. Raises ValueError for a design
    of another backbone, or for a pair of a block that is in a pair of the backbone.
    """
    if design.backbone != card.ref:
        raise ValueError(f"the design is one of {design.backbone.name}, not of this {card.name}")
    edits = {edit.site: edit for edit in (*card.edits, *design.edits)}
    parts = [ReplaceOperator(site=site, operator=edit.operator) for site, edit in edits.items()]
    whole = GraftDesign.of(card.ref, [*parts, *card.pairs, *design.pairs])
    plain = card.num_params - added_params(card.edits, card.pairs, card.dims)
    return card.model_copy(
        update={
            "edits": whole.edits,
            "pairs": whole.pairs,
            "num_params": plain + added_params(whole.edits, whole.pairs, card.dims),
        }
    )
