"""Screening: hybrids from the bank are evaluated without finetuning, rung by rung, fewer on each rung."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef, known_card
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.experiment import ExperimentSpec, Resources, scion_keys
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.rungs import LossGapRung, Rung

SCREENING_RECIPE = 1
"""Version of the rungs' arithmetic, raised when it changes."""


class ScreeningSpec(Frozen):
    """Designs whose scions are in the bank, in order of proposal; `costs` of each are further objectives.

    The best `1 / reduction` of one rung are promoted to the next (`specs.studies.selection`).
    """

    kind: Literal["screening"] = "screening"
    name: str
    backbone: BackboneRef
    designs: Annotated[tuple[GraftDesign, ...], Field(min_length=1)]
    costs: tuple[tuple[float, ...], ...]
    """One row per design; rows are empty where quality is the only objective."""
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1)]
    reduction: Annotated[float, Field(gt=1)] = 3
    distill: DistillPlan
    evaluate: EvaluationProtocol
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def digest(self) -> str:
        """Digest of what is evaluated and how."""
        return digest({"screening": fields_of(self, exclude={"name", "budget", "resources"})})

    def survivors_of(self, count: int) -> int:
        """Number of `count` hybrids that are promoted to the next rung."""
        return ceil(count / self.reduction)

    def result_key(self, design: GraftDesign, rung: Rung) -> str:
        """Key of one hybrid's value on one rung, shared by all studies."""
        protocol = None if isinstance(rung, LossGapRung) else self.evaluate.model_copy(update={"samples": 2})
        return digest(
            {
                "stage": "screen",
                "recipe": SCREENING_RECIPE,
                "backbone": self.backbone.digest,
                "design": design,
                "scions": scion_keys(self.graft(design)),
                "rung": rung,
                "protocol": protocol,
                **self._images_of(rung),
            }
        )

    def _images_of(self, rung: Rung) -> dict[str, str]:
        """Digest of the held-out images of a loss rung; empty for FID rungs, which use none."""
        card = known_card(self.backbone)
        if not isinstance(rung, LossGapRung) or card is None or card.held_out is None:
            return {}
        return {"held out": card.held_out.digest}

    def graft(self, design: GraftDesign) -> ExperimentSpec:
        """The design as an experiment; only its scions matter here."""
        return ExperimentSpec(
            name=self.name,
            design=design,
            distill=self.distill,
            finetune=FinetunePlan(steps=0),
            evaluate=self.evaluate,
        )


class Screened(Frozen):
    """Value of one hybrid on one rung."""

    value: float
    seconds: Annotated[float, Field(ge=0)]


def result_path(key: str) -> str:
    """Path of a value relative to the storage root."""
    return f"screened/{key}.json"
