"""Checkpoints are imported over REST and from the command line, with their licence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from grafting_core.backbones import published_figures
from grafting_core.specs.backbone import register_cards
from service.db.engine import Database
from service.settings import Settings
from tests.support.checkpoints import HYENA, RELEASED, save_checkpoint, save_vae, small_state
from tests.support.commands import Graft, command_line, serving_lab
from tests.support.diffusers_folders import write_folder
from tests.support.registering import InProcess, register


@pytest.fixture
def database_kind() -> str:
    """What is imported depends on no database."""
    return "sqlite"


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's only import root: a released graft and an autoencoder."""
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(folder / RELEASED / "model.pt", {"ema": small_state(HYENA)})
    save_vae(folder / "vae")
    return folder


@pytest.fixture
def settings(settings: Settings, models: Path) -> Settings:
    return settings.model_copy(update={"import_roots": [models]})


@pytest.fixture
def lab(settings: Settings, database: Database, client: TestClient) -> InProcess:
    return InProcess(settings, database)


@pytest.fixture(autouse=True)
def _nothing_registered() -> Iterator[None]:
    yield
    register_cards(())


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    return command_line(monkeypatch, capsys)


def test_a_checkpoint_takes_a_licence_and_an_autoencoder(client: TestClient, models: Path) -> None:
    document = {"name": "mine", "path": str(models / RELEASED / "model.pt")}
    answer = client.post("/api/v1/backbones", json=document)
    assert answer.status_code == 422
    problems = {each["pointer"]: each["message"] for each in answer.json()["errors"]}
    assert problems == {
        "/vae": "a checkpoint has no autoencoder; name the folder of one",
        "/licence": "a checkpoint names no licence; give the one that its publisher names",
    }
    document |= {"vae": str(models / "vae"), "licence": "MIT", "objective": "v_prediction"}
    answer = client.post("/api/v1/backbones", json=document)
    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/objective"]
    assert client.get("/api/v1/runs").json()["runs"] == []


def test_a_link_to_a_checkpoint_keeps_its_name_and_leads_to_no_other_place(
    client: TestClient, lab: InProcess, models: Path, tmp_path: Path
) -> None:
    blob = models / "blobs" / "2cf24dba"
    blob.parent.mkdir()
    (models / RELEASED / "model.pt").rename(blob)
    (models / RELEASED / "model.pt").symlink_to("../blobs/2cf24dba")
    document = {"path": str(models / RELEASED / "model.pt"), "vae": str(models / "vae"), "licence": "MIT"}
    register(client, lab, name="linked", **document)
    card = client.get("/api/v1/backbones/linked").json()["card"]
    assert card["origin"] == f"{RELEASED}/model.pt"
    shutil.copy(blob, tmp_path / "secret.pt")
    (models / RELEASED / "other.pt").symlink_to(tmp_path / "secret.pt")
    (models / "elsewhere").symlink_to(tmp_path)
    for path in (models / RELEASED / "other.pt", models / "elsewhere" / "secret.pt"):
        answer = client.post("/api/v1/backbones", json={**document, "name": "x", "path": str(path)})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "path-not-allowed")


def test_an_imported_graft_has_its_arithmetic_edits_licence_and_scions(
    client: TestClient, lab: InProcess, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_figures, "XL2", (2, 384, 2))
    file, vae = models / RELEASED / "model.pt", models / "vae"
    run_id = register(client, lab, name="hyena-x", path=str(file), vae=str(vae), licence="Apache-2.0")
    assert client.get(f"/api/v1/runs/{run_id}").json()["state"] == "SUCCEEDED"
    listed = {each["name"]: each for each in client.get("/api/v1/backbones").json()}
    assert listed["hyena-x"]["licence"] == "Apache-2.0"
    assert listed["hyena-x"]["figures"]["published_fid"] == 2.61
    assert (listed["hyena-x"]["arithmetic"], listed["hyena-x"]["grafts"]) == ("original", ["1 hyena_x"])
    page = client.get("/operators", headers={"Accept": "text/html"}).text
    assert "<td>original</td><td>Apache-2.0</td>" in page
    assert f'<td>1 hyena_x <small class="note">{RELEASED}/model.pt</small></td>' in page
    summary = client.get("/api/v1/backbones/hyena-x").json()["summary"]
    assert summary.endswith("1000 classes, original arithmetic, 1 hyena_x")
    card = client.get("/api/v1/backbones/hyena-x").json()["card"]
    assert (card["arithmetic"], card["origin"]) == ("original", f"{RELEASED}/model.pt")
    assert [edit["operator"]["kind"] for edit in card["edits"]] == ["hyena_x"]
    [scion] = client.get("/api/v1/scions", params={"backbone": "hyena-x"}).json()["scions"]
    assert (scion["site"], scion["kind"], scion["nmse"]) == ("block 1 attention", "hyena_x", None)
    assert scion["origin"] == f"{RELEASED}/model.pt"
    shown = client.get(f"/api/v1/scions/{scion['key']}").json()
    assert shown["scion"]["origin"] == f"{RELEASED}/model.pt"
    assert "plan" not in shown["scion"]


def test_imported_scions_stay_while_their_backbone_is_registered(
    client: TestClient, lab: InProcess, models: Path
) -> None:
    file, vae = models / RELEASED / "model.pt", models / "vae"
    register(client, lab, name="hyena-x", path=str(file), vae=str(vae), licence="MIT")
    answer = client.post("/api/v1/scions:gc", json={"max_bytes": 0}).json()
    assert (answer["removed"], answer["kept_imported"]) == ([], 1)
    assert len(client.get("/api/v1/scions").json()["scions"]) == 1
    assert client.delete("/api/v1/backbones/hyena-x").status_code == 200
    answer = client.post("/api/v1/scions:gc", json={"max_bytes": 0}).json()
    assert (len(answer["removed"]), answer["kept_imported"]) == (1, 0)
    assert client.get("/api/v1/scions").json()["scions"] == []


def test_a_checkpoint_under_the_name_of_something_else_is_refused(
    client: TestClient, lab: InProcess, models: Path
) -> None:
    file, vae = models / RELEASED / "model.pt", models / "vae"
    given = {"name": "hyena-x", "vae": str(vae), "licence": "MIT"}
    register(client, lab, path=str(file), **given)
    register(client, lab, path=str(file), **given)
    assert len(client.get("/api/v1/backbones/hyena-x").json()["revisions"]) == 1
    other = save_checkpoint(models / "others" / "model.pt", small_state())
    answer = client.post("/api/v1/backbones", json={**given, "path": str(other)})
    assert answer.status_code == 409
    assert f"hyena-x was registered from {RELEASED}/model.pt; choose another name" in answer.json()["detail"]
    folder = write_folder(models / "plain")
    answer = client.post("/api/v1/backbones", json={"name": "hyena-x", "path": str(folder)})
    assert answer.status_code == 409
    register(client, lab, path=str(other), another_revision=True, **given)
    detail = client.get("/api/v1/backbones/hyena-x").json()
    assert [each["revision"] for each in detail["revisions"]] == [1, 2]
    assert detail["card"]["edits"] == []


def test_a_file_of_the_hub_is_a_checkpoint_and_needs_what_a_checkpoint_needs(client: TestClient) -> None:
    hub = {"name": "x", "hub": "ann/net@main"}
    for more, pointers in (
        ({"file": "model.pt"}, ["/licence", "/vae"]),
        ({"file": "model.safetensors"}, ["/file"]),
    ):
        answer = client.post("/api/v1/backbones", json={**hub, **more})
        assert answer.status_code == 422
        assert sorted(each["pointer"] for each in answer.json()["errors"]) == pointers
    answer = client.post("/api/v1/backbones", json={"name": "x", "path": "/models/x", "file": "model.pt"})
    assert [each["pointer"] for each in answer.json()["errors"]] == ["/file"]


def test_the_command_line_asks_for_the_licence_and_imports(
    settings: Settings, database: Database, graft: Graft, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_lab(settings, database, monkeypatch):
        check_commands(graft, models)


def check_commands(graft: Graft, models: Path) -> None:
    file, vae = models / RELEASED / "model.pt", models / "vae"
    code, _, told = graft("import", str(file), "--name", "hyena-x", "--vae", str(vae))
    assert code == 2
    assert "a checkpoint names no licence" in told
    assert graft("import", str(models / "vae"), "--name", "x", "--vae", str(vae))[0] == 2
    words = ["--vae", str(vae), "--licence", "Apache-2.0", "--wait", "--json"]
    code, _, told = graft("import", str(file), "--name", "hyena-x", *words, "--max-bytes", "1000")
    assert code == 1
    assert "may register 1,000 more" in told
    code, shown, told = graft("import", str(file), "--name", "hyena-x", *words)
    assert code == 0, told
    made = json.loads(shown)
    assert (made["licence"], made["card"]["arithmetic"]) == ("Apache-2.0", "original")
    [scion] = json.loads(graft("bank", "ls", "--json")[1])
    assert graft("bank", "ls")[0] == 0
    told = graft("bank", "show", scion["key"])[1]
    assert f"imported from {RELEASED}/model.pt" in " ".join(told.split())
    assert "Apache-2.0" in graft("backbone", "show", "hyena-x")[1]
