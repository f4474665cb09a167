"""Analyses: requests to measure a backbone's attention locality and activation statistics."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest
from grafting_core.specs.experiment import Resources
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.plans import Seed

ANALYSIS_RECIPE = 1
"""Version of the measurement, raised when its arithmetic changes."""
Bands = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=64)]
Samples = Annotated[int, Field(ge=1, le=65_536)]
SamplingSteps = Annotated[int, Field(ge=1, le=1000)]


class AnalysisRequest(Frozen):
    """An analysis as a user writes it; defaults are the paper's (section 3.4)."""

    backbone: Word
    name: Name | None = None
    bands: Bands | None = None
    """Half-widths of the bands in tokens; an eighth of the tokens by default."""
    samples: Samples = 250
    sampling_steps: SamplingSteps = 50
    seed: Seed = 0
    budget: Budget = Budget()
    resources: Resources = Resources()


class AnalysisSpec(Frozen):
    """A resolved analysis: attention locality and activation statistics (paper sections 3.3, 3.4)."""

    kind: Literal["analysis"] = "analysis"
    name: str
    backbone: BackboneRef
    bands: Bands
    samples: Samples = 250
    sampling_steps: SamplingSteps = 50
    seed: Seed = 0
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def digest(self) -> str:
        """Digest of the profile to measure."""
        settings = self.model_dump(include={"bands", "samples", "sampling_steps", "seed"})
        return digest({"analysis": settings, "recipe": ANALYSIS_RECIPE, "backbone": self.backbone.digest})
