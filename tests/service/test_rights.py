"""What is taken from a key is taken everywhere within ten seconds: every route, stream and page."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, select
from starlette.types import Message, Send

from service.api.middleware import callers, stream_rights
from service.api.middleware.authentication import COOKIE
from service.db.engine import Database
from service.db.tables import KeyRow, RunRow, now
from service.domain.api_keys import Principal, make_key
from service.domain.run_controls import apply_action
from service.domain.submission import submit
from service.settings import Settings
from tests.support.api_server import serving
from tests.support.builders import document, experiment
from tests.support.routes import ROUTES, request_of, routes_of

IDS = {"run_id": "nosuch", "study_id": "nosuch", "key": "0" * 64, "key_id": "999", "webhook_id": "999"}
PROMISED_SECONDS = 10.0
OWN_PAGES = {"Origin": "http://testserver"}


class Clock:
    """The one by which the gate remembers keys."""

    def __init__(self) -> None:
        self.moment = 1000.0

    def __call__(self) -> float:
        return self.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(callers, "clock", made)
    return made


def change(client: TestClient, key_id: int, **values: Any) -> None:
    """As another process of the API would."""
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # starlette's type is wider
        row = session.get_one(KeyRow, key_id)
        for name, value in values.items():
            setattr(row, name, value)


def user(client: TestClient, role: str, **rights: Any) -> tuple[int, TestClient, TestClient]:
    """A key of somebody's, a client with it, and one with a browser session that it opened."""
    made = client.post("/api/v1/keys", json={"owner": "ann", "role": role, **rights}).json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    by_key = TestClient(client.app, raise_server_exceptions=False, headers=bearer)
    browser = TestClient(client.app, raise_server_exceptions=False, headers=OWN_PAGES, follow_redirects=False)
    assert browser.get(by_key.post("/api/v1/login-links").json()["path"]).status_code == 303
    return made["id"], by_key, browser


def statuses(asker: TestClient) -> dict[str, int]:
    """Route -> what it answers, of all that ask for a key."""
    closed = [route for route, call in ROUTES.items() if call.to_guests != "open"]
    return {route: asker.request(**request_of(route, IDS)).status_code for route in closed}


def session_id(client: TestClient, key_id: int) -> int:
    with client.app.state.lab.database.reading() as session:  # type: ignore[attr-defined]  # as above
        query = select(KeyRow.id).where(KeyRow.kind == "session", KeyRow.parent_id == key_id)
        return int(session.scalars(query).one())


def test_every_route_is_in_the_table(client: TestClient) -> None:
    assert set(routes_of(client.app)) == set(ROUTES)  # type: ignore[arg-type]  # as above


def test_what_is_remembered_and_how_often_it_is_looked_at_keep_the_promise() -> None:
    assert callers.REMEMBERED_SECONDS + stream_rights.RECHECK_SECONDS < PROMISED_SECONDS


def test_every_route_refuses_a_revoked_key_and_its_session(client: TestClient, clock: Clock) -> None:
    key_id, by_key, browser = user(client, "admin")
    for asker in (by_key, browser):
        assert not {401, 403, 500} & set(statuses(asker).values())
    change(client, key_id, revoked_at=now())
    clock.moment += PROMISED_SECONDS
    for asker in (by_key, browser):
        assert set(statuses(asker).values()) == {401}


def test_every_route_refuses_what_has_expired(client: TestClient, clock: Clock) -> None:
    key_id, by_key, browser = user(client, "admin", days=30)
    assert browser.get("/runs").status_code == by_key.get("/runs").status_code == 200
    change(client, session_id(client, key_id), expires_at=now() - timedelta(seconds=1))
    clock.moment += PROMISED_SECONDS
    assert set(statuses(browser).values()) == {401}
    assert by_key.get("/runs").status_code == 200
    change(client, key_id, expires_at=now() - timedelta(seconds=1))
    clock.moment += PROMISED_SECONDS
    assert set(statuses(by_key).values()) == {401}


BY_ADMINS = {f"{method} /api/v1/accounts/{{scope}}/{{name}}" for method in ("PUT", "PATCH")}
"""Their addresses are every runner's; what they do is not."""


@pytest.mark.parametrize(("role", "refused"), [("runner", {"admin"}), ("viewer", {"admin", "runner"})])
def test_every_route_refuses_a_key_whose_role_was_lowered(
    client: TestClient, clock: Clock, role: str, refused: set[str]
) -> None:
    key_id, by_key, browser = user(client, "admin")
    assert browser.get("/api/v1/keys").status_code == by_key.get("/api/v1/keys").status_code == 200
    change(client, key_id, role=role)
    clock.moment += PROMISED_SECONDS
    for asker in (by_key, browser):
        found = statuses(asker)
        closed = {route for route, status in found.items() if status == 403}
        unregistered = {route for route in found if ROUTES[route].registers}
        assert closed == BY_ADMINS | unregistered | {
            route for route in found if ROUTES[route].role in refused
        }


def test_every_route_shows_only_their_own_once_a_key_sees_no_more(client: TestClient, clock: Clock) -> None:
    foreign = client.post("/api/v1/experiments", json=document(name="foreign")).json()["run_id"]
    key_id, by_key, browser = user(client, "runner")
    assert "foreign" in browser.get("/runs").text
    change(client, key_id, sees="own")
    clock.moment += PROMISED_SECONDS
    for asker in (by_key, browser):
        for route, call in ROUTES.items():
            answer = asker.request(**request_of(route, {**IDS, "run_id": foreign}))
            assert "foreign" not in answer.text, route
            if "run_id" in route:
                assert answer.status_code == 404, route
            if call.to_guests == "closed":
                assert answer.status_code == 403, route


def test_who_may_make_keys_is_asked_of_the_database_itself(client: TestClient) -> None:
    key_id, by_key, browser = user(client, "admin")
    assert browser.get("/api/v1/keys").status_code == 200
    change(client, key_id, role="viewer")
    for asker in (by_key, browser):
        made = asker.post("/api/v1/keys", json={"owner": "eve", "role": "admin"})
        assert made.status_code == 403
    assert "eve" not in client.get("/api/v1/keys").text


def test_a_session_never_outlives_or_outranks_its_key(client: TestClient) -> None:
    made = client.post("/api/v1/keys", json={"owner": "ann", "role": "runner", "days": 1}).json()
    bearer = {"Authorization": f"Bearer {made['key']}"}
    path = TestClient(client.app, headers=bearer).post("/api/v1/login-links").json()["path"]
    browser = TestClient(client.app, headers=OWN_PAGES)
    browser.get(path)
    assert browser.get("/api/v1/whoami").json()["expires_at"] == made["expires_at"]
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # as above
        eve = Principal(owner="eve", role="admin", key_id=made["id"])
        row, forged = make_key(session, eve, kind="session")
        assert row.role == "admin"
    browser.cookies.set(COOKIE, forged)
    assert browser.get("/api/v1/whoami").json()["role"] == "runner"
    assert browser.get("/api/v1/whoami").json()["owner"] == "ann"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that looks again at once."""
    monkeypatch.setattr(callers, "REMEMBERED_SECONDS", 0.0)
    monkeypatch.setattr(stream_rights, "RECHECK_SECONDS", 0.02)


TAKEN: dict[str, dict[str, Any]] = {
    "revoked": {"revoked_at": now()},
    "expired": {"expires_at": now() - timedelta(seconds=1)},
    "sees own": {"sees": "own"},
}


def test_streams_end_with_the_right_to_follow_them(
    settings: Settings, database: Database, quick: None
) -> None:
    """Over a real socket: every listener is a connection of its own."""
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None, owner="lab")
        users = {how: make_key(session, Principal(owner="ann", role="runner")) for how in (*TAKEN, "nothing")}
        key = Principal(owner="ann", role="runner", key_id=users["nothing"][0].id)
        ended, browser = make_key(session, key, kind="session")
    shown = {how: {"Authorization": f"Bearer {secret}"} for how, (_, secret) in users.items()}
    shown["session expired"] = {"Cookie": f"{COOKIE}={browser}"}
    began = {how: threading.Event() for how in shown}
    with serving(settings) as port, ThreadPoolExecutor(len(shown)) as threads:
        url = f"http://127.0.0.1:{port}/api/v1/runs/{run.id}/events"
        texts = {how: threads.submit(_followed, url, shown[how], began[how]) for how in shown}
        try:
            assert all(begun.wait(60) for begun in began.values())
            with database.writing() as session:
                session.get_one(KeyRow, ended.id).expires_at = now() - timedelta(seconds=1)
                for how, values in TAKEN.items():
                    for name, value in values.items():
                        setattr(session.get_one(KeyRow, users[how][0].id), name, value)
            for how in (*TAKEN, "session expired"):
                assert "CANCELLED" not in texts[how].result(60)
            assert not texts["nothing"].done()
        finally:
            with database.writing() as session:
                apply_action(session, session.get_one(RunRow, run.id), "cancel")
        assert "CANCELLED" in texts["nothing"].result(60)


def _followed(url: str, headers: dict[str, str], began: threading.Event) -> str:
    """All that a stream says until it ends."""
    text = ""
    with httpx.stream("GET", url, headers=headers, timeout=60, trust_env=False) as answer:
        for part in answer.iter_text():
            text += part
            if "QUEUED" in text:
                began.set()
    return text


def test_a_file_of_known_size_is_broken_off_and_not_ended_as_if_it_were_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_rights, "RECHECK_SECONDS", 0.01)
    for headers, last in (([], False), ([(b"content-length", b"1000")], True)):
        sent = asyncio.run(_broken_off(headers))
        assert [message.get("body") for message in sent[:2]] == [None, b"part"]
        assert bool(sent[-1].get("more_body")) is last


async def _broken_off(headers: list[tuple[bytes, bytes]]) -> list[Message]:
    """What is sent of an answer without end when the right to it goes."""
    sent: list[Message] = []
    rights: Iterator[bool] = iter([True, True, False])

    async def still_may() -> bool:
        return next(rights)

    async def keep(message: Message) -> None:
        sent.append(message)

    async def answer(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await asyncio.Event().wait()

    await stream_rights.Watched(keep, still_may).run(answer)
    return sent


def lose_database(client: TestClient) -> None:
    """Sessions that are opened from now on find nothing to connect to."""
    database = client.app.state.lab.database  # type: ignore[attr-defined]  # as above
    away = "sqlite:////nosuch/lab.db"
    if database.engine.dialect.name != "sqlite":
        away = "postgresql+psycopg://nobody@127.0.0.1:9/nosuch"
    database._sessions.configure(bind=create_engine(away))


def test_every_route_says_503_while_the_database_is_away(client: TestClient, clock: Clock) -> None:
    _, by_key, browser = user(client, "admin")
    unknown = TestClient(client.app, raise_server_exceptions=False, headers={"Authorization": "Bearer glk_x"})
    assert by_key.get("/api/v1/whoami").status_code == browser.get("/api/v1/whoami").status_code == 200
    lose_database(client)
    for route, call in ROUTES.items():
        asked = {**request_of(route, IDS), "follow_redirects": False}
        for asker in (by_key, browser):
            # What asks for an admin looks the key up anew, hence never gets as far as the route.
            _check(route, asker.request(**asked), call.reads_database or call.role == "admin")
        _check(route, unknown.request(**asked), call.reads_database or call.to_guests != "open")


def _check(route: str, answer: httpx.Response, away: bool) -> None:
    assert answer.status_code != 500, route
    assert (answer.status_code == 503) is away, (route, answer.status_code, answer.text[:200])
    if away:
        assert int(answer.headers["retry-after"]) >= 1, route
