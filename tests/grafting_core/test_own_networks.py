"""A classifier trained on a data set's own classes: its quality, its folder, and judging with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from grafting_core.data.datasets import Dataset, LabelledImages, load_dataset
from grafting_core.data.encode import encode_folder
from grafting_core.data.latent_folder import load_latent_folder
from grafting_core.data.progress import StopRequested
from grafting_core.evaluation.cli import evaluate, write_reference
from grafting_core.evaluation.evaluate import dataset_reference
from grafting_core.evaluation.features.base import extract
from grafting_core.evaluation.features.classifier import ClassifierConfig, load_classifier, pixels_for
from grafting_core.evaluation.features.image_models import (
    read_feature_folder,
)
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.features.train import train_classifier
from grafting_core.evaluation.oracle import oracle_report
from grafting_core.specs.datasets import DatasetCard, DatasetRef, register_datasets
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.specs.features import (
    FEATURE_NETWORKS,
    FeatureCard,
    FeatureSource,
    digest_of_path,
    feature_digest,
    register_features,
)
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.registration import TrainSettings
from grafting_core.specs.requests import EvaluateRequest, ReferenceRequest
from tests.support.other_backbone import flags
from tests.support.pictures import picture_folder

REF = DatasetRef(name="own/pictures", digest="5" * 64)


SETTINGS = TrainSettings(steps=60, batch_size=16, learning_rate=3e-3)
"""Enough for squares of five colours."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DatasetCard:
    folder = tmp_path_factory.mktemp("pictures")
    settings = EncodeSettings(name="own/pictures", image_size=16, held_out=0.25, shard_rows=50)
    return encode_folder(picture_folder(folder / "images", 5, 24), folder / "set", settings, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: DatasetCard) -> FeatureCard:
    target = tmp_path_factory.mktemp("classifier") / "net"
    return train_classifier(load_latent_folder(pictures), target, SETTINGS, name="own/judge")


@pytest.fixture
def _registered(pictures: DatasetCard, trained: FeatureCard) -> Iterator[None]:
    register_datasets([pictures])
    register_features([trained])
    yield
    register_datasets([])
    register_features([])


def test_a_classifier_learns_the_classes_and_says_how_well(
    pictures: DatasetCard, trained: FeatureCard
) -> None:
    assert (trained.name, trained.kind, trained.dims) == ("own/judge", "classifier", 128)
    assert (trained.dataset, trained.side, trained.spatial) == (pictures.ref, None, True)
    folder = Path(trained.folder or "")
    assert trained.digest == digest_of_path(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "card.json",
        "config.json",
        "model.safetensors",
        "training.json",
    ]
    network = load_classifier(FeatureSource(path=str(folder), sha256=trained.digest), "cpu")
    images, labels = load_latent_folder(pictures).held_out_reference("x")
    found = extract(network, images.rows(np.arange(images.count)), 7)
    assert found.pool.shape == (30, 128)
    assert found.spatial.shape == (30, 8 * 8 * 7)
    assert trained.accuracy == (found.logits.argmax(1) == labels).mean()
    assert trained.accuracy > 0.9


@pytest.mark.usefixtures("_registered")
def test_it_judges_under_its_registered_name_and_the_oracle_is_near(trained: FeatureCard) -> None:
    assert feature_digest("own/judge") == trained.digest
    assert FEATURE_NETWORKS.find("own/judge").names_classes
    network, dataset = load_network("own/judge"), load_dataset("own/pictures")
    assert network.name == "own/judge"
    protocol = EvaluationProtocol(samples=30, feature_network="own/judge", micro_batch=10)
    report = oracle_report(dataset, network, protocol, recognises=True)
    assert report.values["label_accuracy/own/judge"] == trained.accuracy
    assert "sfid30/own/judge" in report.values
    assert "is30/own/judge" not in report.values or report.values["is30/own/judge"] > 1
    reference = dataset_reference(dataset, network, "x")
    noise = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    far = extract(network, noise, 10).pool.mean(axis=0) - reference.pool.mean
    images, _ = dataset.held_out_reference("x")
    near = extract(network, images.rows(np.arange(30)), 10).pool.mean(axis=0) - reference.pool.mean
    assert np.square(near).sum() < 0.1 * np.square(far).sum()


def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, pictures: DatasetCard
) -> None:
    dataset, settings = load_latent_folder(pictures), SETTINGS.model_copy(update={"steps": 9})
    whole = train_classifier(dataset, tmp_path / "whole", settings)
    told: list[tuple[int, int, str]] = []

    def stop() -> bool:
        return told[-1][0] == 4

    progress = lambda *done: told.append(done)  # noqa: E731
    with pytest.raises(StopRequested):
        train_classifier(dataset, tmp_path / "again", settings, progress, stop)
    assert (tmp_path / "again" / "checkpoint.safetensors").exists()
    resumed = train_classifier(dataset, tmp_path / "again", settings, progress)
    assert [done for done, _, _ in told] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert told[-1] == (9, 9, "steps")
    assert resumed.digest == whole.digest
    # Once more is harmless, and trains nothing.
    assert train_classifier(dataset, tmp_path / "again", settings, progress) == resumed
    assert len(told) == 11
    other = train_classifier(dataset, tmp_path / "seed", SETTINGS.model_copy(update={"steps": 9, "seed": 1}))
    assert other.digest != whole.digest
    with pytest.raises(ValueError, match="a training on other data or with other settings"):
        train_classifier(dataset, tmp_path / "again", SETTINGS.model_copy(update={"steps": 10}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(ValueError, match="contains other files"):
        train_classifier(dataset, tmp_path / "mine", settings)


def test_gray_images_of_the_testbed_are_learnt_too(tmp_path: Path, dataset: LabelledImages) -> None:
    card = train_classifier(dataset, tmp_path / "net", SETTINGS.model_copy(update={"steps": 1}))
    config = ClassifierConfig.model_validate_json((tmp_path / "net" / "config.json").read_bytes())
    assert (config.image_size, config.channels, len(config.classes)) == ((28, 28), 1, 10)
    assert card.dataset == DatasetRef(name=dataset.name, digest=dataset.digest)
    gray = dataset.images[:2]
    pixels = pixels_for(config, gray.unsqueeze(3).expand(-1, -1, -1, 3))
    assert torch.equal(pixels, gray.float().div(127.5).sub(1).unsqueeze(1))


def test_a_data_set_without_labels_or_held_out_images(tmp_path: Path) -> None:
    class Unlabelled(LabelledImages):
        def reference_images(self, name: str) -> Any:
            return super().reference_images(name)[0], None

    images, labels = flags(12, 0)
    unlabelled: Dataset = Unlabelled("x", "1" * 64, images, labels)
    with pytest.raises(ValueError, match="'x' has no labels"):
        train_classifier(unlabelled, tmp_path / "a", SETTINGS)
    alone = LabelledImages("x", "1" * 64, images, labels)
    assert train_classifier(alone, tmp_path / "b", SETTINGS.model_copy(update={"steps": 1})).accuracy is None


@pytest.mark.parametrize(
    ("side", "widths"),
    [
        (8, (128,)),
        (16, (32, 128)),
        (28, (32, 64, 128)),
        (64, (32, 64, 128)),
        (256, (32, 64, 128, 128, 128)),
    ],
)
def test_maps_shrink_to_eight_whatever_the_images_size(side: int, widths: tuple[int, ...]) -> None:
    config = ClassifierConfig(image_size=(side, side), channels=3, classes=("a", "b"), dataset=REF)
    assert config.widths == widths


def test_images_of_another_size_are_resized(trained: FeatureCard) -> None:
    network = load_classifier(FeatureSource(path=str(trained.folder), sha256=trained.digest), "cpu")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    assert extract(network, large, 2).pool.shape == (2, 128)


def test_a_classifier_folder_is_read_and_bad_ones_are_refused(tmp_path: Path, trained: FeatureCard) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for file in Path(trained.folder or "").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = read_feature_folder(folder, "mine", "MIT")
    assert (card.name, card.licence, card.digest) == ("mine", "MIT", trained.digest)
    assert (card.kind, card.dims, card.dataset) == ("classifier", 128, trained.dataset)
    assert card.accuracy == trained.accuracy
    tensors = load_file(folder / "model.safetensors")
    name = "head.weight"
    for change, message in (
        ({name: tensors[name] * float("nan")}, "not finite"),
        ({name: tensors[name][:, :5].contiguous()}, "size mismatch"),
        ({"extra": tensors[name].clone()}, "extra"),
    ):
        save_file({**tensors, **change}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            read_feature_folder(folder, "mine")
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"model\.safetensors is not of its config\.json"):
        read_feature_folder(folder, "mine")
    (folder / "config.json").write_text('{"kind": "graftlab-classifier"}')
    with pytest.raises(ValueError, match="contains no classifier"):
        read_feature_folder(folder, "mine")


def test_a_network_that_a_lab_registered_judges_without_the_lab(tmp_path: Path) -> None:
    images, labels = flags(24, 0)
    data = LabelledImages("own/flags", "1" * 64, images, labels)
    train_classifier(data, tmp_path / "net", SETTINGS.model_copy(update={"steps": 1}), name="flags-judge")
    np.savez(tmp_path / "pictures.npz", images.numpy())
    digest = digest_of_path(tmp_path / "net")
    source = FeatureSource(path=str(tmp_path / "net"), sha256=digest)
    made = {"images": str(tmp_path / "pictures.npz"), "output": str(tmp_path / "reference.npz")}
    try:
        view = write_reference(ReferenceRequest(feature_network="flags-judge", source=source, **made))
        assert view.feature_network == "flags-judge"
        protocol = EvaluationProtocol(feature_network="flags-judge", samples=24, micro_batch=12)
        asked = {"protocol": protocol, "subject": made["images"], "reference": made["output"]}
        report = evaluate(EvaluateRequest(source=source, **asked))
        assert report.fingerprint.feature_network == digest
        assert report.values["fid24/flags-judge"] == pytest.approx(0, abs=1e-6)
        register_features(())
        other = source.model_copy(update={"sha256": "0" * 64})
        with pytest.raises(ValueError, match=r"flags-judge: .* has SHA-256 .*; it was not loaded"):
            evaluate(EvaluateRequest(source=other, **asked))
        with pytest.raises(ValueError, match="flags-judge"):
            evaluate(EvaluateRequest(**asked))
    finally:
        register_features(())
