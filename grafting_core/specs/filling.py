"""Bank fills: scions distilled in one pass ahead of any design that needs them."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest
from grafting_core.specs.experiment import Resources
from grafting_core.specs.plans import DistillPlan
from grafting_core.specs.scions import ScionSpec

FILL_RECIPE = 1


class FillSpec(Frozen):
    """Scions to distil into the bank, of one backbone and one plan; several may have the same site."""

    kind: Literal["fill"] = "fill"
    name: str
    scions: Annotated[tuple[ScionSpec, ...], Field(min_length=1)]
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def backbone(self) -> BackboneRef:
        return self.scions[0].backbone

    @property
    def plan(self) -> DistillPlan:
        return self.scions[0].plan

    @property
    def digest(self) -> str:
        """Digest of the set, independent of its order."""
        return digest({"fill": sorted(scion.key for scion in self.scions), "recipe": FILL_RECIPE})
