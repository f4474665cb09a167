"""The bank: every distilled operator there is, by the key of what determined it.

scions/<key>/operator-<digest>.safetensors   weights; named by content, so that a card always finds its own
scions/<key>/card.json                       a `ScionCard`; written last, it makes the scion exist
scions/<key>/progress                        where an unfinished distillation stands
scions/<key>/diverged.json                   why there is none
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress

from pydantic import ValidationError

from grafting_core.specs.scions import ScionCard
from grafting_core.storage.artifacts import CARD, READ_ERRORS, CorruptArtifact, damage, read_published
from grafting_core.storage.storage import Storage

log = logging.getLogger(__name__)
ROOT = "scions"


class Bank:
    """Scions in shared storage. Readers see whole scions or none; writers of one key may race."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def folder(self, key: str) -> str:
        return f"{ROOT}/{key}"

    def artifact(self, card: ScionCard) -> str:
        """Where its weights are, relative to the storage root."""
        return f"{self.folder(card.key)}/{card.file}"

    def names(self) -> list[str]:
        """Every key that has a folder, ascending; there may be only progress, or damage, in it."""
        return self.storage.names(ROOT)

    def has(self, key: str) -> bool:
        """Whether there is a card; cheap, and no promise that the weights are intact."""
        return self.storage.exists(f"{self.folder(key)}/{CARD}")

    def card(self, key: str) -> ScionCard | None:
        """None where there is none, or none that can be read (`verify` says what is wrong with it)."""
        try:
            return self.storage.read_model(f"{self.folder(key)}/{CARD}", ScionCard)
        except (FileNotFoundError, ValidationError):
            return None

    def cards(self, after: str = "") -> Iterator[ScionCard]:
        """All of them in the order of their keys, from the first beyond `after`."""
        for key in self.names():
            card = self.card(key) if key > after else None
            if card is not None:
                yield card

    def read(self, key: str) -> bytes:
        """Weights, verified. Raises FileNotFoundError or DamagedArtifact."""
        return read_published(self.storage, self.folder(key))

    def keep_intact(self, key: str) -> bool:
        """Whether the scion is there and intact. A damaged one is reported and set aside, to be made anew."""
        return self.has(key) and self.take_in(key) is None

    def take_in(self, key: str, into: dict[str, bytes] | None = None) -> str | None:
        """Verify a scion, reading it once: its weights go `into`, where that is given, so that nobody has to
        read them again. Gives what was wrong with one that had to be set aside.
        """
        wrong = self.verify(key) if into is None else self._read_into(key, into)
        if wrong is not None:
            self.set_aside(key, wrong)
        return wrong

    def _read_into(self, key: str, into: dict[str, bytes]) -> str | None:
        try:
            payload = self.read(key)
        except (CorruptArtifact, *READ_ERRORS) as error:
            return str(error) or type(error).__name__
        if self.card(key) is None:
            return "its card cannot be read"
        into[key] = payload
        return None

    def verify(self, key: str) -> str | None:
        """What is wrong with the weights or the card of a scion; None where all is well."""
        wrong = damage(self.storage, self.folder(key))
        if wrong is None and self.card(key) is None:
            return "its card cannot be read"
        return wrong

    def set_aside(self, key: str, why: str) -> None:
        """Keep a damaged scion's card under another name; from then on the scion does not exist."""
        log.warning("scion %s is damaged (%s); it is set aside and will be made anew", key, why)
        with suppress(FileNotFoundError):  # another process was first
            self.storage.move(f"{self.folder(key)}/{CARD}", f"{self.folder(key)}/{CARD}.damaged")

    def publish(self, card: ScionCard, payload: bytes) -> None:
        """Weights, then card. Raises OSError where storage is full, and then nothing has changed."""
        self.storage.write_bytes(self.artifact(card), payload)
        self.storage.write_model(f"{self.folder(card.key)}/{CARD}", card)
        for name in ("progress", "diverged.json"):
            self.storage.delete(f"{self.folder(card.key)}/{name}")

    def amend(self, card: ScionCard) -> None:
        """Put a card with more scores in the place of the one that is there."""
        self.storage.write_model(f"{self.folder(card.key)}/{CARD}", card)

    def remove(self, key: str) -> int:
        """Delete a scion and everything beside it, the card first; bytes freed."""
        freed = 0
        names = self.storage.names(self.folder(key))
        for name in sorted(names, key=lambda name: name != CARD):
            freed += self.storage.size(f"{self.folder(key)}/{name}")
            self.storage.delete(f"{self.folder(key)}/{name}")
        return freed

    def note_divergence(self, key: str, reason: str) -> None:
        """File why there will be no scion: the same key would end the same way."""
        self.storage.write_bytes(f"{self.folder(key)}/diverged.json", json.dumps({"reason": reason}).encode())

    def divergence(self, key: str) -> str | None:
        """Why a distillation under this key came to nothing, or None."""
        try:
            document = json.loads(self.storage.read_bytes(f"{self.folder(key)}/diverged.json"))
            return str(document["reason"])
        except READ_ERRORS:
            return None


def payload_name(payload: bytes) -> tuple[str, str]:
    """(file name, SHA-256) of a scion's weights."""
    sha256 = hashlib.sha256(payload).hexdigest()
    return f"operator-{sha256[:16]}.safetensors", sha256


__all__ = ["Bank", "CorruptArtifact", "payload_name"]
