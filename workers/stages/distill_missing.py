"""Ensure that the bank has the scions of a job: distil missing ones in one pass and score all."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import nn

from grafting_core.analysis.sensitivity import Intervention, Undoable, replace_one, restore_one
from grafting_core.backbones.base import Backbone
from grafting_core.data.latents import Latents
from grafting_core.distillation.distill import DistillResult, StudentSpec, distill, replacement_student
from grafting_core.distillation.merge_init import fit_merges, merge_student
from grafting_core.operators.parallel import mean_merge
from grafting_core.operators.table import build_operator
from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.budget import Usage
from grafting_core.specs.canonical import digest
from grafting_core.specs.cost import part_flops, pass_flops_per_image
from grafting_core.specs.design import GraftDesign, ParallelPair
from grafting_core.specs.scions import ScionCard, ScionSpec
from grafting_core.storage.bank import Bank, payload_name
from grafting_core.surgery.operate import operate
from workers.checkpoints import ScionProgress
from workers.stages.context import Context
from workers.usage import StepCost


@dataclass(frozen=True)
class DistillOutcome:
    """Outcome for a set of scions: number missing, those made by this run, notes, and divergences."""

    missing: int
    made: dict[str, Usage]
    """Key -> usage, of scions made by any attempt of this run."""
    notes: tuple[str, ...]
    diverged: dict[str, str]
    """Label of a diverged scion -> reason."""


def ensure_distilled(
    context: Context,
    scions: Sequence[ScionSpec],
    stage_key: str,
    read: dict[str, bytes] | None = None,
) -> DistillOutcome:
    """Distil the missing scions of one stream into the bank, each rank its share.

    Verified weights of scions that the bank already has are put into `read`, for building the graft from
    them.
    """
    bank = Bank(context.storage)
    by_key = {scion.key: scion for scion in scions}
    banked = [key for key in by_key if bank.has(key)]
    damaged = {key: wrong for key in banked if (wrong := bank.verify_or_set_aside(key, read)) is not None}
    notes = [f"{by_key[key].label}: {wrong}; made anew" for key, wrong in damaged.items()]
    lacking = [key for key in by_key if key in damaged or key not in banked]
    missing = [by_key[key] for key in lacking if not bank.divergence(key)]
    # All ranks list before any publishes: otherwise they would split different lists.
    context.group.barrier()
    if missing:
        _distil(context, bank, missing, stage_key)
    context.group.barrier()
    _score(context, bank, list(by_key.values()))
    context.group.barrier()
    cards = [card for key in by_key if (card := bank.card(key)) is not None]
    made = {card.key: card.spend for card in cards if card.made_by == context.ticket.run_id}
    failed = {scion.label: bank.divergence(key) for key, scion in by_key.items() if not bank.has(key)}
    diverged = {label: reason or "it vanished" for label, reason in failed.items()}
    return DistillOutcome(len(missing), made, tuple(notes), diverged)


def _distil(context: Context, bank: Bank, missing: Sequence[ScionSpec], stage_key: str) -> None:
    ranks = context.group.share.world
    own = {scion.key: scion for scion in missing[context.group.share.rank :: ranks]}
    card, plan = context.backbone.card, missing[0].plan
    teachers = min(ranks, len(missing))
    flops = pass_flops_per_image(card, [s.part for s in missing]) + (teachers - 1) * card.forward_flops()
    context.meter.set_step_cost("distill", StepCost(plan.batch_size * flops, plan.batch_size))
    if not own:
        return  # more workers than scions
    latents = context.latents(plan.images, plan.dataset, plan.subset_seed)
    distill(
        context.backbone,
        candidates_of(context.backbone, list(own.values()), latents),
        latents,
        context.held_out(plan.dataset),
        observer=context.pass_observer("distill", stage_key),
        checkpoints=ScionProgress(context.storage, bank, list(own), context.ticket.checkpoint_seconds),
        done=_publisher(context, bank, own),
        accumulation_steps=context.ticket.accumulation_steps,
    )


def _publisher(
    context: Context, bank: Bank, own: Mapping[str, ScionSpec]
) -> Callable[[StudentSpec, DistillResult], None]:
    """Publishes each scion when it is done, so that it is not lost if the attempt ends early."""

    def done(candidate: StudentSpec, result: DistillResult) -> None:
        scion, card = own[candidate.key], context.backbone.card
        if result.diverged:
            bank.note_divergence(candidate.key, result.reason)
            return
        payload = save(result.state)
        file, sha256 = payload_name(payload)
        bank.publish(
            ScionCard(
                key=candidate.key,
                scion=scion,
                errors=result.errors,
                held_out=_held_out_digest(card, scion),
                curve=tuple(result.curve),
                steps=result.steps,
                ending="plateau" if result.ending == "plateau" else "completed",
                reason=result.reason,
                spend=_attributed_usage(context, scion, result, len(own)),
                made_by=context.ticket.run_id,
                made_at=time.time(),
                hardware=f"{platform.machine()} {context.backbone.device.type}, torch {torch.__version__}",
                file=file,
                sha256=sha256,
                size=len(payload),
            ),
            payload,
        )

    return done


def _attributed_usage(context: Context, scion: ScionSpec, result: DistillResult, sharers: int) -> Usage:
    """Usage attributed to one scion: an equal share of the teacher, and its own training."""
    card, images = context.backbone.card, result.steps * scion.plan.batch_size
    flops = card.forward_flops() / sharers + part_flops(card, scion.part)
    seconds = result.seconds * context.ticket.work.resources.devices_per_worker
    return Usage(device_seconds=seconds, flops=images * flops, training_images=images // sharers)


def _held_out_digest(card: BackboneCard, scion: ScionSpec) -> str | None:
    """Digest of the data of held-out errors: the plan's data set, by default the backbone's images."""
    if scion.plan.dataset is not None:
        return scion.plan.dataset.digest
    return card.held_out.digest if card.held_out else None


def _score(context: Context, bank: Bank, scions: Sequence[ScionSpec]) -> None:
    """Store replace-one scores of the scions that have none, each rank its share."""
    cards = [bank.card(scion.key) for scion in scions]
    unscored = [card.key for card in cards if card is not None and not card.scores]
    own = unscored[context.group.share.rank :: context.group.share.world]
    if not own:
        return
    specs = {scion.key: scion for scion in scions}
    places = {key: intervention(context.backbone, bank, specs[key]) for key in own}
    held_out = context.held_out(scions[0].plan.dataset)
    for key, scores in replace_one(context.backbone, places, held_out).items():
        bank.add_scores(key, scores)


def score_restoring(context: Context, scions: Sequence[ScionSpec]) -> None:
    """Store restore-one scores within this design of the scions that have none."""
    bank, backbone, name = Bank(context.storage), context.backbone, digest(context.spec.design)
    cards = {scion.key: bank.full_card(scion.key) for scion in scions}
    if all(card is None or name in card.restored for card in cards.values()):
        return
    modules = {scion.key: module_of(backbone, bank, scion) for scion in scions}

    def place_all_but(left_out: Sequence[str]) -> Undoable:
        return _operate(backbone, [(s, modules[s.key]) for s in scions if s.key not in left_out])

    places = dict.fromkeys(modules, place_all_but)
    held_out = context.held_out(context.spec.distill.dataset)
    for key, scores in restore_one(backbone, places, held_out).items():
        if cards[key] is not None:
            bank.add_restored(key, name, scores)


def _operate(backbone: Backbone, placed: Sequence[tuple[ScionSpec, nn.Module]]) -> Undoable:
    design = GraftDesign.of(backbone.card.ref, [scion.part for scion, _ in placed])
    return operate(backbone, design, {scion.part.place: module for scion, module in placed})


def intervention(backbone: Backbone, bank: Bank, scion: ScionSpec) -> Intervention:
    """Function that puts this one scion into the backbone's transformer."""
    module = module_of(backbone, bank, scion)

    def place() -> Undoable:
        return _operate(backbone, [(scion, module)])

    return place


def candidates_of(backbone: Backbone, scions: Sequence[ScionSpec], latents: Latents) -> list[StudentSpec]:
    """Students to train for these scions of one stream; merges start from a least-squares fit made here."""
    pairs = [scion.part for scion in scions if isinstance(scion.part, ParallelPair)]
    starts = fit_merges(backbone, pairs, latents, scions[0].plan.seed)
    return [
        merge_student(scion.part, scion.plan, scion.key, starts[scion.part])
        if isinstance(scion.part, ParallelPair)
        else replacement_student(scion.part, scion.plan, scion.key)
        for scion in scions
    ]


def module_of(backbone: Backbone, bank: Bank, scion: ScionSpec, payload: bytes | None = None) -> nn.Module:
    """The distilled module with its verified weights. Raises FileNotFoundError or CorruptArtifact.

    `payload`: the weights, if they were read and verified before.
    """
    part = scion.part
    if isinstance(part, ParallelPair):
        module: nn.Module = mean_merge(backbone.card.dims.width)
    else:
        module = build_operator(part.operator, backbone.sites[part.site])
    module.load_state_dict(load(bank.read(scion.key) if payload is None else payload))
    return module.to(backbone.device).eval()
