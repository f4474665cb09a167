"""From the name that a document gives to the backbone's card."""

from grafting_core.spec.backbone import BackboneCard, backbone_cards
from grafting_core.spec.explain import nearest
from grafting_core.spec.problems import Problem, SpecError, shown


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
