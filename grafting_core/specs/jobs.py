"""Kinds of work that the cluster runs: grafts and their auxiliary jobs.

A kind is one frozen class, one line in each table here, one function in `workers.group.PIPELINES` and one
cost in `workers.usage.COSTS`. Every kind has name, backbone, budget, resources and digest.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, TypeAdapter

from grafting_core.specs.analysis import AnalysisSpec
from grafting_core.specs.experiment import ExperimentSpec, protocol_digest
from grafting_core.specs.exports import ExportSpec
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.latency import LatencySpec
from grafting_core.specs.registration import RegistrationSpec
from grafting_core.specs.screening import ScreeningSpec

Job = Annotated[
    ExperimentSpec | AnalysisSpec | FillSpec | ScreeningSpec | LatencySpec | RegistrationSpec | ExportSpec,
    Discriminator("kind"),
]
WORK: TypeAdapter[Job] = TypeAdapter(Job)

LAST_STAGES: Mapping[str, str] = {
    "graft": "evaluate",
    "analysis": "analyze",
    "fill": "distill",
    "screening": "screen",
    "latency": "measure",
    "registration": "register",
    "export": "export",
}
"""Kind -> stage whose report completes the work."""


def as_graft(work: Job) -> ExperimentSpec:
    """The work as a graft. Raises ValueError for other kinds."""
    if not isinstance(work, ExperimentSpec):
        raise ValueError(f"{work.name} is {work.kind} work, not a graft")
    return work


def protocol_of(work: Job) -> str:
    """Digest of how quality is measured; empty for work that measures no quality."""
    return protocol_digest(work) if isinstance(work, ExperimentSpec) else ""
