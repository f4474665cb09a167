"""Identity operator, for ablations."""

from torch import nn

from grafting_core.operators.construction import Arguments, Construction
from grafting_core.specs.dims import BlockDims
from grafting_core.specs.operators.identity import Identity


def _none(spec: Identity, dims: BlockDims) -> Arguments:
    return {}


build_identity = Construction(nn.Identity, _none)
