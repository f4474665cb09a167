"""Many tabs of runs under way in one real browser: all of them load, live, and leave room for others."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import BrowserContext, Page, expect

from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.run_lifecycle import record, transition
from service.settings import Settings
from tests.support.browser import signed_in_browser
from tests.support.builders import document

TABS = 8
"""A browser opens six connections to a host, for all its tabs together."""


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def browser(settings: Settings, client: TestClient) -> Iterator[tuple[BrowserContext, str]]:
    """Signed in, with the address of the lab."""
    with signed_in_browser(settings, client) as opened:
        yield opened


def started(client: TestClient, database: Database) -> str:
    """A run under way."""
    run_id: str = client.post("/api/v1/experiments", json=document()).json()["run_id"]
    with database.writing() as session:
        run = session.get_one(RunRow, run_id)
        for state in ("STARTING", "RUNNING"):
            transition(session, run, state)  # type: ignore[arg-type]  # two states that are
    return run_id


def at_step(database: Database, run_id: str, step: int) -> None:
    with database.writing() as session:
        run = session.get_one(RunRow, run_id)
        run.stage, run.step, run.total_steps = "finetune", step, 300
        record(session, run, "request", {"request": f"step {step}"})


def test_eight_tabs_of_live_runs_load_and_follow(
    client: TestClient, database: Database, browser: tuple[BrowserContext, str]
) -> None:
    context, url = browser
    run_id = started(client, database)
    pages: list[Page] = []
    for _ in range(TABS):
        page = context.new_page()
        page.goto(f"{url}/runs/{run_id}", timeout=20_000)
        pages.append(page)
    at_step(database, run_id, 120)
    for page in pages:
        page.bring_to_front()
        expect(page.locator("#steps")).to_have_text("120 of 300", timeout=20_000)
    other = context.new_page()
    other.goto(f"{url}/runs", timeout=20_000)
    expect(other.locator("h1")).to_have_text("Runs")
    with database.writing() as session:
        transition(session, session.get_one(RunRow, run_id), "FAILED", "diverged", "it did")
    pages[0].bring_to_front()
    expect(pages[0].locator("#state")).to_have_text("failed", timeout=20_000)


def test_a_hidden_tab_asks_nothing(
    client: TestClient, database: Database, browser: tuple[BrowserContext, str]
) -> None:
    context, url = browser
    run_id = started(client, database)
    page = context.new_page()
    page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => window.away === true})")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_request(f"**/api/v1/runs/{run_id}", timeout=20_000):
        page.goto(f"{url}/runs/{run_id}")
    page.evaluate("window.away = true")
    page.wait_for_timeout(3_000)
    asked.clear()
    page.wait_for_timeout(5_000)
    assert asked == []
    at_step(database, run_id, 7)
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#steps")).to_have_text("7 of 300", timeout=20_000)
