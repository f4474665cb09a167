"""MLflow's pages behind the lab's login, in a real browser, with files that would act with its session."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import RunRow, StageRow
from service.domain.run_lifecycle import record, transition
from service.domain.submission import submit
from service.local_keys import first_key
from service.settings import Settings
from service.tracking.runs import Forwarder
from tests.support.api_server import serving
from tests.support.builders import experiment
from tests.support.mlflow_server import mlflow_server
from workers.contract import Event, Progress, StageDone, StageReport

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
EVIL = b"""<!doctype html><body>harmless<script>
fetch('/api/v1/keys', {credentials: 'include'})
  .then(answer => answer.text()).then(text => { document.title = 'stolen ' + text; })
document.title = 'it ran'
</script></body>"""


@dataclass(frozen=True)
class Shown:
    """A lab whose run stands in MLflow, and where."""

    url: str
    key: str
    run: str
    link: str
    mlflow_run: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    with mlflow_server(folder) as settings, serving(settings) as port:
        database = Database(settings.database_url)
        run_id = finished(database, Storage(settings.storage))
        Forwarder(settings, database, Storage(settings.storage)).round()
        url, key = f"http://127.0.0.1:{port}", first_key(folder)
        with database.reading() as session:
            tracked = session.get_one(RunRow, run_id).mlflow_run_id
        view = httpx.get(f"{url}/api/v1/runs/{run_id}", headers={"Authorization": f"Bearer {key}"}).json()
        assert tracked is not None
        plant(folder, settings, tracked)
        yield Shown(url, key, run_id, view["mlflow_url"], tracked)
        database.engine.dispose()


def finished(database: Database, storage: Storage) -> str:
    """A run with a curve, a sheet of samples and two files that carry scripts."""
    sheet = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(sheet, "PNG")
    storage.write_bytes("made/samples.png", sheet.getvalue())
    storage.write_bytes("made/report.json", b"{}")
    storage.write_bytes("made/evil.html", EVIL)
    storage.write_bytes(
        "made/evil.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    )
    names = ("samples.png", "report.json", "evil.html", "evil.svg")
    report = StageReport(
        stage="evaluate",
        key="k",
        metrics={"fid40/x": 7.0},
        artifacts={name: f"made/{name}" for name in names},
    )
    with database.writing() as session:
        run = submit(session, experiment(), "digest", None)
        bodies = [
            Progress(stage="finetune", step=step, total_steps=4, values={"loss": 1 / step})
            for step in range(1, 5)
        ]
        for number, body in enumerate([*bodies, StageDone(report=report)], 1):
            event = Event(run_id=run.id, attempt=1, seq=number, at=0.0, body=body)
            record(session, run, "attempt", event.model_dump(mode="json"))
        session.add(
            StageRow(run_id=run.id, stage="evaluate", attempt=1, report=report.model_dump(mode="json"))
        )
        for state in ("STARTING", "RUNNING", "SUCCEEDED"):
            transition(session, run, state)  # type: ignore[arg-type]  # three states that are
        return run.id


def plant(folder: Path, settings: Settings, tracked: str) -> None:
    """An HTML file among the run's artifacts in MLflow."""
    (home,) = (folder / "mlflow-artifacts").glob(f"*/{tracked}/artifacts")
    (home / "evil.html").write_bytes(EVIL)


@pytest.fixture
def page(shown: Shown) -> Iterator[Page]:
    """A browser that is logged in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(90_000)
        code = httpx.post(f"{shown.url}/api/v1/login-links", headers={"Authorization": f"Bearer {shown.key}"})
        page.goto(f"{shown.url}{code.json()['path']}")
        yield page
        browser.close()


def test_mlflow_works_under_the_labs_address(shown: Shown, page: Page) -> None:
    """Experiments, a run with its chart, and its pictures; nothing is asked of anybody else."""
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{shown.url}/mlflow/#/experiments")
    page.get_by_text("testbed/dit-fashion").first.wait_for()
    page.goto(f"{shown.url}{shown.link}")
    page.get_by_text("fid40/x").first.wait_for()
    page.goto(f"{shown.url}{shown.link}/model-metrics")
    page.locator("svg.main-svg, .plotly, canvas").first.wait_for()
    page.goto(f"{shown.url}{shown.link}/artifacts/samples.png")
    page.locator("img[src^='blob:'], .image-outer-container img, .ant-image img").first.wait_for()
    assert not [url for url in asked if not url.startswith((f"{shown.url}/", "data:", "blob:"))]
    assert not errors


@pytest.mark.parametrize("place", ["mlflow", "runs"])
def test_a_logged_page_cannot_act_with_its_readers_session(shown: Shown, page: Page, place: str) -> None:
    """Opened as a page or in a frame of ours: no script of it runs, let alone with the session."""
    address = {
        "mlflow": f"/mlflow/get-artifact?path=evil.html&run_uuid={shown.mlflow_run}",
        "runs": f"/api/v1/runs/{shown.run}/artifacts/evaluate/evil.html",
    }[place]
    answer = page.request.get(f"{shown.url}{address}")
    assert (answer.status, answer.body()) == (200, EVIL)
    assert answer.headers["content-security-policy"].startswith("sandbox;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    # Even where the browser is made to open and not to save it.
    page.route("**/*evil.html*", lambda route: _opened(route))
    page.goto(f"{shown.url}{address}")
    page.get_by_text("harmless").wait_for()
    assert page.evaluate("document.title") == ""
    assert page.evaluate("window.origin") == "null"


def _opened(route) -> None:  # type: ignore[no-untyped-def]  # playwright's own
    """The same answer without its request to be saved."""
    answer = route.fetch()
    headers = {name: value for name, value in answer.headers.items() if name != "content-disposition"}
    route.fulfill(response=answer, headers={**headers, "content-type": "text/html"})
