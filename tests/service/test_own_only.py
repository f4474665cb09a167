"""Whoever sees only their own is told no id and no name of anybody else's, by no route there is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import scions_of
from grafting_core.specs.private_names import ANOTHERS
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.db.tables import RunRow
from service.domain.artifact_dependencies import is_there
from service.domain.artifacts_in_progress import Making
from service.domain.attempt_events import apply_event
from service.domain.submission import QueueOptions, submit
from service.settings import Settings
from tests.support.bank import deposit
from tests.support.builders import document, experiment, study_document
from tests.support.clients import as_user
from tests.support.routes import ROUTES, request_of
from tests.support.runs import FIGURES, STARTED, begin, event
from workers.contract import AttemptSucceeded, EventBody, StageDone, StageReport

UNKNOWN = {"run_id": "00000000000000", "study_id": "00000000000001"}


@dataclass(frozen=True)
class Stage:
    """A lab with work of two people in it: zoe's, which the guest must not hear of, and the guest's own."""

    guest: TestClient
    zoe: TestClient
    own: Mapping[str, str]
    foreign: Mapping[str, str]
    secrets: frozenset[str]


@pytest.fixture
def stage(client: TestClient, settings: Settings) -> Stage:
    zoe, guest = as_user(client, "zoe"), as_user(client, "guest", sees="own")
    foreign_study = zoe.post("/api/v1/studies", json=study_document(name="veiled study")).json()["study_id"]
    own_study = guest.post("/api/v1/studies", json=study_document(name="my study")).json()["study_id"]
    database = client.app.state.lab.database  # type: ignore[attr-defined]  # starlette's type is wider
    bank = Bank(Storage(settings.storage))
    with database.writing() as session:
        done = _queued(session, "zoe", "veiled done", layers=[0])
        _finish(session, settings, done, {})
        making = _queued(session, "zoe", "veiled making", layers=[1])
        begin(session, making)
        ahead = _queued(session, "zoe", "veiled ahead", priority=5, layers=[2])
        mine = _queued(session, "guest", "my done", layers=[0, 3])
        _finish(session, settings, mine, {"block 0 attention": done.id})
        waiting = _queued(session, "guest", "my waiting", layers=[1])
        session.flush()
        look = Making(session, lambda *place: is_there(bank.storage, *place))
        look.prepare([waiting.id])
        waiting.message = look.wait_of(waiting.id)
        assert making.id in str(waiting.message)
        card = deposit(bank, scions_of(experiment(layers=[2]))[0], made_by=done.id)
    return Stage(
        guest=guest,
        zoe=zoe,
        own={"run_id": mine.id, "waiting": waiting.id, "study_id": own_study, "key": card.key},
        foreign={"run_id": done.id, "study_id": foreign_study},
        secrets=frozenset({"zoe", "veiled", foreign_study, done.id, making.id, ahead.id}),
    )


def _queued(session: Session, owner: str, name: str, priority: int = 0, **changes: Any) -> RunRow:
    spec = experiment(name=name, **changes)
    return submit(session, spec, "digest", None, owner=owner, placing=QueueOptions(priority=priority))


def _finish(session: Session, settings: Settings, run: RunRow, made_by: dict[str, str]) -> None:
    begin(session, run)
    distilled = StageReport(stage="distill", key="k", stop_cause="reused", made_by=made_by)
    evaluated = StageReport(stage="evaluate", key="k", metrics=FIGURES, made_by=made_by)
    ended = AttemptSucceeded(spend=Usage())
    bodies: list[EventBody] = [STARTED, StageDone(report=distilled), StageDone(report=evaluated), ended]
    for seq, body in enumerate(bodies, 1):
        assert apply_event(session, settings, event(run, seq, body))


def said(client: TestClient, route: str, ids: Mapping[str, str]) -> tuple[int, str]:
    """Status, and all of an answer that a reader sees."""
    answer = client.request(**request_of(route, ids))
    return answer.status_code, f"{dict(answer.headers)} {answer.text}"


def test_no_route_tells_a_guest_of_anybody_elses(stage: Stage) -> None:
    for route, call in ROUTES.items():
        # The stream of a run that waits has no end; that of one that has ended tells of its events.
        runs = [stage.own["run_id"], *([] if "/events" in route else [stage.own["waiting"]])]
        for run_id in runs:
            status, text = said(stage.guest, route, {**stage.own, "run_id": run_id})
            assert not [secret for secret in stage.secrets if secret in text], (route, text[:500])
            assert status < 500 or call.to_guests == "open", route
            if call.to_guests in ("closed", "admin"):
                assert status == 403, route


def test_a_foreign_id_is_answered_as_one_that_nobody_has(stage: Stage) -> None:
    for route in ROUTES:
        for name in ("run_id", "study_id"):
            body = (ROUTES[route].body or {}).keys()
            if f"{{{name}}}" not in route and not (name == "run_id" and "runs" in body):
                continue
            found = said(stage.guest, route, {**stage.own, **stage.foreign})
            missing = said(stage.guest, route, {**stage.own, **UNKNOWN})
            assert found[0] == missing[0], route
            assert "there is no" in found[1], route
            assert not [each for each in stage.secrets - set(stage.foreign.values()) if each in found[1]], (
                route
            )


def test_what_the_guest_is_not_told_the_others_are(stage: Stage, client: TestClient) -> None:
    """Without this the table above could hold in a lab where there is nothing to tell."""
    waiting, done = stage.own["waiting"], stage.own["run_id"]
    theirs, guests = (
        {
            path: asker.get(f"/api/v1/{path}").text
            for path in ("queue", "scions", f"scions/{stage.own['key']}", f"runs/{waiting}", f"runs/{done}")
        }
        for asker in (client, stage.guest)
    )
    for path, text in theirs.items():
        assert [secret for secret in stage.secrets if secret in text], path
        assert ANOTHERS in guests[path], path
    assert stage.zoe.get("/metrics").status_code == 200
    plan = {"url": "/api/v1/experiments/plan", "json": document(layers=[1])}
    assert client.post(**plan).json()["holdings"][0]["waits_for"]
    assert not stage.guest.post(**plan).json()["holdings"][0]["waits_for"]
    events = stage.guest.get(f"/api/v1/runs/{done}/events").text
    reports = [
        json.loads(line[6:]) for line in events.splitlines() if "stage_done" in line and "data" in line
    ]
    assert [event["event"]["body"]["report"]["made_by"] for event in reports] == [
        {"block 0 attention": ANOTHERS}
    ] * 2


def test_nobody_charges_a_study_that_somebody_else_began(stage: Stage, client: TestClient) -> None:
    study = stage.foreign["study_id"]
    for asker, status in ((stage.guest, 404), (as_user(client, "bob"), 403), (client, 403), (stage.zoe, 202)):
        answer = asker.post(f"/api/v1/experiments?tag={study}", json=document(name="charged"))
        assert answer.status_code == status
        assert answer.json().get("detail", study).count(study) == 1
    runs = [run["owner"] for run in client.get("/api/v1/runs").json()["runs"] if run["tag"] == study]
    assert runs == ["zoe"]
    label = stage.guest.post("/api/v1/experiments?tag=my-label", json=document(name="labelled"))
    assert label.status_code == 202


def test_an_admins_key_cannot_be_one_that_sees_only_its_own(client: TestClient) -> None:
    asked = {"owner": "ann", "role": "admin", "sees": "own"}
    assert client.post("/api/v1/keys", json=asked).json()["pointer"] == "/sees"
    made = client.post("/api/v1/keys", json={**asked, "role": "runner"}).json()
    url = f"/api/v1/keys/{made['id']}"
    assert client.patch(url, json={"role": "admin"}).status_code == 422
    assert client.get("/api/v1/keys").json()[0]["role"] == "runner"
    assert client.patch(url, json={"role": "admin", "sees": "lab"}).status_code == 200
