"""Whole folders in shared storage: files under `content`, and last a card with the digest of each."""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grafting_core.storage.artifacts import (
    CARD,
    CARD_DIGEST,
    CorruptArtifact,
    card_digest,
    digest_of,
    read_card,
)
from grafting_core.storage.storage import COPY_BYTES, Storage

CONTENT = "content"
Tell = Callable[[int, int], None]
"""Is told how many bytes of how many are done."""


def files_of(folder: Path) -> list[str]:
    """Every file in a folder, as paths relative to it, sorted; without unfinished ones of killed writers."""
    return sorted(
        str(file.relative_to(folder).as_posix())
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )


def publish_folder(
    storage: Storage, folder: str, local: Path, card: dict[str, Any], tell: Tell = lambda done, total: None
) -> int:
    """Publish the files of a local folder; bytes of all. Where storage is this machine's they are moved.

    Every file is read again from where it was put, and its digest goes to the card. What an interrupted
    publication has left under the same name is replaced.
    """
    names = files_of(local)
    if not names:
        raise ValueError(f"{local} has no files to publish")
    storage.delete(f"{folder}/{CARD}")
    if storage.is_local:
        _move(local, storage.local_path(f"{folder}/{CONTENT}"))
    else:
        for name in names:
            storage.write_file(f"{folder}/{CONTENT}/{name}", local / name)
    digests, size = _digests(storage, folder, names, tell)
    first, *_ = names
    document = {**card, "file": f"{CONTENT}/{first}", "sha256": digests.pop(f"{CONTENT}/{first}")}
    document["files"] = digests
    document[CARD_DIGEST] = card_digest(document)
    storage.write_bytes(f"{folder}/{CARD}", json.dumps(document, sort_keys=True).encode())
    return size


def _move(local: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    local.replace(to)


def _digests(storage: Storage, folder: str, names: list[str], tell: Tell) -> tuple[dict[str, str], int]:
    sizes = {name: storage.size(f"{folder}/{CONTENT}/{name}") for name in names}
    total, done = sum(sizes.values()), 0
    digests = {}
    for name in names:
        tell(done, total)
        digests[f"{CONTENT}/{name}"] = digest_of(storage, f"{folder}/{CONTENT}/{name}")
        done += sizes[name]
    tell(total, total)
    return digests, total


def local_folder(storage: Storage, folder: str) -> Path:
    """The files of a published folder on this machine; from storage that is elsewhere they are fetched once.

    Raises FileNotFoundError where nothing is published, CorruptArtifact where a file is not as it was.
    """
    card = read_card(storage, folder)
    if storage.is_local:
        return storage.local_path(f"{folder}/{CONTENT}")
    kept = Path(tempfile.gettempdir()) / "graftlab-registry" / str(card[CARD_DIGEST])
    if not kept.is_dir():
        _fetch(storage, folder, card, kept)
    return kept


def _fetch(storage: Storage, folder: str, card: dict[str, Any], to: Path) -> None:
    """Fetch all files into a temporary folder and rename it: readers see the whole folder or none."""
    partial = to.with_name(f"{to.name}-{uuid.uuid4().hex}")
    try:
        for name, expected in {**card["files"], card["file"]: card["sha256"]}.items():
            target = partial / str(name).removeprefix(f"{CONTENT}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if _copied(storage, f"{folder}/{name}", target) != expected:
                raise CorruptArtifact(f"{folder}/{name} does not match its card")
        if not to.is_dir():
            partial.replace(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copied(storage: Storage, path: str, target: Path) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for piece in storage.pieces(path, COPY_BYTES):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def withdraw_folder(storage: Storage, folder: str, to: str) -> None:
    """Move a folder to where it can be deleted at leisure; its old place is empty from then on.

    Storage that is elsewhere cannot move folders; there it is deleted at once.
    """
    if not storage.is_local:
        return delete_folder(storage, folder)
    target = storage.local_path(to)
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.local_path(folder).replace(target)


def delete_folder(storage: Storage, folder: str) -> None:
    """Delete all files of a folder, the card first: from then on nothing is published there."""
    storage.delete(f"{folder}/{CARD}")
    storage.delete_all(folder)
