"""Backbones that a lab has registered: a diffusers folder in the lab's own storage."""

from pathlib import Path

import torch

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import load_folder
from grafting_core.specs.backbone import BackboneCard


def read_card(
    folder: Path, *, name: str, dataset: str | None = None, vae: object = None, licence: str | None = None
) -> BackboneCard:
    """The card of a folder, checked against the module that it builds. Raises ValueError."""
    changes = {"name": name, "dataset": dataset, "licence": licence, "pretraining": None}
    return load_folder(folder).card.model_copy(update=changes)


def load_registered(card: BackboneCard, device: torch.device) -> Backbone:
    """The backbone at `card.weights`."""
    found = load_folder(Path(str(card.weights)), device)
    return Backbone(card, found.family, found.transformer, found.autoencoder)
