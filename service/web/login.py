"""Login by a link that works once and sets a cookie that pages of other origins cannot use."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.api.deps import LabDep
from service.api.middleware.authentication import COOKIE
from service.domain.api_keys import LIVES, find_principal, use_login_code
from service.web.rendering import templates

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/login")
def login_page(
    request: Request,
    lab: LabDep,
    code: Annotated[str | None, Query(max_length=100)] = None,
    to: Annotated[str, Query(max_length=200, pattern=r"^/([A-Za-z0-9][A-Za-z0-9/_-]*)?$")] = "/",
) -> Response:
    """With a valid code, start a session and redirect to a page; else show how to get a code."""
    secret = _session(lab, code) if code else None
    if secret is None:
        context = {"tried": code is not None}
        return templates.TemplateResponse(request, "login.html", context, status_code=401 if code else 200)
    answer = RedirectResponse(to, status_code=303)
    life = LIVES["session"]
    assert life is not None
    answer.set_cookie(
        COOKIE,
        secret,
        max_age=int(life.total_seconds()),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def _session(lab: LabDep, code: str) -> str | None:
    """Return the secret of a new session. A wrong code is refused before the write lock is taken."""
    with lab.database.reading() as session:
        if find_principal(session, code, ("login",)) is None:
            return None
    with lab.database.writing() as session:
        return use_login_code(session, code)
