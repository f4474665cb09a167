"""Configs of networks far larger than their weights are refused by arithmetic, before anything is built."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grafting_core.backbones.autoencoder_folder import decoder_cost, read_kl
from grafting_core.backbones.bounded import TooLarge, bounded
from grafting_core.backbones.diffusers_folder import load_transformer
from grafting_core.backbones.registered import read_card
from grafting_core.evaluation.features.image_models import read_feature_folder
from tests.support.diffusers_folders import SAFETENSORS, change_config, random_transformer, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def _in_little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # KiB


@pytest.fixture
def _kept(folder: Path) -> Iterator[None]:
    files = {file: file.read_bytes() for file in folder.rglob("config.json")}
    yield
    for file, content in files.items():
        file.write_bytes(content)


@pytest.mark.usefixtures("_in_little_memory", "_kept")
@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 1000},
        {"attention_head_dim": 16_384},
        {"num_attention_heads": 16_384, "attention_head_dim": 16_384},
        {"num_embeds_ada_norm": 1_000_000},
        {"in_channels": 16_384, "sample_size": 16_384, "patch_size": 16_384},
        {"out_channels": 16_384, "sample_size": 4096, "patch_size": 4096},
        {"attention_head_dim": 1_000, "sample_size": 512},
    ],
)
def test_a_transformer_is_compared_with_its_weights(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder / "transformer", **changes)
    with pytest.raises(ValueError, match=r"the weights do not match its config\.json, which describes"):
        read_card(folder, name="mine")
    with pytest.raises(TooLarge, match=r"parameters; [0-9,]+ are stored"):
        load_transformer(folder / "transformer")


@pytest.mark.usefixtures("_in_little_memory", "_kept")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 1_000_000}, "describes more than"),
        ({"block_out_channels": [4096, 65_536]}, "describes more than"),
        ({"layers_per_block": 10**12}, r"layers_per_block is 1e\+12; at most 16,777,216"),
        ({"block_out_channels": [8, 10**9]}, r"block_out_channels is 1e\+09"),
        ({"norm_num_groups": 0}, r"config\.json"),
        ({"block_out_channels": "many"}, r"config\.json"),
    ],
)
def test_an_autoencoder_is_compared_with_its_weights(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder / "vae", **changes)
    for read in (read_kl, lambda vae: decoder_cost(vae, 4, 16)):
        with pytest.raises(ValueError, match=message):
            read(folder / "vae")


@pytest.mark.usefixtures("_in_little_memory")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1_000_000}, "describes more than"),
        ({"hidden_size": 2**20, "intermediate_size": 2**24}, "describes more than"),
        ({"image_size": 2**20}, "describes more than"),
        ({"hidden_size": 10**10}, r"hidden_size is 1e\+10; at most 16,777,216"),
        ({"image_size": 4096}, "describes more than|images of 4096 x 4096"),
        ({"num_attention_heads": 0}, "contains no image model"),
    ],
)
def test_an_image_model_is_compared_with_its_weights(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=4, **sizes)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert read_feature_folder(tmp_path, "mine").dims == 16
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_feature_folder(tmp_path, "mine")


@pytest.mark.usefixtures("_in_little_memory")
def test_tensors_that_repeat_one_element_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path) / "transformer"
    state = random_transformer().state_dict()
    state["pos_embed.proj.bias"] = torch.zeros(1).expand(10**11)
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    (folder / SAFETENSORS).unlink()
    with pytest.raises(
        ValueError, match=r"pos_embed\.proj\.bias alone 400,000,000,000; save contiguous copies"
    ):
        read_card(tmp_path, name="mine")


@pytest.mark.usefixtures("_kept")
def test_documents_of_json_are_bounded(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_card(folder, name="mine")
    file.write_text(json.dumps({"a": "x" * 2**24}))
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        read_card(folder, name="mine")


def test_parameters_are_counted_while_they_are_made(tmp_path: Path) -> None:
    stored = {"weight": (4_000, 4_000)}
    with bounded(tmp_path, stored):
        nn.Linear(4_000, 4_000)
        # A value in the place of an earlier one counts once.
        layer = nn.Linear(2, 2)
        for _ in range(3_000):
            layer.weight = nn.Parameter(torch.zeros(100, 100))
    with pytest.raises(TooLarge, match="16,000,000 in 1 are stored"), bounded(tmp_path, stored):
        nn.Linear(7_000, 7_000, device="meta")
    with pytest.raises(TooLarge, match=r"in 1,003 tensors"), bounded(tmp_path, stored):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(2_000))
    assert len(nn.ModuleList(nn.Linear(1, 1) for _ in range(2_000))) == 2_000
