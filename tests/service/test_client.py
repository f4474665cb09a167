"""The client asks again where that does no harm, and otherwise says that it does not know."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service import client as module
from service.client import GraftlabClient, LabUnreachable

LOST = (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.WriteError)
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
KEY = {"id": 1, "prefix": "glk_", "owner": "a", "role": "runner", "sees": "lab", "key": "glk_x"} | {
    "created_at": "2026-01-01T00:00:00Z"
}
ONCE: dict[str, Callable[[GraftlabClient], object]] = {
    "/keys": lambda lab: lab.make_key("a"),
    "/login-links": lambda lab: lab.login_link(),
    "/webhooks": lambda lab: lab.add_webhook("https://example.org"),
    "/webhooks/1/test": lambda lab: lab.try_webhook(1),
    "/studies/s/pause": lambda lab: lab.change_study("s", "pause"),
}
AGAIN: dict[str, Callable[[GraftlabClient], object]] = {
    "/experiments": lambda lab: lab.submit({}),
    "/experiments/plan": lambda lab: lab.plan({}),
    "/analyses": lambda lab: lab.analyze({}),
    "/exports": lambda lab: lab.export({}),
    "/scions:fill": lambda lab: lab.fill({}),
    "/studies": lambda lab: lab.create_study({}),
    "/actions": lambda lab: lab.act("pause", ["r"]),
    "/runs": lambda lab: lab.runs(),
}


class Line:
    """A connection that loses what it is told to lose, and keeps what came through."""

    def __init__(self, *outcomes: type[httpx.TransportError] | int) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        outcome = self.outcomes.pop(0) if self.outcomes else 599
        if isinstance(outcome, int):
            return httpx.Response(outcome, json=KEY if outcome < 300 else {"detail": "the end"})
        raise outcome("lost")


def lab_at(line: Line, monkeypatch: pytest.MonkeyPatch) -> GraftlabClient:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    lab = GraftlabClient("http://127.0.0.1:9", key="glk_x")
    lab._http = httpx.Client(base_url="http://127.0.0.1:9/api/v1", transport=httpx.MockTransport(line))
    return lab


@pytest.mark.parametrize("error", LOST)
@pytest.mark.parametrize("path", ONCE)
def test_what_would_be_done_twice_is_not_asked_again_after_a_lost_answer(
    path: str, error: type[httpx.TransportError], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(error, 201)
    with pytest.raises(LabUnreachable, match="may have been carried out"):
        ONCE[path](lab_at(line, monkeypatch))
    assert [request.url.path for request in line.asked] == [f"/api/v1{path}"]


@pytest.mark.parametrize("first", [*NEVER_SENT, 429])
def test_what_never_arrived_is_asked_again(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(first, 201)
    assert lab_at(line, monkeypatch).make_key("a").key == "glk_x"
    assert len(line.asked) == 2


@pytest.mark.parametrize("path", AGAIN)
def test_what_can_be_repeated_is_and_always_under_one_key(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(httpx.ReadError, 503, 500)
    with pytest.raises(module.ApiProblem, match="the end"):
        AGAIN[path](lab_at(line, monkeypatch))
    assert len(line.asked) == 3
    assert len({request.headers.get("Idempotency-Key") for request in line.asked}) == 1
