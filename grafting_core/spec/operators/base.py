"""What every operator spec offers: a kind, a slot, and its cost as arithmetic."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from grafting_core.spec.base import Frozen
from grafting_core.spec.dims import BlockDims, OperatorFlops, Slot


class OperatorBase(Frozen):
    """One frozen class per operator; subclasses add `kind: Literal[...]` and their own fields."""

    slots: ClassVar[tuple[Slot, ...]]
    """Where it fits."""
    inherits: ClassVar[bool] = False
    """Whether it can start from weights of the operator it replaces (`init: inherit`)."""
    summary: ClassVar[str]
    """One line for `graft operators`."""
    kind: str

    @abstractmethod
    def num_params(self, dims: BlockDims) -> int:
        """Parameters of the built module at these dims."""

    @abstractmethod
    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        """FLOPs on one sample of `num_tokens` tokens (default: the dims' own)."""

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        """(field, what would be right) for every field that does not fit these dims; none by default."""
        yield from ()
