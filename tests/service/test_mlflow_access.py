"""MLflow's server answers to the lab alone, keeps files in one folder, and is reached by the lab's rights."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from mlflow.tracking import MlflowClient

from grafting_core.storage.storage import Storage
from service.app import create_app
from service.cli.doctor import _compared
from service.client import GraftlabClient
from service.db.engine import Database
from service.db.tables import RunRow
from service.domain.submission import submit
from service.domain.tracking_endpoints import Refused, check_body, right_for
from service.domain.tracking_state import read_tracking
from service.lab.supervisor import Supervisor
from service.local_keys import first_key, mlflow_token
from service.settings import Settings
from service.tracking.runs import Forwarder
from tests.support.api_server import serving
from tests.support.builders import experiment
from tests.support.mlflow_server import ask, mlflow_server, settings_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
API = "/api/2.0/mlflow"
AJAX = "/ajax-api/2.0/mlflow"


@dataclass(frozen=True)
class Lab:
    """An application beside MLflow's own server."""

    folder: Path
    settings: Settings
    app: TestClient
    database: Database


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with mlflow_server(folder) as settings:
        headers = {"Authorization": f"Bearer {first_key(folder)}"}
        app = create_app(settings)
        with TestClient(app, raise_server_exceptions=False, headers=headers) as client:
            yield Lab(folder, settings, client, app.state.lab.database)
        app.state.lab.database.engine.dispose()


def key(lab: Lab, owner: str, **rights: str) -> dict[str, str]:
    made = lab.app.post("/api/v1/keys", json={"owner": owner, **rights}).json()
    return {"Authorization": f"Bearer {made['key']}"}


def direct(lab: Lab, method: str, path: str, **asked: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {mlflow_token(lab.folder)}"}
    return httpx.request(
        method, f"{lab.settings.mlflow_url}{path}", headers=headers, timeout=60, trust_env=False, **asked
    )


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "Basic Z2w6bQ==", "admin-key"])
@pytest.mark.parametrize(
    "path", ["/", f"{API}/experiments/search?max_results=1", "/get-artifact", "/graphql"]
)
def test_nobody_without_the_secret_is_answered(lab: Lab, given: str | None, path: str) -> None:
    given = f"Bearer {first_key(lab.folder)}" if given == "admin-key" else given
    headers = {"Authorization": given} if given else {}
    answer = httpx.get(f"{lab.settings.mlflow_url}{path}", headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 401


OTHER_USER = """
import sys, urllib.error, urllib.request
for name in sys.argv[2:]:
    try:
        open(name).read()
    except PermissionError:
        print("denied")
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1])
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user takes root")
def test_another_user_of_the_machine_reads_neither_secret_nor_runs(lab: Lab) -> None:
    files = [str(lab.folder / name) for name in ("mlflow-token", "mlflow.db")]
    url = f"{lab.settings.mlflow_url}{API}/experiments/search?max_results=1"
    words = ["/usr/bin/env", "python3", "-I", "-c", OTHER_USER, url, *files]
    for parent in (lab.folder, *lab.folder.parents[:3]):  # as if the folder lay where others may look
        parent.chmod(0o755)
    done = subprocess.run(words, user=65534, capture_output=True, text=True, cwd="/")
    assert done.stdout.split() == ["denied", "denied", "401"], done.stderr


PLACES = [
    '{"name": "x", "artifact_location": "file:///etc"}',
    '{"name": "x", "artifactLocation": "/etc"}',
    '{"name": "x", "artifact_location": "", "artifact_location": "/etc"}',
    '"{\\"name\\": \\"x\\", \\"artifact_location\\": \\"/etc\\"}"',
    '{"name": "x", "artifact_location": "mlflow-artifacts:/../.."}',
    '{"name": "x", "artifact_location": "http://127.0.0.1:1/"}',
]


@pytest.mark.parametrize("body", PLACES)
@pytest.mark.parametrize("way", ["the server", "the lab"])
def test_nobody_chooses_where_artifacts_lie(lab: Lab, body: str, way: str) -> None:
    sent = {"content": body, "headers": {"Content-Type": "application/json"}}
    if way == "the server":
        sent["headers"]["Authorization"] = f"Bearer {mlflow_token(lab.folder)}"  # type: ignore[index]
        url = f"{lab.settings.mlflow_url}{API}/experiments/create"
        answer = httpx.post(url, timeout=60, trust_env=False, **sent)  # type: ignore[arg-type]
    else:
        answer = lab.app.post(f"/mlflow{AJAX}/experiments/create", **sent)  # type: ignore[arg-type]
    assert answer.status_code == 403, answer.text
    found = direct(lab, "GET", f"{API}/experiments/get-by-name", params={"experiment_name": "x"})
    assert found.status_code == 404


def test_a_location_that_is_there_already_is_not_read(lab: Lab) -> None:
    """As an earlier version, or somebody with the database, may have left it."""
    made = direct(lab, "POST", f"{API}/experiments/create", json={"name": "planted"}).json()["experiment_id"]
    run = direct(lab, "POST", f"{API}/runs/create", json={"experiment_id": made}).json()["run"]["info"][
        "run_id"
    ]
    for place in ("/etc", "file:///etc", "mlflow-artifacts:/../../../etc", "s3://bucket/x"):
        with sqlite3.connect(lab.folder / "mlflow.db") as connection:
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (place, run))
        connection.close()
        answer = direct(lab, "GET", "/get-artifact", params={"path": "passwd", "run_uuid": run})
        assert answer.status_code >= 400
        assert b"root:" not in answer.content


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{API}/model-versions/create"),
        ("POST", f"{API}/registered-models/create"),
        ("POST", f"{API}/logged-models"),
        ("GET", f"{API}/model-versions/get-download-uri"),
        ("GET", "/model-versions/get-artifact"),
        ("POST", f"{API}/webhooks"),
        ("POST", f"{AJAX}/gateway-proxy"),
        ("POST", "/gateway/x/mlflow/invocations"),
        ("POST", "/ajax-api/3.0/mlflow/assistant/chat"),
        ("POST", "/ajax-api/3.0/mlflow/gateway/secrets/create"),
        ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
        ("POST", "/ajax-api/3.0/jobs/"),
        ("POST", f"{AJAX}/runs/create-promptlab-run"),
        ("POST", "/v1/traces"),
        ("GET", f"{API}/../2.0/mlflow/webhooks"),
        ("GET", "/static-files/../../../etc/passwd"),
    ],
)
def test_what_is_not_named_is_refused(lab: Lab, method: str, path: str) -> None:
    with pytest.raises(Refused):
        right_for(method, path)
    if ".." not in path:  # clients shorten those
        assert direct(lab, method, path, json={} if method == "POST" else None).status_code == 403
        assert lab.app.request(method, f"/mlflow{path}").status_code == 403


def test_bodies_are_objects_with_each_key_once() -> None:
    for body in (b"[", b"7", b'{"a": 1, "a": 2}', b"[" * 100_000):
        with pytest.raises(Refused):
            check_body("/x", body)
    assert check_body("/x", b"") == {}


def test_each_role_reaches_its_part_of_mlflow(lab: Lab) -> None:
    viewer, runner = key(lab, "eve", role="viewer"), key(lab, "rob", role="runner")
    own, other = key(lab, "own", role="runner", sees="own"), key(lab, "una", role="runner")
    search, create = f"/mlflow{AJAX}/runs/search", f"/mlflow{API}/experiments/create"
    assert lab.app.get("/mlflow/", headers={"Authorization": ""}).status_code == 401
    for headers, method, path, body, status in (
        (viewer, "GET", "/mlflow/", None, 200),
        (viewer, "GET", "/mlflow/version", None, 200),
        (viewer, "POST", search, {"experiment_ids": ["0"]}, 200),
        (viewer, "POST", create, {"name": "viewer's"}, 403),
        (viewer, "PUT", f"/mlflow{API}-artifacts/artifacts/0/x", None, 403),
        (runner, "POST", create, {"name": "runner's"}, 200),
        (runner, "POST", f"/mlflow{API}/experiments/delete", {"experiment_id": "0"}, 403),
        (own, "GET", "/mlflow/", None, 403),
        (own, "POST", search, {"experiment_ids": ["0"]}, 403),
    ):
        answer = lab.app.request(method, path, json=body, headers=headers)
        assert answer.status_code == status, (method, path, answer.text)
    assert "the runs of all users" in lab.app.get("/mlflow/", headers=own).json()["detail"]
    _check_owners(lab, runner, other)


def _check_owners(lab: Lab, runner: dict[str, str], other: dict[str, str]) -> None:
    """What the lab projected is changed by its owner and admins; the lab's own tags by nobody."""
    with lab.database.writing() as session:
        run_id = submit(session, experiment(), "digest", None, owner="rob").id
    Forwarder(lab.settings, lab.database, Storage(lab.settings.storage)).round()
    with lab.database.reading() as session:
        tracked = session.get_one(RunRow, run_id).mlflow_run_id
    tag = f"/mlflow{API}/runs/set-tag"
    for headers, name, status in (
        (runner, "note", 200),
        (other, "note", 403),
        (runner, "graftlab.run_id", 403),
    ):
        body = {"run_id": tracked, "key": name, "value": "x"}
        assert lab.app.post(tag, json=body, headers=headers).status_code == status
    link = lab.app.get(f"/api/v1/runs/{run_id}").json()["mlflow_url"]
    assert link.startswith("/mlflow/#/experiments/")
    assert link.endswith(f"/runs/{tracked}")


class Recording(BaseHTTPRequestHandler):
    """Keeps what it was asked with, and tries to leave a cookie."""

    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append(dict(self.headers.items()))
        self.send_response(200)
        for name, value in (("Set-Cookie", "graftlab_session=stolen"), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *words: object) -> None:
        """Not into the tests' output."""


def test_neither_cookies_nor_keys_reach_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    seen: list[dict[str, str]] = []
    handler = type("Kept", (Recording,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        app = create_app(settings_of(tmp_path, f"http://127.0.0.1:{server.server_port}/mlflow"))
        secret = first_key(tmp_path)
        headers = {
            "Authorization": f"Bearer {secret}",
            "Cookie": "graftlab_session=gls_x; other=1",
            "X-Own": "1",
        }
        with TestClient(app) as client:
            answer = client.get("/mlflow/version?a=1", headers=headers)
        server.shutdown()
    app.state.lab.database.engine.dispose()
    assert (answer.text, "set-cookie" in answer.headers) == ("OK", False)
    assert secret not in json.dumps(seen)
    assert not {"cookie", "x-own", "authorization"} & {name.lower() for name in seen[0]}


@pytest.mark.parametrize("proxy", ["http_proxy", "ALL_PROXY"])
def test_proxies_of_the_environment_are_not_for_loopback(
    lab: Lab, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(proxy, "socks5h://127.0.0.1:9" if proxy == "ALL_PROXY" else "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "else")
    with lab.database.writing() as session:
        run_id = submit(session, experiment(), "digest", None).id
    Forwarder(lab.settings, lab.database, Storage(lab.settings.storage)).round()
    with lab.database.reading() as session:
        tracked = session.get_one(RunRow, run_id).mlflow_run_id
    assert tracked
    assert MlflowClient(lab.settings.mlflow_url).get_run(tracked).data.tags["graftlab.run_id"] == run_id


def test_children_of_a_lab_inherit_no_mlflow_and_no_proxy_for_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "else")
    monkeypatch.setenv("no_proxy", "intranet.example")
    environment = Supervisor(tmp_path, 0, 1).environment("tracking")
    assert "MLFLOW_TRACKING_PASSWORD" not in environment
    assert environment["no_proxy"].split(",") == ["intranet.example", "127.0.0.1", "localhost", "::1"]
    assert environment["NO_PROXY"] == environment["no_proxy"]


def test_the_doctor_says_how_far_mlflow_is_behind(lab: Lab, tmp_path: Path) -> None:
    with lab.database.writing() as session:
        submit(session, experiment(), "digest", None)
    state = read_tracking(lab.database, lab.settings)
    assert (state.runs, state.events, state.wrong) == (1, 1, None)
    assert state.since is not None
    found = _compared(state)
    assert "1 events of 1 runs and 0 studies behind, since 20" in found.seen
    Forwarder(lab.settings, lab.database, Storage(lab.settings.storage)).round()
    assert _compared(read_tracking(lab.database, lab.settings)).seen.startswith("up to date")


def test_a_damaged_database_is_named_with_what_to_run(tmp_path: Path) -> None:
    """The lab works; its doctor, its pages and the server's log say what to do, and then it heals."""
    (tmp_path / "mlflow.db").write_bytes(b"this is no database at all" * 100)
    with mlflow_server(tmp_path) as settings, serving(settings) as port:
        lab = GraftlabClient(f"http://127.0.0.1:{port}", key=first_key(tmp_path))
        wrong = lab.tracking().wrong
        assert wrong is not None
        assert "DatabaseError" in wrong
        assert f"mv {tmp_path / 'mlflow.db'}" in wrong
        assert "mv " in _compared(lab.tracking()).seen
        headers = {"Authorization": f"Bearer {first_key(tmp_path)}"}
        page = httpx.get(f"{lab.url}/mlflow/", headers=headers, trust_env=False)
        assert page.status_code == 503
        assert "mlflow db upgrade" in page.text
        (tmp_path / "mlflow.db").rename(tmp_path / "mlflow.db.aside")
        end = 30
        while lab.tracking().wrong and end:
            end -= 1
            threading.Event().wait(1.0)
        assert lab.tracking().wrong is None
        (tmp_path / "mlflow.db").unlink()  # somebody clears it away while the server runs
        found = ask(tmp_path, settings.mlflow_url, f"{API}/experiments/search?max_results=1")
        assert found is not None
        assert found.status_code == 200


def test_the_forwarders_process_does_not_end_without_mlflow(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "GRAFTLAB_DATA_DIR": str(tmp_path),
        "GRAFTLAB_MLFLOW_URL": "http://127.0.0.1:9/x",
    }
    database = Database(Settings(data_dir=tmp_path).database_url)
    create_app(Settings(data_dir=tmp_path)).state.lab.database.engine.dispose()
    with database.writing() as session:
        submit(session, experiment(), "digest", None)
    database.engine.dispose()
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "service.processes.tracking"]
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        for _ in range(120):
            if "MLflow is behind" in (tmp_path / "log").read_text():
                break
            threading.Event().wait(0.5)
        assert process.poll() is None
        assert (tmp_path / "log").read_text().count("MLflow is behind") == 1
    finally:
        process.terminate()
        process.wait(30)
