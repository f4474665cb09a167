"""The one table of operator specs. Adding a kind: its class in a family file, one line in `BUILT_IN`.

Other packages add kinds by entry points of the group `graftlab.operator_specs`; docs/how-to/ shows how.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from grafting_core.specs.dims import Slot
from grafting_core.specs.operators.attention import (
    LinearAttention,
    MultiHeadAttention,
    WindowAttention,
    WindowAttention2d,
)
from grafting_core.specs.operators.base import OperatorBase
from grafting_core.specs.operators.hyena import (
    BidirectionalHyenaSE,
    BidirectionalHyenaX,
    BidirectionalHyenaY,
    HyenaSE,
    HyenaX,
    HyenaY,
)
from grafting_core.specs.operators.identity import Identity
from grafting_core.specs.operators.mamba import BidirectionalMamba2, Mamba2
from grafting_core.specs.operators.mlp import ConvMlp, Mlp, MlpHyenaX

BUILT_IN: tuple[type[OperatorBase], ...] = (
    MultiHeadAttention,
    WindowAttention,
    WindowAttention2d,
    LinearAttention,
    HyenaSE,
    HyenaX,
    HyenaY,
    BidirectionalHyenaSE,
    BidirectionalHyenaX,
    BidirectionalHyenaY,
    Mamba2,
    BidirectionalMamba2,
    Mlp,
    ConvMlp,
    MlpHyenaX,
    Identity,
)

SPEC_GROUP = "graftlab.operator_specs"


def _registered() -> tuple[type[OperatorBase], ...]:
    """Specs of other packages. Raises ValueError where one takes a kind that exists."""
    found = sorted(entry_points(group=SPEC_GROUP), key=lambda point: (point.name, point.value))
    taken = {_kind(cls): "this package" for cls in BUILT_IN}
    for point in found:
        if point.name in taken:
            raise ValueError(f"operator kind {point.name!r} of {point.value} exists: {taken[point.name]}")
        taken[point.name] = point.value
    return tuple(point.load() for point in found)


def _kind(cls: type[OperatorBase]) -> str:
    return str(cls.model_fields["kind"].default)


OPERATORS = BUILT_IN + _registered()
KINDS: dict[str, type[OperatorBase]] = {_kind(cls): cls for cls in OPERATORS}


def kinds_for(slot: Slot) -> list[str]:
    """Kinds that fit a slot, in table order."""
    return [kind for kind, cls in KINDS.items() if slot in cls.slots]


if TYPE_CHECKING:
    OperatorSpec = OperatorBase
else:
    # Built from the table, so that one line registers a kind everywhere: documents, REST, OpenAPI.
    OperatorSpec = Annotated[Union[OPERATORS], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["KINDS", "OPERATORS", "OperatorBase", "OperatorSpec", "kinds_for"]
