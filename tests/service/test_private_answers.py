"""No route tells others of what a user keeps private: by no name, path, licence, log line, file or picture.

The routes are those that the application has. One with a variable that is not filled below fails the test.
"""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mlflow.tracking import MlflowClient
from sqlalchemy import select

from grafting_core.specs.private_names import ANOTHERS
from grafting_core.specs.registration import KINDS, registry_folder
from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import RunRow
from service.db.webhook_tables import DeliveryRow
from service.domain.study_report_paths import REPORT_FILES
from service.domain.webhook_outbox import register
from service.schemas.webhooks import WebhookRequest
from service.settings import Settings
from service.tracking.runs import TAG as RUN_TAG
from service.tracking.runs import Forwarder
from service.tracking.studies import TAG as STUDY_TAG
from tests.support.builders import document
from tests.support.private_lab import (
    NAMES,
    SETTINGS,
    VEILED,
    PrivateLab,
    analysed,
    private_cards,
    private_lab,
    register_card,
)
from tests.support.routes import routes_of

ENDLESS = ("waits", "runs", "waits to analyse")
"""Runs whose stream of events has no end."""
QUERIES = {
    "GET /login": ("?code=gll_nosuch",),
    "GET /api/v1/queue": ("", "?run={waits}"),
    "GET /api/v1/scions": ("", f"?backbone={NAMES['backbone']}"),
}


@pytest.fixture
def database_kind() -> str:
    """Rights do not depend on the database."""
    return "sqlite"


@pytest.fixture
def lab(client: TestClient, settings: Settings, database: Database) -> Iterator[PrivateLab]:
    with private_lab(client, settings, database) as made:
        yield made


def addresses(lab: PrivateLab, route: str) -> Iterator[str]:
    """Every address of a route, with everything that its variables can be in this lab."""
    runs = [run for name, run in lab.runs.items() if "/events" not in route or name not in ENDLESS]
    check = lab.admin.get("/api/v1/admin/verify").json()["checks"][0]["id"]
    names = [*NAMES.values(), "open-dit", "open-judge"]
    if "/runs/" in route or "/studies/" in route:
        names = [*(("report.json", "profile.json", "card.json") if "/runs/" in route else REPORT_FILES)]
    known = {
        "run_id": runs,
        "study_id": [lab.study],
        "key": [*lab.scions],
        "check_id": [check],
        "webhook_id": ["1"],
        "code": ["invalid", "forbidden"],
        "stage": ["evaluate", "analyze", "register"],
        "name": names,
        "name:path": names,
    }
    path = route.split()[1]
    variables = re.findall(r"{([\w:]+)}", path)
    for values in product(*(known[variable] for variable in variables)):
        address = path
        for variable, value in zip(variables, values, strict=True):
            address = address.replace(f"{{{variable}}}", value)
        for query in QUERIES.get(route, ("",)):
            yield address + query.format(**lab.runs)


def told(asker: TestClient, lab: PrivateLab, address: str) -> list[str]:
    """Secrets in an answer, without the name that the address itself has."""
    answer = asker.get(address, follow_redirects=False)
    text = f"{dict(answer.headers)} {answer.text}".lower()
    for name in NAMES.values():
        text = text.replace(name, "") if name in address else text
    folders = [registry_folder(what, digest) for what, digest in zip(KINDS, lab.digests, strict=True)]
    return [secret for secret in (VEILED, *folders) if secret in text]


def readable(lab: PrivateLab) -> list[str]:
    """Routes that read; MLflow does not run here, and its content has a test of its own."""
    routes = [route for route in routes_of(lab.admin.app) if route.startswith("GET")]  # type: ignore[arg-type]  # starlette's type is wider
    return [route for route in routes if not route.endswith("/mlflow")]


def test_no_route_tells_another_user_of_private_things(lab: PrivateLab) -> None:
    lab.admin.post("/api/v1/admin/verify", json={"quick": True})
    leaks, telling = [], {"ann": set[str](), "admin": set[str]()}
    for route in readable(lab):
        for address in addresses(lab, route):
            leaks += [(address, found) for found in told(lab.bob, lab, address)]
            for user, asker in (("ann", lab.ann), ("admin", lab.admin)):
                if told(asker, lab, address):
                    telling[user].add(route)
    assert not leaks, leaks
    assert telling["ann"] == telling["admin"] == TELLING


TELLING = {
    *("GET /", "GET /runs", "GET /runs/{run_id}", "GET /studies", "GET /studies/{study_id}"),
    *("GET /measured", "GET /operators"),
    *("GET /api/v1/backbones", "GET /api/v1/datasets", "GET /api/v1/features"),
    *(f"GET /api/v1/{kind}/{{name:path}}" for kind in ("backbones", "datasets", "features")),
    *("GET /api/v1/backbones/{name:path}/profile", "GET /api/v1/scions", "GET /api/v1/scions/{key}"),
    *("GET /api/v1/runs", "GET /api/v1/queue", "GET /api/v1/leaderboard", "GET /api/v1/measured"),
    *(f"GET /api/v1/runs/{{run_id}}{part}" for part in ("", "/events", "/history", "/log")),
    "GET /api/v1/runs/{run_id}/artifacts/{stage}/{name:path}",
    *("GET /api/v1/studies", "GET /api/v1/studies/{study_id}"),
    "GET /api/v1/studies/{study_id}/report/{name}",
}
"""Routes that tell the owner and admins: without them the test could hold in a lab with nothing to tell."""


def test_a_new_route_that_tells_is_found(lab: PrivateLab) -> None:
    app = lab.admin.app
    app.add_api_route("/api/v1/{name:path}/leak", lambda name: {"names": list(NAMES.values())})  # type: ignore[attr-defined]  # as above
    app.add_api_route("/api/v1/things/{thing}", lambda thing: thing)  # type: ignore[attr-defined]  # as above
    lab.admin.post("/api/v1/admin/verify", json={"quick": True})
    leaking, unknown = readable(lab)[-2:]
    assert all(told(lab.bob, lab, address) for address in addresses(lab, leaking))
    with pytest.raises(KeyError, match="thing"):
        list(addresses(lab, unknown))


def test_others_see_that_such_work_exists_and_what_it_costs(lab: PrivateLab) -> None:
    run = lab.bob.get(f"/api/v1/runs/{lab.runs['succeeds']}").json()
    assert (run["backbone"], run["state"], run["withheld"]) == (ANOTHERS, "SUCCEEDED", True)
    assert run["metrics"][f"fid40/{ANOTHERS}"] == 5.0
    assert run["work"]["evaluate"]["feature_network"] == ANOTHERS
    assert run["work"]["finetune"]["dataset"]["name"] == ANOTHERS
    own = lab.ann.get(f"/api/v1/runs/{lab.runs['succeeds']}").json()
    assert (own["backbone"], own["withheld"]) == (NAMES["backbone"], False)
    assert own["stages"][0]["notes"] != run["stages"][0]["notes"] == []
    assert lab.bob.get(f"/api/v1/runs/{lab.runs['analyses']}").json()["name"] == f"analysis of {ANOTHERS}"
    [group] = lab.bob.get("/api/v1/leaderboard").json()["groups"]
    assert (group["backbone"], group["rows"][0]["interval"]) == (ANOTHERS, [4.0, 6.0])
    study = lab.bob.get(f"/api/v1/studies/{lab.study}").json()
    assert (study["quality"], study["message"], study["withheld"]) == (f"fid40/{ANOTHERS}", None, True)


@pytest.mark.parametrize("part", ["events", "history", "log", "artifacts/evaluate/report.json"])
def test_events_log_and_files_of_such_a_run_are_refused(lab: PrivateLab, part: str) -> None:
    address = f"/api/v1/runs/{lab.runs['succeeds']}/{part}"
    refused = lab.bob.get(address)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "works with something private" in refused.json()["detail"]
    assert lab.ann.get(address).status_code == lab.admin.get(address).status_code == 200


def test_a_profile_of_equal_weights_does_not_name_the_private_backbone(
    lab: PrivateLab, settings: Settings, database: Database
) -> None:
    """Bob has registered the same weights under another name, and his analysis finds ann's profile."""
    with database.writing() as session:
        equal = private_cards()[0].model_copy(update={"name": "bobs-dit", "dataset": None})
        register_card(session, settings, equal, "bob")
    run = lab.bob.post("/api/v1/analyses", json={"backbone": "bobs-dit"}).json()["run_id"]
    with database.writing() as session:
        analysed(session, settings, run)
    address = f"/api/v1/runs/{run}/artifacts/analyze/profile.json"
    found = lab.bob.get(address)
    assert (found.status_code, found.json()["backbone"]["name"]) == (200, ANOTHERS)
    assert lab.ann.get(address).json()["backbone"]["name"] == NAMES["backbone"]
    assert lab.bob.get("/api/v1/backbones/bobs-dit/profile").json() == found.json()


def test_a_design_on_a_public_backbone_of_private_data_names_neither_data_nor_network(
    lab: PrivateLab,
) -> None:
    plan = document(backbone="open-dit", evaluate=SETTINGS)
    assert lab.ann.post("/api/v1/experiments/plan", json=plan).status_code == 200
    for asked in (plan, {**plan, "dataset": "testbed/fashion-mnist"}):
        refused = lab.bob.post("/api/v1/experiments/plan", json=asked)
        assert refused.status_code == 422
        assert VEILED not in refused.text


def test_a_model_of_something_private_is_not_exported_by_others(lab: PrivateLab, database: Database) -> None:
    private_data = document(backbone="open-dit", evaluate=SETTINGS)
    runs = [lab.runs["succeeds"], lab.ann.post("/api/v1/experiments", json=private_data).json()["run_id"]]
    with database.writing() as session:
        session.get_one(RunRow, runs[1]).state = "SUCCEEDED"
    for run in runs:
        refused = lab.bob.post("/api/v1/exports", json={"run": run})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert VEILED not in refused.text
        queued = lab.ann.post("/api/v1/exports", json={"run": run})
        assert queued.status_code == 202, queued.text


def test_what_keeps_a_thing_from_being_removed_is_not_named_where_it_is_private(
    lab: PrivateLab, settings: Settings, database: Database
) -> None:
    backbone, pictures, _ = private_cards()
    own = pictures.model_copy(update={"name": "bobs-pictures", "digest": "1" * 64})
    needing = {"name": f"{VEILED}-other", "digest": "2" * 64, "dataset": own.name}
    with database.writing() as session:
        register_card(session, settings, own, "bob")
        register_card(session, settings, backbone.model_copy(update=needing), "ann")
    refused = lab.bob.delete("/api/v1/datasets/bobs-pictures")
    assert (refused.status_code, VEILED in refused.text) == (409, False)
    assert ANOTHERS in refused.json()["detail"]
    assert f"{VEILED}-other" in lab.admin.delete("/api/v1/datasets/bobs-pictures").json()["detail"]


def test_messages_to_other_services_name_nothing_private(
    client: TestClient, settings: Settings, database: Database
) -> None:
    types = ("run.succeeded", "run.failed", "study.failed")
    with database.writing() as session:
        register(session, WebhookRequest(url="https://example.org/", types=types), "lab")
    with private_lab(client, settings, database) as lab, database.reading() as session:
        bodies = {row.subject: row.body for row in session.scalars(select(DeliveryRow))}
    told = {lab.runs[name] for name in ("succeeds", "fails", "analyses")} | {lab.study}
    told |= {lab.runs[f"registers {name}"] for name in ("open-dit", "open-judge")}
    assert bodies.keys() == told
    assert [body for body in bodies.values() if VEILED in body] == []
    assert f'"name":"analysis of {ANOTHERS}"' in bodies[lab.runs["analyses"]]


def test_mlflow_shows_such_runs_without_names_and_files(
    lab: PrivateLab, settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of MLflow is shown to every user; here it is its own store, without its server."""
    monkeypatch.chdir(tmp_path)  # where it keeps files
    tracked = settings.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    forwarder = Forwarder(tracked, database, Storage(settings.storage))
    while forwarder.round():
        pass
    mlflow = MlflowClient(tracked.mlflow_url)
    experiments = {each.name: each.experiment_id for each in mlflow.search_experiments()}
    runs = {run.data.tags.get(RUN_TAG): run for run in mlflow.search_runs([experiments[ANOTHERS]])}
    hidden = {lab.runs[f"registers {name}"] for name in NAMES.values()}
    shown = {run for name, run in lab.runs.items() if not name.startswith("registers")}
    assert runs.keys() - {None} == shown
    assert runs[None].data.tags[STUDY_TAG] == lab.study
    assert runs[lab.runs["succeeds"]].data.metrics["fid40/another_s"] == 5.0
    assert {each.path for each in mlflow.list_artifacts(runs[lab.runs["succeeds"]].info.run_id)} == {
        "graft.json"
    }
    assert list((tmp_path / "mlruns").rglob("graft.json"))
    texts = [tmp_path / "mlflow.db", *(file for file in (tmp_path / "mlruns").rglob("*") if file.is_file())]
    assert not any(secret.encode() in file.read_bytes() for file in texts for secret in (VEILED, *hidden))
