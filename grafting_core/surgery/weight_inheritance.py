"""Starting a new operator from the weights of the one it replaces (`init: inherit`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grafting_core.operators.attention import SoftmaxAttention
from grafting_core.operators.hyena import GatedConvolution
from grafting_core.operators.mlp import FeedForward


@torch.no_grad()
def inherit(old: Mapping[str, nn.Linear], operator: nn.Module) -> None:
    """Carry over what fits of the original's linear layers (`Family.projections`).

    Everything else keeps its random start. Attention kinds and Hyenas take the four projections. An MLP of
    another ratio keeps the channels that contribute most, or gains channels whose output weights are zero, so
    that it starts as the same function. Raises TypeError for an operator that nothing can be carried into.
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
        raise TypeError(f"nothing of the old operator fits into {type(operator).__name__}")


def _join(target: nn.Linear, parts: list[nn.Linear]) -> None:
    target.weight.copy_(torch.cat([part.weight for part in parts]))
    target.bias.copy_(torch.cat([part.bias for part in parts]))


def _resize(operator: FeedForward, expand: nn.Linear, contract: nn.Linear) -> None:
    kept = strongest_channels(expand.weight, contract.weight, len(operator.expand.weight))
    operator.expand.weight[: len(kept)] = expand.weight[kept]
    operator.expand.bias[: len(kept)] = expand.bias[kept]
    operator.contract.weight.zero_()[:, : len(kept)] = contract.weight[:, kept]
    operator.contract.bias.copy_(contract.bias)


def strongest_channels(expand_CD: Tensor, contract_DC: Tensor, count: int) -> Tensor:
    """Indices, ascending, of the channels with the largest product of input and output weight norms."""
    strength_C = expand_CD.norm(dim=1) * contract_DC.norm(dim=0)
    kept: Tensor = strength_C.topk(min(count, len(strength_C))).indices.sort().values
    return kept
