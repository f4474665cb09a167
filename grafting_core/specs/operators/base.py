"""Base class of operator specs: a kind, its slots, and its cost by formula."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot


class OperatorBase(Frozen):
    """Spec of an operator; each subclass adds `kind: Literal[...]` and its own fields."""

    slots: ClassVar[tuple[Slot, ...]]
    """Slots that it fits."""
    inherits: ClassVar[bool] = False
    """Whether it can start from the weights of the operator that it replaces (`init: inherit`)."""
    gives: ClassVar[bool] = False
    """Whether an operator that replaces it can start from its weights."""
    fades: ClassVar[bool] = False
    """Whether it may forget distant tokens, so that `reach` is only an upper bound."""
    summary: ClassVar[str]
    """One line for `graft operators`."""
    kind: str

    @abstractmethod
    def num_params(self, dims: BlockDims) -> int:
        """Number of parameters of the built module at these dims."""

    @abstractmethod
    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        """FLOPs as the paper counts them, on one sample of `num_tokens` tokens (default: the dims' own)."""

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        """FLOPs that the built module computes on one sample; totals and budgets use this count.

        Counts matrix products, convolutions and attention, as `torch.utils.flop_counter` does, and leaves out
        element-wise work. The default is the paper's count.
        """
        return self.flops(dims, num_tokens).total

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        """Tokens (before, after) in raster order that a token can depend on; None if there is no such bound.

        `graft check-operator` tests the built module against it.
        """
        return None

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        """(field, allowed values) for every field that does not fit these dims; none by default."""
        yield from ()


def operator_label(operator: OperatorBase) -> str:
    """`mlp(ratio=3)`: the kind and the fields that differ from their defaults."""
    default = type(operator)(kind=operator.kind)
    fields = {
        name: getattr(operator, name)
        for name in type(operator).model_fields
        if name != "kind" and getattr(operator, name) != getattr(default, name)
    }
    inside = ",".join(f"{name}={_short(value)}" for name, value in fields.items())
    return f"{operator.kind}({inside})" if inside else operator.kind


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
