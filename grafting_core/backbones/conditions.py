"""Conditions of a transformer: its keyword arguments other than noisy latents and timesteps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Keyword arguments by name.

    `by_row` has tensors [n, ...] with a row for each sample, `shared` has arguments common to all samples.
    """

    by_row: Mapping[str, Tensor]
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples. Raises ValueError if no argument has rows."""
        if not self.by_row:
            raise ValueError("conditions without an argument by row have no number of samples")
        return len(next(iter(self.by_row.values())))

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the transformer's forward."""
        return {**self.by_row, **self.shared}

    def rows(self, part: slice | Tensor) -> "Conditions":
        """Conditions of some samples: a slice, or indices in any order."""
        return Conditions({name: tensor[part] for name, tensor in self.by_row.items()}, self.shared)

    def to(self, device: torch.device) -> "Conditions":
        """Conditions on another device; of `shared`, only tensors are moved."""
        moved = {name: tensor.to(device) for name, tensor in self.by_row.items()}
        shared = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.shared.items()
        }
        return Conditions(moved, shared)

    def followed_by(self, other: "Conditions") -> "Conditions":
        """Samples of both in one batch; `shared` is that of the first."""
        joined = {name: torch.cat([tensor, other.by_row[name]]) for name, tensor in self.by_row.items()}
        return Conditions(joined, self.shared)

    def dropped(self, mask_B: Tensor, null: "Conditions") -> "Conditions":
        """Conditions with the null condition (one row, or one per sample) where `mask_B` is true."""
        by_row = {
            name: torch.where(mask_B.view(-1, *[1] * (tensor.dim() - 1)), null.by_row[name], tensor)
            for name, tensor in self.by_row.items()
        }
        return Conditions(by_row, self.shared)
