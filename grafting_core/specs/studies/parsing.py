"""Parse a study file into a `StudySpec`, or report its errors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from grafting_core.specs.backbone import BackboneCard, card_of
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

SHARED = ("name", "backbone", "dataset", "preset", "distill", "finetune", "evaluate", "budget", "resources")
"""Fields with the same meaning in a study and in a design file."""
QUALITIES = "loss_gap or a FID such as fid1k"


def parse_study(document: Any) -> StudySpec:
    """Validate a plain document and resolve it against its backbone.

    Raises SpecError with all errors, each with a JSON pointer into the document. Does not check whether any
    design meets the limits.
    """
    check_plain(document)
    plain = plain_choices(document)
    try:
        study = StudyDocument.model_validate_json(json.dumps(plain))
    except ValidationError as error:
        explained = refused(error, plain, StudyDocument)
        raise SpecError(_in_user_document(explained.problems, document), explained.left_out) from error
    settings = parse_submission(_shared(plain, study))
    check_shares(settings.finetune, settings.resources)
    card = card_of(settings.backbone)
    problems = [*_space_problems(study, card), *_objective_problems(study, settings.evaluate, card)]
    if problems:
        raise SpecError(problems)
    spec = _resolved(study, card, settings.evaluate).model_copy(
        update={
            "distill": settings.distill,
            "finetune": settings.finetune,
            "budget": settings.budget.resolved(card.pretraining.flops if card.pretraining else None),
        }
    )
    _check_budget(spec, card)
    return spec


def _in_user_document(problems: Sequence[Problem], document: Any) -> list[Problem]:
    """Errors with pointers into the user's document: a choice given as a bare name has no field `kind`."""
    return [
        problem.model_copy(update={"pointer": problem.pointer.removesuffix("/kind")})
        if problem.pointer.startswith("/space/") and _is_bare(problem.pointer, document)
        else problem
        for problem in problems
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


def _shared(document: Mapping[str, Any], study: StudyDocument) -> dict[str, Any]:
    """Part that design files have too; the largest FID among the objectives sets the number of samples."""
    shared = {name: document[name] for name in SHARED if name in document}
    names = [objective.minimize for objective in study.objectives]
    counts = [samples for samples in map(samples_of, names) if samples and samples >= 2]
    if counts and "samples" not in study.evaluate.model_fields_set:
        shared["evaluate"] = {**shared.get("evaluate", {}), "samples": max(counts)}
    return shared


def _problem(path: tuple[object, ...], code: str, message: str, given: Any, allowed: Any = ()) -> Problem:
    return Problem(
        pointer=pointer(*path), code=code, message=message, given=shown(given), allowed=tuple(allowed)
    )


def _space_problems(study: StudyDocument, card: BackboneCard) -> Iterator[Problem]:
    for slot in SLOTS:
        yield from _slot_problems(study, slot, card)
    if _is_empty(study):
        message = "nothing to choose: give attention or mlp at least two choices, such as [keep, hyena_x]"
        yield _problem(("space",), "empty-space", message, study.space.model_dump(mode="json"))
    if study.space.parallel_pairs and any(_cut_pairs(study, card)):
        message = "a group contains one block of a pair and blocks outside it; tie 2i and 2i+1, or drop pairs"
        yield _problem(("space", "parallel_pairs"), "contradiction", message, "optional")


def _is_empty(study: StudyDocument) -> bool:
    return not study.space.parallel_pairs and all(len(getattr(study.space, slot)) < 2 for slot in SLOTS)


def _slot_problems(study: StudyDocument, slot: Slot, card: BackboneCard) -> Iterator[Problem]:
    choices: tuple[Choice, ...] = getattr(study.space, slot)
    seen: dict[str, int] = {}
    for index, choice in enumerate(choices):
        path = ("space", slot, index)
        label = label_of(choice)
        if label in seen:
            message = f"{label} is already choice {seen[label]}"
            yield _problem(path, "repeated-choice", message, label)
        seen.setdefault(label, index)
        yield from _choice_problems(path, choice, slot, card)
    groups = getattr(study.space.groups, slot)
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
            yield _problem((*path, index), "empty-group", "a group needs at least one block", [])
        for block in group:
            if block >= card.depth:
                message = f"block {block} does not exist; blocks are 0 to {card.depth - 1}"
                yield _problem((*path, index), "too-many-sites", message, block)
            elif block in seen:
                yield _problem((*path, index), "contradiction", f"block {block} is in two groups", block)
            seen.add(block)


def _cut_pairs(study: StudyDocument, card: BackboneCard) -> Iterator[int]:
    """First blocks of pairs that a group covers only in part while it has other blocks too."""
    for slot in SLOTS:
        for group in getattr(study.space.groups, slot) or ():
            blocks = set(group)
            for first in range(0, card.depth - 1, 2):
                if blocks & {first, first + 1} and not blocks <= {first, first + 1}:
                    yield first


def _objective_problems(
    study: StudyDocument, protocol: EvaluationProtocol, card: BackboneCard
) -> Iterator[Problem]:
    names = [objective.minimize for objective in study.objectives]
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
        message = f"exactly one objective must be the quality, {QUALITIES}; {len(qualities)} are"
        yield _problem(("objectives",), "contradiction", message, names)
    else:
        yield from _rung_problems(study, protocol, qualities[0])
    yield from _limit_problems(study, card)
    for index, baseline in enumerate(study.baselines):
        if baseline in study.baselines[:index]:
            yield _problem(("baselines", index), "repeated-choice", f"{baseline} is listed twice", baseline)


def _limit_problems(study: StudyDocument, card: BackboneCard) -> Iterator[Problem]:
    totals = _totals(card)
    for cost in COSTS:
        given = getattr(study.limits, cost)
        if given is None:
            continue
        if bound_of(given, totals[cost]) is None:
            message = f"a limit is a positive number up to {MAX_BOUND:g} or a share such as '<= 0.85x'"
            message += f", not {shown(given, 40)}"
            yield _problem(("limits", cost), "bad-limit", message, given)


def _is_quality(name: str) -> bool:
    return name == "loss_gap" or (samples_of(name) or 0) >= 2


def _rung_problems(study: StudyDocument, protocol: EvaluationProtocol, quality: str) -> Iterator[Problem]:
    final = samples_of(quality)
    if final is not None and final > protocol.samples:
        message = f"{quality} needs {final:,} samples, but evaluate.samples is {protocol.samples:,}"
        yield _problem(("evaluate", "samples"), "contradiction", f"{message}; leave it out", protocol.samples)
    counts = []
    for index, name in enumerate(study.screening.rungs):
        path, rung = ("screening", "rungs", index), rung_of(name, study.screening, protocol)
        if rung is None:
            yield _problem(
                path, "unknown-rung", f"unknown rung {shown(name)}; {QUALITIES}", name, ("loss_gap", "fid1k")
            )
            continue
        counts.append(rung.samples if isinstance(rung, FidRung) else 0)
        if counts[-1] > protocol.samples:
            message = f"a rung uses no more than the final {protocol.samples:,} samples"
            yield _problem(path, "out-of-range", message, name)
        if len(counts) > 1 and counts[-1] <= counts[-2]:
            message = "order rungs from cheap to expensive, loss_gap first, each once"
            yield _problem(path, "contradiction", message, list(study.screening.rungs))


def _resolved(study: StudyDocument, card: BackboneCard, protocol: EvaluationProtocol) -> StudySpec:
    rungs = [rung_of(name, study.screening, protocol) for name in study.screening.rungs]
    names = [objective.minimize for objective in study.objectives]
    quality = next(rung_of(name, study.screening, protocol) for name in names if _is_quality(name))
    assert quality is not None
    return StudySpec(
        name=study.name,
        backbone=card.ref,
        space=space_of(study, card),
        quality=quality.metric,
        costs=tuple(name for name in names if name in COSTS),
        limits=tuple(_limits(study, card)),
        sampler=study.sampler,
        rungs=_known(rungs),
        reduction=study.screening.reduction,
        trials=study.screening.trials,
        promote=study.promote,
        calibrate=study.calibrate,
        rounds=min(study.rounds, study.screening.trials, study.promote),
        baselines=study.baselines,
        step_curve=study.step_curve,
        distill=study.distill,
        finetune=study.finetune,
        evaluate=protocol,
        resources=study.resources,
    )


def _known(rungs: Sequence[Rung | None]) -> tuple[Rung, ...]:
    return tuple(rung for rung in rungs if rung is not None)


def _totals(card: BackboneCard) -> dict[Cost, float]:
    return {"params": card.num_params, "flops": card.forward_flops(), "latency": 1.0}


def _limits(study: StudyDocument, card: BackboneCard) -> Iterator[Limit]:
    for cost, total in _totals(card).items():
        given = getattr(study.limits, cost)
        bound = None if given is None else bound_of(given, total)
        if bound is not None:
            yield Limit(cost=cost, at_most=bound, of_backbone=bound / total)


def space_of(study: StudyDocument, card: BackboneCard) -> Space:
    """Search space: variables of both slots, front to back, and the pairs."""
    variables = [variable for slot in SLOTS for variable in _variables(study, slot, card)]
    pairs = card.free_pairs if study.space.parallel_pairs else ()
    return Space(
        backbone=card.ref,
        base_params=card.num_params,
        base_flops=card.forward_flops(),
        variables=tuple(sorted(variables, key=lambda variable: variable.items[0].sites[0].order)),
        pairs=tuple(pair_of(card, pair) for pair in pairs),
    )


def _variables(study: StudyDocument, slot: Slot, card: BackboneCard) -> Iterator[Variable]:
    choices = getattr(study.space, slot) or (Keep(),)
    groups = getattr(study.space.groups, slot)
    tied = [sorted(group) for group in groups] if groups is not None else [[b] for b in range(card.depth)]
    rest = [[block] for block in range(card.depth) if not any(block in group for group in tied)]
    for group in tied:
        yield variable_of(card, [GraftSite(block=block, slot=slot) for block in group], choices)
    for group in rest:
        yield variable_of(card, [GraftSite(block=block, slot=slot) for block in group], (Keep(),))


def cheapest_plan(spec: StudySpec) -> Usage:
    """Usage of the cheapest possible study: fill the bank once, finetune and evaluate one design."""
    card = card_of(spec.backbone)
    operators = [edit.operator for item in spec.space.items for edit in item.edits]
    trained = sum(operator.computed_flops(card.dims) for operator in operators)
    images = spec.distill.steps * spec.distill.batch_size
    fill = Usage(flops=float(images * (card.forward_flops() + 3 * trained)), training_images=images)
    smallest = spec.space.flops(spec.space.chosen(_smallest(spec.space)))
    tuned = spec.finetune.steps * spec.finetune.batch_size
    teacher = plan(spec.experiment("teacher", spec.space.design(()))).total
    promotion = Usage(
        flops=3.0 * tuned * smallest + teacher.flops * smallest / spec.space.base_flops, training_images=tuned
    )
    whole = fill + promotion
    seconds = card.pretraining.device_seconds if card.pretraining else None
    share = card.share_of_pretraining(whole.flops)
    return whole.model_copy(update={"device_seconds": share * seconds if share and seconds else 0.0})


def _smallest(space: Space) -> dict[str, str]:
    """Assignment of the smallest design by FLOPs, without pairs."""
    return {v.name: min(v.items, key=lambda item: item.flops).label for v in space.variables}


def _check_budget(spec: StudySpec, card: BackboneCard) -> None:
    needed = cheapest_plan(spec)
    shares = {"share_of_pretraining": card.share_of_pretraining(needed.flops) or 0.0}
    for name, given in spec.budget:
        least = {**dict(needed), **shares}[name]
        if given is not None and given < least:
            message = f"{given:g} is below the cheapest plan (fill the bank, finish one design)"
            message += f": about {least:.3g} on {card.name}"
            raise SpecError(
                [_problem(("budget", name), "budget-too-small", message, given, [f"{least:.3g}"])]
            )
