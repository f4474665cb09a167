"""Two blocks in parallel that replace two in sequence, with merged outputs (paper section 6)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ParallelBlocks(nn.Module):
    """Replaces two entries of a block list: y = W [a, b] + c, with a and b on the same input [B, T, D].

    The blocks keep their weights, residual paths and conditioning.
    """

    def __init__(self, first: nn.Module, second: nn.Module, merge: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.merge = first, second, merge

    @property
    def sides(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second

    def forward(self, hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs = [block(hidden_BTD, *args, **kwargs) for block in self.sides]
        out: Tensor = self.merge(torch.cat(outputs, dim=-1))
        return out


def flat_blocks(entries: Iterable[nn.Module]) -> list[Any]:
    """Blocks by their number, those in pairs too."""
    sides = (entry.sides if isinstance(entry, ParallelBlocks) else (entry,) for entry in entries)
    return [block for both in sides for block in both]


def mean_merge(width: int) -> nn.Linear:
    """[I/2 I/2] without bias: the mean of both outputs."""
    merge = nn.Linear(2 * width, width)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
        merge.bias.zero_()
    return merge
