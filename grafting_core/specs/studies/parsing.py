"""From a study file to a `StudySpec`, or to everything that is wrong with it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from grafting_core.specs.backbone import BackboneCard, backbone_cards
from grafting_core.specs.budget import Usage
from grafting_core.specs.cost import plan
from grafting_core.specs.dims import SLOTS, Slot
from grafting_core.specs.documents.designs import check_shares, parse_submission
from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.documents.explain import nearest, refused
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.operators import kinds_for
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.rungs import FidRung, Rung
from grafting_core.specs.site import GraftSite
from grafting_core.specs.studies.space import (
    Choice,
    Cost,
    Keep,
    Space,
    Variable,
    label_of,
    pair_of,
    variable_of,
)
from grafting_core.specs.studies.study import (
    COSTS,
    MAX_BOUND,
    Limit,
    StudyDocument,
    StudySpec,
    bound_of,
    plain_choices,
    rung_of,
    samples_of,
)

SHARED = ("name", "backbone", "preset", "distill", "finetune", "evaluate", "budget", "resources")
"""Fields that mean in a study what they mean in a design file."""
QUALITIES = "loss_gap or a FID such as fid1k"


def parse_study(document: Any) -> StudySpec:
    """Validate a plain document and resolve it against its backbone.

    Raises SpecError naming every problem with a JSON pointer into the document. Whether any design meets
    the limits is for the proposer to say.
    """
    check_plain(document)
    given = plain_choices(document)
    try:
        asked = StudyDocument.model_validate_json(json.dumps(given))
    except ValidationError as error:
        told = refused(error, given, StudyDocument)
        raise SpecError(_of_the_user(told.problems, document), told.left_out) from error
    settings = parse_submission(_shared(given, asked))
    check_shares(settings.finetune, settings.resources)
    card = backbone_cards()[asked.backbone]
    problems = [*_space_problems(asked, card), *_goal_problems(asked, settings.evaluate, card)]
    if problems:
        raise SpecError(problems)
    spec = _resolved(asked, card, settings.evaluate).model_copy(
        update={
            "distill": settings.distill,
            "finetune": settings.finetune,
            "budget": settings.budget.resolved(card.pretraining.flops),
        }
    )
    _check_budget(spec, card)
    return spec


def _of_the_user(problems: Sequence[Problem], document: Any) -> list[Problem]:
    """A bare name has no field `kind`: the pointer ends at the name."""
    return [
        each.model_copy(update={"pointer": each.pointer.removesuffix("/kind")})
        if each.pointer.startswith("/space/") and _is_bare(each.pointer, document)
        else each
        for each in problems
    ]


def _is_bare(place: str, document: Any) -> bool:
    here = document
    for part in place.removesuffix("/kind").split("/")[1:]:
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, Mapping) and part in here:
            here = here[part]
        else:
            return False
    return isinstance(here, str)


def _shared(document: Mapping[str, Any], asked: StudyDocument) -> dict[str, Any]:
    """The part that a design file has too. The finest FID asked for says how many samples are drawn."""
    shared = {name: document[name] for name in SHARED if name in document}
    names = [each.minimize for each in asked.objectives]
    wanted = [samples for samples in map(samples_of, names) if samples and samples >= 2]
    if wanted and "samples" not in asked.evaluate.model_fields_set:
        shared["evaluate"] = {**shared.get("evaluate", {}), "samples": max(wanted)}
    return shared


def _problem(path: tuple[object, ...], code: str, message: str, given: Any, allowed: Any = ()) -> Problem:
    return Problem(
        pointer=pointer(*path), code=code, message=message, given=shown(given), allowed=tuple(allowed)
    )


def _space_problems(asked: StudyDocument, card: BackboneCard) -> Iterator[Problem]:
    for slot in SLOTS:
        yield from _slot_problems(asked, slot, card)
    if _is_empty(asked):
        message = "nothing to decide: give attention or mlp two choices at least, such as [keep, hyena_x]"
        yield _problem(("space",), "empty-space", message, asked.space.model_dump(mode="json"))
    if asked.space.parallel_pairs and any(_cut_pairs(asked, card)):
        message = "a tied group reaches over a pair's edge; tie blocks 2i and 2i+1, or leave pairs out"
        yield _problem(("space", "parallel_pairs"), "contradiction", message, "optional")


def _is_empty(asked: StudyDocument) -> bool:
    return not asked.space.parallel_pairs and all(len(getattr(asked.space, slot)) < 2 for slot in SLOTS)


def _slot_problems(asked: StudyDocument, slot: Slot, card: BackboneCard) -> Iterator[Problem]:
    choices: tuple[Choice, ...] = getattr(asked.space, slot)
    seen: dict[str, int] = {}
    for index, choice in enumerate(choices):
        path = ("space", slot, index)
        label = label_of(choice)
        if label in seen:
            message = f"{label} is choice {seen[label]} already"
            yield _problem(path, "repeated-choice", message, label)
        seen.setdefault(label, index)
        yield from _choice_problems(path, choice, slot, card)
    groups = getattr(asked.space.groups, slot)
    if groups is not None:
        yield from _group_problems(slot, groups, choices, card)


def _choice_problems(
    path: tuple[object, ...], choice: Choice, slot: Slot, card: BackboneCard
) -> Iterator[Problem]:
    if isinstance(choice, Keep):
        return
    if slot not in choice.slots:
        allowed = ["keep", *kinds_for(slot)]
        message = (
            f"{choice.kind} fits the {choice.slots[0]} slot, not {slot}; use one of {', '.join(allowed)}"
        )
        yield _problem(path, "wrong-slot", message, choice.kind, allowed)
        return
    for name, right in choice.problems(card.dims):
        yield _problem((*path, name), "out-of-range", f"should be {right}", getattr(choice, name))


def _group_problems(
    slot: Slot, groups: Sequence[Sequence[int]], choices: Sequence[Choice], card: BackboneCard
) -> Iterator[Problem]:
    path, seen = ("space", "groups", slot), set()
    if not choices:
        yield _problem(path, "contradiction", f"{slot} has groups but no choices", len(groups))
    if len(groups) > card.depth:
        message = f"{len(groups)} groups for the {card.depth} {slot} sites of {card.name}"
        yield _problem(path, "too-many-sites", f"{message}; at most {card.depth}", len(groups))
    for index, group in enumerate(groups):
        if not group:
            yield _problem((*path, index), "empty-group", "a group ties at least one block", [])
        for block in group:
            if block >= card.depth:
                message = f"block {block} does not exist; blocks are 0 to {card.depth - 1}"
                yield _problem((*path, index), "too-many-sites", message, block)
            elif block in seen:
                yield _problem((*path, index), "contradiction", f"block {block} is in two groups", block)
            seen.add(block)


def _cut_pairs(asked: StudyDocument, card: BackboneCard) -> Iterator[int]:
    """First blocks of pairs that a group covers in part and reaches beyond."""
    for slot in SLOTS:
        for group in getattr(asked.space.groups, slot) or ():
            blocks = set(group)
            for first in range(0, card.depth - 1, 2):
                if blocks & {first, first + 1} and not blocks <= {first, first + 1}:
                    yield first


def _goal_problems(
    asked: StudyDocument, protocol: EvaluationProtocol, card: BackboneCard
) -> Iterator[Problem]:
    names = [each.minimize for each in asked.objectives]
    qualities = [name for name in names if _is_quality(name)]
    for index, name in enumerate(names):
        if name not in COSTS and not _is_quality(name):
            allowed = ("fid1k", "loss_gap", *COSTS)
            message = f"unknown objective {shown(name)}{nearest(name, allowed)}"
            message += f"; minimise {QUALITIES}, flops, params or latency"
            yield _problem(("objectives", index, "minimize"), "unknown-objective", message, name, allowed)
        elif name in names[:index]:
            yield _problem(("objectives", index), "contradiction", f"{name} is minimised twice", name)
    if len(qualities) != 1:
        message = f"one objective is the quality, {QUALITIES}; {len(qualities)} are"
        yield _problem(("objectives",), "contradiction", message, names)
    else:
        yield from _rung_problems(asked, protocol, qualities[0])
    yield from _limit_problems(asked, card)
    for index, baseline in enumerate(asked.baselines):
        if baseline in asked.baselines[:index]:
            yield _problem(("baselines", index), "repeated-choice", f"{baseline} is listed twice", baseline)


def _limit_problems(asked: StudyDocument, card: BackboneCard) -> Iterator[Problem]:
    totals = _totals(card)
    for cost in COSTS:
        given = getattr(asked.limits, cost)
        if given is None:
            continue
        if bound_of(given, totals[cost]) is None:
            message = f"a limit is a positive number up to {MAX_BOUND:g} or a share such as '<= 0.85x'"
            message += f", not {shown(given, 40)}"
            yield _problem(("limits", cost), "bad-limit", message, given)


def _is_quality(name: str) -> bool:
    return name == "loss_gap" or (samples_of(name) or 0) >= 2


def _rung_problems(asked: StudyDocument, protocol: EvaluationProtocol, quality: str) -> Iterator[Problem]:
    final = samples_of(quality)
    if final is not None and final > protocol.samples:
        message = f"{quality} needs {final:,} samples, evaluate.samples is {protocol.samples:,}"
        yield _problem(("evaluate", "samples"), "contradiction", f"{message}; leave it out", protocol.samples)
    counts = []
    for index, name in enumerate(asked.screening.rungs):
        path, rung = ("screening", "rungs", index), rung_of(name, asked.screening, protocol)
        if rung is None:
            yield _problem(
                path, "unknown-rung", f"unknown rung {shown(name)}; {QUALITIES}", name, ("loss_gap", "fid1k")
            )
            continue
        counts.append(rung.samples if isinstance(rung, FidRung) else 0)
        if counts[-1] > protocol.samples:
            message = f"a rung looks at no more than the final {protocol.samples:,} samples"
            yield _problem(path, "out-of-range", message, name)
        if len(counts) > 1 and counts[-1] <= counts[-2]:
            message = "rungs go from cheap to dear, loss_gap first, each once"
            yield _problem(path, "contradiction", message, list(asked.screening.rungs))


def _resolved(asked: StudyDocument, card: BackboneCard, protocol: EvaluationProtocol) -> StudySpec:
    rungs = [rung_of(name, asked.screening, protocol) for name in asked.screening.rungs]
    names = [each.minimize for each in asked.objectives]
    quality = next(rung_of(name, asked.screening, protocol) for name in names if _is_quality(name))
    assert quality is not None
    return StudySpec(
        name=asked.name,
        backbone=card.ref,
        space=space_of(asked, card),
        quality=quality.metric,
        costs=tuple(name for name in names if name in COSTS),
        limits=tuple(_limits(asked, card)),
        sampler=asked.sampler,
        rungs=_known(rungs),
        reduction=asked.screening.reduction,
        trials=asked.screening.trials,
        promote=asked.promote,
        calibrate=asked.calibrate,
        rounds=min(asked.rounds, asked.screening.trials, asked.promote),
        baselines=asked.baselines,
        step_curve=asked.step_curve,
        distill=asked.distill,
        finetune=asked.finetune,
        evaluate=protocol,
        resources=asked.resources,
    )


def _known(rungs: Sequence[Rung | None]) -> tuple[Rung, ...]:
    return tuple(rung for rung in rungs if rung is not None)


def _totals(card: BackboneCard) -> dict[Cost, float]:
    return {"params": card.num_params, "flops": card.forward_flops(), "latency": 1.0}


def _limits(asked: StudyDocument, card: BackboneCard) -> Iterator[Limit]:
    for cost, total in _totals(card).items():
        given = getattr(asked.limits, cost)
        bound = None if given is None else bound_of(given, total)
        if bound is not None:
            yield Limit(cost=cost, at_most=bound, of_backbone=bound / total)


def space_of(asked: StudyDocument, card: BackboneCard) -> Space:
    """Variables of both slots, front to back, and the pairs."""
    variables = [variable for slot in SLOTS for variable in _variables(asked, slot, card)]
    firsts = range(0, card.depth - 1, 2) if asked.space.parallel_pairs else ()
    return Space(
        backbone=card.ref,
        base_params=card.num_params,
        base_flops=card.forward_flops(),
        variables=tuple(sorted(variables, key=lambda each: each.items[0].sites[0].order)),
        pairs=tuple(pair_of(card, first) for first in firsts),
    )


def _variables(asked: StudyDocument, slot: Slot, card: BackboneCard) -> Iterator[Variable]:
    choices = getattr(asked.space, slot) or (Keep(),)
    groups = getattr(asked.space.groups, slot)
    tied = [sorted(group) for group in groups] if groups is not None else [[b] for b in range(card.depth)]
    rest = [[block] for block in range(card.depth) if not any(block in group for group in tied)]
    for group in tied:
        yield variable_of(card, [GraftSite(block=block, slot=slot) for block in group], choices)
    for group in rest:
        yield variable_of(card, [GraftSite(block=block, slot=slot) for block in group], (Keep(),))


def cheapest_plan(spec: StudySpec) -> Usage:
    """The bank filled once and one design finetuned and evaluated: less than that is no study."""
    card = backbone_cards()[spec.backbone.name]
    operators = [edit.operator for item in spec.space.items for edit in item.edits]
    trained = sum(operator.computed_flops(card.dims) for operator in operators)
    images = spec.distill.steps * spec.distill.batch_size
    fill = Usage(flops=float(images * (card.forward_flops() + 3 * trained)), training_images=images)
    smallest = min(spec.space.flops(spec.space.chosen(one)) for one in _extremes(spec.space))
    tuned = spec.finetune.steps * spec.finetune.batch_size
    teacher = plan(spec.experiment("teacher", spec.space.design(()))).total
    promotion = Usage(
        flops=3.0 * tuned * smallest + teacher.flops * smallest / spec.space.base_flops, training_images=tuned
    )
    whole = fill + promotion
    pretraining = card.pretraining
    rate = pretraining.flops / pretraining.device_seconds if pretraining.device_seconds else None
    return whole.model_copy(update={"device_seconds": whole.flops / rate if rate else 0.0})


def _extremes(space: Space) -> list[dict[str, str]]:
    """The smallest design by FLOPs without pairs."""
    return [{each.name: min(each.items, key=lambda item: item.flops).label for each in space.variables}]


def _check_budget(spec: StudySpec, card: BackboneCard) -> None:
    needed = cheapest_plan(spec)
    shares = {"share_of_pretraining": needed.flops / card.pretraining.flops}
    for name, given in spec.budget:
        least = {**dict(needed), **shares}[name]
        if given is not None and given < least:
            message = f"{given:g} is below the cheapest plan (fill the bank, finish one design)"
            message += f": about {least:.3g} on {card.name}"
            raise SpecError(
                [_problem(("budget", name), "budget-too-small", message, given, [f"{least:.3g}"])]
            )
