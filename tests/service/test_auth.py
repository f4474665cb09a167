"""Nobody passes without a key, nobody passes as another, and the way in is short on the lab's own machine."""

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from service.api.middleware.authentication import OPEN
from service.api.middleware.rights import needed_role
from service.db.tables import KeyRow, now
from service.domain.api_keys import Principal, make_key
from service.local_keys import find_key, first_key, forget_lab, note_lab
from service.locking import hold
from service.settings import Settings
from tests.support.builders import document
from tests.support.clients import anonymous, as_user
from tests.support.routes import ROUTES, request_of, routes_of


def test_every_address_asks_for_a_key_but_the_open_ones(client: TestClient) -> None:
    found = routes_of(client.app)  # type: ignore[arg-type]  # starlette's type is wider
    assert {"GET /api/v1/runs/{run_id}/events", "GET /openapi.json", "MOUNT /static", "GET /"} <= set(found)
    nobody = anonymous(client)
    asked = [request_of(route, {"run_id": "r1"}) for route in found]
    passed = {each["url"] for each in asked if nobody.request(**each).status_code != 401}
    assert passed == set(OPEN) - {"/login", "/static/icon.svg"}


def test_addresses_that_are_not_there_ask_for_a_key_too(client: TestClient) -> None:
    for path in ("/nosuch", "/static/../app.py", "//api/v1/runs", "/api/v1/runs/", "/healthz/../api/v1/runs"):
        assert anonymous(client).get(path).status_code == 401, path


def test_all_bad_keys_get_the_same_answer(client: TestClient, settings: Settings) -> None:
    with client.app.state.lab.database.writing() as session:  # type: ignore[attr-defined]  # as above
        alice = Principal(owner="alice", role="admin")
        revoked, gone = make_key(session, alice)
        expired, late = make_key(session, alice)
        revoked.revoked_at, expired.expires_at = now(), now() - timedelta(seconds=1)
    good = first_key(settings.data_dir)
    bad = [None, "Bearer ", "Bearer nonsense", "Basic YTpi", f"Bearer {good[:-1]}", f"Bearer {good}x"]
    answers = [
        anonymous(client).get("/api/v1/runs", headers={"Authorization": value} if value else {})
        for value in [*bad, f"Bearer {gone}", f"Bearer {late}"]
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].headers["www-authenticate"] == "Bearer"


def test_a_key_is_shown_once_and_kept_as_a_digest(client: TestClient) -> None:
    made = client.post("/api/v1/keys", json={"owner": "alice"}).json()
    listed = client.get("/api/v1/keys").text
    assert made["prefix"] in listed
    assert made["key"] not in listed
    with client.app.state.lab.database.reading() as session:  # type: ignore[attr-defined]  # as above
        row = session.get_one(KeyRow, made["id"])
        assert made["key"] not in str(
            {column.name: getattr(row, column.name) for column in row.__table__.columns}
        )


def test_a_revoked_key_and_its_sessions_are_refused(client: TestClient) -> None:
    alice = as_user(client, "alice")
    link = alice.post("/api/v1/login-links").json()["path"]
    browser = anonymous(client)
    assert browser.get(link).status_code == 303
    assert browser.get("/runs").status_code == 200
    key = next(key for key in client.get("/api/v1/keys").json() if key["owner"] == "alice")
    assert key["last_used_at"] is not None
    assert client.delete(f"/api/v1/keys/{key['id']}").json()["revoked_at"] is not None
    _forget(client)
    assert alice.get("/api/v1/runs").status_code == 401
    assert browser.get("/runs").status_code == 401


def _forget(client: TestClient) -> None:
    """Let the gate's memory of keys run out, as ten seconds do."""
    layer = client.app.middleware_stack  # type: ignore[attr-defined]  # as above
    while layer is not None:
        callers = getattr(layer, "_callers", None)
        if callers is not None:
            callers._valid.clear()
        layer = getattr(layer, "_app", None) or getattr(layer, "app", None)


MAY = [
    ("GET", "/api/v1/runs", "viewer"),
    ("GET", "/api/v1/leaderboard", "viewer"),
    ("GET", "/runs", "viewer"),
    ("GET", "/openapi.json", "viewer"),
    ("POST", "/api/v1/experiments/plan", "viewer"),
    ("POST", "/api/v1/login-links", "viewer"),
    ("POST", "/api/v1/experiments", "runner"),
    ("POST", "/api/v1/runs/r1/cancel", "runner"),
    ("POST", "/api/v1/not/yet/there", "runner"),
    ("GET", "/api/v1/keys", "admin"),
    ("POST", "/api/v1/keys", "admin"),
    ("DELETE", "/api/v1/keys/1", "admin"),
    ("GET", "/api/v1/admin/anything", "admin"),
    ("GET", "/api/v1/webhooks", "admin"),
    ("POST", "/api/v1/webhooks", "admin"),
    ("POST", "/api/v1/webhooks/1/test", "admin"),
    ("GET", "/api/v1/webhooks/1/deliveries", "admin"),
    ("DELETE", "/api/v1/webhooks/1", "admin"),
]


def test_roles_open_what_they_should(client: TestClient) -> None:
    order = ["viewer", "runner", "admin"]
    users = {role: as_user(client, role, role) for role in order}
    for method, path, needed in MAY:
        for role, user in users.items():
            refused = user.request(method, path).status_code == 403
            assert refused == (order.index(role) < order.index(needed)), (method, path, role)


SPELT = [
    "/api/v1/keys/",
    "/api/v1//keys",
    "//api/v1/keys",
    "/api/v1/./keys",
    "/api/v1/x/../keys",
    "/api/v1/keys%2f",
    "/api/v1%2Fkeys",
    "/api/v1/keys%2F1",
    "/api/v1/%6beys",
    "/api/v1/%256beys",
    "/API/V1/KEYS",
    "/api/v1/keys;a=b",
    "/api/v1/keys\\1",
    "/static/../api/v1/keys",
    "/static/..%2fapi/v1/keys",
    "/metrics/../api/v1/admin/verify",
    "/api/v1/scions%3Agc",
]


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_however_an_address_is_spelt_it_does_not_ask_for_less(client: TestClient) -> None:
    runner = as_user(client, "runner", "runner")
    for path in SPELT:
        assert needed_role("GET", path) == "admin", path
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PATCH", "DELETE", "PROPFIND"):
            # As it is, without what the client would tidy up.
            request = runner.build_request(method, "http://testserver/")
            request.url = request.url.copy_with(raw_path=path.encode())
            assert runner.send(request).status_code in (403, 404), (method, path)
            request.headers.pop("authorization")
            assert anonymous(client).send(request).status_code == 401, (method, path)


def test_the_table_of_routes_asks_for_the_roles_that_the_gate_asks_for() -> None:
    for route, call in ROUTES.items():
        method, path = route.split()
        if call.to_guests != "open" and method != "MOUNT":
            assert needed_role(method, path) == call.role, route


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_websockets_are_closed_to_everybody(client: TestClient) -> None:
    with pytest.raises((WebSocketDisconnect, WebSocketDenialResponse)), client.websocket_connect("/static/x"):
        raise AssertionError("let in")


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize(
    "path",
    ["/api/v1/runs/glk_abcdef", "/api/v1/runs?name=x%20glk_abcdef", "/runs?gls_abcdef=1", "/glk_abcdef"],
)
def test_keys_are_refused_wherever_they_stand_in_an_address(client: TestClient, path: str) -> None:
    assert client.get(path).json()["code"] == "key-in-url"


def test_foreign_runs_are_not_found_by_who_sees_only_their_own(client: TestClient) -> None:
    run = client.post("/api/v1/experiments", json=document()).json()["run_id"]
    guest = as_user(client, "guest", sees="own")
    own = guest.post("/api/v1/experiments", json=document(name="own")).json()["run_id"]
    assert [seen["id"] for seen in guest.get("/api/v1/runs").json()["runs"]] == [own]
    for path in ("", "/log", "/log?attempt=1", "/events", "/history", "/artifacts/evaluate/x"):
        assert guest.get(f"/api/v1/runs/{run}{path}").status_code == 404, path
    assert guest.post(f"/api/v1/runs/{run}/cancel").status_code == 404
    assert guest.get(f"/runs/{run}").status_code == 404
    assert "quick" not in guest.get("/").text + guest.get("/runs").text


def test_runners_change_their_own_runs_only(client: TestClient) -> None:
    alice, bob = as_user(client, "alice"), as_user(client, "bob")
    run = alice.post("/api/v1/experiments", json=document()).json()["run_id"]
    assert bob.get(f"/api/v1/runs/{run}").json()["owner"] == "alice"
    assert bob.post(f"/api/v1/runs/{run}/cancel").status_code == 403
    assert alice.post(f"/api/v1/runs/{run}/cancel").json()["state"] == "CANCELLED"


def test_two_users_may_choose_the_same_idempotency_key(client: TestClient) -> None:
    key = {"Idempotency-Key": "first"}
    runs = [
        as_user(client, name).post("/api/v1/experiments", json=document(), headers=key).json()["run_id"]
        for name in ("alice", "bob", "alice")
    ]
    assert runs[0] == runs[2] != runs[1]


def test_a_login_link_works_once_and_its_cookie_cannot_be_used_from_elsewhere(client: TestClient) -> None:
    link = client.post("/api/v1/login-links").json()["path"]
    browser = anonymous(client)
    entered = browser.get(f"{link}&to=/operators")
    assert (entered.status_code, entered.headers["location"]) == (303, "/operators")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert anonymous(client).get(link).status_code == 401
    post = {"url": "/api/v1/experiments/plan", "json": document()}
    assert browser.post(**post, headers={"Origin": "http://testserver:5000"}).status_code == 403
    assert browser.post(**post).status_code == 403
    assert browser.post(**post, headers={"Origin": "http://testserver"}).status_code == 200


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil", "/a?b"])
def test_a_login_link_leads_to_our_own_pages_only(client: TestClient, to: str) -> None:
    assert anonymous(client).get("/login", params={"code": "x", "to": to}).status_code == 422


def test_the_labs_own_machine_finds_the_key_by_the_address_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLAB_HOME", str(settings.data_dir / "home"))
    monkeypatch.delenv("GRAFTLAB_KEY", raising=False)
    key = first_key(settings.data_dir)
    assert (settings.data_dir / "admin-key").stat().st_mode & 0o777 == 0o600
    held = hold(settings.data_dir)  # as a running lab does
    note_lab("http://127.0.0.1:1234", settings.data_dir)
    assert (
        find_key("http://localhost:1234")
        == find_key("http://127.0.0.1:1234")
        == key
        == first_key(settings.data_dir)
    )
    assert find_key("http://127.0.0.1:1235") is None
    assert find_key("http://127.0.0.1:1234", "given") == "given"
    held.close()
    forget_lab("http://127.0.0.1:1234")
    assert find_key("http://127.0.0.1:1234") is None
