"""Samples are judged against the data set that a protocol names, in colour, and without labels."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import LabelledImages, load_dataset
from grafting_core.data.encode import encode_folder
from grafting_core.evaluation.evaluate import (
    compute_report,
    evaluate,
    evaluate_chunk,
    feature_network_for,
    fid_at,
    recognises,
    training_reference,
)
from grafting_core.evaluation.features.base import extract
from grafting_core.evaluation.features.table import load_network
from grafting_core.evaluation.metrics.frechet import frechet_of_rows
from grafting_core.evaluation.oracle import oracle_report
from grafting_core.evaluation.sample_files import manifest
from grafting_core.evaluation.sample_grid import SampleGrid, sample_grid
from grafting_core.specs.backbone import BACKBONES, BackboneEntry
from grafting_core.specs.datasets import DATASETS, DatasetCard, register_datasets
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.encoding import EncodeSettings
from grafting_core.specs.experiment import evaluation_key, fingerprint_of, oracle_path, own_fingerprint
from grafting_core.specs.features import FEATURE_NETWORKS, FeatureCard
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import EvaluationReport
from grafting_core.storage.checksums import parse_with_digest
from tests.support import other_backbone
from tests.support.builders import QUICK
from tests.support.pictures import picture_folder
from tests.support.stages import context
from workers.group import run_stages

PROTOCOL = EvaluationProtocol(
    samples=12, sampler="ddim", sampling_steps=2, feature_network="other-means", micro_batch=5
)
CARD = other_backbone.CARD
UNLABELLED = CARD.model_copy(update={"name": "other/plain", "digest": "77" * 32, "num_classes": 0})


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """The other backbone, its data set and its network, as a lab would have registered them."""
    unlabelled = BackboneEntry(api=1, card=UNLABELLED, load=f"{other_backbone.HERE}:load_backbone")
    BACKBONES.register({CARD.name: other_backbone.BACKBONE, UNLABELLED.name: unlabelled})
    DATASETS.register({"other/flags": other_backbone.DATASET})
    FEATURE_NETWORKS.register({"other-means": other_backbone.FEATURE_NETWORK})
    yield
    for table in (BACKBONES, DATASETS, FEATURE_NETWORKS):
        table.register({})


@pytest.fixture
def pictures(tmp_path: Path) -> DatasetCard:
    """Three classes of 8 x 8 in colour, held in a folder and registered."""
    settings = EncodeSettings(name="own/pictures", image_size=8, held_out=0.25)
    source = picture_folder(tmp_path / "images", each=16)
    card = encode_folder(source, tmp_path / "set", settings, None)
    register_datasets([card])
    return card


@pytest.fixture
def flags() -> Backbone:
    return other_backbone.load_backbone(CARD, torch.device("cpu"))


@pytest.fixture
def unlabelled() -> Backbone:
    return other_backbone.load_backbone(UNLABELLED, torch.device("cpu"))


def test_samples_are_compared_with_the_data_set_that_the_protocol_names(
    flags: Backbone, pictures: DatasetCard
) -> None:
    protocol = PROTOCOL.model_copy(update={"dataset": pictures.ref})
    network = feature_network_for(flags, protocol)
    reference = training_reference(flags.card, network, pictures.ref)
    assert (reference.card.name, reference.card.images) == ("own/pictures", 36)
    chunk = evaluate_chunk(flags, flags.transformer, protocol, 0, 12)
    expected = frechet_of_rows(reference.pool, chunk.features.pool)
    report = evaluate(flags, protocol)
    assert report.values["fid12/other-means"] == expected
    assert fid_at(flags, flags.transformer, protocol, 12) == expected
    assert "label_accuracy/other-means" not in report.values
    DATASETS.register({"other/flags": other_backbone.DATASET})
    own = evaluate(flags, PROTOCOL)
    assert own.values["fid12/other-means"] != expected
    assert own.fingerprint.reference != report.fingerprint.reference
    with pytest.raises(ValueError, match="unknown data set 'own/pictures'"):
        evaluate(flags, protocol)


def test_a_registered_network_recognises_the_classes_of_its_own_data_set_alone(
    flags: Backbone, pictures: DatasetCard
) -> None:
    network = feature_network_for(flags, PROTOCOL)
    assert recognises(flags, network)
    assert not recognises(flags, network, pictures.ref)
    card = FeatureCard(name="other-means", digest=network.digest, kind="classifier", dims=12)
    for trained_on, known in ((pictures.ref, True), (None, False)):
        named = card.model_copy(update={"dataset": trained_on})
        entry = other_backbone.FEATURE_NETWORK.model_copy(
            update={"card": named, "names_classes": trained_on is not None}
        )
        FEATURE_NETWORKS.register({"other-means": entry})
        assert recognises(flags, network, pictures.ref) is known
    plain = replace(flags, card=UNLABELLED)
    assert not recognises(plain, network)


def test_an_oracle_is_the_held_out_images_against_the_same_reference(pictures: DatasetCard) -> None:
    network, dataset = load_network("other-means"), load_dataset("own/pictures")
    report = oracle_report(dataset, network, PROTOCOL.model_copy(update={"samples": 12}), recognises=True)
    images, labels = dataset.held_out_reference("x")
    features = extract(network, images.rows(np.arange(12)), 5)
    reference = training_reference(CARD, network, pictures.ref)
    assert report.values["fid12/other-means"] == frechet_of_rows(reference.pool, features.pool)
    accuracy = (features.logits.argmax(1) == labels).mean()
    assert report.values["label_accuracy/other-means"] == accuracy
    assert [figures.samples for figures in report.classes] == [4, 4, 4]


def test_an_oracle_names_the_count_that_it_used(pictures: DatasetCard) -> None:
    network, dataset = load_network("other-means"), load_dataset("own/pictures")
    many = oracle_report(dataset, network, PROTOCOL.model_copy(update={"samples": 1000}))
    assert many.fingerprint.protocol.samples == 12
    few = oracle_report(dataset, network, PROTOCOL.model_copy(update={"samples": 6}))
    assert few.fingerprint.protocol.fid_name == "fid6/other-means"
    assert [figures.samples for figures in few.classes] == [2, 2, 2]
    assert "fid6/other-means" in few.values
    assert "label_accuracy/other-means" not in few.values


def test_an_oracle_needs_held_out_images() -> None:
    images, labels = other_backbone.flags(12, 0)
    dataset = LabelledImages("other/flags", "99" * 32, images, labels)
    with pytest.raises(ValueError, match="'other/flags' has no held-out images"):
        oracle_report(dataset, load_network("other-means"), PROTOCOL)


def test_samples_without_labels_are_judged_without_classes(unlabelled: Backbone) -> None:
    report = evaluate(unlabelled, PROTOCOL)
    assert report.classes == ()
    assert report.values["fid12/other-means"] > 0
    assert not any("label" in text for text in (*report.values, *report.warnings))
    chunk = evaluate_chunk(unlabelled, unlabelled.transformer, PROTOCOL, 0, 12)
    reference = training_reference(CARD, load_network("other-means"))
    known = compute_report([chunk], reference, own_fingerprint(UNLABELLED.digest, PROTOCOL), recognises=False)
    assert known.values == report.values
    rows = list(csv.DictReader(io.StringIO(manifest(PROTOCOL, 0))))
    assert [(row["index"], row["label"]) for row in rows[:2]] == [("0", ""), ("1", "")]


def test_a_sheet_without_classes_shows_any_samples(unlabelled: Backbone) -> None:
    sheet = sample_grid(unlabelled, unlabelled.transformer, PROTOCOL)
    assert sheet.images.shape == (3, 10, 8, 8, 3)
    assert len({image.numpy().tobytes() for image in sheet.images.flatten(0, 1)}) == 30


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 2, 28, 28), (2 * 60 + 4, 3 * 60 + 22)), ((3, 2, 96, 80, 3), (2 * 84 + 4, 3 * 100 + 22))],
    ids=["small gray", "large colour"],
)
def test_sheets_fit_images_of_any_size_and_channels(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    images = torch.randint(0, 255, shape, dtype=torch.uint8)
    drawn = Image.open(io.BytesIO(SampleGrid(images).render_comparison(SampleGrid(images), "x")))
    assert drawn.size == size
    scale = 2 if shape[2] == 28 else 1
    tile = np.asarray(drawn)[22 : 22 + shape[2] * scale : scale, 4 : 4 + shape[3] * scale : scale]
    expected = images[0, 0].numpy()
    assert np.array_equal(tile, expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2))


def test_a_run_trains_and_is_judged_on_the_data_set_that_its_plans_name(
    tmp_path: Path, unlabelled: Backbone, pictures: DatasetCard
) -> None:
    """Every stage, on a backbone that takes no labels, with held-out losses and the oracle of that set."""
    edits = [{"replace": "attention", "layers": [0], "with": {"kind": "hyena_x"}, "init": "inherit"}]
    document = {"name": "plain", "backbone": UNLABELLED.name, "edits": edits, **QUICK}
    DATASETS.register({**DATASETS._registered, "other/flags": other_backbone.DATASET})
    spec = parse_submission(document)
    stages = {
        name: getattr(spec, name).model_copy(update={"dataset": pictures.ref})
        for name in ("distill", "finetune", "evaluate")
    }
    spec = spec.model_copy(update=stages)
    attempt = context(tmp_path, unlabelled, spec)
    attempt._latents = {}  # not those of the testbed, which tests share
    run_stages(attempt)
    card = json.loads((tmp_path / "evaluations" / evaluation_key(spec) / "card.json").read_text())
    assert card["metrics"]["fid40/other-means"] > 0
    assert np.isfinite(card["metrics"]["loss_gap"])
    [key] = attempt._latents
    assert key[1] == pictures.ref
    [scion] = (tmp_path / "scions").glob("**/card.json")
    assert json.loads(scion.read_text())["held_out"] == pictures.digest
    oracle = (tmp_path / oracle_path(fingerprint_of(spec))).read_bytes()
    report = parse_with_digest(oracle, EvaluationReport)
    network = load_network("other-means")
    assert report.values == oracle_report(load_dataset("own/pictures"), network, spec.evaluate).values
