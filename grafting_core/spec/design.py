"""A design with nothing left to resolve: which operator stands at which site."""

from typing import Literal, Self

from pydantic import model_validator

from grafting_core.spec.backbone import BackboneRef
from grafting_core.spec.base import Frozen
from grafting_core.spec.operators import OperatorSpec
from grafting_core.spec.site import GraftSite

Init = Literal["random", "inherit"]


class ReplaceOperator(Frozen):
    """Put `operator` at `site`; weights start random, as in the paper, or from the old operator's."""

    site: GraftSite
    operator: OperatorSpec
    init: Init = "random"


class GraftDesign(Frozen):
    """Backbone and edits, one a site, front to back. No edits: the teacher itself."""

    backbone: BackboneRef
    edits: tuple[ReplaceOperator, ...] = ()

    @model_validator(mode="after")
    def _one_edit_a_site_in_order(self) -> Self:
        orders = [edit.site.order for edit in self.edits]
        if orders != sorted(set(orders)):
            raise ValueError("edits are sorted by site, one a site")
        return self
