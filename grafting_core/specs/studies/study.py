"""A study: a space, what to minimise in it, under which limits, how to look and what it may cost."""

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
from grafting_core.specs.rungs import FidRung, LossGapRung, Rung
from grafting_core.specs.studies.space import Choice, Cost, Space

SamplerKind = Literal["tpe", "nsga2", "gp", "random", "milp"]
BaselineName = Literal[
    "teacher", "interleaved", "top_local", "low_local", "deep", "greedy", "random", "fewer_steps"
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
COSTS: tuple[Cost, ...] = get_args(Cost)
"""What can be minimised or limited besides quality, of one forward."""
QUALITY = re.compile(r"fid([1-9][0-9]{0,5})(k?)")
BOUND = re.compile(r"(?:<=\s*)?([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(x?)")
MAX_STUDY_NAME = 170
"""Its runs are named after it, with their part in it behind."""
MAX_BOUND = 1e24
"""Of a limit, in parameters or FLOPs."""
Bound = Annotated[str, Field(max_length=64)] | float | int
Group = Annotated[tuple[BlockIndex, ...], Field(max_length=MAX_LAYERS)]


ShortName = Annotated[str, Field(max_length=64)]
StepShares = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=16)]
STEP_SHARES = (0.2, 0.4, 0.7)


class Groups(Frozen):
    """Blocks whose choice is tied together; blocks that no group names keep their operator."""

    attention: Annotated[tuple[Group, ...], Field(max_length=1000)] | None = None
    mlp: Annotated[tuple[Group, ...], Field(max_length=1000)] | None = None


class SpaceDocument(Frozen):
    """Choices by slot; `keep` is the backbone's own operator."""

    attention: Annotated[tuple[Choice, ...], Field(max_length=64)] = ()
    mlp: Annotated[tuple[Choice, ...], Field(max_length=64)] = ()
    groups: Groups = Groups()
    parallel_pairs: Literal["optional"] | None = None


class Objective(Frozen):
    """`fid1k`, `loss_gap`, `flops`, `params` or `latency`; the smaller the better."""

    minimize: ShortName


class Limits(Frozen):
    """At most so much: `"<= 0.85x"` of the backbone, or a plain number.

    Latency is counted in forwards of the backbone on the study's own device, so 0.85 and 0.85x are the same.
    """

    params: Bound | None = None
    flops: Bound | None = None
    latency: Bound | None = None


class Sampler(Frozen):
    """Who proposes: Optuna's TPE, NSGA-II or Gaussian process, chance, or the integer program alone."""

    kind: SamplerKind = "tpe"
    seed: Seed = 0


class Screening(Frozen):
    """Hybrids from the bank, not finetuned, evaluated rung by rung.

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
    """Shares of the protocol's sampling steps at which the backbone and the best promoted design are
    evaluated too; none measures no curve."""
    preset: PresetName = "demo"
    distill: DistillPlan = DistillPlan()
    finetune: FinetunePlan = FinetunePlan()
    evaluate: EvaluationProtocol = EvaluationProtocol()
    resources: Resources = Resources()


class Limit(Frozen):
    """`cost` of a design is at most `at_most`; `of_backbone` is the same as a share."""

    cost: Cost
    at_most: float
    of_backbone: float


class StudySpec(Frozen):
    """A study with nothing left to resolve.

    `quality` is the metric that is minimised in the end; `costs` are further objectives. `rungs` are what
    hybrids are screened on. Of `rounds` each screens and promotes its share of `trials` and `promote`.
    `calibrate` hybrids spread over the screening's range are finetuned too, for the predictor to learn from.
    """

    added: ClassVar[frozenset[str]] = frozenset({"step_curve", "latencies"})
    name: str
    backbone: BackboneRef
    space: Space
    quality: str
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
    """The table that the space's latencies come from, once it is measured; empty where none is needed."""

    @property
    def needs_latency(self) -> bool:
        """Whether latency is minimised or limited."""
        return "latency" in self.costs or any(limit.cost == "latency" for limit in self.limits)

    @property
    def digest(self) -> str:
        """Names what is searched and how; budget, name and resources do not enter."""
        return digest({"study": fields_of(self, exclude={"name", "budget", "resources"})})

    @property
    def objectives(self) -> tuple[str, ...]:
        return (self.quality, *self.costs)

    def experiment(self, name: str, design: GraftDesign, budget: Budget | None = None) -> ExperimentSpec:
        """An ordinary experiment of one design under the study's settings."""
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
        """Of the things that are left in round `number`, counted from 1, those that it takes."""
        return ceil(max(0, left) / max(1, self.rounds - number + 1))


def samples_of(name: str) -> int | None:
    """`fid10k` -> 10,000; None for a name that is no FID."""
    found = QUALITY.fullmatch(name)
    return int(found[1]) * (1000 if found[2] else 1) if found else None


def rung_of(name: str, screening: Screening, protocol: EvaluationProtocol) -> Rung | None:
    """The rung of a short name, or None where there is none."""
    if name == "loss_gap":
        return LossGapRung(draws=screening.loss_draws)
    samples = samples_of(name)
    if samples is None or samples < 2:
        return None
    return FidRung(samples=samples, feature_network=protocol.feature_network, mode=protocol.mode)


def bound_of(given: str | float | int, backbone: float) -> float | None:
    """The absolute bound of a limit as given, or None where it cannot be read."""
    found = BOUND.fullmatch(str(given).strip())
    bound = float(found[1]) * (backbone if found[2] else 1) if found else 0.0
    return bound if 0 < bound <= MAX_BOUND else None


def plain_choices(document: Any) -> Any:
    """The document with choices that are a bare name, `hyena_x`, spelled out as `{kind: hyena_x}`."""
    space = document.get("space") if isinstance(document, Mapping) else None
    if not isinstance(space, Mapping):
        return document
    spelled = {
        slot: [{"kind": each} if isinstance(each, str) else each for each in choices]
        for slot, choices in space.items()
        if slot in ("attention", "mlp") and isinstance(choices, list)
    }
    return {**document, "space": {**space, **spelled}}
