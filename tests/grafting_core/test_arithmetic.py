"""A backbone is computed by the arithmetic on its card: that of diffusers or that of the original DiT."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import load_folder, save_folder
from grafting_core.backbones.dit_config import read_config
from grafting_core.backbones.fast_forward import FastForward
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.backbones.slots import AttentionSlot
from grafting_core.evaluation.cli import evaluate
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.design import ReplaceOperator
from grafting_core.specs.documents.designs import parse_submission
from grafting_core.specs.operators.hyena import HyenaX
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.presets import PRESETS
from grafting_core.specs.requests import EvaluateRequest
from grafting_core.specs.sampling_rules import protocol_for
from grafting_core.specs.site import GraftSite
from grafting_core.surgery.operate import operate
from grafting_core.testbed.plugin import ASSETS
from tests.support.builders import design_of
from tests.support.diffusers_folders import change_config, write_folder
from tests.support.original_dit import timestep_features
from tests.support.registered import only_registered

CPU = torch.device("cpu")
QUICK = EvaluationProtocol(
    samples=20,
    sampler="ddim",
    sampling_steps=2,
    guidance_channels="all",
    feature_network="fashion-cnn",
    micro_batch=10,
)
ORIGINAL = {"_class_name": "GraftedDiT", "arithmetic": "original", "norm_eps": 1e-6}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same weights as diffusers' model and as an original."""
    plain, original = (write_folder(tmp_path / name) for name in ("plain", "original"))
    change_config(original / "transformer", **ORIGINAL)
    return plain, original


def card_and_backbone(folder: Path) -> tuple[BackboneCard, Backbone]:
    card = read_card(folder, name="mine")
    return card, load_registered(card, CPU)


def output(backbone: Backbone, timestep: int) -> Tensor:
    torch.manual_seed(0)
    noisy = torch.randn(2, *backbone.latent_shape)
    with torch.no_grad():
        conditions = backbone.label_conditions(torch.tensor([0, 3]))
        return backbone.predict(noisy, torch.full((2,), timestep), conditions)


def test_the_card_has_the_arithmetic_and_its_digest_contains_it(folders: tuple[Path, Path]) -> None:
    plain, original = (read_card(folder, name="mine") for folder in folders)
    assert (plain.arithmetic, original.arithmetic) == ("diffusers", "original")
    assert plain.digest != original.digest
    assert load_folder(folders[0]).card.digest != load_folder(folders[1]).card.digest


def test_timesteps_have_the_frequencies_of_the_arithmetic(folders: tuple[Path, Path]) -> None:
    plain, original = (card_and_backbone(folder)[1] for folder in folders)
    timesteps = torch.tensor([0, 10, 100, 500, 999])
    expected = timestep_features(timesteps)
    for block in original.transformer.transformer_blocks:
        assert torch.allclose(block.norm1.emb.time_proj(timesteps), expected, rtol=0, atol=1e-7)
        assert block.norm3.eps == 1e-6
    others = plain.transformer.transformer_blocks[0].norm1.emb.time_proj(timesteps)
    differences = (others - expected).norm(dim=1) / expected.norm(dim=1)
    assert differences.tolist() == pytest.approx([0, 0.013, 0.129, 0.607, 1.01], abs=0.006)


def test_equal_weights_give_other_outputs_in_the_other_arithmetic(folders: tuple[Path, Path]) -> None:
    plain, original = (card_and_backbone(folder)[1] for folder in folders)
    theirs, ours = output(plain, 500), output(original, 500)
    assert (theirs - ours).norm() / ours.norm() > 0.01


@pytest.mark.parametrize("timestep", [0, 10, 999])
def test_the_fast_forward_has_the_arithmetic_of_the_backbone(
    folders: tuple[Path, Path], timestep: int
) -> None:
    backbone = card_and_backbone(folders[1])[1]
    forward = backbone.sampling_forward()
    assert isinstance(forward, FastForward)
    torch.manual_seed(0)
    noisy = torch.randn(2, *backbone.latent_shape)
    fast = forward(noisy, timestep, backbone.label_conditions(torch.tensor([0, 3])))
    assert torch.allclose(fast, output(backbone, timestep), rtol=1e-4, atol=1e-5)


def test_a_saved_original_is_an_original(folders: tuple[Path, Path], tmp_path: Path) -> None:
    backbone = card_and_backbone(folders[1])[1]
    save_folder(backbone, tmp_path / "saved")
    assert read_config(tmp_path / "saved" / "transformer") == read_config(folders[1] / "transformer")
    again = load_folder(tmp_path / "saved")
    assert again.card.arithmetic == "original"
    assert torch.equal(output(again, 500), output(backbone, 500))


def test_a_copy_that_is_grafted_and_its_cost_go_by_the_card(folders: tuple[Path, Path]) -> None:
    plain, (card, backbone) = read_card(folders[0], name="mine"), card_and_backbone(folders[1])
    assert (card.forward_flops(), card.num_params) == (plain.forward_flops(), plain.num_params)
    assert card.repeated_params == plain.repeated_params > 0
    copied = backbone.with_transformer(copy.deepcopy(backbone.transformer))
    site = GraftSite(block=1, slot="attention")
    operate(copied, design_of(copied, ReplaceOperator(site=site, operator=HyenaX())))
    assert isinstance(copied.get_operator(site), AttentionSlot)
    for block in copied.transformer.transformer_blocks:
        assert (block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps) == (0, 1e-6)


def test_a_preset_is_fitted_to_an_original_that_is_evaluated_by_itself(tmp_path: Path) -> None:
    for part in ("transformer", "autoencoder"):
        shutil.copytree(ASSETS / part, tmp_path / "original" / part)
    change_config(tmp_path / "original" / "transformer", **ORIGINAL)
    given = {"protocol": QUICK, "subject": str(tmp_path / "original"), "reference": "testbed/dit-fashion"}
    fitted = evaluate(EvaluateRequest(**given, is_preset=True)).fingerprint
    chosen = evaluate(EvaluateRequest(**given)).fingerprint
    assert (fitted.protocol.guidance_channels, chosen.protocol.guidance_channels) == ("first_3", "all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps of the original arithmetic is 1e-06, not 1e-05"),
        ({"_class_name": "DiTTransformer2DModel"}, "a DiTTransformer2DModel has no arithmetic"),
        ({"arithmetic": "other"}, "arithmetic is 'other'"),
    ],
)
def test_a_config_that_contradicts_its_arithmetic_is_refused(
    folders: tuple[Path, Path], changes: dict[str, object], message: str
) -> None:
    change_config(folders[1] / "transformer", **changes)
    with pytest.raises(ValueError, match=message):
        read_card(folders[1], name="mine")


def test_an_original_is_guided_on_its_first_three_channels_unless_somebody_says_otherwise(
    folders: tuple[Path, Path],
) -> None:
    plain, original = (read_card(folder, name="mine") for folder in folders)
    demo = PRESETS["demo"].evaluate
    assert protocol_for(original, demo, ()).guidance_channels == "first_3"
    assert protocol_for(original, demo, ("guidance_channels",)).guidance_channels == "all"
    assert protocol_for(plain, demo, ()).guidance_channels == "all"
    assert protocol_for(original, EvaluationProtocol(), ()).guidance_channels == "first_3"


def test_a_submission_on_an_original_is_guided_likewise(folders: tuple[Path, Path]) -> None:
    card = read_card(folders[1], name="mine", dataset="testbed/fashion-mnist", feature_network="fashion-cnn")
    document = {"name": "a", "backbone": "mine", "preset": "demo", "dataset": "testbed/fashion-mnist"}
    with only_registered(card):
        protocol = parse_submission(document).evaluate
    assert protocol.guidance_channels == "first_3"
