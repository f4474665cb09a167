"""Every route of the application: how to call it, the role it needs, and what it shows to a guest.

A guest's key sees only its owner's objects. A route that is missing in the table fails the tests that
cover all routes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Mount

from service.schemas.runs import Role
from tests.support.builders import document, fill_document, study_document

ToGuests = Literal["open", "shared", "own", "closed", "admin"]


@dataclass(frozen=True)
class Call:
    """Call of a route. `to_guests`: the same answer for every caller, only own objects, or nothing."""

    to_guests: ToGuests
    role: Role = "viewer"
    body: dict[str, Any] | None = None
    query: str = ""
    reads_database: bool = True
    registers: bool = False
    """Whether it takes the right to register, which the role alone does not give."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Values of the address's variables except ids."""


def viewers(to_guests: ToGuests = "own", **more: Any) -> Call:
    return Call(to_guests, **more)


def runners(body: dict[str, Any] | None = None, to_guests: ToGuests = "own", **more: Any) -> Call:
    return Call(to_guests, "runner", body, **more)


def registering(body: dict[str, Any] | None = None, **more: Any) -> Call:
    """What takes the right to register; without it nothing is looked up."""
    return Call("own", "runner", body, registers=True, **more)


def admins(body: dict[str, Any] | None = None, **more: Any) -> Call:
    return Call("admin", "admin", body, **more)


def constant(**more: Any) -> Call:
    return Call("shared", reads_database=False, **more)


ROUTES: dict[str, Call] = {
    "GET /healthz": Call("open", reads_database=False),
    "GET /readyz": Call("open"),
    "GET /login": Call("open", query="?code=gll_nosuch"),
    "MOUNT /static": Call("open", reads_database=False, fields={"path": "graftlab.css"}),
    "GET /openapi.json": constant(),
    "HEAD /openapi.json": constant(),
    "GET /problems": constant(),
    "GET /problems/{code}": constant(fields={"code": "invalid"}),
    "GET /docs/api": constant(),
    "MOUNT /static/swagger": constant(fields={"path": "swagger-ui.css"}),
    "GET /api/v1/operators": constant(),
    "GET /api/v1/backbones": viewers("shared"),
    "POST /api/v1/backbones": registering({"name": "x", "path": "/models/x"}, reads_database=False),
    "POST /api/v1/datasets": registering({"name": "x", "path": "/models/x"}, reads_database=False),
    "POST /api/v1/features": registering({"name": "x", "path": "/models/x"}, reads_database=False),
    "GET /api/v1/datasets": viewers("shared"),
    "GET /api/v1/features": viewers("shared"),
    "GET /api/v1/backbones/{name:path}": viewers("shared", fields={"name": "testbed/dit-fashion"}),
    "GET /api/v1/datasets/{name:path}": viewers("shared", fields={"name": "testbed/fashion-mnist"}),
    "GET /api/v1/features/{name:path}": viewers("shared", fields={"name": "fashion-cnn"}),
    **{
        f"{method} /api/v1/{kind}/{{name:path}}{action}": registering(fields={"name": "nosuch"})
        for kind in ("backbones", "datasets", "features")
        for method, action in (("POST", "/verify"), ("DELETE", ""))
    },
    "GET /api/v1/whoami": viewers(reads_database=False),
    "POST /api/v1/login-links": viewers(),
    "GET /metrics": viewers("closed"),
    "GET /mlflow": viewers("closed", reads_database=False),
    # In these tests MLflow does not run, which looks like an unavailable database.
    "MOUNT /mlflow": viewers("closed", fields={"path": ""}),
    "GET /": viewers(),
    "GET /operators": viewers("shared"),
    "GET /runs": viewers(),
    "GET /runs/{run_id}": viewers(),
    "GET /studies": viewers(),
    "GET /studies/{study_id}": viewers(),
    "GET /measured": viewers(),
    "POST /api/v1/experiments": runners(document()),
    "POST /api/v1/experiments/plan": viewers(body=document()),
    "POST /api/v1/analyses": runners({"backbone": "testbed/dit-fashion"}),
    "POST /api/v1/exports": runners({"run": "1"}),
    "GET /api/v1/backbones/{name:path}/profile": viewers("shared", fields={"name": "testbed/dit-fashion"}),
    "GET /api/v1/runs": viewers(),
    "GET /api/v1/runs/{run_id}": viewers(),
    "GET /api/v1/runs/{run_id}/events": viewers(),
    "GET /api/v1/runs/{run_id}/history": viewers(),
    "GET /api/v1/runs/{run_id}/log": viewers(),
    "GET /api/v1/runs/{run_id}/artifacts/{stage}/{name:path}": viewers(
        fields={"stage": "evaluate", "name": "report.json"}
    ),
    "POST /api/v1/runs/{run_id}/extend": runners({"device_seconds": 5.0}),
    "PUT /api/v1/runs/{run_id}/priority": runners({"priority": 1}),
    "POST /api/v1/runs/{run_id}/{action}": runners(fields={"action": "retry"}),
    "POST /api/v1/actions": runners({"action": "pause", "runs": ["RUN_ID"]}),
    "GET /api/v1/queue": viewers(),
    "GET /api/v1/accounts": viewers(),
    "PUT /api/v1/accounts/{scope}/{name}": Call("admin", "runner", {}, fields={"scope": "user", "name": "x"}),
    "PATCH /api/v1/accounts/{scope}/{name}": Call(
        "admin", "runner", {}, fields={"scope": "user", "name": "x"}
    ),
    "GET /api/v1/leaderboard": viewers(),
    "GET /api/v1/measured": viewers(),
    "GET /api/v1/latencies": viewers(reads_database=False),
    "GET /api/v1/scions": viewers(),
    "GET /api/v1/scions/{key}": viewers(reads_database=False),
    "POST /api/v1/scions:verify": runners(to_guests="closed", reads_database=False),
    "POST /api/v1/scions:gc": admins({}),
    "POST /api/v1/scions:fill": runners(fill_document()),
    "POST /api/v1/studies": runners(study_document()),
    "GET /api/v1/studies": viewers(),
    "GET /api/v1/studies/{study_id}": viewers(),
    "POST /api/v1/studies/{study_id}/extend": runners({"trials": 1, "version": 0}),
    "POST /api/v1/studies/{study_id}/{action}": runners(fields={"action": "pause"}),
    "GET /api/v1/studies/{study_id}/best": viewers(),
    "GET /api/v1/studies/{study_id}/report/{name}": viewers(fields={"name": "report.md"}),
    "POST /api/v1/keys": admins({"owner": "x"}),
    "GET /api/v1/keys": admins(),
    "PATCH /api/v1/keys/{key_id}": admins({"role": "viewer"}),
    "DELETE /api/v1/keys/{key_id}": admins(),
    "POST /api/v1/webhooks": admins({"url": "https://example.org/"}, reads_database=False),
    "GET /api/v1/webhooks": admins(),
    "DELETE /api/v1/webhooks/{webhook_id}": admins(),
    "POST /api/v1/webhooks/{webhook_id}/test": admins(reads_database=False),
    "GET /api/v1/webhooks/{webhook_id}/deliveries": admins(),
    "POST /api/v1/admin/verify": admins({"quick": True}),
    "GET /api/v1/admin/verify": admins(),
    "GET /api/v1/admin/verify/{check_id}": admins(),
    "GET /api/v1/admin/tracking": admins(),
    "POST /api/v1/admin/gc": admins({}),
    "POST /api/v1/admin/tracking/rebuild": admins(),
}
"""Routes of webhooks; webhooks are off in the labs of these tests."""


def routes_of(app: FastAPI) -> list[str]:
    """Return `METHOD /address` of every route, including those of included routers and mounts."""
    return list(_walk(app.routes))


def _walk(routes: list[BaseRoute], prefix: str = "") -> Iterator[str]:
    for route in routes:
        included: APIRouter | None = getattr(route, "original_router", None)
        if included is not None:
            context = getattr(route, "include_context", None)
            yield from _walk(included.routes, prefix + getattr(context, "prefix", ""))
        elif isinstance(route, Mount):
            yield f"MOUNT {prefix}{route.path}"
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                path: str = route.path  # type: ignore[attr-defined]  # every route has one
                yield f"{method} {prefix}{path}"


def request_of(route: str, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of a client's `request`, with these ids in address and body."""
    call, (method, path) = ROUTES[route], route.split()
    if method == "MOUNT":
        method, path = "GET", f"{path}/{{path}}"
    known = {**ids, **call.fields}
    address = re.sub(r"{(\w+)(:\w+)?}", lambda found: known.get(found[1], "1"), path)
    request: dict[str, Any] = {"method": method, "url": address + call.query}
    if call.body is not None:
        named = {"runs": [ids["run_id"]], "run": ids["run_id"]}
        request["json"] = {name: named.get(name, value) for name, value in call.body.items()}
    return request
