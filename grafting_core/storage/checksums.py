"""Files prefixed with the SHA-256 of their content, and JSON files that contain their digest."""

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
    """`content` with its digest in front."""
    return hashlib.sha256(content).digest() + content


def verify_checksum(data: bytes) -> bytes:
    """Content of the result of `with_checksum`. Raises ValueError if it does not match its digest."""
    expected, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != expected:
        raise ValueError("its content does not match its digest")
    return content


def is_intact(storage: Storage, path: str) -> bool:
    """Whether a file with checksum exists and is intact; read in pieces, so of any size."""
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
    """Rename a damaged file, so that it no longer exists under its name and is made again."""
    log.warning("%s is damaged (%s); it is set aside as %s.damaged", path, why, path)
    with suppress(FileNotFoundError):  # another process was first
        storage.move(path, f"{path}.damaged")


def keep_intact(storage: Storage, path: str) -> bool:
    """`is_intact`, but a damaged file is renamed, so that it is made again."""
    if not storage.exists(path):
        return False
    if is_intact(storage, path):
        return True
    set_aside(storage, path, "its content does not match its digest")
    return False


def write_with_digest(storage: Storage, path: str, value: BaseModel) -> None:
    """Write a model as JSON together with the digest of its content."""
    content = value.model_dump_json()
    document = {DIGEST: hashlib.sha256(content.encode()).hexdigest(), "content": content}
    storage.write_bytes(path, json.dumps(document).encode())


def read_with_digest(storage: Storage, path: str, model: type[M]) -> M | None:
    """Model in a file of `write_with_digest`, or in plain JSON of older versions; None if there is none.

    A damaged file is set aside and treated as missing.
    """
    try:
        return parse_with_digest(storage.read_bytes(path), model)
    except FileNotFoundError:
        return None
    except ValueError as error:
        set_aside(storage, path, str(error).splitlines()[0])
        return None


def parse_with_digest(data: bytes, model: type[M]) -> M:
    """Model in a file with its digest. Raises ValueError if it is damaged."""
    document = json.loads(data)
    if not isinstance(document, dict) or DIGEST not in document:
        return model.model_validate_json(data)
    content = document.get("content")
    if not isinstance(content, str) or hashlib.sha256(content.encode()).hexdigest() != document[DIGEST]:
        raise ValueError("its content does not match its digest")
    return model.model_validate_json(content)
