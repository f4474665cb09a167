"""The fidelity ladder: how a network can be judged, from seconds to hours, each rung under its own name.

A rung's number is comparable with the same rung's of another network and with nothing else: small-N FID is
biased (Chong & Forsyth 2020), so `fid1k` says little about `fid50k` until their rank correlation is measured.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Annotated, Literal

from pydantic import Discriminator, Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.plans import EvaluationProtocol, counted

LOSS_DRAWS = 512
SAMPLE_RUNGS = (1_000, 10_000, 50_000)
MODELS_NEEDED = 3
"""Two models always agree or disagree completely; a rank correlation says something from three on."""


class LossGapRung(Frozen):
    """Denoising loss above the teacher's on fixed noise: no sampling at all."""

    kind: Literal["loss_gap"] = "loss_gap"
    draws: Annotated[int, Field(ge=64, le=1_000_000)] = LOSS_DRAWS

    @property
    def metric(self) -> str:
        return "loss_gap"


class FidRung(Frozen):
    """FID of the protocol's first `samples` samples."""

    kind: Literal["fid"] = "fid"
    samples: Annotated[int, Field(ge=2, le=1_000_000)]
    feature_network: str
    mode: Literal["exact", "adm"] = "exact"

    @property
    def metric(self) -> str:
        return counted("fid", self.samples, self.feature_network, self.mode)


Rung = Annotated[LossGapRung | FidRung, Discriminator("kind")]


class FidelityLadder(Frozen):
    """Rungs from cheap to dear."""

    rungs: tuple[Rung, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The name of each rung's number."""
        return tuple(rung.metric for rung in self.rungs)


def ladder_of(protocol: EvaluationProtocol) -> FidelityLadder:
    """Every rung that one evaluation under this protocol yields: its first 1k, 10k ... samples, and all."""
    counts = [count for count in SAMPLE_RUNGS if count < protocol.samples]
    fids = [
        FidRung(samples=count, feature_network=protocol.feature_network, mode=protocol.mode)
        for count in (*counts, protocol.samples)
    ]
    return FidelityLadder(rungs=(LossGapRung(), *fids))


def rung_cost(rung: Rung, flops_per_forward: int, flops_per_image: int) -> int:
    """FLOPs of judging one network on this rung, the teacher's share not counted: it is paid once."""
    if isinstance(rung, LossGapRung):
        return rung.draws * flops_per_forward
    return rung.samples * flops_per_image


def comparable_digest(backbone_digest: str, protocol: EvaluationProtocol) -> str:
    """Names what rungs of different heights have in common: everything but the number of samples."""
    return digest({"backbone": backbone_digest, "protocol": protocol.model_copy(update={"samples": 2})})


class RungAgreement(Frozen):
    """How well two rungs rank the same models: Spearman's coefficient over `models` of them."""

    lower: str
    higher: str
    models: int
    correlation: float | None
    """None where fewer than three models have both, or one rung puts all of them level."""


def agreements(ladder: FidelityLadder, models: Sequence[Mapping[str, float]]) -> tuple[RungAgreement, ...]:
    """Every pair of rungs, compared over the models (metric name -> value) that have both numbers."""
    return tuple(_agreement(low, high, models) for low, high in combinations(ladder.metrics, 2))


def _agreement(low: str, high: str, models: Sequence[Mapping[str, float]]) -> RungAgreement:
    both = [(model[low], model[high]) for model in models if low in model and high in model]
    found = rank_correlation(*zip(*both, strict=True)) if len(both) >= MODELS_NEEDED else None
    return RungAgreement(lower=low, higher=high, models=len(both), correlation=found)


def rank_correlation(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's coefficient, ties at their mean rank; None where one side is constant."""
    first, second = _ranks(ones), _ranks(others)
    middle = (len(first) + 1) / 2
    product = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return product / sqrt(spread) if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1, the mean of their places for values that are equal."""
    ordered = sorted(values)
    spans = {value: (bisect_left(ordered, value), bisect_right(ordered, value)) for value in ordered}
    return [spans[value][0] + (spans[value][1] - spans[value][0] + 1) / 2 for value in values]
