"""The feed-forward slot."""

from torch import Tensor, nn

from grafting_core.spec.dims import BlockDims
from grafting_core.spec.operators.mlp import Mlp


class FeedForward(nn.Module):
    """Linear, GELU(tanh), Linear; [batch, tokens, width] -> the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.contract = nn.Linear(hidden, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.contract(self.act(self.expand(hidden_BTD)))
        return out


def build_mlp(spec: Mlp, dims: BlockDims) -> nn.Module:
    return FeedForward(dims.width, spec.channels(dims))
