"""Look up a backbone's card by the name in a document."""

from grafting_core.specs.backbone import BACKBONES, BackboneCard, backbone_cards, revisions_of
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import nearest


def find_card(name: str) -> BackboneCard:
    """Card of the backbone `NAME`, or of one revision, `NAME@REVISION`, counted from 1.

    Raises SpecError, at `/backbone`, for a name that is unknown or cannot be used.
    """
    cards = backbone_cards()
    base, at, revision = name.rpartition("@")
    if at and revision.isascii() and revision.isdigit():
        return _revision(base, int(revision), name)
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


def _revision(name: str, number: int, given: str) -> BackboneCard:
    found = revisions_of(name)
    if 0 < number <= len(found):
        return found[number - 1]
    message = f"backbone {shown(name)} has {len(found)} revisions in this lab"
    if not found:
        message = (
            f"no backbone {shown(name)} was registered with this lab; revisions are those of registered ones"
        )
    raise SpecError(
        [Problem(pointer="/backbone", code="unknown-backbone", message=message, given=shown(given))]
    )
