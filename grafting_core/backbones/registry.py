"""Load backbones by name."""

import torch

from grafting_core.backbones.base import Backbone
from grafting_core.specs.backbone import BACKBONES


def load_backbone(name: str, device: torch.device | str = "cpu") -> Backbone:
    """Load a backbone. Raises ValueError for an unknown name, or one without weights."""
    entry = BACKBONES.entries.get(name)
    if entry is None and name in BACKBONES.failures:
        BACKBONES.find(name)
    if entry is None or entry.load is None:
        runnable = [known for known, row in BACKBONES.entries.items() if row.load is not None]
        raise ValueError(f"backbone {name!r} has no weights here; use one of {', '.join(runnable)}")
    backbone: Backbone = entry.loader(entry.card, torch.device(device))
    return backbone
