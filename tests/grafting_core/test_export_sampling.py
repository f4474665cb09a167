"""The pipeline of an export samples as this package does, for every objective, with or without decoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor

from grafting_core import export_model
from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registered import load_registered, read_card
from grafting_core.diffusion.sampling import sample_generators, sample_images
from grafting_core.specs.noise import LEARNED_VARIANCE
from grafting_core.specs.plans import EvaluationProtocol, SamplerName
from grafting_core.specs.sampling_rules import check_protocol
from tests.support.builders import replacement
from tests.support.diffusers_folders import PIXELS, UNLABELLED, write_folder
from tests.support.grafts import graft_of, original_backbone
from tests.support.modules_cache import modules_in

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
V = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}
NOISE = {"_class_name": "DDPMScheduler"}
PLAIN = {"out_channels": 4}
KINDS: dict[str, dict[str, Any]] = {
    "noise and variance": {},
    "noise": {"scheduler": NOISE, **PLAIN},
    "v": {"scheduler": V, **PLAIN},
    "flow": {"scheduler": FLOW, **PLAIN},
    "pixels": {"scheduler": FLOW, "vae": False, **PIXELS},
    "gray pixels": {"vae": False, "in_channels": 1, "out_channels": 2},
    "no labels": UNLABELLED,
}
STEPS = 5


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules_in(tmp_path / "modules", monkeypatch)


def exported(folder: Path, **kind: Any) -> tuple[Backbone, Any]:
    """A graft as the lab has it, and the pipeline of its export."""
    card = read_card(write_folder(folder / "base", **kind), name="own/dit")
    base = load_registered(card, torch.device("cpu"))
    design, transformer = graft_of(base, replacement("hyena_x", 1), replacement("mlp", 2, ratio=2.0))
    export_model(base, design, transformer.state_dict(), folder / "out")
    pipeline = DiffusionPipeline.from_pretrained(str(folder / "out"), trust_remote_code=True)
    return base.with_transformer(transformer), pipeline


def noise(graft: Backbone, protocol: EvaluationProtocol, count: int) -> Tensor:
    generators = sample_generators(protocol, range(count))
    return torch.stack([torch.randn(graft.latent_shape, generator=each) for each in generators])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_objective_gives_the_images_of_the_labs_sampler(tmp_path: Path, kind: dict[str, Any]) -> None:
    graft, pipeline = exported(tmp_path, **kind)
    flow = graft.card.objective == "flow_velocity"
    guidance = 1.5 if graft.card.num_classes else 1.0
    protocol = EvaluationProtocol(
        sampler="flow_euler" if flow else "ddim",
        sampling_steps=STEPS,
        spacing="linspace" if flow else "leading",
        guidance=guidance,
        guidance_channels="all",
        labels="balanced",
        micro_batch=2,
    )
    ours = sample_images(graft, graft.transformer, protocol, range(2))
    classes = max(1, graft.card.num_classes)
    theirs = pipeline(
        [index % classes for index in range(2)],
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        latents=noise(graft, protocol, 2),
        output_type="np",
    ).images
    found = torch.from_numpy(theirs * 255).round().squeeze(-1)
    assert found.shape == ours.shape
    # diffusers places the steps of a flow a little differently, and rounds halves to even.
    assert (found - ours.float()).abs().mean() < (2 if flow else 0.1)
    assert (found - ours.float()).abs().max() <= (12 if flow else 1)


SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm_solver": DPMSolverMultistepScheduler}


def images_of_pipeline(pipeline: Any, protocol: EvaluationProtocol, classes: int, latents: Any) -> Tensor:
    """uint8 images, rounded as diffusers rounds them for pictures."""
    images = pipeline(
        [index % max(1, classes) for index in range(2)],
        guidance_scale=protocol.guidance,
        num_inference_steps=STEPS,
        generator=None if latents is not None else sample_generators(protocol, range(2)),
        latents=latents,
        output_type="np",
    ).images
    return torch.from_numpy((images * 255).round().astype("uint8")).squeeze(-1)


SAMPLED: list[tuple[str, SamplerName]] = [
    *((kind, "flow_euler") for kind in ("flow", "pixels")),
    *((kind, "ddim") for kind in KINDS if kind not in ("flow", "pixels")),
    *((kind, each) for kind in ("noise and variance", "noise", "v") for each in ("ddpm", "dpm_solver")),
]


@pytest.mark.parametrize(("kind", "sampler"), SAMPLED)
def test_the_labs_images_are_those_of_the_pipeline_to_the_bit(
    tmp_path: Path, kind: str, sampler: SamplerName
) -> None:
    graft, pipeline = exported(tmp_path, **KINDS[kind])
    flow = sampler == "flow_euler"
    protocol = EvaluationProtocol(
        sampler=sampler,
        sampling_steps=STEPS,
        spacing="linspace" if flow else "leading",
        pipeline="diffusers",
        guidance=1.5 if graft.card.num_classes else 1.0,
        guidance_channels="all",
        labels="balanced",
        micro_batch=2,
    )
    check_protocol(graft.card, protocol)
    learned = {"variance_type": "learned_range"} if graft.card.objective in LEARNED_VARIANCE else {}
    if not flow and sampler != "ddim":
        changes = {"timestep_spacing": "leading", **(learned if sampler == "ddpm" else {})}
        pipeline.scheduler = SAMPLERS[sampler].from_config(pipeline.scheduler.config, **changes)
    ours = sample_images(graft, graft.transformer, protocol, range(2))
    theirs = images_of_pipeline(pipeline, protocol, graft.card.num_classes, None)
    assert torch.equal(theirs, ours)
    if sampler != "ddpm":
        latents = noise(graft, protocol, 2)
        assert torch.equal(images_of_pipeline(pipeline, protocol, graft.card.num_classes, latents), ours)
    assert ours.unique().numel() > 2


def test_an_original_is_guided_on_three_channels_as_in_the_lab(tmp_path: Path) -> None:
    base = original_backbone(tmp_path / "base")
    design, transformer = graft_of(base, replacement("hyena_x", 1))
    export_model(base, design, transformer.state_dict(), tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "out"), trust_remote_code=True)
    graft = base.with_transformer(transformer)
    protocol = EvaluationProtocol(
        sampler="ddim",
        sampling_steps=STEPS,
        spacing="leading",
        guidance=4.0,
        labels="balanced",
        micro_batch=2,
    )
    theirs = pipeline(
        [0, 1],
        guidance_scale=4.0,
        num_inference_steps=STEPS,
        latents=noise(graft, protocol, 2),
        output_type="np",
    ).images
    found = torch.from_numpy(theirs * 255).round()
    three, every = (
        sample_images(
            graft, transformer, protocol.model_copy(update={"guidance_channels": channels}), range(2)
        )
        for channels in ("first_3", "all")
    )
    assert (found - three.float()).abs().max() <= 1
    assert (found - every.float()).abs().max() > 1


def test_a_scheduler_that_uses_a_learned_variance_gets_it(tmp_path: Path) -> None:
    _, pipeline = exported(tmp_path)
    config = dict(pipeline.scheduler.config)
    pipeline.scheduler = DDPMScheduler.from_config({**config, "variance_type": "learned_range"})
    images = [
        pipeline(
            [1],
            num_inference_steps=3,
            output_type="pt",
            generator=torch.Generator().manual_seed(seed),
        ).images
        for seed in (0, 0, 1)
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert torch.isfinite(images[0]).all()


@pytest.mark.parametrize("labels", [[5], [-1], [1.5], [True], []])
def test_a_label_that_the_model_does_not_have_is_refused(tmp_path: Path, labels: list[Any]) -> None:
    graft, pipeline = exported(tmp_path)
    last = graft.card.num_classes - 1
    assert last < 5
    with pytest.raises(ValueError, match=f"class_labels are integers from 0 to {last}"):
        pipeline(class_labels=labels, num_inference_steps=1)
