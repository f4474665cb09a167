"""Memory that each stage takes at its peak, by arithmetic, and what would fit where it does not.

Weights are in single precision. Activations are counted in tensors of [tokens, width] that are kept for
the backward pass; how many each part keeps was measured on the CPU.
"""

from collections.abc import Mapping

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.base import Frozen
from grafting_core.specs.cost import grafted_params
from grafting_core.specs.design import GraftDesign, ParallelPair, Part
from grafting_core.specs.dims import SLOTS
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan, Precision
from grafting_core.specs.site import GraftSite

FLOAT = 4
"""Bytes of a number in single precision."""
PROCESS = 500_000_000
"""Bytes of a process that has loaded the libraries and nothing else."""
BLOCK_TENSORS = 6.0
"""Kept by a block in addition to its operators: input, both norms' outputs, what comes out of each half."""
LAST_TENSORS = 3.0
"""Kept before the first block and after the last."""
OPERATOR_TENSORS = 1.0
"""Kept by an operator in addition to the outputs of its layers."""
OUTPUTS_KEPT: Mapping[str, float] = {
    "mha": 1.0,
    "window_attention": 1.2,
    "window_attention_2d": 1.0,
    "mlp": 1.0,
    "mamba2": 6.2,
    "mamba2_bidirectional": 10.2,
    "conv_mlp": 1.5,
    "hyena_y": 1.5,
    "hyena_y_bidirectional": 1.5,
}
"""Kind -> how many times the outputs of its layers an operator keeps: a scan keeps its steps."""
OTHER_OUTPUTS_KEPT = 2.0
FORWARD_TENSORS = 14.0
"""Alive at once in a forward without gradients, the widest layer's input and output among them."""
BACKWARD_TENSORS = 12.0
"""Alive at once in a backward pass in addition to what was kept."""
HALF = 0.6
"""Activations under bfloat16 for those in single precision: norms and sums stay in single precision."""
DECODER_BYTES = "decoder_bytes"
"""Figure of a card: bytes that decoding one image takes."""


class MemoryNeed(Frozen):
    """Bytes on one device at the peak of a stage."""

    weights: int = 0
    """Of the network that is trained or sampled."""
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    teacher: int = 0
    """Of the teacher, a second network."""
    activations: int = 0
    other: int = 0
    """The process itself, data and decoder."""

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in type(self).model_fields)


def held_params(card: BackboneCard) -> int:
    """Parameters in memory: what blocks repeat is there once."""
    return card.num_params - card.repeated_params


def finetuning_memory(
    card: BackboneCard,
    design: GraftDesign,
    plan: FinetunePlan,
    *,
    workers: int = 1,
    accumulation_steps: int = 1,
    teacher: bool = True,
) -> MemoryNeed:
    """Stage 2: weights, gradients, two moments and averaged weights, in a lab the teacher's weights too."""
    weights = FLOAT * (held_params(card) + _added_params(card, design))
    rows = -(-plan.batch_size // (workers * accumulation_steps))
    kept = LAST_TENSORS + sum(_block_tensors(card, design, block) for block in range(card.depth))
    activations = rows * _tensor_bytes(card) * (kept + BACKWARD_TENSORS)
    copies = weights // 2 if plan.precision == "bfloat16" else 0
    return MemoryNeed(
        weights=weights,
        gradients=weights,
        optimiser=2 * weights,
        average=weights,
        teacher=FLOAT * held_params(card) if teacher else 0,
        activations=int(activations * _share(plan.precision)) + copies,
        other=PROCESS,
    )


def distillation_memory(
    card: BackboneCard,
    parts: tuple[Part, ...],
    plan: DistillPlan,
    *,
    accumulation_steps: int = 1,
) -> MemoryNeed:
    """Stage 1: the teacher, every student with its moments, gradients and activations of one at a time."""
    params = [_part_params(card, part) for part in parts]
    tensors = max((_part_tensors(card, part) for part in parts), default=0.0)
    rows = -(-plan.batch_size // accumulation_steps)
    stored = FLOAT * plan.images * card.dims.num_tokens * card.dims.width * len(parts)
    learning = rows * (tensors + BACKWARD_TENSORS)
    activations = _tensor_bytes(card) * (plan.batch_size * FORWARD_TENSORS + learning)
    return MemoryNeed(
        weights=FLOAT * sum(params),
        gradients=FLOAT * max(params, default=0),
        optimiser=2 * FLOAT * sum(params),
        teacher=FLOAT * held_params(card),
        activations=int(activations * _share(plan.precision)),
        other=PROCESS + (stored if plan.features == "stored" else 0),
    )


def sampling_memory(
    card: BackboneCard, design: GraftDesign, protocol: EvaluationProtocol, *, teacher: bool = True
) -> MemoryNeed:
    """Stage 3: both halves of the guidance in one forward, then the decoder on a micro batch."""
    rows = protocol.micro_batch * (2 if protocol.guidance > 1 else 1)
    forward = int(rows * _tensor_bytes(card) * FORWARD_TENSORS * _share(protocol.precision))
    decoded = int(protocol.micro_batch * card.figures.get(DECODER_BYTES, 0.0))
    return MemoryNeed(
        weights=FLOAT * (held_params(card) + _added_params(card, design)),
        teacher=FLOAT * held_params(card) if teacher and not design.is_teacher else 0,
        activations=max(forward, decoded),
        other=PROCESS,
    )


def _tensor_bytes(card: BackboneCard) -> int:
    """Of one tensor [tokens, width] of one sample."""
    return FLOAT * card.dims.num_tokens * card.dims.width


def _share(precision: Precision) -> float:
    return HALF if precision == "bfloat16" else 1.0


def _added_params(card: BackboneCard, design: GraftDesign) -> int:
    removed = sum(card.original(edit.site).num_params(card.dims) for edit in design.edits)
    return grafted_params(design, card) - removed


def _block_tensors(card: BackboneCard, design: GraftDesign, block: int) -> float:
    operators = {edit.site.slot: edit.operator for edit in design.edits if edit.site.block == block}
    sites = (GraftSite(block=block, slot=slot) for slot in SLOTS)
    placed = (operators.get(site.slot) or card.original(site) for site in sites)
    return BLOCK_TENSORS + sum(
        _operator_tensors(card, each.kind, each.num_params(card.dims)) for each in placed
    )


def _operator_tensors(card: BackboneCard, kind: str, params: int) -> float:
    """The outputs of its layers together are as wide as its parameters over the width of their input."""
    outputs = params / card.dims.width**2
    return OPERATOR_TENSORS + outputs * OUTPUTS_KEPT.get(kind, OTHER_OUTPUTS_KEPT)


def _part_params(card: BackboneCard, part: Part) -> int:
    return (
        part.num_params(card.dims) if isinstance(part, ParallelPair) else part.operator.num_params(card.dims)
    )


def _part_tensors(card: BackboneCard, part: Part) -> float:
    """A merge keeps the outputs of both blocks."""
    kind = "merge" if isinstance(part, ParallelPair) else part.operator.kind
    return _operator_tensors(card, kind, _part_params(card, part))
