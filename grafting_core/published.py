"""Artifacts under their content key: the payload first, the card that vouches for it last."""

import hashlib
import json
import logging
from typing import Any

from grafting_core.storage import Storage

log = logging.getLogger(__name__)
CARD = "card.json"
DAMAGES = (FileNotFoundError, ValueError, KeyError)


class DamagedArtifact(Exception):
    """A published file does not match the digest on its card."""


def publish(storage: Storage, folder: str, name: str, payload: bytes, card: dict[str, Any]) -> None:
    """Write payload and card. Two writers of one key write the same bytes, so either may win."""
    storage.write_bytes(f"{folder}/{name}", payload)
    document = {**card, "file": name, "sha256": hashlib.sha256(payload).hexdigest()}
    storage.write_bytes(f"{folder}/{CARD}", json.dumps(document, sort_keys=True).encode())


def read_card(storage: Storage, folder: str) -> dict[str, Any]:
    """Raises FileNotFoundError where nothing is published."""
    card: dict[str, Any] = json.loads(storage.read_bytes(f"{folder}/{CARD}"))
    return card


def read_published(storage: Storage, folder: str) -> bytes:
    """The payload, verified. Raises DamagedArtifact where it is not what the card says."""
    card = read_card(storage, folder)
    payload = storage.read_bytes(f"{folder}/{card['file']}")
    if hashlib.sha256(payload).hexdigest() != card["sha256"]:
        raise DamagedArtifact(f"{folder}/{card['file']} does not match its card")
    return payload


def damage(storage: Storage, folder: str) -> str | None:
    """What is wrong with a published artifact, or None where payload and card are there and agree."""
    try:
        read_published(storage, folder)
    except (DamagedArtifact, *DAMAGES) as error:
        return str(error) or type(error).__name__
    return None


def is_published(storage: Storage, folder: str) -> bool:
    """Whether payload and card are there and agree; a damaged one is set aside, so that it is made anew."""
    if not storage.exists(f"{folder}/{CARD}"):
        return False
    wrong = damage(storage, folder)
    if wrong is not None:
        log.warning("%s is damaged (%s) and set aside as %s.damaged", folder, wrong, CARD)
        storage.move(f"{folder}/{CARD}", f"{folder}/{CARD}.damaged")
    return wrong is None
