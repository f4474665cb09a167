"""Identity operator, for ablations."""

from typing import ClassVar, Literal

from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot
from grafting_core.specs.operators.base import OperatorBase


class Identity(OperatorBase):
    """Returns its input; fits either slot and has no parameters."""

    kind: Literal["identity"] = "identity"
    slots: ClassVar[tuple[Slot, ...]] = ("attention", "mlp")
    summary: ClassVar[str] = "returns its input"

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        return 0, 0

    def num_params(self, dims: BlockDims) -> int:
        return 0

    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        return OperatorFlops(operator=0, features=0)
