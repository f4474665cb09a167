"""Identity operator, for ablations."""

from torch import nn

from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.identity import Identity


def build_identity(spec: Identity, dims: BlockDims) -> nn.Module:
    return nn.Identity()
