"""`/docs/api` shows every route in a real browser, from the lab's own files."""

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Request, expect

from service.settings import Settings
from tests.support.browser import signed_in_browser


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


def test_the_page_shows_every_route_and_asks_no_other_host(settings: Settings, client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = [(method, path) for path, methods in paths.items() for method in methods]
    with signed_in_browser(settings, client) as (context, url):
        page, requests, errors = context.new_page(), list[Request](), list[str]()
        page.on("request", lambda request: requests.append(request))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{url}/docs/api")
        expect(page.locator(".opblock")).to_have_count(len(routes), timeout=60_000)
        shown = page.locator(".opblock-summary-path").all_inner_texts()
    assert {text.replace("\u200b", "") for text in shown} == set(paths)
    assert {request.url.split("/")[2] for request in requests if request.url.startswith("http")} == {
        url.removeprefix("http://")
    }
    assert errors == []
