"""Another backbone, data set and feature network are used through their entries in the tables alone."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grafting_core.backbones.conditions import Conditions
from grafting_core.backbones.registry import load_backbone
from grafting_core.data.datasets import encode_held_out, encode_latents
from grafting_core.diffusion.sampling import sample_images
from grafting_core.evaluation.evaluate import (
    compute_report,
    evaluate_chunk,
    feature_network_for,
    recognises,
    training_reference,
)
from grafting_core.evaluation.sample_grid import sample_grid
from grafting_core.specs.backbone import BACKBONES, backbone_cards
from grafting_core.specs.datasets import DATASETS
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.experiment import evaluation_key, own_fingerprint
from grafting_core.specs.features import FEATURE_NETWORKS
from tests.support.builders import QUICK
from tests.support.other_backbone import CARD, flags
from tests.support.stages import context
from workers.group import run_stages

TABLES = (BACKBONES, DATASETS, FEATURE_NETWORKS)
POINTS = """
[graftlab.backbones]
other/dit-flags = tests.support.other_backbone:BACKBONE
other/alias = tests.support.other_backbone:BACKBONE
other/gone = tests.support.other_backbone:GONE
other/outdated = tests.support.other_backbone:OUTDATED
testbed/dit-fashion = tests.support.other_backbone:BACKBONE

[graftlab.datasets]
other/flags = tests.support.other_backbone:DATASET

[graftlab.feature_networks]
other-means = tests.support.other_backbone:FEATURE_NETWORK
"""


@pytest.fixture
def _registered(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Entry points of an installed package, as pip would leave them."""
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(folder)
    for table in TABLES:
        table.reload()
    yield
    monkeypatch.undo()
    for table in TABLES:
        table.reload()


@pytest.mark.usefixtures("_registered")
def test_it_goes_through_every_stage_as_the_testbed_does(tmp_path: Path) -> None:
    """DISTILL, FINETUNE and EVALUATE with its sample grid, on colours, three classes and another grid."""
    edits = [
        {"replace": "attention", "layers": [0], "with": {"kind": "hyena_x"}, "init": "inherit"},
        {"replace": "mlp", "layers": [1], "with": {"kind": "mlp", "ratio": 2.0}, "init": "inherit"},
    ]
    small = {**QUICK, "evaluate": {**QUICK["evaluate"], "labels": "balanced"}}
    spec = parse_submission({"name": "flags", "backbone": CARD.name, "edits": edits, **small})
    attempt = context(tmp_path, load_backbone(CARD.name), spec)
    attempt._latents = {}  # not those of the testbed, which tests share
    run_stages(attempt)
    folder = tmp_path / "evaluations" / evaluation_key(spec)
    metrics = json.loads((folder / "card.json").read_text())["metrics"]
    assert metrics["fid40/other-means"] > 0
    assert 0 <= metrics["label_accuracy/other-means"] <= 1
    assert np.isfinite(metrics["loss_gap"])
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width == 3 * (8 * 2 + 4) + 4


@pytest.mark.usefixtures("_registered")
def test_images_and_their_grid_keep_their_colours() -> None:
    spec = parse_submission({"name": "teacher", "backbone": CARD.name, "edits": [], **QUICK})
    backbone = load_backbone(CARD.name)
    images = sample_images(backbone, backbone.transformer, spec.evaluate, range(9))
    assert images.shape == (9, 8, 8, 3)
    assert not torch.equal(images[..., 0], images[..., 1])
    sheet = sample_grid(backbone, backbone.transformer, spec.evaluate)
    assert sheet.images.shape == (3, 3, 8, 8, 3)
    drawn = np.asarray(Image.open(io.BytesIO(sheet.render_comparison(sheet, "x"))))
    assert drawn[22:38:2, 4:20:2].tolist() == sheet.images[0, 0].tolist()


@pytest.mark.usefixtures("_registered")
def test_its_images_are_the_reference_and_its_labels_the_target() -> None:
    spec = parse_submission({"name": "teacher", "backbone": CARD.name, "edits": [], **QUICK})
    backbone, protocol = load_backbone(CARD.name), spec.evaluate
    network = feature_network_for(backbone, protocol)
    reference = training_reference(CARD, network)
    assert reference.card.images == 48
    assert reference.labels is not None
    assert reference.labels.tolist() == flags(48, 1)[1].tolist()
    chunk = evaluate_chunk(backbone, backbone.transformer, protocol, 0, protocol.samples)
    report = compute_report(
        [chunk], reference, own_fingerprint(CARD.digest, protocol), recognises(backbone, network)
    )
    hits = chunk.features.logits.argmax(1) == chunk.targets
    assert report.values["label_accuracy/other-means"] == hits.mean()


@pytest.mark.usefixtures("_registered")
def test_latents_of_an_identity_autoencoder_are_the_pixels() -> None:
    backbone = load_backbone(CARD.name)
    latents, held_out = encode_latents(backbone, 100), encode_held_out(backbone)
    assert (len(latents), len(held_out)) == (48, 24)
    rows = latents.rows("distill", 0, 0, 5)
    batch = latents.batch("distill", 0, 0, 5)
    images, labels = flags(48, 1)
    torch.testing.assert_close(batch.clean.permute(0, 2, 3, 1), images[rows].float() / 127.5 - 1)
    assert batch.conditions.by_row["class_labels"].tolist() == labels[rows].tolist()


@pytest.mark.usefixtures("_registered")
def test_an_entry_that_cannot_be_used_is_named_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(backbone_cards()) == ["testbed/dit-fashion", CARD.name, "dit-xl-2-256"]
    assert backbone_cards()["testbed/dit-fashion"].depth == 8
    logged = [record.getMessage() for record in caplog.records]
    assert any("backbone 'other/gone' is left out" in line and "GONE" in line for line in logged)
    assert any("'testbed/dit-fashion' is taken" in line for line in logged)
    with pytest.raises(ValueError, match=r"'other/gone' cannot be used: .*AttributeError"):
        load_backbone("other/gone")
    with pytest.raises(SpecError, match="/backbone: backbone 'other/gone' cannot be used"):
        parse_submission({"name": "a", "backbone": "other/gone", "edits": [], **QUICK})
    with pytest.raises(ValueError, match="its card has the name 'other/dit-flags'"):
        load_backbone("other/alias")
    with pytest.raises(ValueError, match="written for version 0 of the interface; this is 1"):
        load_backbone("other/outdated")


def test_the_tables_are_read_without_loading_a_model() -> None:
    """The service and the command line read them."""
    read = (
        "import sys\n"
        "from grafting_core.specs.backbone import BACKBONES\n"
        "from grafting_core.specs.datasets import DATASETS\n"
        "from grafting_core.specs.features import FEATURE_NETWORKS\n"
        "assert not [table.failures for table in (BACKBONES, DATASETS, FEATURE_NETWORKS) if table.failures]\n"
        "print(*BACKBONES, *DATASETS, *FEATURE_NETWORKS, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "testbed/dit-fashion",
        "dit-xl-2-256",
        "testbed/fashion-mnist",
        "fashion-cnn",
        "inception",
        "dinov2",
        "clip",
        "False",
    ]


def test_conditions_are_dropped_row_by_row() -> None:
    text, mask = torch.arange(24.0).view(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    given = Conditions({"encoder_hidden_states": text, "encoder_attention_mask": mask}, {"size": 8})
    null = Conditions(
        {"encoder_hidden_states": torch.zeros(1, 4, 2), "encoder_attention_mask": mask[:1] ^ True}
    )
    dropped = given.dropped(torch.tensor([False, True, False]), null).arguments
    assert dropped["encoder_hidden_states"].flatten(1).sum(1).tolist() == [28.0, 0.0, 156.0]
    assert dropped["encoder_attention_mask"].any(dim=1).tolist() == [True, False, True]
    assert dropped["size"] == 8
    assert len(given.rows(slice(1, 3)).followed_by(given)) == 5
