"""Registered backbones for the time of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from grafting_core.specs.backbone import BackboneCard, register_cards


@contextmanager
def only_registered(*cards: BackboneCard) -> Iterator[None]:
    """These backbones are registered in this process, and none afterwards."""
    register_cards(cards)
    try:
        yield
    finally:
        register_cards([])
