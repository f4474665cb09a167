"""Catalogue of the API's errors: code -> status, title and remedy, shown under `/problems/<code>`."""

from collections.abc import Mapping
from typing import NamedTuple


class ProblemType(NamedTuple):
    """One type of problem+json."""

    status: int
    title: str
    remedy: str


CATALOGUE: Mapping[str, ProblemType] = {
    "malformed": ProblemType(
        400,
        "The document cannot be read as JSON or YAML",
        "Send UTF-8 JSON or YAML in which no key appears twice.",
    ),
    "too-deep": ProblemType(400, "The document is nested too deeply", "Nest at most 32 levels."),
    "bad-cursor": ProblemType(
        400,
        "The cursor does not come from the service",
        "Request the first page, then follow next_cursor unchanged.",
    ),
    "bad-host": ProblemType(
        400,
        "The Host header names another service",
        "Use the lab's own address; GRAFTLAB_ALLOWED_HOSTS adds names.",
    ),
    "bad-key": ProblemType(
        400,
        "The Idempotency-Key is not usable",
        "Choose 1 to 255 printable ASCII characters, a UUID for one.",
    ),
    "key-in-url": ProblemType(
        401,
        "A key was sent in the address",
        "Addresses end in logs: revoke that key, send its successor as a header.",
    ),
    "bad-text": ProblemType(422, "Text that cannot be kept", "Leave out NUL characters and lone surrogates."),
    "unauthenticated": ProblemType(
        401,
        "No valid key came with the request",
        "Send `Authorization: Bearer <key>`. On the lab's machine, command line and Python client find "
        "the first key themselves, and `graft open` prints a link for the browser. Elsewhere set "
        "GRAFTLAB_KEY to what `graft keys make` printed.",
    ),
    "forbidden": ProblemType(
        403,
        "The key does not allow this",
        "Viewers read, runners submit and change their own runs and studies, admins do everything.",
    ),
    "webhooks-off": ProblemType(
        409,
        "This lab calls no webhooks",
        "Its operator can name the hosts to call in GRAFTLAB_WEBHOOK_HOSTS.",
    ),
    "quota": ProblemType(403, "A quota is used up", "Wait for your runs to end, or ask an admin for more."),
    "not-found": ProblemType(
        404,
        "There is nothing under this address",
        "Check the id; things that your key does not see are not found either.",
    ),
    "not-allowed": ProblemType(
        405, "This address does not take this method", "The Allow header names the methods that it takes."
    ),
    "timeout": ProblemType(
        408, "The request took too long to arrive", "Send the whole body within half a minute."
    ),
    "illegal-transition": ProblemType(
        409,
        "The run's state does not allow this",
        "Look at the run; one that has ended can no longer be changed.",
    ),
    "conflict": ProblemType(
        409, "Another request was first", "Read again, then repeat if it still makes sense."
    ),
    "too-large": ProblemType(413, "The request is larger than the service takes", "Send at most a megabyte."),
    "address-too-long": ProblemType(414, "The address is too long", "Keep it below eight kilobytes."),
    "unsupported-media-type": ProblemType(
        415,
        "The service does not read this content type",
        "Send application/json or application/yaml, without a content encoding.",
    ),
    "invalid": ProblemType(
        422,
        "The document is not valid",
        "`errors` names every wrong field with a JSON pointer and says what would be right.",
    ),
    "key-reused": ProblemType(
        422, "An Idempotency-Key came back with another request", "Choose a new key for a new request."
    ),
    "not-runnable": ProblemType(
        422,
        "The lab has this backbone's sizes but not its weights",
        "Plan it, or name a backbone that is runnable.",
    ),
    "host-not-allowed": ProblemType(
        422,
        "The lab does not call this address",
        "Give an http(s) address of a host that GRAFTLAB_WEBHOOK_HOSTS names, or have the lab's operator "
        "add it.",
    ),
    "too-many-requests": ProblemType(
        429, "Too many requests", "Wait for the seconds that Retry-After names."
    ),
    "headers-too-large": ProblemType(
        431, "The request's headers are too large", "Send at most 100 headers, 32 kB."
    ),
    "internal": ProblemType(
        500, "The service failed", "The log shows the cause under the request id; please report it."
    ),
    "unavailable": ProblemType(
        503,
        "A part that the service needs is unavailable",
        "Repeat after Retry-After; `graft doctor` says which one.",
    ),
    "storage-full": ProblemType(
        507, "The disk is full", "Free some space; nothing that was acknowledged is lost."
    ),
}
