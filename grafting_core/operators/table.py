"""Table of builders. To add a kind: its module in a family file and one line in `BUILDERS`.

Other packages add builders by entry points of the group `graftlab.operator_builders`.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from grafting_core.operators.attention import (
    build_linear_attention,
    build_mha,
    build_window_attention,
    build_window_attention_2d,
)
from grafting_core.operators.construction import Construction
from grafting_core.operators.hyena import build_hyena
from grafting_core.operators.identity import build_identity
from grafting_core.operators.mamba import build_mamba2
from grafting_core.operators.mlp import build_conv_mlp, build_mlp, build_mlp_hyena_x
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators import OperatorBase

Builder = Callable[[Any, BlockDims], nn.Module]
BUILDER_GROUP = "graftlab.operator_builders"
BUILDERS: dict[str, Construction] = {
    "mha": build_mha,
    "window_attention": build_window_attention,
    "window_attention_2d": build_window_attention_2d,
    "linear_attention": build_linear_attention,
    "hyena_se": build_hyena,
    "hyena_x": build_hyena,
    "hyena_y": build_hyena,
    "hyena_se_bidirectional": build_hyena,
    "hyena_x_bidirectional": build_hyena,
    "hyena_y_bidirectional": build_hyena,
    "mamba2": build_mamba2,
    "mamba2_bidirectional": build_mamba2,
    "mlp": build_mlp,
    "conv_mlp": build_conv_mlp,
    "mlp_hyena_x": build_mlp_hyena_x,
    "identity": build_identity,
}


def build_operator(spec: OperatorBase, dims: BlockDims) -> nn.Module:
    """A module [batch, tokens, width] -> [batch, tokens, width] with PyTorch's default initialisation.

    Draws from the global generator. Raises ValueError if a field does not fit these dims.
    """
    for field, right in spec.problems(dims):
        raise ValueError(f"{spec.kind}.{field} is {getattr(spec, field)}; it should be {right}")
    return _builder(spec.kind)(spec, dims)


def construction_of(spec: OperatorBase) -> Construction:
    """How a kind of this package is built. Raises ValueError, which names the package, for another's kind."""
    if spec.kind in BUILDERS:
        return BUILDERS[spec.kind]
    points = entry_points(group=BUILDER_GROUP, name=spec.kind)
    packages = [point.dist.name for point in points if point.dist is not None]
    where = f"the package {packages[0]}" if packages else "another package"
    raise ValueError(f"{spec.kind} is an operator of {where}, whose code is not written out")


@cache
def _builder(kind: str) -> Builder:
    if kind in BUILDERS:
        return BUILDERS[kind]
    points = list(entry_points(group=BUILDER_GROUP, name=kind))
    if not points:
        raise LookupError(f"operator kind {kind!r} has a spec but no entry point in {BUILDER_GROUP!r}")
    builder: Builder = points[0].load()
    return builder
