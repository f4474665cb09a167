"""A real browser, signed in to the application on a real socket."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.testclient import TestClient
from playwright.sync_api import BrowserContext, sync_playwright

from service.settings import Settings
from tests.support.api_server import serving


@contextmanager
def signed_in_browser(settings: Settings, client: TestClient) -> Iterator[tuple[BrowserContext, str]]:
    """Yield the browser's context and the lab's address; `client` must belong to the same settings."""
    link = client.post("/api/v1/login-links").json()["path"]
    with serving(settings) as port, sync_playwright() as driver:
        path = shutil.which("chromium")
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        context, url = chromium.new_context(), f"http://127.0.0.1:{port}"
        page = context.new_page()
        page.goto(f"{url}{link}")
        page.close()
        yield context, url
        chromium.close()
