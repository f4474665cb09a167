"""How many requests a caller may send: counted before anything is looked up, by all processes together."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.api.middleware import callers
from service.api.middleware.rates import SLOTS, Rates
from service.api.problems import ApiError
from service.app import create_app
from service.local_keys import first_key
from service.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.moment = 5000.0

    def __call__(self) -> float:
        return self.moment


def taken(rates: Rates, caller: str, most: int = 1000) -> int:
    """How many requests are let through before one is refused."""
    for count in range(most):
        try:
            rates.take(caller)
        except ApiError as error:
            return count if int(error.headers["Retry-After"]) >= 1 else -1
    return most


@pytest.fixture(params=["alone", "shared"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], Rates]:
    """Tables of one process, and ones that processes share."""
    file = None if request.param == "alone" else tmp_path / "rates"
    return lambda clock: Rates(2.0, 10, file, clock)


def test_a_caller_has_its_burst_and_then_its_rate(make: Callable[[Clock], Rates]) -> None:
    clock = Clock()
    rates = make(clock)
    assert taken(rates, "key 1") == 10
    assert taken(rates, "key 2") == 10
    clock.moment += 1.5
    assert taken(rates, "key 1") == 3
    clock.moment += 1000
    assert taken(rates, "key 1") == 10


def test_processes_that_share_a_table_count_together(tmp_path: Path) -> None:
    clock = Clock()
    one, two, three = (Rates(2.0, 10, tmp_path / "rates", clock) for _ in range(3))
    for rates in (one, two, three):
        assert taken(rates, "key 1", most=3) == 3
    assert [taken(rates, "key 1") for rates in (two, one, three)] == [1, 0, 0]
    clock.moment += 5.0
    assert taken(three, "key 1") == 10


def test_a_table_written_before_the_machine_was_started_anew_refuses_nobody(tmp_path: Path) -> None:
    clock = Clock()
    assert taken(Rates(2.0, 10, tmp_path / "rates", clock), "key 1") == 10
    clock.moment = 7.0
    assert taken(Rates(2.0, 10, tmp_path / "rates", clock), "key 1") == 10


def test_more_callers_than_the_table_holds_are_all_served() -> None:
    rates = Rates(2.0, 10)
    for number in range(SLOTS + 1000):
        rates.take(f"address {number}")


def lab(settings: Settings, burst: int, processes: int = 1) -> TestClient:
    """One process of an API whose callers get `burst` requests and hardly any after that."""
    limits = {"requests_per_second": 0.01, "requests_burst": burst, "api_processes": processes}
    app = create_app(settings.model_copy(update=limits))
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_requests_without_a_valid_key_are_limited_before_they_are_looked_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    find = callers.find_principal

    def counted(session: object, secret: str, kinds: object) -> object:
        looked.append(secret)
        return find(session, secret, kinds)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(callers, "find_principal", counted)
    monkeypatch.setattr(callers, "clock", Clock())
    client, wrong = lab(settings, burst=6), {"Authorization": "Bearer glk_wrong"}
    good = {"Authorization": f"Bearer {first_key(settings.data_dir)}"}
    assert client.get("/api/v1/whoami", headers=good).status_code == 200
    answers = [client.get("/api/v1/runs", headers=wrong).status_code for _ in range(3)]
    assert (answers, looked.count("glk_wrong")) == ([401] * 3, 1)
    answers = [client.get("/api/v1/runs").status_code for _ in range(4)]
    assert answers == [401, 401, 429, 429]
    others = [{"Authorization": f"Bearer glk_{n}"} for n in range(5)]
    assert [client.get("/api/v1/runs", headers=other).status_code for other in others] == [429] * 5
    assert client.get("/login?code=gll_x").status_code == 429
    assert len(looked) == 2
    # Who has shown a valid key from there is not held up by it.
    assert client.get("/api/v1/whoami", headers=good).status_code == 200


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_one_key_has_one_allowance_for_all_its_sessions_refusals_and_processes(settings: Settings) -> None:
    client, other = lab(settings, burst=20, processes=2), lab(settings, burst=20, processes=2)
    key = {"Authorization": f"Bearer {first_key(settings.data_dir)}"}
    browser = TestClient(client.app, headers={"Origin": "http://testserver"})
    browser.get(client.post("/api/v1/login-links", headers=key).json()["path"])
    asked = [
        client.get("/api/v1/nosuch", headers=key).status_code,
        client.get("/api/v1/whoami", headers=key).status_code,
        browser.get("/api/v1/whoami").status_code,
    ]
    assert asked == [404, 200, 200]
    answers = [other.get("/api/v1/whoami", headers=key).status_code for _ in range(25)]
    assert 429 in answers
    assert client.get("/api/v1/whoami", headers=key).status_code == 429
    assert browser.get("/api/v1/whoami").status_code == 429
