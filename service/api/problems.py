"""Errors as problem+json (RFC 9457): what was wrong, where in the document, and what would be right."""

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
    """An answer other than the one asked for."""

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
"""Characters of one text in an answer: what a caller sent is not sent back at length."""


def answer(
    code: str,
    detail: str,
    problems: list[Problem] | None = None,
    status: int | None = None,
    left_out: int = 0,
) -> JSONResponse:
    """The problem document; the first problem's place and allowed values stand at the top too.

    It holds 20 problems at most; `left_out` says how many there are besides.
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
    """Answer from a middleware, which is outside of the application's handlers."""
    await _api_error(Request(scope), error)(scope, receive, send)


def install(app: FastAPI) -> None:
    """Make every error of the application answer like this."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SQLAlchemyError, _database_error)


def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    made = answer(error.code, error.detail, error.problems)
    made.headers.update(error.headers)
    return made


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
    made = answer(codes.get(error.status_code, "invalid"), str(error.detail), status=error.status_code)
    made.headers.update(error.headers or {})
    return made


def _database_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SQLAlchemyError)
    return _api_error(request, unavailable(error))


def unavailable(error: SQLAlchemyError) -> ApiError:
    """What is answered while the database is away. Raises the error itself where that is not its cause."""
    if not is_away(error):
        raise error
    log.error("the database failed: %s", error)
    return ApiError("unavailable", "the database cannot be used right now")
