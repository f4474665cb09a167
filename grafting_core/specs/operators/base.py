"""What every operator spec offers: a kind, a slot, and its cost as arithmetic."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from grafting_core.specs.base import Frozen
from grafting_core.specs.dims import BlockDims, OperatorFlops, Slot


class OperatorBase(Frozen):
    """One frozen class per operator; subclasses add `kind: Literal[...]` and their own fields."""

    slots: ClassVar[tuple[Slot, ...]]
    """Where it fits."""
    inherits: ClassVar[bool] = False
    """Whether it can start from weights of the operator it replaces (`init: inherit`)."""
    fades: ClassVar[bool] = False
    """Whether far tokens may be forgotten: `reach` is then the most that a token sees."""
    summary: ClassVar[str]
    """One line for `graft operators`."""
    kind: str

    @abstractmethod
    def num_params(self, dims: BlockDims) -> int:
        """Parameters of the built module at these dims."""

    @abstractmethod
    def flops(self, dims: BlockDims, num_tokens: int | None = None) -> OperatorFlops:
        """FLOPs as the paper counts them, on one sample of `num_tokens` tokens (default: the dims' own)."""

    def computed_flops(self, dims: BlockDims, num_tokens: int | None = None) -> int:
        """FLOPs that the built module really computes, on one sample: what totals and limits go by.

        Matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them; element-wise
        work is left out. An operator that does not say is taken at the paper's count.
        """
        return self.flops(dims, num_tokens).total

    def reach(self, dims: BlockDims) -> tuple[int, int] | None:
        """How many tokens back and ahead, in raster order, a token can see; None where nothing is promised.

        `graft check-operator` holds the built module to it.
        """
        return None

    def problems(self, dims: BlockDims) -> Iterator[tuple[str, str]]:
        """(field, what would be right) for every field that does not fit these dims; none by default."""
        yield from ()


def operator_label(operator: OperatorBase) -> str:
    """`mlp(ratio=3)`: the kind and the fields that are not as by default."""
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
