"""Baseline designs that need no search, at the study's own limits."""

import random
from collections.abc import Iterator, Mapping
from itertools import product

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.documents.layers import Strategy, resolve
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.space import KEEP, Item, Variable
from grafting_core.specs.studies.study import BaselineName, StudySpec

STRATEGIES: tuple[BaselineName, ...] = ("interleaved", "top_local", "low_local", "deep")
TRIES = 1_000


def baseline_designs(
    spec: StudySpec, card: BackboneCard, scores: Mapping[str, float]
) -> dict[BaselineName, Chosen]:
    """Return the designs by baseline, without those that miss the limits or need data the backbone lacks."""
    proposer = Proposer(spec.space, scores, spec.limits)
    designs: dict[BaselineName, Chosen] = {}
    for name in spec.baselines:
        chosen = _design(name, spec, card, proposer)
        if chosen is not None:
            designs[name] = chosen
    return designs


def _design(name: BaselineName, spec: StudySpec, card: BackboneCard, proposer: Proposer) -> Chosen | None:
    if name in STRATEGIES:
        return _by_strategy(name, spec, card, proposer)
    if name == "greedy":
        return _greedy(spec, proposer)
    if name == "random":
        return _random(spec, proposer)
    return None


def _order(name: BaselineName, card: BackboneCard) -> list[int]:
    """Return all blocks in the strategy's order of preference."""
    if name == "interleaved":
        odd = resolve(Strategy(interleaved=0.5), card.depth)
        return [*odd, *(block for block in range(card.depth) if block not in odd)]
    shares = [count / card.depth for count in range(1, card.depth + 1)]
    order: list[int] = []
    for share in shares:
        taken = resolve(Strategy(**{name: share}), card.depth, card.locality)
        order += [block for block in taken if block not in order]
    return order


def _by_strategy(
    name: BaselineName, spec: StudySpec, card: BackboneCard, proposer: Proposer
) -> Chosen | None:
    """Replace the first blocks of the order alike; return the design with the least score that meets the
    limits.
    """
    try:
        order = _order(name, card)
    except ValueError:
        return None  # the backbone has no locality profile
    designs = [chosen for chosen in _uniform(spec, order) if proposer.meets(chosen)]
    edited = [chosen for chosen in designs if any(not item.is_keep for item in chosen)]
    if not spec.limits:
        half = [chosen for chosen in edited if _edited_blocks(chosen) * 2 >= card.depth]
        edited = half or edited
    return min(edited, key=proposer.score, default=None)


def _edited_blocks(chosen: Chosen) -> int:
    return len({site.block for item in chosen if not item.is_keep for site in item.sites})


def _uniform(spec: StudySpec, order: list[int]) -> Iterator[Chosen]:
    by_slot: dict[str, list[str]] = {}
    for variable in spec.space.variables:
        labels = by_slot.setdefault(variable.items[0].sites[0].slot, [])
        labels.extend(label for label in variable.labels if label not in labels)
    for count in range(1, len(order) + 1):
        blocks = set(order[:count])
        for mix in product(*by_slot.values()):
            labels_by_slot = dict(zip(by_slot, mix, strict=True))
            yield tuple(_item(variable, labels_by_slot, blocks) for variable in spec.space.variables)


def _item(variable: Variable, labels_by_slot: Mapping[str, str], blocks: set[int]) -> Item:
    slot = variable.items[0].sites[0].slot
    inside = {site.block for site in variable.items[0].sites} <= blocks
    label = labels_by_slot[slot] if inside else KEEP
    return variable.item(label) if label in variable.labels else _default_item(variable)


def _default_item(variable: Variable) -> Item:
    """Return the original operator if it is a choice, else the first choice."""
    return next((item for item in variable.items if item.is_keep), variable.items[0])


def _greedy(spec: StudySpec, proposer: Proposer) -> Chosen | None:
    """Start from the original; repeatedly swap in the item with the least score per saving until the limits
    hold.
    """
    chosen = {variable.name: _default_item(variable) for variable in spec.space.variables}
    while not proposer.meets(tuple(chosen.values())):
        swaps = list(_swaps(spec, proposer, chosen))
        if not swaps:
            return None
        _, _, item = min(swaps, key=lambda swap: swap[:2])
        chosen[item.variable] = item
    return tuple(chosen.values())


def _swaps(
    spec: StudySpec, proposer: Proposer, chosen: Mapping[str, Item]
) -> Iterator[tuple[float, str, Item]]:
    """Yield (score per unit saved, key, item) of every single change that reduces a broken limit's cost."""
    for variable in spec.space.variables:
        now = chosen[variable.name]
        for item in variable.items:
            saved = _saving(spec, chosen, now, item)
            if saved > 0:
                harm = proposer.scores.get(item.key, 0.0) - proposer.scores.get(now.key, 0.0)
                yield harm / saved, item.key, item


def _saving(spec: StudySpec, chosen: Mapping[str, Item], now: Item, item: Item) -> float:
    """Sum the shares of the limits that a swap saves, over the limits that are broken."""
    saved = 0.0
    for limit in spec.limits:
        total = spec.space.total(limit.cost, tuple(chosen.values()))
        if total > limit.at_most:
            saved += (getattr(now, limit.cost) - getattr(item, limit.cost)) / limit.at_most
    return saved


def _random(spec: StudySpec, proposer: Proposer) -> Chosen | None:
    """Return the first of many random designs that meets the limits, else the last one moved to the
    nearest.
    """
    draw = random.Random(f"random baseline {spec.sampler.seed}")  # noqa: S311 - not a secret
    chosen: Chosen = ()
    for _ in range(TRIES):
        chosen = tuple(draw.choice(variable.items) for variable in spec.space.variables)
        if proposer.meets(chosen):
            return chosen
    try:
        return proposer.nearest(chosen)
    except NoDesign:
        return None


def fewer_steps(spec: StudySpec, experiment: ExperimentSpec) -> ExperimentSpec | None:
    """Return the teacher with fewer sampling steps: as many as the tighter limit on FLOPs or latency
    allows.
    """
    shares = [limit.of_backbone for limit in spec.limits if limit.cost in ("flops", "latency")]
    share = min(shares, default=1.0)
    if share >= 1:
        return None
    steps = max(1, int(spec.evaluate.sampling_steps * share))
    protocol: EvaluationProtocol = spec.evaluate.model_copy(update={"sampling_steps": steps})
    return experiment.model_copy(update={"evaluate": protocol})
