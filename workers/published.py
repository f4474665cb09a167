"""Artifacts under their content key: the payload first, the card that vouches for it last."""

import hashlib
import json
from typing import Any

from grafting_core.storage import Storage


class DamagedArtifact(Exception):
    """A published file does not match the digest on its card."""


def publish(storage: Storage, folder: str, name: str, payload: bytes, card: dict[str, Any]) -> None:
    """Write payload and card. Two writers of one key write the same bytes, so either may win."""
    storage.write_bytes(f"{folder}/{name}", payload)
    document = {**card, "file": name, "sha256": hashlib.sha256(payload).hexdigest()}
    storage.write_bytes(f"{folder}/card.json", json.dumps(document, sort_keys=True).encode())


def read_card(storage: Storage, folder: str) -> dict[str, Any]:
    """Raises FileNotFoundError where nothing is published."""
    card: dict[str, Any] = json.loads(storage.read_bytes(f"{folder}/card.json"))
    return card


def read_published(storage: Storage, folder: str) -> bytes:
    """The payload, verified. Raises DamagedArtifact where it is not what the card says."""
    card = read_card(storage, folder)
    payload = storage.read_bytes(f"{folder}/{card['file']}")
    if hashlib.sha256(payload).hexdigest() != card["sha256"]:
        raise DamagedArtifact(f"{folder}/{card['file']} does not match its card")
    return payload


def is_published(storage: Storage, folder: str) -> bool:
    """Whether payload and card are there and agree; a damaged one is set aside, so that it is made anew."""
    if not storage.exists(f"{folder}/card.json"):
        return False
    try:
        read_published(storage, folder)
    except (DamagedArtifact, FileNotFoundError, ValueError, KeyError):
        storage.move(f"{folder}/card.json", f"{folder}/card.json.damaged")
        return False
    return True
