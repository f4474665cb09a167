"""Everything the cluster can be asked to carry out: grafts, and whatever serves them.

A kind is one frozen class, one line in each table here, one walk in `workers.group.WALKS` and one cost
in `workers.usage.COSTS`. Every kind has name, backbone, budget, resources and digest.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, TypeAdapter

from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.experiment import ExperimentSpec, protocol_digest
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.latency import LatencySpec
from grafting_core.specs.screening import ScreeningSpec

Job = Annotated[ExperimentSpec | AnalysisSpec | FillSpec | ScreeningSpec | LatencySpec, Discriminator("kind")]
WORK: TypeAdapter[Job] = TypeAdapter(Job)

LAST_STAGES: Mapping[str, str] = {
    "graft": "evaluate",
    "analysis": "analyze",
    "fill": "distill",
    "screening": "screen",
    "latency": "measure",
}
"""Kind -> the stage whose report means that the work is done."""


def as_graft(work: Job) -> ExperimentSpec:
    """The work, where it is a graft. Raises ValueError otherwise."""
    if not isinstance(work, ExperimentSpec):
        raise ValueError(f"{work.name} is {work.kind} work, not a graft")
    return work


def protocol_of(work: Job) -> str:
    """Digest of how quality is measured; empty for work that measures none."""
    return protocol_digest(work) if isinstance(work, ExperimentSpec) else ""
