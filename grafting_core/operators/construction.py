"""How the module of an operator is constructed: its class, and the class's arguments by arithmetic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from grafting_core.specs.dims import BlockDims

Arguments = Mapping[str, Any]
"""Keyword arguments of a module's class: numbers, truth values and tuples of these."""


@dataclass(frozen=True)
class Construction:
    """A builder that also tells what it builds from, so that the module can be built without its spec."""

    module: type[nn.Module]
    arguments: Callable[[Any, BlockDims], Arguments]

    def __call__(self, spec: Any, dims: BlockDims) -> nn.Module:
        return self.module(**self.arguments(spec, dims))
