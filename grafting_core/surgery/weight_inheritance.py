"""Initialise a new operator with weights of the one that it replaces (`init: inherit`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grafting_core.operators.attention import SoftmaxAttention
from grafting_core.operators.hyena import GatedConvolution
from grafting_core.operators.mlp import FeedForward


@torch.no_grad()
def inherit(old: Mapping[str, nn.Linear], operator: nn.Module) -> None:
    """Copy what fits from the original's linear layers (`Family.projections`).

    Everything else keeps its random weights. Attention kinds and Hyenas copy the four projections. A narrower
    MLP keeps the channels that contribute most; a wider one gets channels with zero output weights, so that
    it starts as the same function. Raises TypeError for an operator that cannot inherit.
    """
    if isinstance(operator, SoftmaxAttention):
        for name in ("q", "k", "v", "out"):
            operator.get_submodule(name).load_state_dict(old[name].state_dict())
    elif isinstance(operator, GatedConvolution):
        _join(operator.project_in, [old[name] for name in ("q", "k", "v")])
        operator.project_out.load_state_dict(old["out"].state_dict())
    elif type(operator) is FeedForward:
        _resize(operator, old["expand"], old["contract"])
    else:
        raise TypeError(f"no weights of the old operator fit into {type(operator).__name__}")


def _join(target: nn.Linear, parts: list[nn.Linear]) -> None:
    target.weight.copy_(torch.cat([part.weight for part in parts]))
    target.bias.copy_(torch.cat([part.bias for part in parts]))


def _resize(operator: FeedForward, expand: nn.Linear, contract: nn.Linear) -> None:
    strongest = strongest_channels(expand.weight, contract.weight, len(operator.expand.weight))
    operator.expand.weight[: len(strongest)] = expand.weight[strongest]
    operator.expand.bias[: len(strongest)] = expand.bias[strongest]
    operator.contract.weight.zero_()[:, : len(strongest)] = contract.weight[:, strongest]
    operator.contract.bias.copy_(contract.bias)


def strongest_channels(expand_CD: Tensor, contract_DC: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the channels with the largest product of input and output weight norms."""
    strength_C = expand_CD.norm(dim=1) * contract_DC.norm(dim=0)
    strongest: Tensor = strength_C.topk(min(count, len(strength_C))).indices.sort().values
    return strongest
