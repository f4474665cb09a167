"""What of a protocol and of a finetuning plan goes with which backbone, and what it is where nobody says."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.noise import FLOW
from grafting_core.specs.plans import EvaluationProtocol, FinetunePlan, SamplerName

SAMPLERS_OF: Mapping[str, tuple[SamplerName, ...]] = {
    "epsilon_learned_variance": ("ddpm", "ddim", "dpm_solver"),
    "epsilon": ("ddpm", "ddim", "dpm_solver"),
    "v_prediction": ("ddpm", "ddim", "dpm_solver"),
    FLOW: ("flow_euler",),
}
"""Objective -> samplers that go with it. A sampler takes what the transformer predicts under its schedule."""
FIRST_CHANNELS = frozenset({"epsilon_learned_variance", "epsilon"})
"""Objectives for which guidance may act on the first three channels alone, as the original DiT samples."""
FIRST = 3
"""Channels that guidance "first_3" acts on."""


class Misfit(NamedTuple):
    """A setting that does not go with the backbone."""

    setting: str
    message: str
    given: Any
    allowed: tuple[str, ...] = ()


def protocol_for(
    card: BackboneCard, protocol: EvaluationProtocol, given: Collection[str]
) -> EvaluationProtocol:
    """The protocol with everything that is not `given` as this backbone needs it.

    The first sampler of its objective where the protocol's does not go with it; guidance of the first three
    channels where it has the original DiT's arithmetic, of all where the objective is another than DiT's; no
    guidance where the backbone takes no labels.
    """
    fitted: dict[str, Any] = {}
    samplers = SAMPLERS_OF.get(card.objective, ())
    if samplers and protocol.sampler not in samplers:
        fitted["sampler"] = samplers[0]
    if card.arithmetic == "original":
        fitted["guidance_channels"] = "first_3"
    if card.objective not in FIRST_CHANNELS:
        fitted["guidance_channels"] = "all"
    if card.num_classes == 0:
        fitted["guidance"] = 1.0
    return protocol.model_copy(update={name: value for name, value in fitted.items() if name not in given})


def finetuning_for(card: BackboneCard, plan: FinetunePlan, given: Collection[str]) -> FinetunePlan:
    """The plan without label dropout where the backbone takes no labels and none is `given`."""
    if card.num_classes == 0 and "label_dropout" not in given:
        return plan.model_copy(update={"label_dropout": 0.0})
    return plan


def protocol_misfits(card: BackboneCard, protocol: EvaluationProtocol) -> Iterator[Misfit]:
    """Every setting that this backbone cannot be sampled with."""
    samplers = SAMPLERS_OF.get(card.objective, ())
    if protocol.sampler not in samplers:
        message = f"{card.name} predicts {card.objective}; it is sampled with {' or '.join(samplers)}"
        yield Misfit("sampler", message, protocol.sampler, samplers)
    total = card.schedule.num_train_timesteps
    if protocol.sampling_steps > total:
        message = f"{card.name} was trained on {total:,} timesteps; take at most so many steps"
        yield Misfit("sampling_steps", message, protocol.sampling_steps)
    first = protocol.guidance_channels == "first_3" and card.latent_channels > FIRST
    if first and card.objective not in FIRST_CHANNELS:
        message = f"{card.name} predicts {card.objective}, of which guidance takes all channels"
        yield Misfit("guidance_channels", message, protocol.guidance_channels, ("all",))
    if card.num_classes == 0 and protocol.guidance > 1:
        message = f"{card.name} takes no labels, so there is nothing to guide towards; use 1"
        yield Misfit("guidance", message, protocol.guidance)
    if protocol.pipeline == "diffusers":
        yield from _pipeline_misfits(card, protocol)


def _pipeline_misfits(card: BackboneCard, protocol: EvaluationProtocol) -> Iterator[Misfit]:
    """Every setting that the pipeline of an export does not have."""
    if card.family != "dit":
        message = f"the pipeline of exports samples DiTs, and {card.name} is of the family {card.family}"
        yield Misfit("pipeline", message, protocol.pipeline, ("lab",))
    if protocol.guidance_interval is not None:
        message = "the pipeline of diffusers guides at every step; leave guidance_interval out"
        yield Misfit("guidance_interval", message, protocol.guidance_interval)
    if protocol.precision != "float32":
        message = "the pipeline of diffusers is compared in float32, which alone gives its bits"
        yield Misfit("precision", message, protocol.precision, ("float32",))
    if protocol.sampler == "flow_euler" and protocol.spacing != "linspace":
        message = "diffusers places the steps of a flow evenly between the first and the last level"
        yield Misfit("spacing", message, protocol.spacing, ("linspace",))


def finetuning_misfits(card: BackboneCard, plan: FinetunePlan) -> Iterator[Misfit]:
    """Every setting that has no meaning for this backbone."""
    if card.num_classes == 0 and plan.label_dropout > 0:
        message = f"{card.name} takes no labels that could be dropped; use 0"
        yield Misfit("label_dropout", message, plan.label_dropout)


def check_protocol(card: BackboneCard, protocol: EvaluationProtocol) -> None:
    """Raises ValueError that names the first setting that this backbone cannot be sampled with."""
    for misfit in protocol_misfits(card, protocol):
        raise ValueError(f"{misfit.setting}: {misfit.message}")
