"""Look up a backbone's card by the name in a document."""

from grafting_core.specs.backbone import BACKBONES, BackboneCard, backbone_cards
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import nearest


def find_card(name: str) -> BackboneCard:
    """Card of a backbone. Raises SpecError, at `/backbone`, for a name that is unknown or cannot be used."""
    cards = backbone_cards()
    if name not in cards:
        broken = BACKBONES.failures.get(name)
        message = f"unknown backbone {shown(name)}{nearest(name, cards)}"
        if broken is not None:
            message = f"backbone {shown(name)} cannot be used: {broken}"
        raise SpecError(
            [
                Problem(
                    pointer="/backbone",
                    code="unknown-backbone",
                    message=message,
                    given=shown(name),
                    allowed=tuple(cards),
                )
            ]
        )
    return cards[name]
