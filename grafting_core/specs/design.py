"""Resolved designs: an operator for each edited site, and pairs of blocks that run in parallel."""

from collections.abc import Iterable
from typing import Self

from pydantic import model_validator

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.edits import Init, ParallelPair, Part, Place, ReplaceOperator, check_order

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
