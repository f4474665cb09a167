"""Compute in units of what a backbone cost to make, where that is known."""

from grafting_core.specs.backbone import card_named


def share_of_pretraining(backbone: str, flops: float) -> float | None:
    """FLOPs over those of the backbone's pretraining; None where nobody knows what that took."""
    card = card_named(backbone)
    return card.share_of_pretraining(flops) if card else None
