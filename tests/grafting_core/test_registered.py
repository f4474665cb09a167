"""DiT folders as diffusers publishes them are read, described and loaded."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grafting_core.backbones.autoencoder import KLAutoencoder
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import load_folder, save_folder
from grafting_core.backbones.dit_config import DiTConfig
from grafting_core.backbones.registered import BackboneFolder, check_digests, load_registered, read_card
from grafting_core.backbones.registry import load_backbone
from grafting_core.diffusion.sampling import sample_images
from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.noise import TrainingSchedule
from grafting_core.specs.operators.mlp import Mlp
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.sampling_rules import protocol_for
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import operate
from tests.support.builders import design_of
from tests.support.diffusers_folders import (
    PIXELS,
    SAFETENSORS,
    UNLABELLED,
    change_config,
    change_weights,
    random_transformer,
    write_folder,
)
from tests.support.registered import only_registered

CPU = torch.device("cpu")
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
V = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
PLAIN = {"out_channels": 4}


def card_and_backbone(folder: Path, **given: Any) -> tuple[BackboneCard, Backbone]:
    card = read_card(folder, name="mine", **given)
    return card, load_registered(card, CPU)


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert all(mine[name].dtype == torch.float32 and torch.equal(mine[name], other[name]) for name in other)


def as_bin(folder: Path) -> None:
    torch.save(random_transformer().state_dict(), folder / "transformer" / "diffusion_pytorch_model.bin")
    (folder / "transformer" / SAFETENSORS).unlink()


def as_legacy(folder: Path) -> None:
    change_config(folder / "transformer", _class_name="Transformer2DModel", attention_type="default")


def alone(folder: Path) -> None:
    """The transformer's own folder, with the autoencoder elsewhere."""
    for file in (folder / "transformer").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "transformer").rmdir()


STORED: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "one file": ({}, lambda folder: None),
    "sharded": ({"max_shard_size": "300KB"}, lambda folder: None),
    "bin": ({}, as_bin),
    "sharded bin": ({"max_shard_size": "300KB", "safe_serialization": False}, lambda folder: None),
    "legacy name": ({}, as_legacy),
    "the transformer's folder": ({}, alone),
}


@pytest.mark.parametrize(("saved", "edit"), STORED.values(), ids=STORED.keys())
def test_every_form_of_storage_gives_the_same_network(
    tmp_path: Path, saved: dict[str, Any], edit: Callable[[Path], None]
) -> None:
    folder = write_folder(tmp_path / "model", saved=saved)
    edit(folder)
    card, backbone = card_and_backbone(folder)
    assert_equal_weights(backbone.transformer, random_transformer())
    assert (card.num_params, card.depth, card.num_classes) == (
        sum(parameter.numel() for parameter in random_transformer().parameters()),
        3,
        5,
    )
    again = load_folder(folder)
    assert_equal_weights(again.transformer, random_transformer())


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("shards", ["10GB", "200KB"])
def test_half_precision_variants_are_loaded_in_single_precision(
    tmp_path: Path, variant: str, dtype: torch.dtype, shards: str
) -> None:
    transformer = random_transformer().to(dtype)
    transformer.save_pretrained(tmp_path / "transformer", variant=variant, max_shard_size=shards)
    write_folder(tmp_path / "whole")
    shutil.move(tmp_path / "whole" / "vae", tmp_path / "vae")
    _, backbone = card_and_backbone(tmp_path)
    assert_equal_weights(backbone.transformer, transformer.float())


def counted_flops(compute: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions; fused attention is not counted, so it is not used."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        compute()
    return int(counted.get_total_flops())


SIZES: dict[str, dict[str, Any]] = {
    "learned variance": {},
    "plain noise": PLAIN,
    "wide and flat": {"num_attention_heads": 3, "attention_head_dim": 40, "num_layers": 1},
    "no labels": UNLABELLED,
    "fine patches": {"patch_size": 1, "sample_size": 12},
    "affine norms": {"norm_elementwise_affine": True},
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES.keys())
def test_parameters_and_flops_by_arithmetic_are_those_of_the_network(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    scheduler = {"_class_name": "DDPMScheduler"}
    card, backbone = card_and_backbone(write_folder(tmp_path, scheduler=scheduler, **changes))
    stored = sum(parameter.numel() for parameter in random_transformer(**changes).parameters())
    held = sum(parameter.numel() for parameter in backbone.transformer.parameters())
    assert (card.num_params, card.num_params - card.repeated_params) == (stored, held)
    latents = torch.randn(1, *backbone.latent_shape)
    counted = counted_flops(lambda: backbone.predict(latents, torch.tensor([3]), backbone.null_conditions()))
    # The embedders of timestep and label are no part of the formula; in a network this small they count.
    width = card.dims.width
    embedders = (card.depth + 1) * 2 * (256 * width + width**2)
    assert card.forward_flops() + embedders == pytest.approx(counted, rel=0.01)
    assert card.decoder_flops == counted_flops(lambda: backbone.autoencoder.decode(latents))


def test_the_arithmetic_of_a_full_size_transformer_is_the_papers() -> None:
    """DiT-XL/2: 749.8 M as diffusers stores it, 674.8 M without the frozen position embedding."""
    config = DiTConfig(out_channels=8)
    assert config.num_params / 1e6 == pytest.approx(749.8, abs=0.05)
    held = config.num_params - config.repeated_params
    assert held == 675_129_632 - 256 * 1152
    with torch.device("meta"):
        transformer = DiTTransformer2DModel(**config.arguments)
        inputs = (
            torch.empty(1, 4, 32, 32),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
        )
    counted = counted_flops(lambda: transformer(inputs[0], timestep=inputs[1], class_labels=inputs[2]))
    assert backbone_cards()["dit-xl-2-256"].forward_flops() == pytest.approx(counted, rel=0.01)


def test_the_card_says_what_the_folder_holds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    seen: list[tuple[int, int, str]] = []
    card = read_card(
        folder,
        name="mine",
        dataset="pets",
        licence="Apache-2.0",
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert (card.name, card.dataset, card.licence) == ("mine", "pets", "Apache-2.0")
    assert (card.objective, card.schedule) == ("epsilon_learned_variance", TrainingSchedule())
    assert (card.autoencoder, card.dims.grid, card.weights) == ("kl", (8, 8), str(folder))
    assert set(card.parts) == {"transformer", "autoencoder"}
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]
    assert BackboneCard.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_other_weights_are_another_revision(tmp_path: Path, part: str) -> None:
    folder = write_folder(tmp_path)
    before = read_card(folder, name="mine")
    check_digests(before)
    change_weights(folder / part, lambda state: {name: tensor * 1.5 for name, tensor in state.items()})
    after = read_card(folder, name="mine")
    assert before.digest != after.digest
    assert read_card(folder, name="another").digest == after.digest
    with pytest.raises(ValueError, match="is not the one that was registered"):
        check_digests(before)


def test_another_objective_is_another_revision(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, **PLAIN)
    digests = {read_card(folder, name="a", objective=each).digest for each in ("epsilon", "flow_velocity")}
    assert len(digests) == 2


def config_of(scheduler: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(scheduler.to_json_string())
    return document


OBJECTIVES: list[tuple[dict[str, Any] | None, dict[str, Any], str, TrainingSchedule]] = [
    (None, {}, "epsilon_learned_variance", TrainingSchedule()),
    (config_of(DDPMScheduler()), {}, "epsilon_learned_variance", TrainingSchedule()),
    (config_of(DDPMScheduler()), PLAIN, "epsilon", TrainingSchedule()),
    (V, PLAIN, "v_prediction", TrainingSchedule(beta_schedule="scaled_linear")),
    (FLOW, PLAIN, "flow_velocity", TrainingSchedule(shift=3.0)),
    (config_of(FlowMatchEulerDiscreteScheduler()), PLAIN, "flow_velocity", TrainingSchedule()),
    (
        config_of(DDPMScheduler(num_train_timesteps=200, beta_end=0.05)),
        PLAIN,
        "epsilon",
        TrainingSchedule(num_train_timesteps=200, beta_end=0.05),
    ),
]


@pytest.mark.parametrize(("scheduler", "changes", "objective", "schedule"), OBJECTIVES)
def test_the_objective_is_the_schedulers(
    tmp_path: Path,
    scheduler: dict[str, Any] | None,
    changes: dict[str, Any],
    objective: str,
    schedule: TrainingSchedule,
) -> None:
    card = read_card(write_folder(tmp_path, scheduler=scheduler, **changes), name="mine")
    assert (card.objective, card.schedule) == (objective, schedule)


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        (None, PLAIN, "no scheduler.*must be given: one of epsilon, v_prediction, flow_velocity"),
        ({"prediction_type": "sample"}, PLAIN, "prediction_type 'sample' is not supported"),
        ({"rescale_betas_zero_snr": True}, PLAIN, "rescale_betas_zero_snr True is not supported"),
        ({"beta_schedule": "sigmoid"}, PLAIN, "beta_schedule is 'sigmoid'"),
        ({**FLOW, "use_dynamic_shifting": True}, PLAIN, "use_dynamic_shifting"),
        (FLOW, {}, "predicts flow_velocity has out_channels 4, not 8"),
        ({"beta_end": 2.0}, PLAIN, "beta_end is 2.0"),
    ],
)
def test_an_objective_that_is_not_known_or_does_not_fit_is_refused(
    tmp_path: Path, scheduler: dict[str, Any] | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_card(write_folder(tmp_path, scheduler=scheduler, **changes), name="mine")


KINDS: dict[str, dict[str, Any]] = {
    "noise and variance": {},
    "noise": {"scheduler": {"_class_name": "DDPMScheduler"}, **PLAIN},
    "v": {"scheduler": V, **PLAIN},
    "flow": {"scheduler": FLOW, **PLAIN},
    "pixels": {"scheduler": FLOW, "vae": False, **PIXELS},
    "gray pixels": {"vae": False, "in_channels": 1, "out_channels": 2},
    "no labels": UNLABELLED,
    "one class": {"num_embeds_ada_norm": 1},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_is_sampled_and_written_back(tmp_path: Path, kind: dict[str, Any]) -> None:
    """What diffusers reads of the folder that we write equals what it was made from."""
    card, backbone = card_and_backbone(write_folder(tmp_path / "read", **kind))
    protocol = protocol_for(card, EvaluationProtocol(sampling_steps=3, micro_batch=2), ())
    images = sample_images(backbone, backbone.transformer, protocol, range(2))
    side = 16 if card.autoencoder == "none" else 32
    assert images.shape == ((2, side, side) if card.latent_channels == 1 else (2, side, side, 3))
    assert not torch.equal(images[0], images[1])
    save_folder(backbone, tmp_path / "written")
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "written" / "transformer")
    assert_equal_weights(backbone.transformer, theirs)
    if card.autoencoder == "kl":
        assert isinstance(backbone.autoencoder, KLAutoencoder)
        vae = AutoencoderKL.from_pretrained(tmp_path / "written" / "vae")
        assert_equal_weights(backbone.autoencoder.model, vae)
    again = read_card(tmp_path / "written", name="mine")
    assert (again.objective, again.schedule, again.num_classes) == (
        card.objective,
        card.schedule,
        card.num_classes,
    )


def test_labels_are_zero_where_there_are_none(tmp_path: Path) -> None:
    card, backbone = card_and_backbone(write_folder(tmp_path, **UNLABELLED))
    assert card.num_classes == 0
    assert backbone.null_conditions(3).by_row["class_labels"].tolist() == [0, 0, 0]


def test_the_autoencoder_is_beside_elsewhere_or_none(tmp_path: Path) -> None:
    latent = write_folder(tmp_path / "latent")
    bare = write_folder(tmp_path / "bare", vae=False)
    pixels = write_folder(tmp_path / "pixels", scheduler=FLOW, **PIXELS)
    elsewhere = read_card(bare, name="a", vae=latent / "vae")
    assert elsewhere.digest == read_card(latent, name="a").digest
    assert read_card(pixels, name="a", vae="none").autoencoder == "none"
    with pytest.raises(ValueError, match="no decoder; add a folder vae or autoencoder"):
        read_card(bare, name="a")
    with pytest.raises(ValueError, match="4 channels; gray or RGB pixels have 1 or 3"):
        read_card(latent, name="a", vae="none")
    with pytest.raises(ValueError, match="latents of 4 channels; the transformer takes 3"):
        read_card(pixels, name="a")


def test_the_files_of_a_backbone_make_a_folder_that_loads(tmp_path: Path) -> None:
    """As registering copies them, whatever was where."""
    latent, bare = write_folder(tmp_path / "latent"), write_folder(tmp_path / "bare", vae=False, scheduler={})
    alone(bare)
    (bare / "notes.txt").write_text("not ours")
    card = read_card(bare, name="a", vae=latent / "vae")
    kept = tmp_path / "kept"
    for name, file in BackboneFolder(bare, latent / "vae").files().items():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept / name)
    placed = card.model_copy(update={"weights": str(kept)})
    check_digests(placed)
    assert read_card(kept, name="a").digest == card.digest
    with only_registered(placed):
        backbone = load_backbone("a")
    assert_equal_weights(backbone.transformer, random_transformer())
    assert sorted(str(file.relative_to(kept)) for file in kept.rglob("*.json")) == [
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/config.json",
    ]


def test_equal_embedders_are_in_memory_once_and_different_ones_apart(tmp_path: Path) -> None:
    card, backbone = card_and_backbone(write_folder(tmp_path / "equal"))
    copied = copy.deepcopy(backbone.transformer)
    for network in (backbone.transformer, copied):
        held = sum(parameter.numel() for parameter in network.parameters())
        assert held == card.num_params - card.repeated_params < card.num_params
    own, apart = card_and_backbone(write_folder(tmp_path / "apart", repeated=False))
    assert own.repeated_params == 0
    assert sum(parameter.numel() for parameter in apart.transformer.parameters()) == own.num_params


def test_a_few_equal_embedders_are_not_shared(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    change_weights(folder / "transformer", lambda state: {**state, name: state[name] + 1})
    card, backbone = card_and_backbone(folder)
    assert card.repeated_params == 0
    assert sum(parameter.numel() for parameter in backbone.transformer.parameters()) == card.num_params
    pointers = [parameter.data_ptr() for parameter in backbone.transformer.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_a_graft_that_its_card_does_not_tell_is_not_written(tmp_path: Path) -> None:
    _, backbone = card_and_backbone(write_folder(tmp_path / "model"))
    edit = ReplaceOperator(site=GraftSite(block=0, slot="mlp"), operator=Mlp(ratio=2.0))
    operate(backbone, design_of(backbone, edit))
    with pytest.raises(ValueError, match="other grafts than its backbone's card tells"):
        save_folder(backbone, tmp_path / "written")
    assert not (tmp_path / "written").exists()
