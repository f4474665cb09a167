"""A diffusers folder is loaded whole or refused by the name of what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.diffusers_folder import load_folder
from grafting_core.diffusion.sampling import sample_images
from grafting_core.evaluation.cli import evaluate
from grafting_core.specs.experiment import own_fingerprint
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.requests import EvaluateRequest
from grafting_core.testbed.plugin import ASSETS

OWN = "testbed/dit-fashion"
PROTOCOL = EvaluationProtocol(
    samples=20, sampler="ddim", sampling_steps=2, feature_network="fashion-cnn", micro_batch=10
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("transformer", "autoencoder"):
        shutil.copytree(ASSETS / part, tmp_path / "model" / part)
    return tmp_path / "model"


def change(folder: Path, edit: Callable[[State], State], part: str = "transformer") -> None:
    [file] = (folder / part).glob("*.safetensors")
    save_file(edit(load_file(file)), file)


def renamed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def first_half(state: State) -> State:
    return dict(sorted(state.items())[: len(state) // 2])


def with_nan(state: State) -> State:
    name = min(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed("_orig_mod."), r"lacks .* has unexpected _orig_mod\."),
        (renamed("ema."), r"lacks .* has unexpected ema\."),
        (first_half, "transformer: the weights do not match its config.json: lacks"),
        (lambda state: {**state, "extra": torch.zeros(1)}, "has unexpected extra"),
        (with_nan, "weights that are not finite numbers"),
    ],
    ids=["compiled", "average", "half a shard", "one too many", "not a number"],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    folder: Path, edit: Callable[[State], State], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(ValueError, match=message):
        evaluate(EvaluateRequest(subject=str(folder), protocol=PROTOCOL, reference=OWN))


@pytest.mark.parametrize("edit", [first_half, with_nan], ids=["half", "not a number"])
def test_the_decoder_is_looked_at_as_closely(folder: Path, edit: Callable[[State], State]) -> None:
    change(folder, edit, "autoencoder")
    with pytest.raises(ValueError, match=r"autoencoder: .*(lacks|not finite)"):
        load_folder(folder)


@pytest.mark.parametrize("layers", [6, 10])
def test_another_depth_is_refused(folder: Path, layers: int) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": layers}))
    with pytest.raises(ValueError, match=r"(lacks|has unexpected) transformer_blocks\."):
        load_folder(folder)


def test_a_missing_decoder_and_another_network_are_named(folder: Path) -> None:
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "_class_name": "PixArtTransformer2DModel"}))
    with pytest.raises(ValueError, match="holds a PixArtTransformer2DModel"):
        load_folder(folder)
    file.write_text(json.dumps(config))
    shutil.rmtree(folder / "autoencoder")
    with pytest.raises(ValueError, match="no decoder; add a folder vae or autoencoder"):
        evaluate(EvaluateRequest(subject=str(folder), protocol=PROTOCOL, reference=OWN))


def test_the_former_class_name_and_half_precision_variants_are_taken(
    folder: Path, backbone: Backbone
) -> None:
    """As published `DiTPipeline` folders have them."""
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "Transformer2DModel"}))
    for part in ("transformer", "autoencoder"):
        change(folder, lambda state: {name: tensor.half() for name, tensor in state.items()}, part)
        [weights] = (folder / part).glob("*.safetensors")
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (folder / "autoencoder").rename(folder / "vae")
    loaded = load_folder(folder)
    ours = dict(backbone.transformer.named_parameters())
    for name, parameter in loaded.transformer.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, ours[name].half().float())


def test_weights_in_the_older_format_are_the_same(folder: Path) -> None:
    vae = folder / "autoencoder"
    (vae / WEIGHTS).unlink()
    AutoencoderKL.from_pretrained(ASSETS / "autoencoder").save_pretrained(vae, safe_serialization=False)
    ours, theirs = (load_folder(each).autoencoder for each in (folder, ASSETS))
    assert ours.scale == theirs.scale
    theirs_by_name = theirs.model.state_dict()
    assert all(torch.equal(value, theirs_by_name[name]) for name, value in ours.model.state_dict().items())


def test_samples_that_are_not_finite_are_named(folder: Path) -> None:
    """Clipping would make black pixels of them."""
    backbone = load_folder(folder)
    with torch.no_grad():
        backbone.autoencoder.model.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"pixels of samples \[0, 1, 2\] are not finite"):
        sample_images(backbone, backbone.transformer, PROTOCOL, range(3))
    with torch.no_grad():
        next(backbone.transformer.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"latents of samples \[0, 1, 2\] are not finite"):
        sample_images(backbone, backbone.transformer, PROTOCOL, range(3))


def test_a_network_for_other_images_is_refused_before_anything_is_sampled(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": 16}))
    with pytest.raises(ValueError, match="fashion-cnn needs images of 28 x 28, not 64 x 64"):
        evaluate(EvaluateRequest(subject=str(folder), protocol=PROTOCOL, reference=OWN))
    assert "sampled" not in capfd.readouterr().err


def test_folders_that_differ_in_their_decoder_alone_are_two_subjects(folder: Path) -> None:
    before = load_folder(folder).card.digest
    change(folder, lambda state: {name: tensor * 1.5 for name, tensor in state.items()}, "autoencoder")
    after = load_folder(folder).card.digest
    assert own_fingerprint(before, PROTOCOL).digest != own_fingerprint(after, PROTOCOL).digest
