"""What is written about an exported graft: where it comes from, its figures and its licences."""

from grafting_core.specs.base import Frozen
from grafting_core.specs.experiment import ExperimentSpec, finetune_key, scion_keys


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
