"""Reading a request body: bounded, of a known type, and without JSON's or YAML's tricks."""

import hashlib
from dataclasses import dataclass

from fastapi import Request

from grafting_core.spec.document import read_document
from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.spec.submission import parse_submission
from service.api.problems import ApiError

MAX_BYTES = 1_000_000
MEDIA_TYPES = ("application/json", "application/yaml")


@dataclass(frozen=True)
class SubmittedExperiment:
    """A resolved submission and the digest of the very bytes it came as."""

    spec: ExperimentSpec
    request_digest: str


async def submitted_experiment(request: Request) -> SubmittedExperiment:
    """Dependency: the body as an experiment. Raises ApiError or SpecError."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in MEDIA_TYPES or "content-encoding" in request.headers:
        raise ApiError(
            "unsupported-media-type", f"content type {kind!r}; send one of {', '.join(MEDIA_TYPES)}"
        )
    raw = await _bounded(request)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("malformed", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    return SubmittedExperiment(parse_submission(read_document(text)), hashlib.sha256(raw).hexdigest())


async def _bounded(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise ApiError("too-large", f"a submission has at most {MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)
