"""Measuring a backbone itself: attention locality and activation statistics."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.spec.backbone import BackboneRef
from grafting_core.spec.base import Frozen
from grafting_core.spec.budget import Budget
from grafting_core.spec.canonical import digest
from grafting_core.spec.experiment import Resources

ANALYSIS_RECIPE = 1
"""Bumped when the measurement's arithmetic changes."""


class AnalysisSpec(Frozen):
    """Look at a backbone itself: attention locality and activation statistics (paper sections 3.3, 3.4)."""

    kind: Literal["analysis"] = "analysis"
    name: str
    backbone: BackboneRef
    bands: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=64)]
    samples: Annotated[int, Field(ge=1, le=65_536)] = 250
    sampling_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def digest(self) -> str:
        """Names the profile that is to be measured."""
        asked = self.model_dump(include={"bands", "samples", "sampling_steps", "seed"})
        return digest({"analysis": asked, "recipe": ANALYSIS_RECIPE, "backbone": self.backbone.digest})
