"""Adapters from the blocks of diffusers to operators [B, T, D] -> [B, T, D]."""

from typing import Any

from torch import Tensor, nn


class AttentionSlot(nn.Module):
    """Wraps an operator for diffusers' attention slot and ignores the slot's other arguments."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, hidden_BTD: Tensor, **unused: Any) -> Tensor:
        out: Tensor = self.operator(hidden_BTD)
        return out
