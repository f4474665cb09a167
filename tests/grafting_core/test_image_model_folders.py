"""Folders of image models, of transformers and timm, become feature networks or are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from grafting_core.evaluation.features.base import extract
from grafting_core.evaluation.features.image_models import (
    _plain_arguments,
    check_index,
    load_timm_model,
    read_feature_folder,
)
from grafting_core.evaluation.features.table import load_network
from grafting_core.specs.features import (
    FeatureSource,
    register_features,
)

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def vit(folder: Path) -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, **SMALL)
    transformers.ViTForImageClassification(config).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=28, patch_size=7, **SMALL)).save_pretrained(
        folder
    )
    processor = {"crop_size": {"height": 14, "width": 14}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def resnet(folder: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1])
    transformers.ResNetModel(config).save_pretrained(folder)


def clip(folder: Path) -> None:
    vision = {"image_size": 16, "patch_size": 4, **SMALL}
    text = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, **SMALL}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "spatial"),
    [(vit, 4 * 4 * 7), (dinov2, 2 * 2 * 7), (resnet, 28 * 28 * 7), (clip, 4 * 4 * 7)],
)
def test_image_models_of_transformers_become_feature_networks(
    tmp_path: Path, make: Callable[[Path], None], spatial: int
) -> None:
    torch.manual_seed(0)
    make(tmp_path / "net")
    card = read_feature_folder(tmp_path / "net", "own/eye", "MIT")
    assert (card.kind, card.dims, card.spatial, card.dataset) == ("transformers", 24, True, None)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    register_features([card])
    try:
        network = load_network("own/eye")
        found = extract(network, images, 2)
    finally:
        register_features([])
    assert network.name == "own/eye"
    assert found.pool.shape == (3, 24)
    assert found.spatial.shape == (3, spatial)
    assert found.logits is None
    assert np.ptp(found.pool, axis=0).max() > 1e-4


def test_the_class_token_is_the_feature(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit(tmp_path / "net")
    card = read_feature_folder(tmp_path / "net", "x")
    register_features([card])
    try:
        found = extract(load_network("x"), np.full((1, 16, 16, 3), 200, np.uint8), 1)
    finally:
        register_features([])
    model = transformers.ViTModel.from_pretrained(tmp_path / "net", add_pooling_layer=False).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.full((1, 3, 16, 16), 200 / 255) - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(found.pool, expected.numpy(), atol=1e-6)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def lacks_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    first = next(name for name in tensors if "layer" in name)
    save_file({k: v for k, v in tensors.items() if k != first}, folder / "model.safetensors")


def is_not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    first = next(name for name in tensors if "layer" in name)
    save_file({**tensors, first: tensors[first] * float("nan")}, folder / "model.safetensors")


def is_pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def is_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacks_a_tensor, r"not those of its config\.json; they lack"),
        (is_not_finite, "weights that are not finite numbers"),
        (is_pickled, "no safetensors; pickled weights are not loaded"),
        (is_truncated, "contains no image model of transformers"),
        (lambda f: edit(f, hidden_size=36), "contains no image model of transformers"),
        (lambda f: edit(f, auto_map={"AutoModel": "code.Model"}), r"remote code \(auto_map\)"),
        (lambda f: edit(f, model_type="unheard-of"), "contains no image model of transformers"),
        (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
        (lambda f: (f / "config.json").write_text("{}"), "names no image model"),
        (lambda f: (f / "config.json").write_text("[]"), "is no JSON object"),
    ],
)
def test_folders_that_hold_something_else_are_refused(
    tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    vit(tmp_path / "net")
    change(tmp_path / "net")
    with pytest.raises(ValueError, match=message):
        read_feature_folder(tmp_path / "net", "x")


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=20, **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="contains a BertModel, which takes no images"):
        read_feature_folder(tmp_path, "x")


def test_timm_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"this network needs timm: pip install 'graftlab\[features\]'"):
        read_feature_folder(tmp_path, "x")


def test_a_timm_folder_becomes_a_feature_network(tmp_path: Path) -> None:
    """Where timm is installed; it needs torchvision."""
    timm = pytest.importorskip("timm", exc_type=ImportError)
    model = timm.create_model("resnet10t", num_classes=3)
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    card = read_feature_folder(tmp_path, "x")
    assert (card.kind, card.dims, card.spatial) == ("timm", 512, True)
    network = load_timm_model(FeatureSource(path=str(tmp_path), sha256=card.digest), "cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert extract(network, images, 2).logits.shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["/outside/model.safetensors", "../model.safetensors", "missing.safetensors"]
)
def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="shards lie in the folder itself"):
        check_index(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("resnet18", {"checkpoint_path": "/home/bob/evil.pth"}),
        ("resnet18", {"pretrained_cfg": {"url": "http://example.org"}}),
        ("hf-hub:bob/evil", {}),
        ("../evil", {}),
    ],
)
def test_a_timm_config_loads_no_other_files(
    tmp_path: Path, architecture: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="a plain name and sizes are allowed"):
        _plain_arguments(tmp_path, architecture, arguments)
