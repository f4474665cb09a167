"""Position of an operator in a backbone."""

from typing import Annotated

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import SLOTS, Slot


class GraftSite(Frozen):
    """Block index (0-based) and slot."""

    block: Annotated[int, Field(ge=0)]
    slot: Slot

    def __str__(self) -> str:
        return f"block {self.block} {self.slot}"

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: front to back, attention before MLP, as the block computes them."""
        return self.block, SLOTS.index(self.slot)
