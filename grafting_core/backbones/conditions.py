"""Conditions of a transformer: its own keyword arguments beside noisy latents and timesteps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Keyword arguments by name.

    `by_row` holds tensors [n, ...] with a row for each sample, `shared` what all samples have in common.
    """

    by_row: Mapping[str, Tensor]
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples. Raises ValueError where no argument has rows."""
        if not self.by_row:
            raise ValueError("conditions without an argument that has rows fit any number of samples")
        return len(next(iter(self.by_row.values())))

    @property
    def arguments(self) -> dict[str, Any]:
        """As the transformer's forward takes them."""
        return {**self.by_row, **self.shared}

    def rows(self, part: slice | Tensor) -> "Conditions":
        """Conditions of some samples: a slice, or indices in any order."""
        return Conditions({name: tensor[part] for name, tensor in self.by_row.items()}, self.shared)

    def to(self, device: torch.device) -> "Conditions":
        """On another device; of what is shared, tensors alone are moved."""
        moved = {name: tensor.to(device) for name, tensor in self.by_row.items()}
        shared = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.shared.items()
        }
        return Conditions(moved, shared)

    def followed_by(self, other: "Conditions") -> "Conditions":
        """The samples of both in one batch; what is shared is taken from the first."""
        joined = {name: torch.cat([tensor, other.by_row[name]]) for name, tensor in self.by_row.items()}
        return Conditions(joined, self.shared)

    def dropped(self, mask_B: Tensor, null: "Conditions") -> "Conditions":
        """With the null condition (one row, or as many as there are) where `mask_B` is true."""
        by_row = {
            name: torch.where(mask_B.view(-1, *[1] * (tensor.dim() - 1)), null.by_row[name], tensor)
            for name, tensor in self.by_row.items()
        }
        return Conditions(by_row, self.shared)
