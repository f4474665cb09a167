"""Files and bytes of what people register: reserved, kept while a revision has them, damaged and healed."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from grafting_core.specs.backbone import BackboneRef, Pretraining, card_of, register_cards
from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.registration import registry_folder
from grafting_core.storage.artifacts import damage
from service.db.engine import Database
from service.db.registry_tables import RegisteredRow
from service.db.tables import ExperimentRow, RunRow
from service.domain.budgets import budget_of, usage_of
from service.domain.pretraining import BACKBONE_DIGEST, backbone_of
from service.domain.registry_files import unneeded_folders
from service.settings import Settings
from tests.support.builders import document, study_document
from tests.support.clients import as_user
from tests.support.registering import InProcess, add, pipeline, register, state
from tests.support.runs import STARTED
from workers.contract import RunTicket, attempt_of, ticket_path
from workers.events import EventLog
from workers.group import _serve, single_process
from workers.stages import register as registering_stage

JUDGED = {"evaluate": {**document()["evaluate"], "feature_network": "fashion-cnn"}}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def settings(settings: Settings, models: Path) -> Settings:
    return settings.model_copy(update={"import_roots": [models], "retry_seconds": 0.0})


@pytest.fixture
def lab(settings: Settings, database: Database, client: TestClient) -> InProcess:
    return InProcess(settings, database)


@pytest.fixture
def source(models: Path) -> Path:
    return pipeline(models / "mine")


@pytest.fixture(autouse=True)
def _nothing_registered() -> Iterator[None]:
    yield
    register_cards(())


def request_of(source: Path, name: str = "mine", **more: Any) -> dict[str, Any]:
    return {"name": name, "path": str(source), "dataset": "testbed/fashion-mnist", **more}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def limited(client: TestClient, most: int) -> TestClient:
    """A user who may register so many bytes."""
    client.patch("/api/v1/accounts/user/ann", json={"max_registered_bytes": most})
    return as_user(client, "ann", registers=True)


def post(user: TestClient, source: Path, name: str, **more: Any) -> tuple[int, dict[str, Any]]:
    answer = user.post("/api/v1/backbones", json=request_of(source, name, **more))
    return answer.status_code, answer.json()


def test_registrations_under_way_reserve_their_owners_quota(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    size = size_of(source)
    ann = limited(client, 2 * size + 100)
    status, first = post(ann, source, "one")
    assert status == 202
    status, refused = post(ann, source, "two")
    assert (status, refused["code"]) == (403, "quota")
    assert f"0 are registered, and registrations under way reserve {2 * size + 100:,}" in (
        refused["detail"].replace("0 bytes more: ", "")
    )
    ann.post(f"/api/v1/runs/{first['run_id']}/cancel")
    status, part = post(ann, source, "one", max_bytes=size + 50)
    assert status == 202
    status, refused = post(ann, source, "two", max_bytes=size + 51)
    assert (status, refused["code"]) == (403, "quota")
    assert f"may register {size + 50:,} bytes more, not {size + 51:,}" in refused["detail"]
    status, second = post(ann, source, "two")
    assert status == 202
    with database.reading() as session:
        reserved = session.scalars(select(RegisteredRow.size).where(RegisteredRow.state == "registering"))
        assert list(reserved) == [size + 50, size + 50]
    lab.round()
    assert [state(ann, each["run_id"])[0] for each in (part, second)] == ["SUCCEEDED"] * 2
    with database.reading() as session:
        assert set(session.scalars(select(RegisteredRow.size).where(RegisteredRow.state == "ready"))) == {
            size
        }
    assert post(ann, source, "three", max_bytes=101)[0] == 403
    assert post(ann, source, "three", max_bytes=100)[0] == 202


def test_a_retry_reserves_what_is_left_by_then(
    client: TestClient, lab: InProcess, source: Path, models: Path
) -> None:
    size = size_of(source)
    ann = limited(client, size + 100)
    broken = pipeline(models / "broken")
    (broken / WEIGHTS).write_bytes(b"no safetensors")
    run = register(ann, lab, **request_of(broken, "one"))
    assert state(ann, run)[0] == "FAILED"
    add(ann, lab, source, "two")
    assert ann.post(f"/api/v1/runs/{run}/retry").json()["state"] == "QUEUED"
    assert client.get(f"/api/v1/runs/{run}").json()["work"]["max_bytes"] == 100
    assert post(ann, source, "three")[0] == 403
    lab.round()
    assert "may register 100 more" in state(ann, run)[1]
    client.patch("/api/v1/accounts/user/ann", json={"max_registered_bytes": size})
    refused = ann.post(f"/api/v1/runs/{run}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal-transition")


def test_the_same_request_again_is_no_second_reservation(client: TestClient, source: Path) -> None:
    ann = limited(client, 10 * size_of(source))
    headers = {"Idempotency-Key": "k"}
    answers = [ann.post("/api/v1/backbones", json=request_of(source), headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["run_id"] == answers[1].json()["run_id"]


def test_leftovers_are_deleted_and_what_is_needed_is_kept(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    made = add(client, lab, source)
    waiting = client.post("/api/v1/backbones", json=request_of(source, "other")).json()["run_id"]
    for name in ("unknown-run", waiting, made["revisions"][0]["run_id"]):
        lab.storage.write_bytes(f"registry/staging/{name}/content/part.bin", b"x")
        lab.storage.write_bytes(f"exports/staging/{name}/.export-1/part.bin", b"x")
    for kind in ("backbones", "datasets", "features"):
        lab.storage.write_bytes(f"registry/{kind}/{'0' * 64}/content/x.bin", b"x")
    lab.storage.write_bytes("registry/backbones/notes.txt", b"somebody's")
    lab.clean()
    assert lab.storage.names("registry/staging") == lab.storage.names("exports/staging") == [waiting]
    assert lab.storage.names("registry/backbones") == [made["digest"], "notes.txt"]
    assert lab.storage.names("registry/datasets") == lab.storage.names("registry/features") == []
    assert lab.storage.names("registry/deleted") == []
    assert damage(lab.storage, registry_folder("backbone", made["digest"])) is None


def test_nothing_is_deleted_that_a_started_registration_may_use(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    """A worker that was killed before it reported has published; the next attempt finds the files."""
    client.post("/api/v1/backbones", json=request_of(source))
    lab.scheduler.round()
    published = registry_folder("backbone", "0" * 64)
    lab.storage.write_bytes(f"{published}/content/x.bin", b"x")
    lab.storage.write_bytes(f"registry/datasets/{'0' * 64}/content/x.bin", b"x")
    with database.reading() as session:
        assert unneeded_folders(session, lab.storage, math.inf) == [f"registry/datasets/{'0' * 64}"]
    with database.writing() as session:
        session.scalars(select(RunRow)).one().state = "FAILED"
        session.scalars(select(RegisteredRow)).one().state = "failed"
    with database.reading() as session:
        assert published in unneeded_folders(session, lab.storage, math.inf)


def test_a_digest_that_unended_work_names_is_kept(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    made = add(client, lab, source)
    run = client.post("/api/v1/experiments", json=document(backbone="mine", **JUDGED)).json()["run_id"]
    with database.writing() as session:  # as if it had been removed while the design was read
        session.scalars(select(RegisteredRow)).one().state = "removed"
    lab.clean()
    assert lab.storage.names("registry/backbones") == [made["digest"]]
    client.post(f"/api/v1/runs/{run}/cancel")
    lab.clean()
    assert lab.storage.names("registry/backbones") == []


def half_way(lab: InProcess) -> None:
    """Carry a registration out up to its last event, which the scheduler has not seen."""
    lab.scheduler.round()
    lab.scheduler.round()
    attempt = attempt_of(list(lab.cluster.jobs)[-1])
    assert attempt is not None
    ticket = lab.storage.read_model(ticket_path(*attempt), RunTicket)
    EventLog(lab.storage, ticket).write(STARTED)
    _serve(ticket, 0.0, single_process(ticket.work))


def test_files_that_another_registration_uses_again_outlive_their_first_name(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    made = add(client, lab, source, "one")
    client.post("/api/v1/backbones", json=request_of(source, "two"))
    half_way(lab)
    assert client.delete("/api/v1/backbones/one").status_code == 200
    lab.clean()
    lab.scheduler.round()
    found = client.get("/api/v1/backbones/two").json()
    assert found["digest"] == made["digest"]
    assert damage(lab.storage, registry_folder("backbone", made["digest"])) is None
    lab.clean()
    assert lab.storage.names("registry/backbones") == [made["digest"]]
    assert client.delete("/api/v1/backbones/two").status_code == 200
    lab.clean()
    assert lab.storage.names("registry/backbones") == []


def test_a_revision_whose_files_are_gone_is_not_ready(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    """Whoever deleted them: the attempt ends, and another one registers them again."""
    run = client.post("/api/v1/backbones", json=request_of(source)).json()["run_id"]
    half_way(lab)
    [digest] = lab.storage.names("registry/backbones")
    lab.storage.delete(f"registry/backbones/{digest}/card.json")
    lab.scheduler.round()
    assert client.get(f"/api/v1/runs/{run}").json()["attempt"] == 2
    assert client.get("/api/v1/backbones/mine").json()["revision"] is None
    lab._done.update(lab.cluster.jobs)
    lab.round()
    assert state(client, run)[0] == "SUCCEEDED"
    assert damage(lab.storage, f"registry/backbones/{digest}") is None


def verified(client: TestClient, lab: InProcess, name: str = "mine") -> str:
    run = str(client.post(f"/api/v1/backbones/{name}/verify").json()["run_id"])
    lab.round()
    return run


def test_damage_is_marked_refused_shown_and_healed(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    made = add(client, lab, source)
    add(client, lab, source, "same-files")
    design = document(backbone="mine", **JUDGED)
    queued = client.post("/api/v1/experiments", json=design).json()["run_id"]
    file = lab.storage.local_path(f"registry/backbones/{made['digest']}/content/{WEIGHTS}")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    client.post(f"/api/v1/runs/{queued}/pause")
    assert state(client, verified(client, lab))[0] == "FAILED"
    for name in ("mine", "same-files"):
        shown = client.get(f"/api/v1/backbones/{name}").json()
        assert (shown["damaged"], shown["revisions"][0]["state"], shown["size"]) == (
            True,
            "damaged",
            made["size"],
        )
        refused = client.post("/api/v1/experiments", json=document(backbone=name, **JUDGED))
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert refused.json()["detail"] == (
            f"the backbone {name} ({made['digest'][:12]}) is damaged: its files are not those that were "
            "registered; register it again from its source"
        )
    [listed] = [each for each in client.get("/api/v1/backbones").json() if each["name"] == "mine"]
    assert listed["damaged"] is True
    study = client.post("/api/v1/studies", json=study_document(name="search", backbone="mine", **JUDGED))
    assert (study.status_code, study.json()["code"]) == (409, "conflict")
    assert client.post("/api/v1/experiments/plan", json=design).status_code == 200
    client.post(f"/api/v1/runs/{queued}/resume")
    lab.round()
    found = client.get(f"/api/v1/runs/{queued}").json()
    assert (found["state"], found["reason"]) == ("FAILED", "bad_input")
    assert "register it again" in found["message"]
    lab.clean()
    assert file.exists()
    assert add(client, lab, source)["revisions"] == made["revisions"]
    for name in ("mine", "same-files"):
        assert client.get(f"/api/v1/backbones/{name}").json()["damaged"] is False
    assert client.post("/api/v1/experiments", json=design).status_code == 202
    assert file.read_bytes() == content


def test_files_brought_back_are_found_intact_and_others_ends_of_checks_mark_nothing(
    client: TestClient, lab: InProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = add(client, lab, source)
    file = lab.storage.local_path(f"registry/backbones/{made['digest']}/content/{WEIGHTS}")
    content = file.read_bytes()

    def unreadable(*given: Any) -> None:
        raise OSError("the disk does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(registering_stage, "damage", unreadable)
        assert state(client, verified(client, lab))[0] == "FAILED"
    assert client.get("/api/v1/backbones/mine").json()["damaged"] is False
    file.write_bytes(content[:-1])
    verified(client, lab)
    assert client.get("/api/v1/backbones/mine").json()["damaged"] is True
    file.write_bytes(content)
    assert state(client, verified(client, lab))[0] == "SUCCEEDED"
    assert client.get("/api/v1/backbones/mine").json()["damaged"] is False


def test_a_damaged_revision_keeps_its_number_and_can_be_removed(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    made = add(client, lab, source)
    lab.storage.delete(f"registry/backbones/{made['digest']}/content/{WEIGHTS}")
    verified(client, lab)
    weights = load_file(source / WEIGHTS)
    save_file(
        {name: value * 1 for name, value in weights.items()}, source / WEIGHTS, metadata={"made": "anew"}
    )
    second = add(client, lab, source)
    assert [(row["revision"], row["state"]) for row in second["revisions"]] == [(1, "damaged"), (2, "ready")]
    assert second["damaged"] is False
    gone = client.delete("/api/v1/backbones/mine").json()
    assert (gone["revisions"], gone["bytes"]) == ([1, 2], made["size"] + second["size"])
    lab.clean()
    assert lab.storage.names("registry/backbones") == []


def test_shares_of_pretraining_go_by_the_runs_own_revision(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    first = add(client, lab, source)
    run = client.post("/api/v1/experiments", json=document(backbone="mine", **JUDGED)).json()["run_id"]
    weights = load_file(source / WEIGHTS)
    save_file(
        {name: value * 1 for name, value in weights.items()}, source / WEIGHTS, metadata={"made": "anew"}
    )
    second = add(client, lab, source)
    old, new = (card_of(BackboneRef(name="mine", digest=each["digest"])) for each in (first, second))
    cost = {"images": 0, "steps": 0, "batch_size": 0}
    cards = [
        card.model_copy(update={"pretraining": Pretraining(flops=flops, **cost)})
        for card, flops in ((old, 1e12), (new, 4e12))
    ]
    with database.reading() as session:
        row = session.get_one(RunRow, run)
        named = session.execute(select(ExperimentRow.kind, BACKBONE_DIGEST)).all()
        ref = backbone_of(row.experiment)
        row.experiment.spec["budget"] = Budget(share_of_pretraining=0.5).model_dump()
        register_cards(cards)
        assert usage_of(ref, Usage(flops=1e12)).share_of_pretraining == 1.0
        assert usage_of(new.ref, Usage(flops=1e12)).share_of_pretraining == 0.25
        assert budget_of(row).flops == 0.5e12
        register_cards(cards, removed=cards[:1])
        assert usage_of(ref, Usage(flops=1e12)).share_of_pretraining == 1.0
        session.rollback()
    assert ref == old.ref
    assert sorted(map(tuple, named)) == [("graft", old.digest), *[("registration", "")] * 2]
