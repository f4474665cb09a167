"""Studies: a search space, objectives, limits, a search method and a budget."""

import re
from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, fields_of
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.documents.layers import MAX_LAYERS, BlockIndex
from grafting_core.specs.experiment import ExperimentSpec, Resources
from grafting_core.specs.latency import PartLatency
from grafting_core.specs.naming import Name, Word
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan, Seed
from grafting_core.specs.presets import PresetName
from grafting_core.specs.private_names import MetricName
from grafting_core.specs.rungs import FidRung, LossGapRung, Rung
from grafting_core.specs.studies.space import Choice, Cost, Space

SamplerKind = Literal["tpe", "nsga2", "gp", "random", "milp"]
BaselineName = Literal[
    "teacher", "interleaved", "top_local", "low_local", "deep", "greedy", "random", "fewer_steps"
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
COSTS: tuple[Cost, ...] = get_args(Cost)
"""Costs of one forward that can be minimised or limited besides quality."""
QUALITY = re.compile(r"fid([1-9][0-9]{0,5})(k?)")
BOUND = re.compile(r"(?:<=\s*)?([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(x?)")
MAX_STUDY_NAME = 170
"""Shorter than other names: a study's runs are named after it, with a suffix."""
MAX_BOUND = 1e24
"""Largest limit, in parameters or FLOPs."""
Bound = Annotated[str, Field(max_length=64)] | float | int
Group = Annotated[tuple[BlockIndex, ...], Field(max_length=MAX_LAYERS)]


ShortName = Annotated[str, Field(max_length=64)]
StepShares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=16)]
STEP_SHARES = (0.2, 0.4, 0.7)


class Groups(Frozen):
    """Blocks that share one choice; blocks in no group keep their operator."""

    attention: Annotated[tuple[Group, ...], Field(max_length=1000)] | None = None
    mlp: Annotated[tuple[Group, ...], Field(max_length=1000)] | None = None


class SpaceDocument(Frozen):
    """Choices by slot; `keep` is the backbone's own operator."""

    attention: Annotated[tuple[Choice, ...], Field(max_length=64)] = ()
    mlp: Annotated[tuple[Choice, ...], Field(max_length=64)] = ()
    groups: Groups = Groups()
    parallel_pairs: Literal["optional"] | None = None


class Objective(Frozen):
    """`fid1k`, `loss_gap`, `flops`, `params` or `latency`, to be minimised."""

    minimize: ShortName


class Limits(Frozen):
    """Upper limits: `"<= 0.85x"` of the backbone, or a plain number.

    Latency is in units of the backbone's forward on the study's own device, so 0.85 and 0.85x are equal.
    """

    params: Bound | None = None
    flops: Bound | None = None
    latency: Bound | None = None


class Sampler(Frozen):
    """Source of proposals: Optuna's TPE, NSGA-II or Gaussian process, random, or the integer program."""

    kind: SamplerKind = "tpe"
    seed: Seed = 0


class Screening(Frozen):
    """Evaluation of hybrids from the bank, without finetuning, rung by rung.

    One of every `reduction` is promoted to the next rung.
    """

    trials: Annotated[int, Field(ge=1, le=10_000)] = 100
    rungs: Annotated[tuple[ShortName, ...], Field(min_length=1, max_length=8)] = ("loss_gap",)
    reduction: Annotated[float, Field(gt=1, le=100)] = 3
    loss_draws: Annotated[int, Field(ge=64, le=65_536)] = 512


class StudyDocument(Frozen):
    """A study file as a user writes it."""

    name: Annotated[Name, Field(max_length=MAX_STUDY_NAME)]
    backbone: Word
    dataset: Word | None = None
    space: SpaceDocument
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=3)]
    limits: Limits = Limits()
    sampler: Sampler = Sampler()
    budget: Budget = Budget()
    screening: Screening = Screening()
    promote: Annotated[int, Field(ge=1, le=1000)] = 5
    calibrate: Annotated[int, Field(ge=0, le=1000)] = 0
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    baselines: Annotated[tuple[BaselineName, ...], Field(max_length=len(BASELINES))] = BASELINES
    step_curve: StepShares = STEP_SHARES
    """Shares of the protocol's sampling steps at which the backbone and the best promoted design are also
    evaluated; empty: no such curve."""
    preset: PresetName = "demo"
    distill: DistillPlan = DistillPlan()
    finetune: FinetunePlan = FinetunePlan()
    evaluate: EvaluationProtocol = EvaluationProtocol()
    resources: Resources = Resources()


class Limit(Frozen):
    """Upper limit `at_most` of a design's `cost`; `of_backbone` is the same as a share of the backbone's."""

    cost: Cost
    at_most: float
    of_backbone: float


class StudySpec(Frozen):
    """A resolved study.

    `quality` is the metric that is minimised in the end; `costs` are further objectives. Hybrids are screened
    on `rungs`. Each of `rounds` screens and promotes its share of `trials` and `promote`. In addition
    `calibrate` hybrids, spread over the range of screening values, are finetuned to train the predictor.
    """

    added: ClassVar[frozenset[str]] = frozenset({"step_curve", "latencies"})
    name: str
    backbone: BackboneRef
    space: Space
    quality: MetricName
    costs: tuple[Cost, ...] = ()
    limits: tuple[Limit, ...] = ()
    sampler: Sampler = Sampler()
    budget: Budget = Budget()
    rungs: tuple[Rung, ...] = (LossGapRung(),)
    reduction: float = 3
    trials: int = 100
    promote: int = 5
    calibrate: int = 0
    rounds: int = 1
    baselines: tuple[BaselineName, ...] = BASELINES
    step_curve: StepShares = STEP_SHARES
    distill: DistillPlan
    finetune: FinetunePlan
    evaluate: EvaluationProtocol
    resources: Resources = Resources()
    latencies: tuple[PartLatency, ...] = ()
    """Latency table of the space, once it is measured; empty if none is needed."""

    @property
    def needs_latency(self) -> bool:
        """Whether latency is minimised or limited."""
        return "latency" in self.costs or any(limit.cost == "latency" for limit in self.limits)

    @property
    def digest(self) -> str:
        """Digest of what is searched and how; budget, name and resources do not enter."""
        return digest({"study": fields_of(self, exclude={"name", "budget", "resources"})})

    @property
    def objectives(self) -> tuple[str, ...]:
        return (self.quality, *self.costs)

    def experiment(self, name: str, design: GraftDesign, budget: Budget | None = None) -> ExperimentSpec:
        """Experiment of one design under the study's settings."""
        return ExperimentSpec(
            name=name,
            design=design,
            distill=self.distill,
            finetune=self.finetune,
            evaluate=self.evaluate,
            budget=budget or Budget(),
            resources=self.resources,
        )

    def share(self, left: int, number: int) -> int:
        """Number of the `left` things that round `number`, counted from 1, uses."""
        return ceil(max(0, left) / max(1, self.rounds - number + 1))


def samples_of(name: str) -> int | None:
    """`fid10k` -> 10,000; None for a name that is not a FID."""
    found = QUALITY.fullmatch(name)
    return int(found[1]) * (1000 if found[2] else 1) if found else None


def rung_of(name: str, screening: Screening, protocol: EvaluationProtocol) -> Rung | None:
    """Rung of a short name, or None if there is none."""
    if name == "loss_gap":
        return LossGapRung(draws=screening.loss_draws)
    samples = samples_of(name)
    if samples is None or samples < 2:
        return None
    return FidRung(samples=samples, feature_network=protocol.feature_network, mode=protocol.mode)


def bound_of(given: str | float | int, backbone: float) -> float | None:
    """Absolute value of a limit as given, or None if it cannot be read."""
    found = BOUND.fullmatch(str(given).strip())
    bound = float(found[1]) * (backbone if found[2] else 1) if found else 0.0
    return bound if 0 < bound <= MAX_BOUND else None


def plain_choices(document: Any) -> Any:
    """Document in which choices given as a bare name, `hyena_x`, are replaced by `{kind: hyena_x}`."""
    space = document.get("space") if isinstance(document, Mapping) else None
    if not isinstance(space, Mapping):
        return document
    spelled = {
        slot: [{"kind": choice} if isinstance(choice, str) else choice for choice in choices]
        for slot, choices in space.items()
        if slot in ("attention", "mlp") and isinstance(choices, list)
    }
    return {**document, "space": {**space, **spelled}}
