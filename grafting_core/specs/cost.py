"""Plan and cost of a submission, by formula."""

from collections.abc import Sequence

from grafting_core.specs.backbone import BackboneCard, card_of
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Usage
from grafting_core.specs.canonical import memoized
from grafting_core.specs.changes import SlotChange, slot_changes
from grafting_core.specs.design import GraftDesign, ParallelPair, Part
from grafting_core.specs.experiment import (
    ExperimentSpec,
    evaluation_key,
    finetune_key,
    protocol_digest,
    scion_keys,
)
from grafting_core.specs.plans import EvaluationProtocol, warmup_notes
from grafting_core.specs.sampling_steps import forwards_per_image


class StagePlan(Frozen):
    """One stage: artifact keys, and usage (device-seconds are unknown and 0)."""

    stage: str
    keys: dict[str, str]
    steps: int
    spend: Usage


class DesignCost(Frozen):
    """Whole-model totals of a design and of its teacher."""

    num_params: int
    teacher_params: int
    flops_per_forward: int
    teacher_flops_per_forward: int
    depth: int
    """Number of blocks that run one after another; a pair counts once."""
    teacher_depth: int
    flops_per_image: int
    """FLOPs of one sampled image: all steps, both forwards of guidance, the decoder."""
    teacher_flops_per_image: int
    changes: tuple[SlotChange, ...] = ()
    """Changes by slot, as in the paper's Table 4."""


class ExperimentPlan(Frozen):
    """Result of `graft plan`: resolved spec, digests, stages and cost. Nothing is stored."""

    digest: str
    protocol_digest: str
    experiment: ExperimentSpec
    cost: DesignCost
    stages: tuple[StagePlan, ...]
    total: Usage
    share_of_pretraining: float | None
    """None where it is not known what the backbone cost to make."""
    runnable: bool
    """False if the lab has only the backbone's card and not its weights."""
    notes: tuple[str, ...] = ()
    """Warnings about settings that are allowed but rarely intended."""


@memoized
def plan(spec: ExperimentSpec) -> ExperimentPlan:
    """Stages, keys, parameters and FLOPs of a resolved experiment."""
    card = card_of(spec.design.backbone)
    stages = _stages(spec, card)
    total = sum((stage.spend for stage in stages), Usage())
    return ExperimentPlan(
        digest=spec.digest,
        protocol_digest=protocol_digest(spec),
        experiment=spec,
        cost=design_cost(spec, card),
        stages=stages,
        total=total,
        share_of_pretraining=card.share_of_pretraining(total.flops),
        runnable=card.weights is not None,
        notes=() if spec.design.is_teacher else warmup_notes(distill=spec.distill, finetune=spec.finetune),
    )


def design_cost(spec: ExperimentSpec, card: BackboneCard) -> DesignCost:
    """Parameters and FLOPs: the backbone's, minus replaced operators, plus new operators and merges."""
    params, forward = card.num_params, card.forward_flops()
    for edit in spec.design.edits:
        old = card.original(edit.site)
        params += edit.operator.num_params(card.dims) - old.num_params(card.dims)
        forward += edit.operator.computed_flops(card.dims) - old.computed_flops(card.dims)
    for pair in spec.design.pairs:
        params += pair.num_params(card.dims)
        forward += pair.flops(card.dims)
    return DesignCost(
        depth=card.serial_depth - len(spec.design.pairs),
        teacher_depth=card.serial_depth,
        num_params=params,
        teacher_params=card.num_params,
        flops_per_forward=forward,
        teacher_flops_per_forward=card.forward_flops(),
        flops_per_image=image_flops(spec.evaluate, card, forward),
        teacher_flops_per_image=image_flops(spec.evaluate, card, card.forward_flops()),
        changes=slot_changes(spec.design, card),
    )


def grafted_params(design: GraftDesign, card: BackboneCard) -> int:
    """Parameters of the design's operators and merges."""
    operators = sum(edit.operator.num_params(card.dims) for edit in design.edits)
    return operators + sum(pair.num_params(card.dims) for pair in design.pairs)


def image_flops(protocol: EvaluationProtocol, card: BackboneCard, forward: int) -> int:
    """FLOPs of sampling and decoding one image under a protocol."""
    return forwards_per_image(protocol, card) * forward + card.decoder_flops


def distill_flops_per_image(spec: ExperimentSpec, card: BackboneCard) -> int:
    """FLOPs of stage 1 per image: one teacher forward for all sites, three forwards per trained operator."""
    return pass_flops_per_image(card, spec.design.parts)


def pass_flops_per_image(card: BackboneCard, parts: Sequence[Part]) -> int:
    """FLOPs per image of a pass that distils these parts; 0 without parts."""
    return card.forward_flops() + sum(part_flops(card, part) for part in parts) if parts else 0


def part_flops(card: BackboneCard, part: Part) -> int:
    """FLOPs of training one part on one image: three of its forwards.

    A merge needs one more forward of its pair's second block, on the pair's own input.
    """
    if isinstance(part, ParallelPair):
        return 3 * part.flops(card.dims) + card.block_flops(part.blocks[1])
    return 3 * part.operator.computed_flops(card.dims)


def finetune_flops_per_image(spec: ExperimentSpec, card: BackboneCard) -> int:
    """FLOPs of stage 2 per image: forward and backward of the whole graft, as three forwards."""
    return 3 * design_cost(spec, card).flops_per_forward if not spec.design.is_teacher else 0


def _stages(spec: ExperimentSpec, card: BackboneCard) -> tuple[StagePlan, ...]:
    cost = design_cost(spec, card)
    evaluated = Usage(flops=float(spec.evaluate.samples * cost.flops_per_image))
    evaluate = _stage("evaluate", {"evaluation": evaluation_key(spec)}, spec.evaluate.samples, evaluated)
    if spec.design.is_teacher:
        return (evaluate,)
    return (
        _training("distill", scion_keys(spec), spec.distill.steps, spec.distill.batch_size, spec, card),
        _training(
            "finetune",
            {"model": finetune_key(spec)},
            spec.finetune.steps,
            spec.finetune.batch_size,
            spec,
            card,
        ),
        evaluate,
    )


def _stage(stage: str, keys: dict[str, str], steps: int, spend: Usage) -> StagePlan:
    return StagePlan(stage=stage, keys=keys, steps=steps, spend=spend)


def _training(
    stage: str, keys: dict[str, str], steps: int, batch: int, spec: ExperimentSpec, card: BackboneCard
) -> StagePlan:
    per_image = (
        distill_flops_per_image(spec, card) if stage == "distill" else finetune_flops_per_image(spec, card)
    )
    images = steps * batch
    return _stage(stage, keys, steps, Usage(flops=float(images * per_image), training_images=images))
