"""Nothing at all, to find out what an operator was worth."""

from typing import ClassVar, Literal

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase


class Identity(OperatorBase):
    """Hands its input on; fits either slot and has nothing to train."""

    kind: Literal["identity"] = "identity"
    slots: ClassVar[tuple[Slot, ...]] = ("attention", "mlp")
    summary: ClassVar[str] = "hands its input on"

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        return 0, 0

    def num_params(self, dims: BlockDims) -> int:
        return 0

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        return OperatorFlops(operator=0, features=0)
