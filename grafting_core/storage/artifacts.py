"""Artifacts under their content key: payload and further files first, then a card with their digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from grafting_core.storage.checksums import set_aside
from grafting_core.storage.storage import Storage

M = TypeVar("M", bound=BaseModel)
CARD = "card.json"
CARD_DIGEST = "card_sha256"
READ_ERRORS = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError)


class CorruptArtifact(Exception):
    """A published file does not match the digest on its card."""


def publish(
    storage: Storage,
    folder: str,
    name: str,
    payload: bytes,
    card: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the payload, further files, and the card with the digests of all, its own included.

    Two writers of one key write the same bytes, so either may be last.
    """
    contents = {**(files or {}), name: payload}
    for file, content in contents.items():
        storage.write_bytes(f"{folder}/{file}", content)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    document = {**card, "file": name, "sha256": digests.pop(name), "files": digests}
    document[CARD_DIGEST] = card_digest(document)
    storage.write_bytes(f"{folder}/{CARD}", json.dumps(document, sort_keys=True).encode())


def card_digest(document: Mapping[str, Any]) -> str:
    """Digest of the card's content without its own digest."""
    rest = {name: value for name, value in document.items() if name != CARD_DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_card(storage: Storage, folder: str) -> dict[str, Any]:
    """Card of an artifact. Raises FileNotFoundError without one, CorruptArtifact if it was changed.

    Cards of older versions have no digest of their own.
    """
    card: dict[str, Any] = json.loads(storage.read_bytes(f"{folder}/{CARD}"))
    if card.get(CARD_DIGEST) not in (None, card_digest(card)):
        raise CorruptArtifact(f"{folder}/{CARD} does not match its own digest")
    return card


def read_published(storage: Storage, folder: str) -> bytes:
    """The payload, verified. Raises CorruptArtifact if it does not match the card."""
    card = read_card(storage, folder)
    payload = storage.read_bytes(f"{folder}/{card['file']}")
    if hashlib.sha256(payload).hexdigest() != card["sha256"]:
        raise CorruptArtifact(f"{folder}/{card['file']} does not match its card")
    return payload


def published_file(storage: Storage, folder: str, scratch: Path) -> Path:
    """The payload as a file of this machine, verified in pieces, for what is not to be held in memory.

    Of a storage elsewhere it is a copy in `scratch`. Raises CorruptArtifact if it does not match the card.
    """
    card = read_card(storage, folder)
    path = f"{folder}/{card['file']}"
    local = storage.local_path(path) if storage.is_local else scratch / str(card["file"])
    if not storage.is_local:
        with local.open("wb") as copy:
            copy.writelines(storage.pieces(path))
    with local.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != card["sha256"]:
            raise CorruptArtifact(f"{path} does not match its card")
    return local


def read_file(storage: Storage, folder: str, name: str, model: type[M]) -> M:
    """A file with a digest on the card, parsed. Raises CorruptArtifact, FileNotFoundError, ValueError.

    Files that the card does not name, as in older versions, are not verified.
    """
    content = storage.read_bytes(f"{folder}/{name}")
    card = read_card(storage, folder) if storage.exists(f"{folder}/{CARD}") else {}
    expected = {**card.get("files", {}), card.get("file"): card.get("sha256")}.get(name)
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise CorruptArtifact(f"{folder}/{name} does not match its card")
    return model.model_validate_json(content)


def damage(storage: Storage, folder: str) -> str | None:
    """Reason why a published artifact is damaged, or None if its files and its card are intact."""
    try:
        card = read_card(storage, folder)
        for name, expected in {**card.get("files", {}), card["file"]: card["sha256"]}.items():
            if digest_of(storage, f"{folder}/{name}") != expected:
                return f"{folder}/{name} does not match its card"
    except (CorruptArtifact, *READ_ERRORS) as error:
        return str(error) or type(error).__name__
    return None


def digest_of(storage: Storage, path: str) -> str:
    """SHA-256 of a file of any size. Raises FileNotFoundError."""
    digest = hashlib.sha256()
    for piece in storage.pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def keep_published(storage: Storage, folder: str) -> bool:
    """Whether payload and card exist and match; damaged ones are set aside, so that they are made again."""
    if not storage.exists(f"{folder}/{CARD}"):
        return False
    wrong = damage(storage, folder)
    if wrong is not None:
        set_aside(storage, f"{folder}/{CARD}", wrong)
    return wrong is None
