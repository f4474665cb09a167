"""How files that runs have made are served: never as something that acts with its reader's session."""

import mimetypes

SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""An origin of its own, without scripts and without requests."""
INERT = frozenset(
    ("image/png", "image/jpeg", "image/gif", "image/webp", "text/plain", "text/markdown", "text/csv")
)
"""Types that a browser shows and does not carry out. An SVG is a document with scripts."""


def media_type_of(name: str) -> str:
    """By the name's ending; text where it is unknown would be guessed at, so bytes are bytes."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def inert_headers(media_type: str) -> dict[str, str]:
    """Headers that take a file's power to act; what is no picture or plain text is saved, not opened."""
    headers = {"Content-Security-Policy": SANDBOX, "X-Content-Type-Options": "nosniff"}
    if media_type.partition(";")[0].strip().lower() not in INERT:
        headers["Content-Disposition"] = "attachment"
    return headers
