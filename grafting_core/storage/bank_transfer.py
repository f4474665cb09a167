"""Scions in one file, from the bank of a lab to that of another: verified when written and when read.

The file is a tar of plain members: `bank.json`, and for every scion `<key>/card.json` and its weights.
"""

import hashlib
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.scions import ScionCard
from grafting_core.storage.artifacts import CARD
from grafting_core.storage.bank import Bank, payload_name
from grafting_core.storage.storage import Storage

INDEX = "bank.json"
ORIGIN = "origin.json"
MEMBER = re.compile(r"([0-9a-f]{64})/(card\.json|operator-[0-9a-f]{16}\.safetensors)")
MOST_CARD_BYTES = 16 * 2**20
MOST_SCIONS = 1_000_000
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BadTransfer(ValueError):
    """A file that is no export of a bank, or whose content is not what it says."""


class Index(Frozen):
    """First member of the file: its origin, and each key in it with the SHA-256 of its card."""

    format: Literal[1] = 1
    origin: Annotated[str, Field(max_length=200)]
    scions: dict[Sha256, Sha256]


class Origin(Frozen):
    """Kept beside an imported scion."""

    lab: str
    imported_at: float


class Imported(Frozen):
    """Result of an import: keys that are new, that were there already, and those of unknown backbones."""

    origin: str
    new: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    """Names of the unknown backbones with the beginning of their digests."""


def matching_keys(bank: Bank, prefixes: Sequence[str]) -> list[str]:
    """Keys of the bank that begin as given, each exactly once. Raises ValueError for none or several."""
    known = [key for key in bank.names() if bank.has(key)]
    found: dict[str, None] = {}
    for prefix in prefixes:
        matches = [key for key in known if key.startswith(prefix)]
        if len(matches) != 1:
            raise ValueError(f"{len(matches) or 'no'} scions have a key that begins with {prefix!r}")
        found[matches[0]] = None
    return list(found)


def export_scions(bank: Bank, keys: Sequence[str], file: Path, origin: str) -> int:
    """Write these scions to a new file; bytes written. Raises ValueError for one that is damaged.

    The file appears whole or not at all. Raises FileExistsError if it is there already.
    """
    damaged = [f"{key[:12]}: {wrong}" for key in keys if (wrong := bank.verify(key))]
    if damaged:
        raise ValueError(f"scion {damaged[0]}; `graft bank verify` sets damaged ones aside")
    # With the scores, which are files of their own beside the card.
    cards = {key: card for key in keys if (card := bank.full_card(key)) is not None}
    contents = {key: card.model_dump_json().encode() for key, card in cards.items()}
    index = Index(origin=origin, scions={key: _sha256(content) for key, content in contents.items()})
    part = file.with_name(f".{file.name}.part")
    try:
        with tarfile.open(part, "x:") as archive:
            _add(archive, INDEX, index.model_dump_json().encode())
            for key, card in cards.items():
                _add(archive, f"{key}/{CARD}", contents[key])
                _add(archive, f"{key}/{card.file}", bank.read(key))
        if file.exists():
            raise FileExistsError(f"{file} is there already")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file.stat().st_size


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """With neither times nor owners: equal scions give equal files."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def import_scions(
    bank: Bank, file: Path, is_known: Callable[[str], bool], *, unknown_too: bool = False
) -> Imported:
    """Add the scions of a file that the bank lacks; nothing that is there is overwritten.

    `is_known` tells whether the lab has a backbone with a digest; scions of others are left out, unless
    `unknown_too`. Everything in the file is checked before anything is added. Raises BadTransfer.
    """
    origin, keys = _check(file)
    added, present, unknown = list[str](), list[str](), list[str]()
    backbones = dict[str, None]()
    for card, payload in _scions(file):
        ref = card.scion.backbone
        if not is_known(ref.digest) and not unknown_too:
            unknown.append(card.key)
            backbones[f"{ref.name} ({ref.digest[:12]})"] = None
        elif bank.keep_intact(card.key):
            present.append(card.key)
        else:
            _add_to_bank(bank, card, payload, origin)
            added.append(card.key)
    if len(added) + len(present) + len(unknown) != keys:
        raise BadTransfer(f"{file} changed while it was read")
    return Imported(
        origin=origin,
        new=tuple(added),
        present=tuple(present),
        unknown=tuple(unknown),
        backbones=tuple(backbones),
    )


def _add_to_bank(bank: Bank, card: ScionCard, payload: bytes, origin: str) -> None:
    note = Origin(lab=origin, imported_at=time.time())
    bank.storage.write_model(f"{bank.folder(card.key)}/{ORIGIN}", note)
    bank.publish(card, payload)


def origin_of(storage: Storage, key: str) -> Origin | None:
    """Where an imported scion comes from; None for one that was made here."""
    try:
        return storage.read_model(f"{Bank(storage).folder(key)}/{ORIGIN}", Origin)
    except (FileNotFoundError, ValidationError):
        return None


def _check(file: Path) -> tuple[str, int]:
    """Origin and number of scions, once all of the file is read and right. Raises BadTransfer."""
    index = _index(file)
    seen = [card.key for card, _ in _scions(file)]
    if sorted(seen) != sorted(index.scions):
        raise BadTransfer(f"{file} does not hold the scions that its index names")
    return index.origin, len(seen)


def _index(file: Path) -> Index:
    with _opened(file) as archive:
        first = archive.next()
        if first is None or first.name != INDEX:
            raise BadTransfer(f"{file} does not begin with {INDEX}, as exports of a bank do")
        try:
            return Index.model_validate_json(_content(archive, first, MOST_SCIONS * 200))
        except ValidationError as error:
            raise BadTransfer(f"{file} has an index that cannot be read") from error


def _opened(file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(file, "r:")
    except (OSError, tarfile.TarError) as error:
        raise BadTransfer(f"{file} cannot be read as an export of a bank: {error}") from error


def _scions(file: Path) -> Iterator[tuple[ScionCard, bytes]]:
    """Every scion with its weights, verified. Raises BadTransfer naming what is wrong."""
    index = _index(file)
    with _opened(file) as archive:
        archive.next()
        try:
            while (member := archive.next()) is not None:
                card = _card(archive, member, index)
                weights = archive.next()
                if weights is None or weights.name != f"{card.key}/{card.file}":
                    raise BadTransfer(f"the weights of scion {card.key[:12]} do not follow its card")
                payload = _content(archive, weights, card.size)
                if payload_name(payload) != (card.file, card.sha256):
                    raise BadTransfer(f"the weights of scion {card.key[:12]} do not match its card")
                yield card, payload
        except tarfile.TarError as error:
            raise BadTransfer(f"{file} is cut short or damaged: {error}") from error


def _card(archive: tarfile.TarFile, member: tarfile.TarInfo, index: Index) -> ScionCard:
    key = _key_of(member, CARD)
    content = _content(archive, member, MOST_CARD_BYTES)
    if index.scions.get(key) != _sha256(content):
        raise BadTransfer(f"the card of scion {key[:12]} is not the one that the index names")
    try:
        card = ScionCard.model_validate_json(content)
    except ValidationError as error:
        raise BadTransfer(f"the card of scion {key[:12]} cannot be read by this version") from error
    if not key == card.key == card.scion.key:
        raise BadTransfer(f"scion {key[:12]} was made by other arithmetic, or its card is another's")
    return card


def _key_of(member: tarfile.TarInfo, name: str) -> str:
    found = MEMBER.fullmatch(member.name)
    if found is None or found[2] != name or not member.isreg():
        raise BadTransfer(f"{member.name[:100]!r} does not belong into an export of a bank")
    return found[1]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    if not member.isreg() or member.size > most:
        raise BadTransfer(f"{member.name[:100]!r} is no plain file of at most {most:,} bytes")
    opened = archive.extractfile(member)
    content = b"" if opened is None else opened.read(most + 1)
    if len(content) != member.size:
        raise BadTransfer(f"{member.name[:100]!r} is cut short")
    return content
