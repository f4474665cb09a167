"""Budgets and usage of compute."""

from typing import Annotated, Self

from pydantic import Field

from grafting_core.specs.base import Frozen


class Budget(Frozen):
    """Limits of a run, a user, a study or the lab; a field left out is unlimited."""

    device_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    flops: Annotated[float, Field(gt=0, le=1e24)] | None = None
    training_images: Annotated[int, Field(gt=0, le=10**12)] | None = None
    share_of_pretraining: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Limit of FLOPs as a share of the backbone's pretraining: 0.02 is two percent."""

    def exceeded_by(self, spend: "Usage") -> str | None:
        """Name of the first limit that `spend` has reached, or None. Ignores the share; see `resolved`."""
        for name in ("device_seconds", "flops", "training_images"):
            limit = getattr(self, name)
            if limit is not None and getattr(spend, name) >= limit:
                return name
        return None

    def resolved(self, pretraining_flops: float | None) -> "Budget":
        """The same budget with its share of pretraining converted to FLOPs; the lower limit counts.

        If the cost of pretraining is unknown (None), the share limits nothing and is kept as it is.
        """
        if self.share_of_pretraining is None or pretraining_flops is None:
            return self
        flops = min(self.flops or 1e24, self.share_of_pretraining * pretraining_flops)
        return self.model_copy(update={"flops": flops, "share_of_pretraining": None})


class Usage(Frozen):
    """Compute used: device-seconds (seconds times devices), FLOPs (2 per multiply-add), training images."""

    device_seconds: Annotated[float, Field(ge=0)] = 0.0
    flops: Annotated[float, Field(ge=0)] = 0.0
    training_images: Annotated[int, Field(ge=0)] = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(
            device_seconds=self.device_seconds + other.device_seconds,
            flops=self.flops + other.flops,
            training_images=self.training_images + other.training_images,
        )
