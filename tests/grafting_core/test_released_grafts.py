"""Released grafts and operators of stage 1 are read by their keys and shapes, and compute their formulas."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from grafting_core.backbones.checkpoint_folder import write_checkpoint
from grafting_core.backbones.diffusers_folder import load_transformer
from grafting_core.backbones.dit_config import DiTConfig
from grafting_core.backbones.imported_scions import publish_operator
from grafting_core.backbones.published_figures import published_fid
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.backbones.released_grafts import (
    ImportedCheckpoint,
    ImportedOperator,
    import_checkpoint,
    share_of,
)
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import DIT_XL_2_256
from grafting_core.specs.dims import BlockDims, Slot
from grafting_core.specs.edits import ReplaceOperator
from grafting_core.specs.operators import OperatorBase
from grafting_core.specs.operators.attention import WindowAttention
from grafting_core.specs.operators.hyena import HyenaSE, HyenaX, HyenaY
from grafting_core.specs.operators.mamba import Mamba2
from grafting_core.specs.operators.mlp import Mlp, MlpHyenaX
from grafting_core.specs.scions import ImportedScion
from grafting_core.specs.site import GraftSite
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from tests.support import original_dit
from tests.support.checkpoints import HYENA, save_checkpoint, small_state
from tests.support.diffusers_folders import random_autoencoder
from tests.support.original_dit import State, random_state, relative_errors

DIMS = BlockDims(width=1152, num_heads=16, mlp_ratio=4.0, grid=(16, 16))
KINDS: dict[tuple[str, str], OperatorBase] = {
    ("attn", "swa"): WindowAttention(half_width=4),
    ("attn", "hyena_se"): HyenaSE(),
    ("attn", "hyena_x"): HyenaX(),
    ("attn", "hyena_y"): HyenaY(),
    ("attn", "mamba_2"): Mamba2(),
    ("mlp", "mlp_r_3"): Mlp(ratio=3.0),
    ("mlp", "mlp_r_6"): Mlp(ratio=6.0),
    ("mlp", "hyena_x"): MlpHyenaX(),
}
SLOTS: dict[str, Slot] = {"attn": "attention", "mlp": "mlp"}


def saved(state: State, folder: Path, name: str = "dit-xl2-mha-hyena_x-50p-fid2.61") -> Path:
    file = folder / name / "model.pt"
    file.parent.mkdir(parents=True)
    torch.save({"ema": state}, file)
    return file


def imported(file: Path) -> ImportedCheckpoint:
    found = import_checkpoint(file)
    assert isinstance(found, ImportedCheckpoint)
    return found


@pytest.mark.parametrize("place", KINDS)
@torch.no_grad()
def test_a_graft_of_each_kind_computes_its_formulas(place: tuple[str, str], tmp_path: Path) -> None:
    slot, published = place
    state = random_state(2, {(1, slot): published})
    found = imported(saved(state, tmp_path))
    edit = ReplaceOperator(site=GraftSite(block=1, slot=SLOTS[slot]), operator=KINDS[place])
    assert found.edits == (edit,)
    write_checkpoint(found, tmp_path / "folder")
    transformer = load_transformer(tmp_path / "folder" / "transformer")
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    timesteps, labels = torch.tensor([10, 999]), torch.tensor([3, 1000])
    expected = original_dit.forward(state, latents, timesteps, labels)
    output = transformer(latents, timestep=timesteps, class_labels=labels).sample
    assert max(relative_errors(output, expected)) < 1e-5


@pytest.mark.large
@torch.no_grad()
def test_a_graft_at_full_depth_computes_its_formulas(tmp_path: Path) -> None:
    grafts = {(block, "attn"): "hyena_x" for block in range(1, 28, 2)}
    file = saved(random_state(28, grafts, scale=0.02), tmp_path)
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    timesteps, labels = torch.tensor([10, 999]), torch.tensor([3, 1000])
    stored = torch.load(file, mmap=True)["ema"]
    expected = original_dit.forward(stored, latents, timesteps, labels)
    found = imported(file)
    assert found.summary == "28 blocks of 1152; 50 % of attention: hyena_x"
    used = sum(tensor.numel() for name, tensor in found.state.items() if ".norm1.emb." not in name)
    embedders = sum(x.numel() for name, x in stored.items() if "_embedder" in name and name[0] != "x")
    assert used == sum(x.numel() for x in stored.values()) - embedders - stored["pos_embed"].numel()
    write_checkpoint(found, tmp_path / "folder")
    transformer = load_transformer(tmp_path / "folder" / "transformer")
    output = transformer(latents, timestep=timesteps, class_labels=labels).sample
    assert max(relative_errors(output, expected)) < 1e-5


def test_a_self_graft_is_the_original(tmp_path: Path) -> None:
    state = random_state(2, {(1, "attn"): "mha", (1, "mlp"): "mlp_r_4"})
    assert imported(saved(state, tmp_path)).edits == ()


def test_several_kinds_in_one_file(tmp_path: Path) -> None:
    state = random_state(2, {(0, "attn"): "hyena_y", (1, "attn"): "mamba_2", (1, "mlp"): "mlp_r_3"})
    kinds = [
        (edit.site.block, edit.site.slot, edit.operator.kind)
        for edit in imported(saved(state, tmp_path)).edits
    ]
    assert kinds == [(0, "attention", "hyena_y"), (1, "attention", "mamba2"), (1, "mlp", "mlp")]


@pytest.mark.parametrize(
    ("blocks", "name"),
    [
        (range(1, 28, 2), "50 % of attention"),
        ([block for block in range(28) if block % 4], "75 % of attention"),
        (range(28), "100 % of attention"),
        ([1, 2, 5], "3 of 28 attention operators"),
    ],
)
def test_the_papers_choices_of_blocks_are_recognised(blocks: list[int], name: str) -> None:
    edits = [ReplaceOperator(site=GraftSite(block=b, slot="attention"), operator=HyenaX()) for b in blocks]
    assert share_of("attention", DiTConfig(out_channels=8, edits=tuple(edits))) == name


def test_a_file_in_the_hubs_cache_has_the_name_of_its_repository(tmp_path: Path) -> None:
    cache = tmp_path / "models--grafting--dit-xl2-mha-hyena_x-50p-fid2.61"
    blob = save_checkpoint(cache / "blobs" / "2cf24dba", {"ema": small_state(HYENA)})
    link = cache / "snapshots" / "0e7d1f3c" / "model.pt"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    found = imported(link)
    assert found.origin == "dit-xl2-mha-hyena_x-50p-fid2.61/model.pt"
    assert found.figures == {}
    assert imported(link.parent / ".." / "0e7d1f3c" / "model.pt").origin == found.origin


def test_the_registered_form_has_its_edits_origin_and_published_figure(tmp_path: Path) -> None:
    file = saved(random_state(2, {(1, "attn"): "hyena_x"}), tmp_path)
    found = imported(file)
    assert found.origin == "dit-xl2-mha-hyena_x-50p-fid2.61/model.pt"
    assert found.figures == {}
    write_checkpoint(found, tmp_path / "folder")
    random_autoencoder().save_pretrained(tmp_path / "folder" / "vae")
    card = read_card(tmp_path / "folder", name="ann/hyena-x", licence="apache-2.0")
    assert (card.arithmetic, card.edits, card.depth) == ("original", found.edits, 2)
    assert card.num_params == sum(tensor.numel() for tensor in found.state.values())
    assert card.original(GraftSite(block=1, slot="attention")) == HyenaX()
    backbone = load_registered(card, torch.device("cpu"))
    held = sum(parameter.numel() for parameter in backbone.transformer.parameters())
    assert held == card.num_params - card.repeated_params


def without(name: str) -> Callable[[State], State]:
    return lambda state: {other: tensor for other, tensor in state.items() if other != name}


def renamed(name: str, to: str) -> Callable[[State], State]:
    return lambda state: {to if other == name else other: tensor for other, tensor in state.items()}


@pytest.mark.parametrize(
    ("published", "spoil", "message"),
    [
        (
            "hyena_x",
            renamed("blocks.1.attn.short_filter.weight", "blocks.1.attn.long_filter.weight"),
            "lacks blocks.1.attn.short_filter.weight; has unexpected blocks.1.attn.long_filter.weight",
        ),
        ("hyena_se", without("blocks.1.attn.inner_filter.bias"), "lacks blocks.1.attn.inner_filter.bias"),
        ("mamba_2", without("blocks.1.attn.A_log"), "lacks blocks.1.attn.A_log"),
        (
            "mamba_2",
            lambda state: {**state, "blocks.1.attn.A_log": torch.zeros(100)},
            "shapes of blocks.1.attn.* are those of no known operator",
        ),
        (
            "hyena_y",
            lambda state: {**state, "blocks.1.attn.inner_filter.weight": torch.zeros(1152, 4)},
            "shapes of blocks.1.attn.* are those of no known operator",
        ),
        (
            "swa",
            lambda state: {name.replace("Wqkv", "Wq_kv"): tensor for name, tensor in state.items()},
            "blocks.1.attn.* is no known operator; it holds blocks.1.attn.Wq_kv.bias",
        ),
    ],
)
def test_a_graft_that_is_not_known_is_refused_by_name(
    published: str, spoil: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    file = saved(spoil(random_state(2, {(1, "attn"): published})), tmp_path)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(file)


def test_filters_for_256_tokens_are_refused_at_1024(tmp_path: Path) -> None:
    state = random_state(2, {(1, "mlp"): "hyena_x"})
    file = saved({**state, "pos_embed": original_dit.pos_embed(side=32)}, tmp_path)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.short_filter.weight has the shape \(256, 1, 4\)"):
        import_checkpoint(file)


def test_an_operator_of_stage_1_enters_a_bank_with_its_origin(tmp_path: Path) -> None:
    state = {name: torch.randn(shape) for name, shape in original_dit.attention_shapes("hyena_y").items()}
    for folder in ("block_3/checkpoints", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        torch.save({"model": state}, tmp_path / folder / "init.pt")
    found, homeless = (
        import_checkpoint(tmp_path / folder / "init.pt") for folder in ("block_3/checkpoints", "elsewhere")
    )
    assert isinstance(found, ImportedOperator)
    assert isinstance(homeless, ImportedOperator)
    bank = Bank(Storage(str(tmp_path / "storage")))
    key = publish_operator(bank, DIT_XL_2_256.ref, found.edit, found.state, found.origin)
    card = bank.card(key)
    assert card is not None
    assert isinstance(card.scion, ImportedScion)
    assert (card.scion.name, card.scion.kind) == ("block 3 attention", "hyena_y")
    assert card.scion.origin == "checkpoints/init.pt"
    assert torch.equal(load(bank.read(key))["project_in.weight"], state["in_proj.weight"])
    assert homeless.site is None
    with pytest.raises(ValueError, match="is in no folder block_N"):
        _ = homeless.edit


@pytest.mark.parametrize("place", KINDS)
@torch.no_grad()
def test_an_operator_of_stage_1_is_read_alone(place: tuple[str, str], tmp_path: Path) -> None:
    slot, published = place
    whole = random_state(1, {(0, slot): published})
    state = {
        n.removeprefix(f"blocks.0.{slot}."): x for n, x in whole.items() if n.startswith(f"blocks.0.{slot}.")
    }
    file = tmp_path / "stage1/some/block_13/l1/scaled_pred=False/seed=0/checkpoints/best_val.pt"
    file.parent.mkdir(parents=True)
    rest = {"opt": {}, "args": argparse.Namespace(seed=0), "config_train": {"lr": 1e-4}, "config_val": {}}
    torch.save({"model": state, **rest, "epoch": 200, "losses": [0.5, 0.25]}, file)
    found = import_checkpoint(file)
    assert isinstance(found, ImportedOperator)
    assert (found.operator, found.slot) == (KINDS[place], SLOTS[slot])
    assert found.site == GraftSite(block=13, slot=SLOTS[slot])
    assert (found.origin, found.figures) == ("checkpoints/best_val.pt", {"epoch": 200.0})
    module = build_operator(found.operator, DIMS)
    module.load_state_dict(found.state)
    hidden = torch.randn(2, 256, 1152, generator=torch.Generator().manual_seed(1))
    choose = original_dit.mixer if slot == "attn" else original_dit.channels
    assert max(relative_errors(module(hidden), choose(state)(state, hidden))) < 1e-5


def xl2(*edits: ReplaceOperator, **changes: Any) -> DiTConfig:
    return DiTConfig(**{"norm_eps": 1e-6, "arithmetic": "original", "edits": edits, **changes})


def grafts_at(blocks: Iterable[int], slot: Slot, operator: OperatorBase) -> list[ReplaceOperator]:
    return [ReplaceOperator(site=GraftSite(block=block, slot=slot), operator=operator) for block in blocks]


ODD = range(1, 28, 2)
MOST = [block for block in range(28) if block % 4]


@pytest.mark.parametrize(
    ("name", "edits", "fid"),
    [
        ("dit-xl2-mha-hyena_x-50p-fid2.74", grafts_at(ODD, "attention", HyenaX()), 2.74),
        ("dit-xl2-mha-swa-75p-fid3.09", grafts_at(MOST, "attention", WindowAttention(half_width=4)), 3.09),
        ("dit-xl2-mha-mamba_2-50p-fid2.55_ablation", grafts_at(ODD, "attention", Mamba2()), 2.55),
        ("dit-xl2-mlp-mlp_r_3-100p-fid2.66", grafts_at(range(28), "mlp", Mlp(ratio=3.0)), 2.66),
        ("dit-xl2-mlp-hyena_x-50p-fid2.64", grafts_at(ODD, "mlp", MlpHyenaX()), 2.64),
        ("dit-xl2-mha-mha-100p-fid2.49", [], 2.49),
        ("dit-xl2-mha-hyena_y-50p-fid2.72", grafts_at(ODD, "attention", HyenaX()), None),
        ("dit-xl2-mha-hyena_x-75p-fid3.69", grafts_at(ODD, "attention", HyenaX()), None),
        ("dit-xl2-mlp-hyena_x-50p-fid2.64", grafts_at(ODD, "attention", HyenaX()), None),
        ("my-dit-fid2.61", grafts_at(ODD, "attention", HyenaX()), None),
        ("dit-xl2-mha-hyena_x-50p-fid2.74", [], None),
    ],
)
def test_a_published_figure_is_that_of_the_graft_that_the_name_says(
    name: str, edits: list[ReplaceOperator], fid: float | None
) -> None:
    assert published_fid(name, xl2(*edits)) == ({} if fid is None else {"published_fid": fid})
    other = [edit for edit in edits if edit.site.block < 24]
    assert published_fid(name, xl2(*other, num_layers=24)) == {}
