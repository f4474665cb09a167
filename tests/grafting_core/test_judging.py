"""Models and samples are judged without a lab, by the same numbers as in one."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save
from typer.testing import CliRunner

from grafting_core import export_model
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.shared_embedders import unique_state
from grafting_core.data.datasets import LabelledImages
from grafting_core.data.npz import BadFile
from grafting_core.evaluation.cli import describe_reference, evaluate, write_reference
from grafting_core.evaluation.evaluate import feature_network_for, fid_at, recognises, training_reference
from grafting_core.evaluation.features.base import extract
from grafting_core.evaluation.features.inception import Inception
from grafting_core.evaluation.features.inception_weights import InceptionNetwork
from grafting_core.evaluation.metrics.frechet import frechet_of_rows
from grafting_core.specs.design import ParallelPair
from grafting_core.specs.experiment import finetune_key
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.requests import EvaluateRequest, ReferenceRequest, ShowRequest
from grafting_core.storage.artifacts import publish
from grafting_core.storage.storage import Storage
from grafting_core.testbed.plugin import ASSETS
from service.cli.console import Refused
from service.cli.evaluate import protocol_named
from service.cli.main import app
from tests.support.builders import experiment
from tests.support.grafts import SHAPES, graft_of
from tests.support.stages import context
from workers.group import run_stages

OWN = "testbed/dit-fashion"
PROTOCOL = EvaluationProtocol(
    samples=20, sampler="ddim", sampling_steps=2, feature_network="fashion-cnn", micro_batch=10
)


def test_samples_written_by_hand_with_numpy_are_judged(
    tmp_path: Path, backbone: Backbone, dataset: LabelledImages
) -> None:
    gray = dataset.images[:40].numpy()
    np.savez(tmp_path / "samples.npz", gray[..., None].repeat(3, axis=3))
    request = EvaluateRequest(subject=str(tmp_path / "samples.npz"), protocol=PROTOCOL, reference=OWN)
    report = evaluate(request)
    reference = training_reference(backbone.card, feature_network_for(backbone, PROTOCOL))
    rows = extract(feature_network_for(backbone, PROTOCOL), gray, 10).pool
    assert report.values["fid40/fashion-cnn"] == frechet_of_rows(reference.pool, rows)
    assert report.fingerprint.protocol.samples == 40
    assert report.fingerprint.reference == reference.digest
    assert any("40 samples for 128 features" in warning for warning in report.warnings)
    with pytest.raises(ValueError, match="name one with --reference"):
        evaluate(request.model_copy(update={"reference": None}))


def test_adm_mode_names_itself_and_says_when_a_file_would_be_scored_by_its_statistics(
    tmp_path: Path, dataset: LabelledImages
) -> None:
    colours = dataset.images[:40].numpy()[..., None].repeat(3, axis=3)
    np.savez(tmp_path / "samples.npz", arr_0=colours, mu=np.zeros(128))
    protocol = PROTOCOL.model_copy(update={"mode": "adm"})
    report = evaluate(
        EvaluateRequest(subject=str(tmp_path / "samples.npz"), protocol=protocol, reference=OWN)
    )
    assert {name.rpartition("/")[2] for name in report.values} == {"adm"}
    assert not report.intervals
    assert any("has 'mu'" in warning for warning in report.warnings)


def test_a_diffusers_folder_is_judged_as_the_backbone_it_is(backbone: Backbone) -> None:
    report = evaluate(EvaluateRequest(subject=str(ASSETS), protocol=PROTOCOL, reference=OWN))
    # A copy, as loading a folder makes one: the memory layout of weights changes the low bits of a product.
    copied = copy.deepcopy(backbone.transformer)
    assert report.values["fid20/fashion-cnn"] == fid_at(backbone, copied, PROTOCOL, 20)
    expected = fid_at(backbone, backbone.transformer, PROTOCOL, 20)
    assert evaluate(EvaluateRequest(subject=OWN, protocol=PROTOCOL)).values["fid20/fashion-cnn"] == expected


@pytest.mark.large
def test_a_runs_published_model_is_judged_as_in_the_run(tmp_path: Path, backbone: Backbone) -> None:
    spec = experiment(layers=[1])
    run_stages(context(tmp_path, backbone, spec))
    folder = tmp_path / "models" / finetune_key(spec)
    report = evaluate(EvaluateRequest(subject=str(folder), protocol=spec.evaluate))
    [card] = (tmp_path / "evaluations").glob("*/card.json")
    assert report.values.items() <= json.loads(card.read_text())["metrics"].items()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="holds no published model"):
        evaluate(EvaluateRequest(subject=str(folder), protocol=spec.evaluate))


def test_an_export_is_judged_as_the_model_that_it_was_made_of(tmp_path: Path, backbone: Backbone) -> None:
    design, transformer = graft_of(backbone, *SHAPES["a mix"], ParallelPair(first=6))
    state = unique_state(transformer)
    card = {"design": design.model_dump(mode="json"), "metrics": {}}
    publish(Storage(str(tmp_path)), "models/m", "model.safetensors", save(state), card)
    export_model(backbone, design, state, tmp_path / "exported")
    model, exported = (
        evaluate(EvaluateRequest(subject=str(tmp_path / each), protocol=PROTOCOL))
        for each in ("models/m", "exported")
    )
    assert exported.values == model.values
    assert "label_accuracy/fashion-cnn" in exported.values
    assert exported.intervals == model.intervals
    assert exported.samples_digest == model.samples_digest


def test_a_reference_is_made_shown_and_used(tmp_path: Path, dataset: LabelledImages) -> None:
    colours = dataset.images[:60].numpy()[..., None].repeat(3, axis=3)
    samples, reference = tmp_path / "samples.npz", tmp_path / "reference.npz"
    np.savez(samples, colours)
    made = write_reference(
        ReferenceRequest(images=str(samples), feature_network="fashion-cnn", output=str(reference))
    )
    assert describe_reference(ShowRequest(file=str(reference))) == made
    request = EvaluateRequest(subject=str(samples), protocol=PROTOCOL, reference=str(reference))
    assert evaluate(request).fingerprint.reference == made.digest
    assert (made.statistics_of, made.dims, made.spatial_dims, made.features_kept) == (60, 128, 343, 60)
    report = evaluate(EvaluateRequest(subject=str(samples), protocol=PROTOCOL, reference=str(reference)))
    assert report.values["fid60/fashion-cnn"] == pytest.approx(0, abs=1e-6)
    assert report.values["precision60/fashion-cnn"] == report.values["recall60/fashion-cnn"] == 1
    with pytest.raises(ValueError, match="has no statistics"):
        describe_reference(ShowRequest(file=str(samples)))
    with pytest.raises(BadFile, match="does not exist"):
        describe_reference(ShowRequest(file=str(tmp_path / "none.npz")))


def test_accuracy_is_given_only_by_a_network_of_the_datas_own_classes(backbone: Backbone) -> None:
    report = evaluate(EvaluateRequest(subject=OWN, protocol=PROTOCOL))
    low, high = report.intervals["label_accuracy/fashion-cnn"]
    assert low < report.values["label_accuracy/fashion-cnn"] < high
    imagenet = replace(backbone, card=backbone.card.model_copy(update={"feature_network": "inception"}))
    inception = InceptionNetwork(Inception(), "0" * 64)
    assert recognises(backbone, feature_network_for(backbone, PROTOCOL))
    assert not recognises(imagenet, inception)
    report = evaluate(EvaluateRequest(subject=str(ASSETS), protocol=PROTOCOL, reference=OWN))
    assert "label_accuracy/fashion-cnn" not in report.values
    assert any("no label_accuracy" in warning for warning in report.warnings)


def test_statistics_of_another_network_are_refused_before_anything_is_sampled(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ValueError, match="has 5 features, but fashion-cnn has 128"):
        evaluate(EvaluateRequest(subject=OWN, protocol=PROTOCOL, reference=str(tmp_path / "x.npz")))
    assert "sampled" not in capfd.readouterr().err


def test_protocols_come_from_presets_and_files_and_bad_ones_are_refused(tmp_path: Path) -> None:
    assert protocol_named("demo").samples == 1_000
    file = tmp_path / "protocol.yaml"
    file.write_text("samples: 20\nfeature_network: fashion-cnn")
    assert protocol_named(str(file)).samples == 20
    file.write_text("samples: 1\nsampels: 20")
    for name, message in ((str(file), r"/samples: .*; .*/sampels"), ("demi", "neither a preset")):
        with pytest.raises(Refused, match=message):
            protocol_named(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "x.npz", "--weights", "w.pth"], "need each other"),
        (["evaluate", "x.npz", "--weights", "w.pth", "--sha256", "abc"], "64 hex digits"),
        (["reference", "make", "x", "-o", "y", "--network", "incepton"], "did you mean 'inception'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, Refused)
    assert message in str(found.exception)
