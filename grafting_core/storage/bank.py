"""The bank: distilled operators by the key of what determines them.

scions/<key>/operator-<digest>.safetensors   weights; the content is in the name, so a card finds its own
scions/<key>/card.json                       a `ScionCard`; written last: the scion exists with its card
scions/<key>/scores.json                     replace-one scores, measured later; never rewritten with others
scions/<key>/restored-<design digest>.json   restore-one scores within one design
scions/<key>/progress                        checkpoint of an unfinished distillation
scions/<key>/diverged.json                   reason why the distillation diverged
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from grafting_core.specs.scions import ScionCard, Scores
from grafting_core.storage.artifacts import CARD, READ_ERRORS, CorruptArtifact, damage, read_published
from grafting_core.storage.checksums import read_with_digest, set_aside, write_with_digest
from grafting_core.storage.storage import Storage

ROOT = "scions"
SCORES, RESTORED = "scores.json", re.compile(r"restored-([0-9a-f]{64})\.json")


class Bank:
    """Scions in shared storage. Readers see complete scions or none; writers of one key may race."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def folder(self, key: str) -> str:
        return f"{ROOT}/{key}"

    def artifact(self, card: ScionCard) -> str:
        """Path of its weights relative to the storage root."""
        return f"{self.folder(card.key)}/{card.file}"

    def names(self) -> list[str]:
        """Every key with a folder, ascending; some have only progress, or damaged files."""
        return self.storage.names(ROOT)

    def has(self, key: str) -> bool:
        """Whether there is a card; cheap, but does not check the weights."""
        return self.storage.exists(f"{self.folder(key)}/{CARD}")

    def card(self, key: str) -> ScionCard | None:
        """Card of a scion with its scores; None if missing or unreadable (`verify` gives the reason)."""
        card = self._card(key)
        if card is None or card.scores:
            return card
        return card.model_copy(update={"scores": self._scores(f"{self.folder(key)}/{SCORES}")})

    def full_card(self, key: str) -> ScionCard | None:
        """The same with the restore-one scores of every design that has them."""
        card = self.card(key)
        if card is None:
            return None
        found = {
            match[1]: self._scores(f"{self.folder(key)}/{name}")
            for name in self.storage.names(self.folder(key))
            if (match := RESTORED.fullmatch(name))
        }
        return card.model_copy(update={"restored": {**card.restored, **found}})

    def _card(self, key: str) -> ScionCard | None:
        try:
            return self.storage.read_model(f"{self.folder(key)}/{CARD}", ScionCard)
        except (FileNotFoundError, ValidationError):
            return None

    def _scores(self, path: str) -> dict[str, float]:
        """Scores in a file; none if it is missing or damaged, so that they are measured again."""
        scores = read_with_digest(self.storage, path, Scores)
        return dict(scores.values) if scores else {}

    def cards(self, after: str = "") -> Iterator[ScionCard]:
        """All cards in the order of their keys, after the key `after`."""
        for key in self.names():
            card = self.card(key) if key > after else None
            if card is not None:
                yield card

    def read(self, key: str) -> bytes:
        """Weights, verified. Raises FileNotFoundError or CorruptArtifact."""
        return read_published(self.storage, self.folder(key))

    def keep_intact(self, key: str) -> bool:
        """Whether the scion exists and is intact. A damaged one is logged and set aside, to be made again."""
        return self.has(key) and self.verify_or_set_aside(key) is None

    def verify_or_set_aside(self, key: str, weights: dict[str, bytes] | None = None) -> str | None:
        """Verify a scion, and set it aside if damaged; returns the reason, or None if it is intact.

        With `weights`, the verified weights are added to it under the key, so that they are read only once.
        """
        wrong = self.verify(key) if weights is None else self._read_into(key, weights)
        if wrong is not None:
            self.set_aside(key, wrong)
        return wrong

    def _read_into(self, key: str, weights: dict[str, bytes]) -> str | None:
        try:
            payload = self.read(key)
        except (CorruptArtifact, *READ_ERRORS) as error:
            return str(error) or type(error).__name__
        if self._card(key) is None:
            return "its card cannot be read"
        weights[key] = payload
        return None

    def verify(self, key: str) -> str | None:
        """Reason why the weights or the card of a scion are damaged, or None."""
        wrong = damage(self.storage, self.folder(key))
        if wrong is None and self._card(key) is None:
            return "its card cannot be read"
        return wrong

    def set_aside(self, key: str, why: str) -> None:
        """Rename a damaged scion's card, so that the scion no longer exists."""
        set_aside(self.storage, f"{self.folder(key)}/{CARD}", why)

    def publish(self, card: ScionCard, payload: bytes) -> None:
        """Write weights, then card. Raises OSError if storage is full; then nothing has changed."""
        self.storage.write_bytes(self.artifact(card), payload)
        self.storage.write_model(f"{self.folder(card.key)}/{CARD}", card)
        for name in ("progress", "diverged.json"):
            self.storage.delete(f"{self.folder(card.key)}/{name}")

    def add_scores(self, key: str, scores: Mapping[str, float]) -> None:
        """Store replace-one scores: a file of its own, so that no writer can lose another's."""
        write_with_digest(self.storage, f"{self.folder(key)}/{SCORES}", Scores(values=dict(scores)))

    def add_restored(self, key: str, design: str, scores: Mapping[str, float]) -> None:
        """Store restore-one scores within the design of this digest."""
        path = f"{self.folder(key)}/restored-{design}.json"
        write_with_digest(self.storage, path, Scores(values=dict(scores)))

    def remove(self, key: str) -> int:
        """Delete a scion and all its files, the card first; returns bytes freed."""
        freed = 0
        names = self.storage.names(self.folder(key))
        for name in sorted(names, key=lambda name: name != CARD):
            freed += self.storage.size(f"{self.folder(key)}/{name}")
            self.storage.delete(f"{self.folder(key)}/{name}")
        return freed

    def note_divergence(self, key: str, reason: str) -> None:
        """Record why the distillation diverged: the same key would diverge again."""
        self.storage.write_bytes(f"{self.folder(key)}/diverged.json", json.dumps({"reason": reason}).encode())

    def divergence(self, key: str) -> str | None:
        """Reason why a distillation under this key diverged, or None."""
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
