"""`graft export` against a real application, with a worker in this process."""

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save
from torch import nn

from grafting_core import load_grafted
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.shared_embedders import unique_state
from grafting_core.specs.experiment import finetune_key
from grafting_core.storage.artifacts import publish
from grafting_core.storage.folders import delete_folder
from grafting_core.storage.storage import Storage
from service.cli.console import Refused
from service.cli.export import download
from service.client import GraftlabClient
from service.db.engine import Database
from service.db.tables import RunRow, StageRow
from service.domain.artifact_contents import damaged_files, folders
from service.domain.invariants import missing_artifacts
from service.domain.registry_files import unneeded_folders
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.commands import Graft, command_line, serving_lab
from tests.support.grafts import forward, graft_of
from tests.support.runs import FIGURES, queue
from workers.contract import StageReport

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def database_kind() -> str:
    """What is exported depends on no database."""
    return "sqlite"


def finished(database: Database) -> str:
    """A graft that has succeeded with these figures."""
    run = queue(database, layers=[1, 3])
    report = StageReport(
        stage="evaluate", key="k", metrics=FIGURES, intervals={"fid40/fashion-cnn": (4.5, 5.5)}
    )
    with database.writing() as session:
        session.get_one(RunRow, run).state = "SUCCEEDED"
        session.add(StageRow(run_id=run, stage="evaluate", attempt=1, report=report.model_dump(mode="json")))
    return run


@pytest.fixture
def model(settings: Settings, backbone: Backbone) -> nn.Module:
    """The model that the run has published."""
    spec = experiment(layers=[1, 3])
    design, transformer = graft_of(backbone, *spec.design.parts)
    card = {"design": design.model_dump(mode="json"), "metrics": {}}
    weights = save(unique_state(transformer))
    publish(Storage(settings.storage), f"models/{finetune_key(spec)}", "model.safetensors", weights, card)
    return transformer


def test_an_export_is_queued_with_the_figures_of_its_run(client: TestClient, database: Database) -> None:
    run = finished(database)
    answer = client.post("/api/v1/exports", json={"run": run, "licence": "cc-by-4.0"})
    assert answer.status_code == 202
    made = client.get(answer.headers["location"]).json()
    assert (made["kind"], made["state"], made["backbone"]) == ("export", "QUEUED", "testbed/dit-fashion")
    assert made["work"]["figures"] == FIGURES
    assert made["work"]["intervals"] == {"fid40/fashion-cnn": [4.5, 5.5]}
    assert (made["work"]["run"], made["work"]["licence"]) == (run, "cc-by-4.0")
    assert client.get(f"/runs/{made['id']}").status_code == 200


def test_what_cannot_be_exported_is_refused_and_queues_nothing(
    client: TestClient, database: Database
) -> None:
    queued = queue(database)
    unfinished = client.post("/api/v1/exports", json={"run": queued})
    assert (unfinished.status_code, unfinished.json()["code"]) == (409, "conflict")
    assert "is QUEUED; a run is exported once it has succeeded" in unfinished.json()["detail"]
    assert client.post("/api/v1/exports", json={"run": "nope"}).status_code == 404
    wrong = client.post("/api/v1/exports", json={"run": queued, "format": "onnx"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/format")
    with database.writing() as session:
        session.get_one(RunRow, queued).state = "SUCCEEDED"
    again = client.post("/api/v1/exports", json={"run": queued}).json()["run_id"]
    with database.writing() as session:
        session.get_one(RunRow, again).state = "SUCCEEDED"
    other = client.post("/api/v1/exports", json={"run": again})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert "export work, not a graft" in other.json()["detail"]
    assert len(client.get("/api/v1/runs").json()["runs"]) == 2


@pytest.fixture
def lab(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraftlabClient]:
    with serving_lab(settings, database, monkeypatch) as client:
        yield client


@pytest.fixture
def graft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graft:
    return command_line(monkeypatch, capsys)


def test_a_run_becomes_a_folder_that_goes_on_where_it_stopped(
    lab: GraftlabClient,
    graft: Graft,
    database: Database,
    backbone: Backbone,
    model: nn.Module,
    tmp_path: Path,
) -> None:
    run = finished(database)
    code, shown, _ = graft("export", run[:12], str(tmp_path / "first"), "--json")
    made = json.loads(shown)
    assert (code, made["folder"]) == (0, str(tmp_path / "first"))
    files = [file for file in (tmp_path / "first").rglob("*") if file.is_file()]
    assert made["bytes"] == sum(file.stat().st_size for file in files)
    again = load_grafted(tmp_path / "first")
    assert torch.equal(forward(backbone, again.transformer), forward(backbone, model))
    assert f"- Run: {run}" in (tmp_path / "first" / "README.md").read_text()

    whole = (tmp_path / "first" / WEIGHTS).read_bytes()
    begun = tmp_path / ".second.part" / WEIGHTS
    begun.parent.mkdir(parents=True)
    begun.write_bytes(whole[:1000])
    (begun.parent / "left-over").write_bytes(b"x")
    assert graft("export", run, str(tmp_path / "second"))[0] == 0
    assert (tmp_path / "second" / WEIGHTS).read_bytes() == whole
    names = {file.relative_to(tmp_path / "first") for file in files}
    assert {
        file.relative_to(tmp_path / "second") for file in (tmp_path / "second").rglob("*") if file.is_file()
    } == names

    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"wrong" + whole[5:1000])
    code, _, said = graft("export", run, str(tmp_path / "second"))
    assert (code, "exists; name a folder that does not" in said) == (2, True)
    (tmp_path / ".second.part").rename(tmp_path / ".third.part")
    assert graft("export", run, str(tmp_path / "third"))[0] == 0
    assert (tmp_path / "third" / WEIGHTS).read_bytes() == whole


def test_a_download_is_refused_into_a_folder_of_others_and_of_files_that_are_not_as_published(
    lab: GraftlabClient,
    graft: Graft,
    database: Database,
    model: nn.Module,
    settings: Settings,
    tmp_path: Path,
) -> None:
    made = json.loads(graft("export", finished(database), str(tmp_path / "out"), "--json")[1])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".linked.part").symlink_to("elsewhere")
    with pytest.raises(Refused, match=r"\.linked\.part is not a folder of yours"):
        download(lab, made["run"], tmp_path / "linked")
    assert not any((tmp_path / "elsewhere").iterdir())
    storage = Storage(settings.storage)
    (folder,) = [name for name in folders(storage) if name.startswith("exports/") and "staging" not in name]
    storage.write_bytes(f"{folder}/content/pipeline.py", b"import os")
    with pytest.raises(Refused, match=r"pipeline\.py is not what the lab published; repeat the command"):
        download(lab, made["run"], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_export_is_found_by_a_check(
    lab: GraftlabClient,
    graft: Graft,
    database: Database,
    model: nn.Module,
    settings: Settings,
    tmp_path: Path,
) -> None:
    assert graft("export", finished(database), str(tmp_path / "out"))[0] == 0
    storage = Storage(settings.storage)
    (folder,) = [name for name in folders(storage) if name.startswith("exports/") and "staging" not in name]
    assert list(damaged_files(storage, folder)) == []
    storage.write_bytes(f"{folder}/content/pipeline.py", b"import os")
    (found,) = damaged_files(storage, folder)
    assert found == (folder, f"{folder}/content/pipeline.py does not match its card")


def test_an_old_export_is_deleted_and_made_again(
    lab: GraftlabClient,
    graft: Graft,
    database: Database,
    model: nn.Module,
    settings: Settings,
    tmp_path: Path,
) -> None:
    run, storage = finished(database), Storage(settings.storage)
    made = json.loads(graft("export", run, str(tmp_path / "out"), "--json")[1])
    (key,) = [name for name in storage.names("exports") if len(name) == 64]

    def unneeded(days: float) -> list[str]:
        with database.reading() as session:
            return unneeded_folders(session, storage, days)

    assert unneeded(1.0) == unneeded(math.inf) == []
    with database.writing() as session:
        row = session.get_one(RunRow, made["run"])
        assert row.ended_at is not None
        row.ended_at -= timedelta(days=2)
    assert (unneeded(1.0), unneeded(3.0)) == ([f"exports/{key}"], [])
    delete_folder(storage, f"exports/{key}")
    with database.reading() as session:
        assert list(missing_artifacts(session, storage)) == []
    again = graft("export", run, str(tmp_path / "again"))
    assert again[0] == 0, again
    files = {each.relative_to(tmp_path / "out"): each.read_bytes() for each in files_in(tmp_path / "out")}
    assert {
        each.relative_to(tmp_path / "again"): each.read_bytes() for each in files_in(tmp_path / "again")
    } == files


def files_in(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]


def test_the_end_of_a_file_is_sent_alone(
    lab: GraftlabClient, graft: Graft, database: Database, model: nn.Module, tmp_path: Path
) -> None:
    made = json.loads(graft("export", finished(database), str(tmp_path / "out"), "--json")[1])
    whole = (tmp_path / "out" / "design.yaml").read_bytes()
    address = f"/runs/{made['run']}/artifacts/export/design.yaml"
    part = lab._http.get(address, headers={"Range": "bytes=10-"})
    assert (part.status_code, part.content) == (206, whole[10:])
    assert part.headers["Content-Range"] == f"bytes 10-{len(whole) - 1}/{len(whole)}"
    for other in ("bytes=0-", f"bytes={len(whole)}-", "bytes=-5", "bytes=1-2", "lines=1-"):
        answer = lab._http.get(address, headers={"Range": other})
        assert (answer.status_code, answer.content) == (200, whole)


def test_a_run_without_its_model_fails_with_the_reason(
    lab: GraftlabClient, graft: Graft, database: Database, tmp_path: Path
) -> None:
    run = finished(database)
    code, _, said = graft("export", run, str(tmp_path / "out"))
    assert code == 1
    assert f"the model of run {run} cannot be read" in " ".join(said.split())
    assert not (tmp_path / "out").exists()
