"""What people register: revisions, rights, quotas, whose it is, and what refers to it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from sqlalchemy import select

from grafting_core.specs.backbone import BackboneRef, card_of
from service.db.engine import Database
from service.db.registry_tables import RegisteredRow
from service.domain.invariants import verify
from tests.support import registering
from tests.support.builders import document, study_document
from tests.support.clients import as_user
from tests.support.registering import InProcess, add, pipeline, register, state

lab, models, settings = registering.lab, registering.models, registering.settings
nothing_stays = registering.nothing_stays
JUDGED = {"evaluate": {**document()["evaluate"], "feature_network": "fashion-cnn"}}
"""By the testbed's network, for there is no other one here."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def source(models: Path) -> Path:
    return pipeline(models / "mine")


def other_weights(folder: Path, factor: float = 1.5) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(
        {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        folder / WEIGHTS,
    )


def test_other_weights_under_a_name_are_its_next_revision(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    first = add(client, lab, source, licence="MIT")
    assert (first["revision"], first["licence"], first["card"]["depth"]) == (1, "MIT", 8)
    assert add(client, lab, source)["revision"] == 1
    other_weights(source)
    second = add(client, lab, source)
    assert [row["revision"] for row in second["revisions"]] == [1, 2]
    assert second["revisions"][0]["digest"] == first["digest"] != second["digest"]
    [listed] = [each for each in client.get("/api/v1/backbones").json() if each["name"] == "mine"]
    assert (listed["revision"], listed["runnable"], listed["owner"]) == (2, True, "lab")
    assert listed["pretraining_flops"] is None
    with database.reading() as session:
        assert verify(session, lab.storage) == []
    for given, digest in (("mine", second), ("mine@2", second), ("mine@1", first)):
        planned = client.post("/api/v1/experiments/plan", json=document(backbone=given, **JUDGED)).json()
        assert planned["experiment"]["design"]["backbone"]["digest"] == digest["digest"]
        assert planned["share_of_pretraining"] is None
    missing = client.post("/api/v1/experiments/plan", json=document(backbone="mine@3"))
    assert (missing.status_code, missing.json()["pointer"]) == (422, "/backbone")
    assert "has 2 revisions" in missing.json()["detail"]


def test_a_run_keeps_the_sizes_of_the_revision_that_it_names(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    first = add(client, lab, source)
    other_weights(source)
    add(client, lab, source)
    run = client.post("/api/v1/experiments", json=document(backbone="mine@1", **JUDGED)).json()["run_id"]
    work = client.get(f"/api/v1/runs/{run}").json()["work"]
    assert work["design"]["backbone"]["digest"] == first["digest"]
    assert client.get(f"/runs/{run}").status_code == 200
    refused = client.delete("/api/v1/backbones/mine")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert run in refused.json()["detail"]
    assert client.delete("/api/v1/backbones/mine", params={"revision": 2}).json()["revisions"] == [2]
    client.post(f"/api/v1/runs/{run}/cancel")
    removed = client.delete("/api/v1/backbones/mine").json()
    assert (removed["revisions"], removed["bytes"]) == ([1], first["size"])
    assert client.get("/api/v1/backbones/mine").status_code == 404
    lab.clean()
    assert not lab.storage.names("registry/backbones")
    assert client.get(f"/runs/{run}").status_code == 200
    assert card_of(BackboneRef(name="mine", digest=first["digest"])).depth == 8
    unknown = client.post("/api/v1/experiments", json=document(backbone="mine"))
    assert unknown.json()["errors"][0]["code"] == "unknown-backbone"


def test_a_removed_revision_comes_back_under_its_number(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    first = add(client, lab, source)
    client.delete("/api/v1/backbones/mine")
    again = add(client, lab, source)
    assert (again["revision"], again["digest"]) == (1, first["digest"])


@pytest.mark.large
def test_a_registered_backbone_is_grafted_and_ranked(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    """After its source is gone; a network that the lab has no weights of judges nothing."""
    made = add(client, lab, source)
    shutil.rmtree(source)
    refused = client.post("/api/v1/experiments", json=document(backbone="mine"))
    assert (refused.status_code, refused.json()["pointer"]) == (422, "/evaluate/feature_network")
    design = document(backbone="mine", layers=[1], **JUDGED)
    run = client.post("/api/v1/experiments", json=design).json()["run_id"]
    lab.round()
    found = client.get(f"/api/v1/runs/{run}").json()
    assert found["state"] == "SUCCEEDED", found["message"]
    assert found["work"]["design"]["backbone"] == {"name": "mine", "digest": made["digest"]}
    [group] = client.get("/api/v1/leaderboard").json()["groups"]
    assert (group["backbone"], group["rows"][0]["run_id"]) == ("mine", run)
    assert group["rows"][0]["share_of_pretraining"] is None
    assert group["rows"][0]["params_change"] is not None
    assert client.get("/").status_code == 200
    [scion] = client.get("/api/v1/scions").json()["scions"]
    assert scion["backbone"] == "mine"


def test_a_failed_or_cancelled_registration_leaves_the_name_free(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    (source / WEIGHTS).write_bytes(b"no safetensors")
    run = register(client, lab, name="mine", path=str(source))
    assert state(client, run)[0] == "FAILED"
    assert "safetensors" in state(client, run)[1]
    assert client.get("/api/v1/backbones/mine").status_code == 404
    waiting = client.post("/api/v1/backbones", json={"name": "mine", "path": str(source)})
    second = client.post("/api/v1/backbones", json={"name": "mine", "path": str(source)})
    assert (second.status_code, second.json()["code"]) == (409, "conflict")
    assert waiting.json()["run_id"] in second.json()["detail"]
    assert client.get("/api/v1/backbones/mine").json()["registering"] == waiting.json()["run_id"]
    retried = client.post(f"/api/v1/runs/{run}/retry")
    assert (retried.status_code, retried.json()["code"]) == (409, "illegal-transition")
    client.post(f"/api/v1/runs/{waiting.json()['run_id']}/cancel")
    assert client.get("/api/v1/backbones/mine").status_code == 404
    assert client.post(f"/api/v1/runs/{run}/retry").json()["state"] == "QUEUED"
    with database.reading() as session:
        states = sorted(session.scalars(select(RegisteredRow.state)))
    assert states == ["failed", "registering"]
    assert not lab.storage.names("registry/backbones")


def test_the_same_request_again_is_the_same_registration(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    asked: dict[str, Any] = {
        "json": {"name": "mine", "path": str(source)},
        "headers": {"Idempotency-Key": "k"},
    }
    runs = {client.post("/api/v1/backbones", **asked).json()["run_id"] for _ in range(2)}
    assert len(runs) == 1


def test_verifying_reads_the_labs_own_copy(client: TestClient, lab: InProcess, source: Path) -> None:
    made = add(client, lab, source)
    run = client.post("/api/v1/backbones/mine/verify").json()["run_id"]
    lab.round()
    assert state(client, run)[0] == "SUCCEEDED"
    file = lab.storage.local_path(f"registry/backbones/{made['digest']}/content/{WEIGHTS}")
    file.write_bytes(file.read_bytes()[:-1])
    run = client.post("/api/v1/backbones/mine/verify").json()["run_id"]
    lab.round()
    assert state(client, run)[0] == "FAILED"
    assert "mine is damaged" in state(client, run)[1]


def refusal(client: TestClient, kind: str = "backbones", **document: Any) -> tuple[int, str, str]:
    answer = client.post(f"/api/v1/{kind}", json=document)
    body = answer.json()
    return answer.status_code, body.get("pointer", ""), body["detail"]


def test_paths_lie_under_a_root_whatever_links_they_go_through(
    client: TestClient, source: Path, models: Path, tmp_path: Path
) -> None:
    """Never in the lab's own folder, even where that is under a root."""
    (models / "way-out").symlink_to("/etc")
    (models / "lab").symlink_to(tmp_path / "storage")
    context = client.app.state.lab  # type: ignore[attr-defined]  # starlette's type is wider
    context.settings.import_roots.append(tmp_path)
    outside = ["/etc", "/nosuch", f"{source}/../../..", f"{models}/way-out", f"{models}/lab", str(tmp_path)]
    for path in outside:
        status, pointer, detail = refusal(client, name="mine", path=path)
        assert (status, pointer) == (422, "/path"), path
        assert "is not under a folder from which this lab registers" in detail
    assert refusal(client, name="mine", path="models/mine")[1:2] == ("/path",)
    assert refusal(client, name="mine", path=str(source), vae="/etc")[1] == "/vae"
    (models / "way-in").symlink_to(source)
    linked = client.post("/api/v1/backbones", json={"name": "mine", "path": f"{models}/way-in"})
    assert linked.status_code == 202


def test_without_roots_nothing_is_registered_by_path(client: TestClient, source: Path) -> None:
    context = client.app.state.lab  # type: ignore[attr-defined]  # starlette's type is wider
    context.settings.import_roots.clear()
    status, pointer, detail = refusal(client, name="mine", path=str(source))
    assert (status, pointer) == (422, "/path")
    assert "GRAFTLAB_IMPORT_ROOTS" in detail


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"name": "mine"}, ""),
        ({"name": "mine", "path": "/a", "hub": "b/c@d"}, "/hub"),
        ({"name": "mine", "hub": "b/c"}, "/hub"),
        ({"name": "../mine", "path": "/a"}, "/name"),
        ({"name": "a/b/c", "path": "/a"}, "/name"),
        ({"name": "a/verify", "path": "/a"}, "/name"),
        ({"name": "testbed/dit-fashion", "path": "/a"}, "/name"),
        ({"name": "mine", "path": "/a", "dataset": "nosuch"}, "/dataset"),
        ({"name": "mine", "path": "/a", "resources": {"workers": 2}}, "/resources/workers"),
        ({"name": "mine", "path": "/a", "licence": "\n"}, "/licence"),
    ],
)
def test_a_document_that_cannot_be_is_refused(
    client: TestClient, asked: dict[str, Any], pointer: str
) -> None:
    status, found, _ = refusal(client, **asked)
    assert (status, found) == (422, pointer)
    assert client.get("/api/v1/runs").json()["runs"] == []


def test_registering_is_a_right_of_its_own(client: TestClient, lab: InProcess, source: Path) -> None:
    ann = as_user(client, "ann")
    asked = {"name": "anns", "path": str(source), "dataset": "testbed/fashion-mnist"}
    refused = ann.post("/api/v1/backbones", json=asked)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert ann.get("/api/v1/whoami").json()["registers"] is False
    bob = as_user(client, "bob", registers=True)
    assert bob.get("/api/v1/whoami").json()["registers"] is True
    add(bob, lab, source, "bobs")
    carol = as_user(client, "carol", registers=True)
    for asker, status in ((ann, 403), (carol, 403), (client, 200)):
        assert asker.delete("/api/v1/backbones/bobs").status_code == status
    taken = carol.post("/api/v1/backbones", json={**asked, "name": "bobs"})
    assert taken.status_code == 409
    viewer = as_user(client, "eve", role="viewer", registers=True)
    assert viewer.post("/api/v1/backbones", json=asked).status_code == 403


def test_an_owner_registers_so_many_bytes(client: TestClient, lab: InProcess, source: Path) -> None:
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    limit = client.patch("/api/v1/accounts/user/ann", json={"max_registered_bytes": size + 10})
    assert limit.json()["max_registered_bytes"] == size + 10
    ann = as_user(client, "ann", registers=True)
    assert add(ann, lab, source, "one")["size"] == size
    other_weights(source)
    run = register(ann, lab, name="two", path=str(source))
    assert state(ann, run)[0] == "FAILED"
    assert "may register 10 more" in state(ann, run)[1]
    client.patch("/api/v1/accounts/user/ann", json={"max_registered_bytes": size})
    refused = ann.post("/api/v1/backbones", json={"name": "two", "path": str(source)})
    assert (refused.status_code, refused.json()["code"]) == (403, "quota")
    ann.delete("/api/v1/backbones/one")
    assert add(ann, lab, source, "two")["size"] <= size


def test_private_things_are_their_owners_alone(client: TestClient, lab: InProcess, source: Path) -> None:
    ann, bob = as_user(client, "ann", registers=True), as_user(client, "bob", registers=True)
    made = add(ann, lab, source, "anns-secret", private=True)
    assert made["private"] is True
    run = ann.post(
        "/api/v1/experiments", json=document(name="design", backbone="anns-secret", **JUDGED)
    ).json()["run_id"]
    study = study_document(name="search", backbone="anns-secret", **JUDGED)
    study_id = ann.post("/api/v1/studies", json=study).json()["study_id"]
    ann.post("/api/v1/backbones/anns-secret/verify")
    for path in (
        "backbones",
        "runs",
        f"runs/{run}",
        "studies",
        f"studies/{study_id}",
        "queue",
        "leaderboard",
    ):
        for asker, sees in ((ann, True), (client, True), (bob, False)):
            answer = asker.get(f"/api/v1/{path}")
            assert answer.status_code == 200, path
            if path not in ("queue", "leaderboard"):
                assert ("anns-secret" in answer.text) is sees, (path, sees)
            assert sees or "anns-secret" not in answer.text, path
    for page in (f"/runs/{run}", "/runs", "/operators", f"/studies/{study_id}"):
        assert bob.get(page).status_code == 200
        assert "anns-secret" not in bob.get(page).text, page
    runs = {each["id"] for each in ann.get("/api/v1/runs").json()["runs"]}
    unseen = runs - {each["id"] for each in bob.get("/api/v1/runs").json()["runs"]}
    assert len(unseen) == 2
    for each in unseen:
        assert bob.get(f"/api/v1/runs/{each}").status_code == 404
        assert bob.get(f"/api/v1/runs/{each}/log").status_code == 404
    assert bob.get("/api/v1/backbones/anns-secret").status_code == 404
    assert bob.delete("/api/v1/backbones/anns-secret").status_code == 404
    named = bob.post("/api/v1/experiments/plan", json=document(backbone="anns-secret"))
    nosuch = bob.post("/api/v1/experiments/plan", json=document(backbone="nosuch"))
    assert named.status_code == nosuch.status_code == 422
    assert named.json()["errors"][0]["allowed"] == nosuch.json()["errors"][0]["allowed"]
    assert "anns-secret" not in nosuch.text
    assert bob.post("/api/v1/experiments/plan", json=document(backbone="anns-secret@1")).status_code == 422
    taken = bob.post("/api/v1/backbones", json={"name": "anns-secret", "path": str(source)})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    public = ann.post("/api/v1/backbones", json={"name": "anns-secret", "path": str(source)})
    assert "private" in public.json()["detail"]


def test_files_that_a_private_thing_shares_with_another_tell_nothing_of_it(
    client: TestClient, lab: InProcess, source: Path
) -> None:
    """Equal files are stored once, with one card; bob's run serves it."""
    ann, bob = as_user(client, "ann", registers=True), as_user(client, "bob", registers=True)
    private = register(ann, lab, name="anns-secret", path=str(source), licence="Secret-1", private=True)
    run = register(bob, lab, name="bobs", path=str(source))
    assert bob.get(f"/api/v1/runs/{run}").json()["stages"][0]["stop_cause"] == "reused"
    card = bob.get(f"/api/v1/runs/{run}/artifacts/register/card.json")
    assert card.json()["card"]["depth"] == 8
    assert not [each for each in ("anns-secret", "Secret-1", private) if each in card.text]


def test_two_at_once_for_one_name_are_one_registration(
    client: TestClient, lab: InProcess, source: Path, database: Database
) -> None:
    """The database decides, whatever two requests have seen before they wrote."""
    client.post("/api/v1/backbones", json={"name": "mine", "path": str(source)})
    with database.reading() as session:
        row = session.scalars(select(RegisteredRow)).one()
    copy = {
        column.name: getattr(row, column.name)
        for column in RegisteredRow.__table__.columns
        if column.name != "id"
    }
    with pytest.raises(Exception, match=r"UNIQUE|unique"), database.writing() as session:
        session.add(RegisteredRow(**copy))


def test_a_failed_private_registration_hides_no_name_of_others(
    client: TestClient, database: Database, lab: InProcess, source: Path
) -> None:
    """Bob's private attempt under the name has failed; then Ann registers it for everyone."""
    ann, bob = as_user(client, "ann", registers=True), as_user(client, "bob", registers=True)
    add(ann, lab, source, "shared-name")
    with database.writing() as session:
        [made] = session.scalars(select(RegisteredRow).where(RegisteredRow.name == "shared-name"))
        failed = {"what": "backbone", "name": "shared-name", "owner": "bob", "private": True}
        session.add(RegisteredRow(**failed, run_id=made.run_id, state="failed"))
    for user in (ann, bob):
        assert user.get("/api/v1/backbones/shared-name").status_code == 200
