"""Files prefixed with the SHA-256 of their content, and JSON files that hold their own digest."""

import hashlib
import json
import logging
from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel

from grafting_core.storage.storage import Storage

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
DIGEST_BYTES = 32
DIGEST = "content_sha256"


def with_checksum(content: bytes) -> bytes:
    """What to write for `content`."""
    return hashlib.sha256(content).digest() + content


def verify_checksum(data: bytes) -> bytes:
    """Undo `with_checksum`. Raises ValueError where the content does not match its digest."""
    expected, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != expected:
        raise ValueError("its content does not match its digest")
    return content


def is_intact(storage: Storage, path: str) -> bool:
    """Whether a file with checksum exists and is whole; read piece by piece, whatever its size."""
    digest, expected = hashlib.sha256(), b""
    try:
        for piece in storage.pieces(path):
            missing = DIGEST_BYTES - len(expected)
            expected += piece[:missing]
            digest.update(piece[missing:])
    except FileNotFoundError:
        return False
    return digest.digest() == expected


def set_aside(storage: Storage, path: str, why: str) -> None:
    """Keep a damaged file under another name; from then on it is not there, and is made anew."""
    log.warning("%s is damaged (%s); it is set aside as %s.damaged", path, why, path)
    with suppress(FileNotFoundError):  # another process was first
        storage.move(path, f"{path}.damaged")


def keep_intact(storage: Storage, path: str) -> bool:
    """As `is_intact`; a damaged file is renamed, so that it is made anew."""
    if not storage.exists(path):
        return False
    if is_intact(storage, path):
        return True
    set_aside(storage, path, "its content does not match its digest")
    return False


def write_with_digest(storage: Storage, path: str, value: BaseModel) -> None:
    """A model as JSON beside the digest of its content."""
    content = value.model_dump_json()
    document = {DIGEST: hashlib.sha256(content.encode()).hexdigest(), "content": content}
    storage.write_bytes(path, json.dumps(document).encode())


def read_with_digest(storage: Storage, path: str, model: type[M]) -> M | None:
    """What `write_with_digest` wrote, or plain JSON of an older version; None where there is nothing.

    What is damaged is set aside, and there is nothing.
    """
    try:
        return parse_with_digest(storage.read_bytes(path), model)
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(storage, path, str(error).splitlines()[0])
        return None


def parse_with_digest(data: bytes, model: type[M]) -> M:
    """The model in a file that holds its digest. Raises ValueError where it is damaged."""
    document = json.loads(data)
    if not isinstance(document, dict) or DIGEST not in document:
        return model.model_validate_json(data)
    content = document.get("content")
    if not isinstance(content, str) or hashlib.sha256(content.encode()).hexdigest() != document[DIGEST]:
        raise ValueError("its content does not match its digest")
    return model.model_validate_json(content)
