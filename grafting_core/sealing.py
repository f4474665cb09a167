"""Files that vouch for themselves: SHA-256 of the content, then the content."""

import hashlib

from grafting_core.storage import Storage

DIGEST_BYTES = 32


def sealed(content: bytes) -> bytes:
    """What to write for `content`."""
    return hashlib.sha256(content).digest() + content


def opened(data: bytes) -> bytes:
    """Undo `sealed`. Raises ValueError where the content does not match its digest."""
    expected, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != expected:
        raise ValueError("its content does not match its digest")
    return content


def is_intact(storage: Storage, path: str) -> bool:
    """Whether a sealed file is there and whole; read piece by piece, whatever its size."""
    digest, expected = hashlib.sha256(), b""
    try:
        for piece in storage.pieces(path):
            missing = DIGEST_BYTES - len(expected)
            expected += piece[:missing]
            digest.update(piece[missing:])
    except FileNotFoundError:
        return False
    return digest.digest() == expected
