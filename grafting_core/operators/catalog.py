"""The one table of builders. Adding a kind: its module in a family file, one line in `BUILDERS`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from grafting_core.operators.attention import build_mha, build_window_attention
from grafting_core.operators.hyena import build_hyena_x
from grafting_core.operators.mlp import build_mlp
from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators import OperatorBase

BUILDERS: dict[str, Callable[[Any, BlockDims], nn.Module]] = {
    "mha": build_mha,
    "window_attention": build_window_attention,
    "hyena_x": build_hyena_x,
    "mlp": build_mlp,
}


def build(spec: OperatorBase, dims: BlockDims) -> nn.Module:
    """A module [batch, tokens, width] -> [batch, tokens, width] with PyTorch's default initialisation.

    Draws from the global generator. Raises ValueError where a field does not fit these dims.
    """
    for field, right in spec.problems(dims):
        raise ValueError(f"{spec.kind}.{field} is {getattr(spec, field)}; it should be {right}")
    return BUILDERS[spec.kind](spec, dims)
