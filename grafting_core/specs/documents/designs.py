"""Parse a design file into an `ExperimentSpec`, or report its errors."""

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from grafting_core.specs.backbone import BackboneCard, revisions_of
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.documents.data import BackboneData, check_budget, check_data, fits, with_data
from grafting_core.specs.documents.edits import Edit, EditResolver, problem
from grafting_core.specs.documents.errors import SpecError, shown
from grafting_core.specs.documents.explain import nearest, refused
from grafting_core.specs.documents.lookup import find_card
from grafting_core.specs.documents.parsing import check_plain
from grafting_core.specs.experiment import MOST_WORKERS, ExperimentSpec, Resources
from grafting_core.specs.features import FEATURE_NETWORKS, feature_sources
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.presets import PRESETS, PresetName
from grafting_core.specs.sampling_rules import (
    finetuning_for,
    finetuning_misfits,
    protocol_for,
    protocol_misfits,
)

P = TypeVar("P", bound=Frozen)
Plan = TypeVar("Plan", DistillPlan, FinetunePlan)


class Submission(Frozen):
    """A design file: edits, a preset of settings, overrides and limits."""

    name: Name
    backbone: Word
    dataset: Word | None = None
    edits: Annotated[tuple[Edit, ...], Field(max_length=1000)] = ()
    preset: PresetName = "demo"
    # Only fields that were set override the preset.
    distill: DistillPlan = DistillPlan()
    finetune: FinetunePlan = FinetunePlan()
    evaluate: EvaluationProtocol = EvaluationProtocol()
    keep_samples: bool = False
    budget: Budget = Budget()
    resources: Resources = Resources()
    fresh: bool = False
    restore_one: bool = False


def parse_submission(
    document: Any, completed: Callable[[BackboneCard], BackboneCard] = lambda card: card
) -> ExperimentSpec:
    """Validate a plain document (see `read_document`) and resolve it against its backbone.

    `completed` may add measured data to the card, such as a locality profile.
    Raises SpecError with all errors, each with a JSON pointer into the document.
    """
    check_plain(document)
    try:
        submission = Submission.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise refused(error, document, Submission) from error
    card = completed(find_card(submission.backbone))
    design = _design(submission, card)
    return _spec(submission, with_data(card, submission.dataset), design)


def _design(submission: Submission, card: BackboneCard) -> GraftDesign:
    editing = EditResolver(card, card.locality)
    for index, edit in enumerate(submission.edits):
        editing.take(index, edit)
    if editing.problems:
        raise SpecError(editing.problems)
    return editing.design()


def _spec(submission: Submission, data: BackboneData, design: GraftDesign) -> ExperimentSpec:
    preset, card = PRESETS[submission.preset], data.card
    distill = _overridden(preset.distill, submission.distill)
    finetune = _overridden(preset.finetune, submission.finetune)
    finetune = finetuning_for(card, finetune, submission.finetune.model_fields_set)
    evaluate = _overridden(preset.evaluate, submission.evaluate)
    given = submission.evaluate.model_fields_set
    evaluate = protocol_for(card, evaluate, given)
    if "feature_network" not in given:
        evaluate = evaluate.model_copy(update={"feature_network": data.feature_network})
    _check_feature_network(evaluate, data)
    check_data(data, evaluate, {"distill": distill, "finetune": finetune, "evaluate": evaluate})
    check_budget(submission.budget, card)
    evaluate = _with_weights_named(evaluate)
    _check_guidance(evaluate)
    _check_fit(card, evaluate, finetune)
    if not design.is_teacher:
        check_shares(finetune, submission.resources)
        _check_held_out(distill, data, "held_out" in submission.distill.model_fields_set)
    limit = data.training or None
    named = {"dataset": data.ref}
    return ExperimentSpec(
        name=submission.name,
        design=design,
        distill=_capped(distill, limit).model_copy(update=named),
        finetune=_capped(finetune, limit).model_copy(update=named),
        evaluate=evaluate.model_copy(update=named),
        keep_samples=submission.keep_samples,
        budget=submission.budget,
        resources=submission.resources,
        fresh=submission.fresh,
        restore_one=submission.restore_one,
    )


def _overridden(preset: P, overrides: P) -> P:
    return preset.model_copy(update={name: getattr(overrides, name) for name in overrides.model_fields_set})


def _capped(plan: Plan, limit: int | None) -> Plan:
    """Limit the plan's images to those that the backbone has; the spec then says how many are used."""
    return plan if limit is None or plan.images <= limit else plan.model_copy(update={"images": limit})


def check_shares(plan: FinetunePlan, resources: Resources) -> None:
    """Raise SpecError, with numbers that would fit, unless every worker gets an equal share of a batch.

    Only finetuning needs that: other stages split sites and chunks, where some workers may have one fewer.
    """
    size, workers = plan.batch_size, resources.workers
    if plan.steps == 0 or size % workers == 0:
        return
    fitting = [str(count) for count in range(1, min(size, MOST_WORKERS) + 1) if size % count == 0]
    nearest = (size // workers * workers, -(-size // workers) * workers)
    batches = [str(batch) for batch in nearest if batch]
    message = (
        f"a finetuning batch of {size} cannot be split evenly over {workers} workers; "
        f"use {' or '.join(batches)} for finetune.batch_size, or one of {', '.join(fitting)} workers"
    )
    raise SpecError([problem(("resources", "workers"), "out-of-range", message, workers, fitting)])


def _check_held_out(plan: DistillPlan, data: BackboneData, given: bool) -> None:
    """Refuse a data set without held-out images, and a `given` number of draws beyond those that it has.

    The preset's number is taken as it is: every draw has its own noise and timestep, also of an image that
    comes again.
    """
    images = data.held_out
    if images == 0:
        name = data.dataset.name if data.dataset else data.card.name
        message = f"{name} has no images held out from training, on which operators are judged; encode some"
        raise SpecError([problem(("dataset",), "no-held-out-images", message, name)])
    if given and images is not None and images < plan.held_out:
        message = f"{data.card.name} has {images:,} held-out images; draw at most that many"
        raise SpecError([problem(("distill", "held_out"), "out-of-range", message, plan.held_out)])


def _check_guidance(protocol: EvaluationProtocol) -> None:
    if protocol.guidance_interval is not None and protocol.guidance == 1:
        message = "guidance 1 has no effect; leave the interval out, or set evaluate.guidance above 1"
        path, given = ("evaluate", "guidance_interval"), protocol.guidance_interval
        raise SpecError([problem(path, "without-effect", message, given)])


def _check_fit(card: BackboneCard, evaluate: EvaluationProtocol, finetune: FinetunePlan) -> None:
    """Raise SpecError for settings that do not go with what the backbone predicts and takes."""
    misfits = [("evaluate", each) for each in protocol_misfits(card, evaluate)]
    misfits += [("finetune", each) for each in finetuning_misfits(card, finetune)]
    if misfits:
        raise SpecError(
            [
                problem((stage, each.setting), "does-not-fit", each.message, each.given, each.allowed)
                for stage, each in misfits
            ]
        )


def _with_weights_named(protocol: EvaluationProtocol) -> EvaluationProtocol:
    """Protocol with the digest of external weights. Raises SpecError if it requests other weights."""
    source = feature_sources().get(protocol.feature_network)
    digest = source.sha256 if source else None
    if protocol.feature_digest not in (None, digest):
        message = (
            f"the lab's {protocol.feature_network} has the digest {digest or 'of the package'}; leave it out"
        )
        path = ("evaluate", "feature_digest")
        raise SpecError([problem(path, "other-weights", message, protocol.feature_digest)])
    return protocol.model_copy(update={"feature_digest": digest})


def _check_feature_network(protocol: EvaluationProtocol, data: BackboneData) -> None:
    """Allow the backbone's own feature network and those whose weights the lab has.

    For a registered backbone these include the networks that ship with packages.
    """
    card, sources = data.card, feature_sources()
    shipped = [name for name, kind in FEATURE_NETWORKS.entries.items() if kind.weights == "shipped"]
    others = [*sources, *(shipped if revisions_of(card.name) else [])]
    allowed = list(dict.fromkeys([card.feature_network, *others]))
    if card.weights is not None and card.feature_network not in (*sources, *shipped):
        allowed.remove(card.feature_network)
    if protocol.feature_network not in allowed:
        fitting = [name for name in allowed if fits(name, data)]
        known = ", ".join(fitting) or "a network that is registered first (`graft features train`)"
        message = f"{card.name} is evaluated with {known}, not {shown(protocol.feature_network)}"
        message += nearest(protocol.feature_network, fitting)
        path = ("evaluate", "feature_network")
        raise SpecError(
            [problem(path, "unknown-feature-network", message, protocol.feature_network, fitting)]
        )
