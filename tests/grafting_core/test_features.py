"""Feature networks: the same numbers as independent ports, from files that are what their digest says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from grafting_core.data.datasets import LabelledImages
from grafting_core.evaluation.features.base import extract, spatial_rows
from grafting_core.evaluation.features.inception import Inception
from grafting_core.evaluation.features.table import load_network
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.documents.errors import SpecError
from grafting_core.specs.experiment import fingerprint_of
from grafting_core.specs.features import (
    SETTING,
    FeatureSource,
    digest_of_path,
    feature_digest,
    feature_sources,
)
from grafting_core.testbed.assets import load_classifier
from tests.support.builders import QUICK, document

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> FeatureSource:
    """A random network of the right architecture, with batch statistics that matter."""
    torch.manual_seed(0)
    network = Inception()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), file)
    return FeatureSource(path=str(file), sha256=digest_of_path(file))


def test_inception_is_torch_fidelitys(torch_fidelity: Any, weights: FeatureSource) -> None:
    """All of it: resize, blocks, pools, logits without the bias; and the 7 channels of the map."""
    module = torch_fidelity("feature_extractor_inceptionv3")
    theirs = module.FeatureExtractorInceptionV3(
        "i", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights.path
    )
    maps: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda m, a, out: maps.append(out))
    expected = theirs(torch.from_numpy(COLOURS).permute(0, 3, 1, 2))
    ours = extract(load_network("inception", source=weights), COLOURS, 3)
    assert ours.spatial is not None
    assert ours.logits is not None
    np.testing.assert_allclose(ours.pool, expected[0].numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.logits, expected[1].numpy(), rtol=1e-4, atol=1e-5)
    assert ours.spatial.shape == (3, 2023)
    at = (4 * 17 + 9) * 7 + 5
    np.testing.assert_allclose(ours.spatial[:, at], maps[0][:, 5, 4, 9].numpy(), rtol=1e-4, atol=1e-6)


def test_resizing_is_tensorflow_1s(torch_fidelity: Any) -> None:
    module = torch_fidelity("interpolate_compat_tensorflow")
    from grafting_core.evaluation.features.resize import resize_like_tensorflow1

    for height, width in ((32, 32), (256, 200), (512, 512)):
        images = torch.from_numpy(RNG.integers(0, 256, (1, 3, height, width)).astype(np.float32))
        theirs = module.interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
        torch.testing.assert_close(resize_like_tensorflow1(images, 299), theirs, rtol=0, atol=2e-5)


def test_a_torchscript_file_serves_too(tmp_path: Path) -> None:
    class Script(nn.Module):
        def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
            means = img.float().mean(dim=(2, 3))
            return means if return_features else means.softmax(dim=1)

    file = tmp_path / "inception.pt"
    torch.jit.script(Script()).save(file)
    network = load_network("inception", source=FeatureSource(path=str(file), sha256=digest_of_path(file)))
    found = extract(network, COLOURS, 2)
    np.testing.assert_allclose(found.pool, COLOURS.mean(axis=(1, 2)), rtol=1e-5)
    assert found.spatial is None
    assert found.logits is not None
    np.testing.assert_allclose(np.exp(found.logits).sum(axis=1), 1, rtol=1e-5)


def test_weights_that_are_not_what_their_digest_says_are_not_opened(weights: FeatureSource) -> None:
    wrong = weights.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"has SHA-256 .* it was not loaded"):
        load_network("inception", source=wrong)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="does not hold the 2015-12-05 Inception"):
        load_network("inception", source=FeatureSource(path=str(file), sha256=digest_of_path(file)))


def test_nothing_is_looked_for_beyond_what_the_operator_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    with pytest.raises(ValueError, match="needs a weight file: name"):
        load_network("inception")
    with pytest.raises(ValueError, match="unknown feature network"):
        load_network("vgg")
    assert feature_digest("inception") is None


def test_the_operators_file_says_where_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "networks.yaml"
    monkeypatch.setenv(SETTING, str(file))
    file.write_text(f"inception: {{path: /models/i.pth, sha256: {'ab' * 32}}}")
    assert feature_sources()["inception"].path == "/models/i.pth"
    assert feature_digest("inception") == "ab" * 32
    judged = document(evaluate={**QUICK["evaluate"], "feature_network": "inception"})
    assert fingerprint_of(parse_submission(judged)).feature_network == "ab" * 32
    monkeypatch.delenv(SETTING)
    with pytest.raises(SpecError, match="is evaluated with fashion-cnn, not 'inception'"):
        parse_submission(judged)
    monkeypatch.setenv(SETTING, str(file))
    for wrong in ("inception: {path: x, sha256: abc}", f"vgg: {{path: x, sha256: {'ab' * 32}}}", "[1]"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=SETTING):
            feature_sources()


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_networks_of_transformers_come_from_a_local_folder(name: str, tmp_path: Path) -> None:
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    model = (
        Dinov2Model(Dinov2Config(**small))
        if name == "dinov2"
        else CLIPVisionModelWithProjection(CLIPVisionConfig(**small, intermediate_size=32, projection_dim=8))
    )
    model.eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    source = FeatureSource(path=str(tmp_path), sha256=digest_of_path(tmp_path))
    images = RNG.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    found = extract(load_network(name, source=source), images, 2)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        out = model(pixel_values=pixels)
    expected = out.last_hidden_state[:, 0] if name == "dinov2" else out.image_embeds
    np.testing.assert_allclose(found.pool, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (found.spatial is None) == (name == "clip")


def test_spatial_rows_are_in_the_order_height_width_channel() -> None:
    maps = torch.arange(2 * 9 * 3 * 4).view(2, 9, 3, 4).float()
    assert spatial_rows(maps)[1, (2 * 4 + 1) * 7 + 6] == maps[1, 6, 2, 1]


def test_the_shipped_network_sees_gray_images_and_their_colour_copies_alike(dataset: LabelledImages) -> None:
    network, gray = load_network("fashion-cnn"), dataset.images[:7].numpy()
    one, other = extract(network, gray, 4), extract(network, gray[..., None].repeat(3, axis=3), 4)
    with torch.no_grad():
        pixels = dataset.images[:4].float().div(127.5).sub(1).unsqueeze(1)
        expected = load_classifier().features(pixels)
    assert np.array_equal(one.pool, other.pool)
    assert np.array_equal(one.pool[:4], expected.numpy())
    assert one.spatial is not None
    assert one.spatial.shape == (7, 343)
    with pytest.raises(ValueError, match="28 x 28, not 40 x 40"):
        extract(network, COLOURS, 2)
