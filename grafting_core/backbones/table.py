"""Table of families: `family` on a backbone's card -> access to its transformers."""

from collections.abc import Mapping

from grafting_core.backbones.base import Family
from grafting_core.backbones.dit import DiT
from grafting_core.specs.backbone import BackboneCard

FAMILIES: Mapping[str, Family] = {"dit": DiT()}


def family_of(card: BackboneCard) -> Family:
    """Family of a card. Raises ValueError for one that this version does not know."""
    if card.family not in FAMILIES:
        raise ValueError(
            f"{card.name} is of the family {card.family!r}; known families: {', '.join(FAMILIES)}"
        )
    return FAMILIES[card.family]
