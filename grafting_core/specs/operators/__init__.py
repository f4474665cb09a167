"""Table of operator specs. To add a kind: a class in a family file and one line in `BUILT_IN`.

Other packages add kinds by entry points of the group `graftlab.operator_specs`; docs/how-to/ shows how.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
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


FAILURES: dict[str, str] = {}
"""Kind of another package that was left out -> reason."""

log = logging.getLogger(__name__)


def _registered() -> tuple[type[OperatorBase], ...]:
    """Specs of other packages; one that cannot be loaded, or whose kind exists, is logged and left out."""
    taken, loaded = {_kind(cls): "this package" for cls in BUILT_IN}, list[type[OperatorBase]]()
    for point in sorted(entry_points(group=SPEC_GROUP), key=lambda point: (point.name, point.value)):
        try:
            loaded.append(_load(point, taken))
        except Exception as error:  # noqa: BLE001 - another package's code may raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            log.warning("operator kind %r of %s %s; it is left out", point.name, point.value, reason)
            FAILURES.setdefault(point.name, f"{point.value} {reason}")
        else:
            taken[point.name] = point.value
    return tuple(loaded)


def _load(point: EntryPoint, taken: Mapping[str, str]) -> type[OperatorBase]:
    if point.name in taken:
        raise ValueError(f"exists: {taken[point.name]}")
    cls = point.load()
    if not (isinstance(cls, type) and issubclass(cls, OperatorBase)):
        raise TypeError(f"is no OperatorBase but {cls!r}")
    if _kind(cls) != point.name:
        raise ValueError(f"is of the kind {_kind(cls)!r}")
    return cls


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

__all__ = ["FAILURES", "KINDS", "OPERATORS", "OperatorBase", "OperatorSpec", "kinds_for"]
