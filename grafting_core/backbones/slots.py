"""Adapters between the blocks of diffusers and operators that map [B, T, D] to the same."""

from typing import Any

from torch import Tensor, nn


class AttentionSlot(nn.Module):
    """Lets an operator stand where diffusers' blocks call attention with arguments it has no use for."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, hidden_BTD: Tensor, **unused: Any) -> Tensor:
        out: Tensor = self.operator(hidden_BTD)
        return out
