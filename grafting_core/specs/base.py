"""Base class of all specs: frozen, strict, with finite numbers, without unknown fields."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value: immutable, equal by content, refusing unknown fields, coercions and non-finite numbers."""

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that released versions did not have: they enter a digest only if they are not the default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
