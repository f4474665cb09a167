"""What makes two requests the same one, for Idempotency-Key."""

import hashlib
import json

from fastapi import Request


def request_digest(request: Request, body: bytes) -> str:
    """Of method, address, query in any order, and the very bytes of the body."""
    query = sorted(request.query_params.multi_items())
    head = json.dumps([request.method, request.url.path, query])
    return hashlib.sha256(head.encode() + b"\0" + body).hexdigest()
