"""A model with the original DiT's arithmetic carries it along; a pipeline that would change it is refused."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from grafting_core import export_model, load_grafted
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.capture import capture_operators
from grafting_core.diffusion.sampling import sample_latents
from grafting_core.export.pipeline import GraftedDiTPipeline
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.site import GraftSite
from tests.support.builders import design_of, replacement
from tests.support.grafts import forward, graft_of, original_backbone, small_backbone
from tests.support.modules_cache import modules_in

STEPS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A DiT of 1,000 classes, which is what `DiTPipeline` expects, with the original arithmetic."""
    modules_in(tmp_path / "modules", monkeypatch)
    return original_backbone(tmp_path / "original", num_layers=2, num_embeds_ada_norm=1000)


@pytest.mark.parametrize("grafted", [True, False])
def test_an_export_computes_by_the_original_arithmetic(
    original: Backbone, tmp_path: Path, grafted: bool
) -> None:
    parts = [replacement("hyena_x", 1)] if grafted else []
    design, transformer = graft_of(original, *parts)
    export_model(original, design, transformer.state_dict(), tmp_path / "out")
    expected = forward(original, transformer)
    again = load_grafted(tmp_path / "out")
    assert again.card.arithmetic == "original"
    assert torch.equal(forward(original, again.transformer), expected)
    theirs = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True).transformer
    assert torch.equal(forward(original, theirs), expected)
    with pytest.raises(NotImplementedError, match="which trust_remote_code=True loads"):
        DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_guidance_of_all_channels_is_refused_with_the_reason(original: Backbone, tmp_path: Path) -> None:
    export_model(original, design_of(original), original.transformer.state_dict(), tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    parts = {"transformer": pipeline.transformer, "vae": pipeline.vae, "scheduler": pipeline.scheduler}
    plain = DiTPipeline(**parts)
    with pytest.raises(ValueError, match="guides three channels; DiTPipeline guides all"):
        plain([1, 7], guidance_scale=4.0, **STEPS)
    unguided: list[Tensor] = [
        each([1, 7], guidance_scale=1.0, generator=seeded(), **STEPS).images for each in (plain, pipeline)
    ]
    assert torch.equal(*unguided)
    guided = [
        pipeline([1, 7], guidance_scale=4.0, generator=seeded(), guidance_channels=channels, **STEPS).images
        for channels in (None, 3, 4)
    ]
    assert torch.equal(guided[0], guided[1])
    assert not torch.equal(guided[0], guided[2])


def test_a_plain_pipeline_over_a_loaded_original_refuses_guidance(original: Backbone, tmp_path: Path) -> None:
    export_model(original, design_of(original), original.transformer.state_dict(), tmp_path / "out")
    own = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    loaded = load_grafted(tmp_path / "out").transformer
    for transformer in (loaded, copy.deepcopy(loaded), original.transformer):
        plain = DiTPipeline(transformer=transformer, vae=own.vae, scheduler=own.scheduler)
        with pytest.raises(ValueError, match="guides three channels; DiTPipeline guides all"):
            plain([1, 7], guidance_scale=4.0, **STEPS)
        unguided = plain([1, 7], guidance_scale=1.0, generator=seeded(), **STEPS).images
        assert torch.equal(unguided, own([1, 7], guidance_scale=1.0, generator=seeded(), **STEPS).images)
        ours = GraftedDiTPipeline(transformer=transformer, vae=own.vae, scheduler=own.scheduler)
        guided = [each([1, 7], generator=seeded(), **STEPS).images for each in (ours, own)]
        assert torch.equal(*guided)


def test_the_lab_guides_a_loaded_original_as_its_protocol_says(original: Backbone) -> None:
    """Also while activations are captured, when the forward is the network's own."""
    protocol = EvaluationProtocol(
        sampler="ddim", sampling_steps=2, guidance=4.0, guidance_channels="all", micro_batch=2
    )
    plain = sample_latents(original, original.transformer, protocol, [0, 1])
    seen = list[Tensor]()
    site = GraftSite(block=0, slot="attention")
    with capture_operators(original, {site: lambda given, output: seen.append(output)}):
        captured = sample_latents(original, original.transformer, protocol, [0, 1])
    assert len(seen) == 2
    assert float((plain - captured).norm() / plain.norm()) < 1e-5


@pytest.mark.parametrize("grafted", [True, False])
def test_diffusers_class_refuses_what_save_pretrained_writes_of_a_loaded_original(
    original: Backbone, tmp_path: Path, grafted: bool
) -> None:
    design, transformer = graft_of(original, *([replacement("hyena_x", 1)] if grafted else []))
    export_model(original, design, transformer.state_dict(), tmp_path / "out")
    loaded = load_grafted(tmp_path / "out").transformer
    loaded.save_pretrained(tmp_path / "saved", safe_serialization=False)
    with pytest.raises(NotImplementedError, match="which trust_remote_code=True loads"):
        DiTTransformer2DModel.from_pretrained(tmp_path / "saved")


def test_diffusers_class_refuses_what_save_pretrained_writes_of_a_loaded_graft(tmp_path: Path) -> None:
    base = small_backbone(tmp_path / "base")
    design, transformer = graft_of(base, replacement("mlp", 2, ratio=2.0))
    export_model(base, design, transformer.state_dict(), tmp_path / "out")
    load_grafted(tmp_path / "out").transformer.save_pretrained(tmp_path / "saved", safe_serialization=False)
    with pytest.raises(NotImplementedError, match="which trust_remote_code=True loads"):
        DiTTransformer2DModel.from_pretrained(tmp_path / "saved")
