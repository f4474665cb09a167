"""Headers for files that runs have made: a browser must not run them with the reader's session."""

import mimetypes

SANDBOX = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Policy that gives the file an origin of its own, without scripts and requests."""
INERT = frozenset(
    ("image/png", "image/jpeg", "image/gif", "image/webp", "text/plain", "text/markdown", "text/csv")
)
"""Types that a browser displays without running anything. An SVG can hold scripts."""


def media_type_of(name: str) -> str:
    """Guess the media type from the name's ending; unknown endings are binary, as browsers guess at text."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def inert_headers(media_type: str) -> dict[str, str]:
    """Return headers that disarm a file; one that is neither picture nor plain text is saved, not opened."""
    headers = {"Content-Security-Policy": SANDBOX, "X-Content-Type-Options": "nosniff"}
    if media_type.partition(";")[0].strip().lower() not in INERT:
        headers["Content-Disposition"] = "attachment"
    return headers
