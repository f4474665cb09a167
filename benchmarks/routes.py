"""Every readable address of the application, so that new routes are measured too."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from benchmarks.grown_lab import Grown

LEFT_OUT: dict[str, str] = {
    "/api/v1/runs/{run_id}/events": "it is open until the run ends; the listeners' line measures it",
}
"""Address templates that answer without end, with the reason."""
ABSENT = {
    "/api/v1/backbones/{name:path}/profile",
    "/api/v1/studies/{study_id}/report/{name}",
    "/login?code=",
}
"""Objects that the large lab does not have; the refusal is measured."""
TOGETHER = {"/api/v1/leaderboard?cursor=": ("protocol",)}
"""Parameters that are valid only together with another one."""


@dataclass(frozen=True)
class Reading:
    """One request: the route as the application names it, and the requested address."""

    route: str
    address: str
    refused: bool = False
    """Whether a 4xx answer is expected, since the lab does not have the object."""


def readings(app: FastAPI, grown: Grown, limit: int = 200) -> list[Reading]:
    """Yield each GET route by itself, and once more with each of its query parameters.

    Raises KeyError if a parameter has no value in `path_values` or `query_values`: add one there.
    """
    return [
        reading
        for route in iter_route_contexts(app.routes)
        if "GET" in (route.methods or ()) and route.path not in LEFT_OUT
        for reading in _readings(route.path, _names(route, "path"), _names(route, "query"), grown, limit)
    ]


def _names(route: object, kind: str) -> list[str]:
    dependant = getattr(route, "dependant", None)
    return [field.alias for field in getattr(dependant, f"{kind}_params", ())] if dependant else []


def _readings(route: str, path: list[str], query: list[str], grown: Grown, limit: int) -> Iterator[Reading]:
    for run in (grown.ended, grown.eventful) if "run_id" in path else (grown.ended,):
        values = path_values(route, grown) | {"run_id": run}
        address = route
        for name in path:
            value = quote(str(values[name]), safe="/")
            address = address.replace(f"{{{name}:path}}", value).replace(f"{{{name}}}", value)
        label = f"{route} (under way)" if run == grown.eventful else route
        refused = route in ABSENT or (run == grown.eventful and "/artifacts/" in route)
        yield Reading(label, address, refused)
        values = {**query_values(route, grown), "limit": limit}
        for name in query:
            full = f"{label}?{name}="
            also = {other: values[other] for other in TOGETHER.get(full, ())}
            also |= {"limit": limit} if "limit" in query else {}
            words = urlencode({**also, name: values[name]})
            yield Reading(full, f"{address}?{words}", refused or full in ABSENT)


def path_values(route: str, grown: Grown) -> Mapping[str, object]:
    """Return the values of the address's variables."""
    values: dict[str, object] = {
        "study_id": grown.study,
        "check_id": grown.check,
        "key": grown.scion,
        "webhook_id": grown.webhook,
        "stage": "evaluate",
        "code": "not-found",
        "name": "samples.png",
    }
    if "/backbones/" in route:
        values["name"] = "testbed/dit-fashion"
    if "/datasets/" in route:
        values["name"] = "testbed/fashion-mnist"
    if "/features/" in route:
        values["name"] = "fashion-cnn"
    if "/report/" in route:
        values["name"] = "report.md"
    return values


def query_values(route: str, grown: Grown) -> Mapping[str, object]:
    """Return the values of query parameters: the largest page, the middle of a list, rare filters."""
    values: dict[str, object] = {
        "cursor": grown.middle,
        "state": "FAILED",
        "name": "design 7",
        "prefix": grown.middle[:6],
        "after": 100,
        "attempt": 1,
        "run": grown.queued,
        "protocol": grown.protocol,
        "kind": "hyena_x",
        "backbone": "none/such",
        "tokens": 49,
        "code": "none",
        "to": "/runs",
    }
    if route.endswith("/scions"):
        values |= {"cursor": "0" * 62, "prefix": "f" * 8}
    if route.endswith("/deliveries"):
        values |= {"cursor": 500}
    return values
