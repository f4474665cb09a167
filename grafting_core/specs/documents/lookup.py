"""From the name that a document gives to the backbone's card."""

from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import nearest


def find_card(name: str) -> BackboneCard:
    """Raises SpecError, pointing to `/backbone`, for a name the lab does not know."""
    cards = backbone_cards()
    if name not in cards:
        message = f"unknown backbone {shown(name)}{nearest(name, cards)}"
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
