"""Liveness and readiness of the service."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service.api.deps import NOBODY, AppContext, LabDep
from service.db.leases import LeaseName, missing_leader

router = APIRouter(tags=["health"])


OPEN: dict[str, Any] = {"security": []}
FRESH_SECONDS = 2.0


@router.get("/healthz", openapi_extra=OPEN)
def healthz(lab: LabDep) -> dict[str, str]:
    """Answer, with the id of the lab's current start; no other part is checked."""
    known = lab.settings.lab_id
    return {"status": "ok", **({"lab": known} if known else {})}


@router.get("/readyz", openapi_extra=OPEN, responses={503: {"description": "Something is missing"}})
async def readyz(lab: LabDep, request: Request) -> JSONResponse:
    """Answer 200 if all parts work, else 503; the cause is shown only to callers with a key.

    Parts are checked at most once in two seconds, however many requests arrive.
    """
    probe: Probe = request.app.state.probe
    parts = await probe.parts()
    ready = all(state == "ok" for state in parts.values())
    if lab.principal is NOBODY:
        parts = {
            name: "ok" if state == "ok" else "not ok; send a key to see why" for name, state in parts.items()
        }
    status, headers = (200, {}) if ready else (503, {"Retry-After": "2"})
    return JSONResponse({"ready": ready, "parts": parts}, status_code=status, headers=headers)


class Probe:
    """State of every part, at most `FRESH_SECONDS` old. One check runs at a time; other requests wait
    for it.
    """

    def __init__(self, lab: AppContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._lab, self._clock = lab, clock
        self._states: dict[str, str] = {}
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def parts(self) -> dict[str, str]:
        """Return the state by part: `ok`, or what is wrong with it."""
        async with self._lock:
            if self._until <= self._clock():
                self._states = await run_in_threadpool(self._look)
                self._until = self._clock() + FRESH_SECONDS
            return self._states

    def _look(self) -> dict[str, str]:
        return {
            "database": _database(self._lab),
            "storage": _storage(self._lab),
            "scheduler": _leads(self._lab, "scheduler"),
            "studies": _leads(self._lab, "studies"),
            "ray": _ray(self._lab),
        }


def _database(lab: AppContext) -> str:
    try:
        with lab.database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        return f"does not answer ({type(error).__name__})"
    return "ok"


def _storage(lab: AppContext) -> str:
    try:
        lab.storage.write_bytes("ready", str(time.time()).encode())
    except OSError as error:
        return f"cannot be written ({error.strerror or type(error).__name__})"
    return "ok"


def _leads(lab: AppContext, name: LeaseName) -> str:
    try:
        with lab.database.reading() as session:
            clock = lab.database.clock(session)
            wrong = missing_leader(session, name, clock, lab.settings.lead_seconds)
    except SQLAlchemyError:
        return "unknown: the database does not answer"
    return f"{wrong}; start one with `python -m service.processes.{name}`" if wrong else "ok"


def _ray(lab: AppContext) -> str:
    token = lab.settings.ray_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(
            f"{lab.settings.ray_dashboard}/api/version", headers=headers, timeout=2, trust_env=False
        )
    except httpx.HTTPError as error:
        return f"{lab.settings.ray_dashboard} does not answer ({type(error).__name__})"
    return "ok" if answer.status_code == 200 else f"answers with status {answer.status_code}"
