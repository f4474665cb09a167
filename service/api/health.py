"""Is the process alive, and is everything there that it needs?"""

import time
from typing import Any

import httpx
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service.api.deps import Lab, LabDep
from service.store.models import LeaderRow

router = APIRouter(tags=["health"])


OPEN: dict[str, Any] = {"security": []}


@router.get("/healthz", openapi_extra=OPEN)
def healthz(lab: LabDep) -> dict[str, str]:
    """The process answers, and says which start of which lab it belongs to; nothing else is asked."""
    known = lab.settings.lab_id
    return {"status": "ok", **({"lab": known} if known else {})}


@router.get("/readyz", openapi_extra=OPEN, responses={503: {"description": "Something is missing"}})
def readyz(lab: LabDep) -> JSONResponse:
    """200 when all parts work, else 503 with what is wrong."""
    parts = {
        "database": _database(lab),
        "storage": _storage(lab),
        "scheduler": _scheduler(lab),
        "ray": _ray(lab),
    }
    ready = all(state == "ok" for state in parts.values())
    return JSONResponse({"ready": ready, "parts": parts}, status_code=200 if ready else 503)


def _database(lab: Lab) -> str:
    try:
        with lab.database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        return f"does not answer ({type(error).__name__})"
    return "ok"


def _storage(lab: Lab) -> str:
    try:
        lab.storage.write_bytes("ready", str(time.time()).encode())
    except OSError as error:
        return f"cannot be written ({error.strerror or type(error).__name__})"
    return "ok"


def _scheduler(lab: Lab) -> str:
    try:
        with lab.database.reading() as session:
            row = session.get(LeaderRow, 1)
            alive = row is not None and row.until > lab.database.clock(session)
    except SQLAlchemyError:
        return "unknown, for the database does not answer"
    return "ok" if alive else "no scheduler leads; start one with `python -m service.scheduler`"


def _ray(lab: Lab) -> str:
    token = lab.settings.ray_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(
            f"{lab.settings.ray_dashboard}/api/version", headers=headers, timeout=2, trust_env=False
        )
    except httpx.HTTPError as error:
        return f"{lab.settings.ray_dashboard} does not answer ({type(error).__name__})"
    return "ok" if answer.status_code == 200 else f"answers with status {answer.status_code}"
