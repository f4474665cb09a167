"""Work that a study submits: latency measurement, bank fill, screenings, and ordinary grafts."""

from collections.abc import Sequence

from grafting_core.specs.backbone import card_of
from grafting_core.specs.budget import Budget
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.latency import LatencySpec, PartLatency
from grafting_core.specs.scions import ScionSpec
from grafting_core.specs.screening import ScreeningSpec
from grafting_core.specs.studies.latencies import timed_parts, with_latencies
from grafting_core.specs.studies.space import Item, Space
from grafting_core.specs.studies.study import StudySpec
from grafting_core.storage.bank import Bank
from grafting_core.storage.storage import Storage
from service.db.study_tables import TrialRow
from service.domain.study_feasibility import check_limits

UNLIMITED = Budget()
SCORE = "replace_one/noise"
"""Mean squared change of the teacher's predicted noise: additive over sites, like Puzzle's scores."""


def item_scions(spec: StudySpec, item: Item) -> list[ScionSpec]:
    """Return the scions that an item needs in the bank."""
    parts = [*item.edits, *((item.pair,) if item.pair else ())]
    return [ScionSpec(backbone=spec.backbone, part=part, plan=spec.distill) for part in parts]


def bank_fill_spec(spec: StudySpec, budget: Budget) -> FillSpec | None:
    """Return the run that distils every scion of the space; None if the space has none."""
    scions = {scion.key: scion for item in spec.space.items for scion in item_scions(spec, item)}
    if not scions:
        return None
    return FillSpec(
        name=f"{spec.name}: bank", scions=tuple(scions.values()), budget=budget, resources=spec.resources
    )


def latency_work(spec: StudySpec, budget: Budget) -> LatencySpec:
    """Return the run that measures the space's rows of the latency table, on the study's kind of device."""
    return LatencySpec(
        name=f"{spec.name}: latency table",
        backbone=spec.backbone,
        parts=timed_parts(spec.space, card_of(spec.backbone)),
        batch=spec.evaluate.micro_batch,
        precision=spec.evaluate.precision,
        budget=budget,
        resources=spec.resources,
    )


def timed(spec: StudySpec, rows: Sequence[PartLatency]) -> StudySpec:
    """Return the study with its latency table, and each item with the change that it makes to a forward.

    Raises ValueError (including SpecError) if a row is missing or no design meets the limits.
    """
    space = with_latencies(spec.space, rows, card_of(spec.backbone))
    with_table = spec.model_copy(update={"space": space, "latencies": tuple(rows)})
    check_limits(with_table, with_table.limits)
    return with_table


def unreadable(spec: StudySpec, storage: Storage) -> list[str]:
    """Return the keys of the space's scions whose cards in the bank cannot be read."""
    bank = Bank(storage)
    keys = dict.fromkeys(scion.key for item in spec.space.items for scion in item_scions(spec, item))
    return [key for key in keys if bank.has(key) and bank.card(key) is None]


def item_scores(spec: StudySpec, storage: Storage) -> dict[str, float]:
    """Return by item the sum of the replace-one scores of its scions; items without all of them are left
    out.
    """
    bank = Bank(storage)
    scores: dict[str, float] = {}
    for item in spec.space.items:
        cards = [bank.card(scion.key) for scion in item_scions(spec, item)]
        if cards and all(card is not None and SCORE in card.scores for card in cards):
            scores[item.key] = sum(card.scores[SCORE] for card in cards if card is not None)
    return scores


def available(spec: StudySpec, storage: Storage) -> Space:
    """Return the space without items whose scions could not be distilled.

    Raises ValueError if a variable is left with no choice.
    """
    bank = Bank(storage)

    def has(item: Item) -> bool:
        return all(bank.card(scion.key) is not None for scion in item_scions(spec, item))

    variables = []
    for variable in spec.space.variables:
        items = tuple(item for item in variable.items if has(item))
        if not items:
            raise ValueError(f"no operator of {variable.name} could be distilled")
        variables.append(variable.model_copy(update={"items": items}))
    pairs = tuple(item for item in spec.space.pairs if has(item))
    return spec.space.model_copy(update={"variables": tuple(variables), "pairs": pairs})


def screening_work(
    spec: StudySpec, number: int, trials: Sequence[TrialRow], budget: Budget = UNLIMITED
) -> ScreeningSpec:
    """Return the screening of all trials of a round, in order."""
    return ScreeningSpec(
        name=f"{spec.name}: screening {number}",
        backbone=spec.backbone,
        designs=tuple(spec.space.design(spec.space.chosen(trial.assignment)) for trial in trials),
        costs=tuple(costs_of(spec, trial) for trial in trials),
        rungs=spec.rungs,
        reduction=spec.reduction,
        distill=spec.distill,
        evaluate=spec.evaluate,
        budget=budget,
        resources=spec.resources,
    )


def costs_of(spec: StudySpec, trial: TrialRow) -> tuple[float, ...]:
    """Return the trial's further objectives."""
    return tuple(float(getattr(trial, cost)) for cost in spec.costs)


def graft_work(spec: StudySpec, trial: TrialRow, role: str, budget: Budget) -> ExperimentSpec:
    """Return the trial as an ordinary experiment."""
    design = spec.space.design(spec.space.chosen(trial.assignment))
    return spec.experiment(f"{spec.name}: {role} {trial.number}", design, budget)
