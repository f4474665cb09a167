"""Fidelity ladder: ways to evaluate a network, from seconds to hours, each rung under its own name.

A value is comparable only with values of other networks on the same rung: small-N FID is biased (Chong &
Forsyth 2020), so `fid1k` says little about `fid50k` until their rank correlation is measured.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.canonical import digest
from grafting_core.specs.plans import EvaluationProtocol, counted
from grafting_core.specs.private_names import NetworkName

LOSS_DRAWS = 512
SAMPLE_RUNGS = (1_000, 10_000, 50_000)


class LossGapRung(Frozen):
    """Denoising loss minus the teacher's, on fixed noise, without sampling."""

    kind: Literal["loss_gap"] = "loss_gap"
    draws: Annotated[int, Field(ge=64, le=1_000_000)] = LOSS_DRAWS

    @property
    def metric(self) -> str:
        return "loss_gap"


class FidRung(Frozen):
    """FID of the protocol's first `samples` samples."""

    kind: Literal["fid"] = "fid"
    samples: Annotated[int, Field(ge=2, le=1_000_000)]
    feature_network: NetworkName
    mode: Literal["exact", "adm"] = "exact"

    @property
    def metric(self) -> str:
        return counted("fid", self.samples, self.feature_network, self.mode)


Rung = Annotated[LossGapRung | FidRung, Discriminator("kind")]


class FidelityLadder(Frozen):
    """Rungs from cheap to expensive."""

    rungs: tuple[Rung, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metric name of each rung."""
        return tuple(rung.metric for rung in self.rungs)


def ladder_of(protocol: EvaluationProtocol) -> FidelityLadder:
    """Rungs that one evaluation under this protocol yields: its first 1k, 10k ... samples, and all."""
    counts = [count for count in SAMPLE_RUNGS if count < protocol.samples]
    fids = [
        FidRung(samples=count, feature_network=protocol.feature_network, mode=protocol.mode)
        for count in (*counts, protocol.samples)
    ]
    return FidelityLadder(rungs=(LossGapRung(), *fids))


def rung_cost(rung: Rung, flops_per_forward: int, flops_per_image: int) -> int:
    """FLOPs of evaluating one network on this rung, without the teacher's share, which is paid once."""
    if isinstance(rung, LossGapRung):
        return rung.draws * flops_per_forward
    return rung.samples * flops_per_image


def comparable_digest(backbone_digest: str, protocol: EvaluationProtocol) -> str:
    """Digest of what all rungs share: everything but the number of samples."""
    return digest({"backbone": backbone_digest, "protocol": protocol.model_copy(update={"samples": 2})})
