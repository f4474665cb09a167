"""The one table of operator specs. Adding a kind: its class in a family file, one line in `OPERATORS`."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from grafting_core.spec.dims import Slot
from grafting_core.spec.operators.attention import (
    LinearAttention,
    MultiHeadAttention,
    WindowAttention,
    WindowAttention2d,
)
from grafting_core.spec.operators.base import OperatorBase
from grafting_core.spec.operators.hyena import (
    BidirectionalHyenaSE,
    BidirectionalHyenaX,
    BidirectionalHyenaY,
    HyenaSE,
    HyenaX,
    HyenaY,
)
from grafting_core.spec.operators.identity import Identity
from grafting_core.spec.operators.mamba import BidirectionalMamba2, Mamba2
from grafting_core.spec.operators.mlp import ConvMlp, Mlp, MlpHyenaX

OPERATORS: tuple[type[OperatorBase], ...] = (
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

KINDS: dict[str, type[OperatorBase]] = {cls.model_fields["kind"].default: cls for cls in OPERATORS}


def kinds_for(slot: Slot) -> list[str]:
    """Kinds that fit a slot, in table order."""
    return [kind for kind, cls in KINDS.items() if slot in cls.slots]


if TYPE_CHECKING:
    OperatorSpec = OperatorBase
else:
    # Built from the table, so that one line registers a kind everywhere: documents, REST, OpenAPI.
    OperatorSpec = Annotated[Union[OPERATORS], Field(discriminator="kind")]  # noqa: UP007

__all__ = ["KINDS", "OPERATORS", "OperatorBase", "OperatorSpec", "kinds_for"]
