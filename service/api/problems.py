"""Errors as problem+json (RFC 9457): what is wrong, where in the document, and what would be right."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from grafting_core.specs.documents.errors import MAX_PROBLEMS, Problem, SpecError, pointer, shown
from service.api.problem_types import CATALOGUE
from service.db.engine import is_away

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class ApiError(Exception):
    """An error to be answered as problem+json. `code` is a key of the catalogue."""

    def __init__(
        self,
        code: str,
        detail: str,
        problems: list[Problem] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.code, self.detail, self.problems, self.headers = code, detail, problems or [], headers or {}
        super().__init__(detail)


MAX_TEXT = 1000
"""Length limit of a text in an answer, so that long input is not sent back whole."""


def answer(
    code: str,
    detail: str,
    problems: list[Problem] | None = None,
    status: int | None = None,
    left_out: int = 0,
) -> JSONResponse:
    """Build the problem document; pointer and allowed values of the first problem are also at the top level.

    It holds at most 20 problems; `left_out` is the number of further ones.
    """
    default, title, _ = CATALOGUE[code]
    detail = f"{_short(detail)}; and {left_out:,} more problems" if left_out else _short(detail)
    body: dict[str, object] = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status or default,
        "code": code,
        "detail": detail,
    }
    if problems:
        body |= {"pointer": _short(problems[0].pointer), "allowed": problems[0].allowed}
        body["errors"] = [_shortened(problem).model_dump(mode="json") for problem in problems]
    if left_out:
        body["left_out"] = left_out
    headers = {"Retry-After": "2"} if body["status"] == 503 else {}
    if code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status or default, media_type=MEDIA_TYPE, headers=headers)


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _shortened(problem: Problem) -> Problem:
    texts = {"pointer": _short(problem.pointer), "message": _short(problem.message)}
    return problem.model_copy(update=texts)


async def respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from a middleware, outside of the application's exception handlers."""
    await _api_error(Request(scope), error)(scope, receive, send)


def install(app: FastAPI) -> None:
    """Register the handlers that turn exceptions of the application into problem documents."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SQLAlchemyError, _database_error)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    response = answer(error.code, error.detail, error.problems)
    response.headers.update(error.headers)
    return response


def _spec_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpecError)
    first = error.problems[0]
    code = first.code if first.code in ("malformed", "too-deep") else "invalid"
    return answer(code, str(first), error.problems, left_out=error.left_out)


def _request_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(
            pointer=pointer(*item["loc"]),
            code=item["type"],
            message=item["msg"],
            given=shown(item.get("input")),
        )
        for item in error.errors()[:MAX_PROBLEMS]
    ]
    return answer("invalid", str(problems[0]), problems, left_out=len(error.errors()) - len(problems))


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not-found", 405: "not-allowed", 413: "too-large"}
    response = answer(codes.get(error.status_code, "invalid"), str(error.detail), status=error.status_code)
    response.headers.update(error.headers or {})
    return response


def _database_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SQLAlchemyError)
    return _api_error(request, unavailable(error))


def unavailable(error: SQLAlchemyError) -> ApiError:
    """Return the error for an unavailable database. Raises `error` itself if it has another cause."""
    if not is_away(error):
        raise error
    log.error("the database failed: %s", error)
    return ApiError("unavailable", "the database cannot be used right now")
