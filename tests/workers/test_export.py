"""EXPORT publishes a run's model as a folder, finds one that is there, and refuses a damaged model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from grafting_core import load_grafted
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.shared_embedders import unique_state
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.experiment import finetune_key
from grafting_core.specs.exports import ExportSpec, export_folder
from grafting_core.specs.jobs import WORK
from grafting_core.storage.artifacts import publish
from grafting_core.storage.storage import Storage
from tests.support.builders import experiment
from tests.support.grafts import forward, graft_of
from tests.support.stages import context, events_of
from workers.contract import StageDone, StageReport
from workers.failures import classify
from workers.group import PIPELINES
from workers.stages.intake import BadInput

FIGURES = {"fid1k/fashion-cnn": 3.5}


def work_of(backbone: Backbone, folder: Path) -> tuple[ExportSpec, torch.nn.Module]:
    """The export of a run whose model is published, and that model."""
    spec = experiment(layers=[1, 3])
    design, transformer = graft_of(backbone, *spec.design.parts)
    card = {"design": design.model_dump(mode="json"), "metrics": {}}
    weights = save(unique_state(transformer))
    publish(Storage(str(folder)), f"models/{finetune_key(spec)}", "model.safetensors", weights, card)
    return ExportSpec(name="export", experiment=spec, run="r0", figures=FIGURES), transformer


def reported(folder: Path, run: str) -> StageReport:
    bodies = [event.body for event in events_of(folder, run)]
    return next(body.report for body in bodies if isinstance(body, StageDone))


def test_a_model_is_published_as_a_folder_and_found_by_the_next(tmp_path: Path, backbone: Backbone) -> None:
    work, transformer = work_of(backbone, tmp_path)
    Storage(str(tmp_path)).write_bytes(
        "exports/staging/r1/.export-1/written/left.bin", b"by a killed attempt"
    )
    for run in ("r1", "r2"):
        PIPELINES["export"](context(tmp_path, backbone, work, run))
    first, second = reported(tmp_path, "r1"), reported(tmp_path, "r2")
    assert [first.stop_cause, second.stop_cause] == ["completed", "reused"]
    assert first.artifacts == second.artifacts
    assert first.artifacts.keys() > {"card.json", "README.md", "transformer/config.json", "vae/config.json"}
    assert all((tmp_path / path).is_file() for path in first.artifacts.values())
    folder = tmp_path / export_folder(work.digest) / "content"
    assert torch.equal(forward(backbone, load_grafted(folder).transformer), forward(backbone, transformer))
    text = (folder / "README.md").read_text()
    assert "| fid1k/fashion-cnn | 3.5 |" in text
    assert "- Run: r0" in text
    assert Storage(str(tmp_path)).names("exports/staging") == []


def test_a_damaged_export_is_made_again(tmp_path: Path, backbone: Backbone) -> None:
    work, _ = work_of(backbone, tmp_path)
    PIPELINES["export"](context(tmp_path, backbone, work, "r1"))
    file = tmp_path / export_folder(work.digest) / "content" / "README.md"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    PIPELINES["export"](context(tmp_path, backbone, work, "r2"))
    assert reported(tmp_path, "r2").stop_cause == "completed"
    assert file.read_bytes() == whole


def test_a_model_that_is_gone_or_damaged_is_named(tmp_path: Path, backbone: Backbone) -> None:
    work, _ = work_of(backbone, tmp_path)
    file = tmp_path / "models" / finetune_key(work.experiment) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match="the model of run r0 cannot be read") as caught:
        PIPELINES["export"](context(tmp_path, backbone, work))
    assert classify(caught.value)[0] == "bad_input"
    assert Storage(str(tmp_path)).names("exports") in ([], ["staging"])


def test_a_teacher_is_exported_as_it_is(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment()
    teacher = spec.model_copy(update={"design": GraftDesign(backbone=spec.backbone)})
    work = ExportSpec(name="export", experiment=teacher, run="r0")
    PIPELINES["export"](context(tmp_path, backbone, work))
    folder = tmp_path / export_folder(work.digest) / "content"
    again = load_grafted(folder).transformer
    assert torch.equal(forward(backbone, again), forward(backbone, backbone.transformer))


def test_what_is_written_is_in_the_key_and_what_it_cost_is_not(tmp_path: Path, backbone: Backbone) -> None:
    work, _ = work_of(backbone, tmp_path)
    again = WORK.validate_json(json.dumps(work.model_dump(mode="json")))
    assert again == work
    assert again.digest == work.digest
    changes = ({}, {"figures": {}}, {"licence": "mit"}, {"run": "r9"})
    keys = {work.model_copy(update=change).digest for change in changes}
    assert len(keys) == 4
    wider = work.resources.model_copy(update={"workers": 2})
    assert work.model_copy(update={"resources": wider}).digest == work.digest
