"""Exports of grafts: what is written about one, and the job that makes one of a run."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest
from grafting_core.specs.experiment import ExperimentSpec, Resources, finetune_key, scion_keys
from grafting_core.specs.naming import Name

EXPORT_RECIPE = 1
"""Version of what an export holds, raised when that changes."""


class ExportRecord(Frozen):
    """Facts about a graft that its weights do not tell; all but the name may be unknown."""

    name: str
    experiment: ExperimentSpec | None = None
    """What made it; None for a graft that no lab made."""
    run: str | None = None
    figures: dict[str, float] = {}
    """Metric -> value, of an evaluation under the experiment's protocol."""
    intervals: dict[str, tuple[float, float]] = {}
    """Metric -> 95 % interval, for those that have one."""
    dataset_licence: str | None = None
    licence: str | None = None
    """Licence under which the graft itself is passed on, by default that of the backbone."""

    @property
    def model_key(self) -> str | None:
        """Key of the weights in a lab."""
        return finetune_key(self.experiment) if self.experiment else None

    @property
    def scions(self) -> dict[str, str]:
        """Site or pair -> key of the distilled operator that the graft was finetuned from."""
        return scion_keys(self.experiment) if self.experiment else {}


class ExportRequest(Frozen):
    """An export as a user requests it."""

    run: Annotated[str, Field(min_length=1, max_length=32, pattern="^[0-9a-z]+$")]
    """Run of a graft that has succeeded."""
    licence: Name | None = None
    """Licence of the graft; by default that of its backbone."""


class ExportSpec(Frozen):
    """A job that writes the model of a finished run as a folder; takes time and no training."""

    kind: Literal["export"] = "export"
    name: str
    experiment: ExperimentSpec
    run: str
    figures: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    dataset_licence: str | None = None
    licence: str | None = None
    budget: Budget = Budget()
    resources: Resources = Resources()

    @property
    def backbone(self) -> BackboneRef:
        return self.experiment.backbone

    @property
    def record(self) -> ExportRecord:
        """What the folder says about the graft."""
        return ExportRecord(
            name=self.experiment.name,
            experiment=self.experiment,
            run=self.run,
            figures=self.figures,
            intervals=self.intervals,
            dataset_licence=self.dataset_licence,
            licence=self.licence,
        )

    @property
    def digest(self) -> str:
        """Digest of the folder: its weights and everything that is written about them."""
        return digest(
            {"export": self.record, "recipe": EXPORT_RECIPE, "model": finetune_key(self.experiment)}
        )


def export_folder(key: str) -> str:
    """Path of an export relative to the storage root."""
    return f"exports/{key}"
