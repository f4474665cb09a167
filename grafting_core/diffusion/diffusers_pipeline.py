"""Sampling by the pipeline of an export and diffusers' schedulers: the bits that users of the export get."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from grafting_core.backbones.scheduler_config import scheduler_document
from grafting_core.export.pipeline import GraftedDiTPipeline
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.plans import EvaluationProtocol, SamplerName
from grafting_core.specs.sampling_rules import FIRST

SCHEDULERS: dict[SamplerName, Any] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm_solver": DPMSolverMultistepScheduler,
    "flow_euler": FlowMatchEulerDiscreteScheduler,
}


def scheduler_of(card: BackboneCard, protocol: EvaluationProtocol) -> Any:
    """Scheduler of diffusers for the protocol's sampler, over the schedule of the backbone's training.

    `ddpm` takes the variance that a backbone has learned; the others have no use for one.
    """
    document = scheduler_document(card.objective, card.schedule)
    if protocol.sampler != "flow_euler":
        document["timestep_spacing"] = protocol.spacing
    if protocol.sampler != "ddpm":
        document.pop("variance_type", None)
    return SCHEDULERS[protocol.sampler].from_config(document)


def pipeline_latents(
    card: BackboneCard,
    transformer: nn.Module,
    protocol: EvaluationProtocol,
    labels: Sequence[int],
    noise: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """Latents [n, C, h, w] as the pipeline of an export computes them for these labels and this noise.

    `generators` give the noise of the steps, one for each sample.
    """
    pipeline = GraftedDiTPipeline(transformer=transformer, scheduler=scheduler_of(card, protocol))
    pipeline.set_progress_bar_config(disable=True)
    channels = noise.shape[1]
    latents: Tensor = pipeline(
        list(labels),
        guidance_scale=protocol.guidance,
        generator=generators,
        num_inference_steps=protocol.sampling_steps,
        output_type="latent",
        guidance_channels=min(FIRST, channels) if protocol.guidance_channels == "first_3" else channels,
        latents=noise,
    ).images
    return latents
