"""Resolved experiments: what is hashed, stored and sent to a worker."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef, cards_with_digest
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, memoized
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.features import feature_digest
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.results import ProtocolFingerprint
from grafting_core.specs.scions import ScionSpec

RECIPE_VERSIONS = {"finetune": 2, "evaluate": 4}
"""Versions of the stages' arithmetic, raised when it changes so that older artifacts are not reused."""


MOST_WORKERS = 1024


class Resources(Frozen):
    """Resources of an attempt on the cluster. They enter no digest, as they change speed but not results."""

    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=16)] = 0

    @property
    def devices_per_worker(self) -> int:
        """Devices that device-seconds count: the worker's GPUs, or 1 for a worker without GPUs."""
        return max(1, self.gpus_per_worker)

    @property
    def devices(self) -> int:
        """Devices of all workers: 8 GPUs for 100 s are 800 device-seconds, on one worker or on eight."""
        return self.workers * self.devices_per_worker


class ExperimentSpec(Frozen):
    """A design with settings of the three stages and limits. Fields below the stages enter no digest."""

    kind: Literal["graft"] = "graft"
    name: str
    design: GraftDesign
    distill: DistillPlan
    finetune: FinetunePlan
    evaluate: EvaluationProtocol
    keep_samples: bool = False
    """Whether to publish the sampled images along with the metrics."""
    budget: Budget = Budget()
    resources: Resources = Resources()
    fresh: bool = False
    """Whether to finetune and evaluate again even if results exist; scions are reused from the bank."""
    restore_one: bool = False
    """Whether to score each scion by the design's gain when the original operator is put back."""

    @property
    def backbone(self) -> BackboneRef:
        return self.design.backbone

    @property
    def digest(self) -> str:
        """Digest of the result: equal digests, equal results."""
        return evaluation_key(self)


def scions_of(spec: ExperimentSpec) -> tuple[ScionSpec, ...]:
    """Scions of the design, edits before pairs."""
    return tuple(
        ScionSpec(backbone=spec.backbone, part=part, plan=spec.distill) for part in spec.design.parts
    )


def scion_keys(spec: ExperimentSpec) -> dict[str, str]:
    """Site -> key, of every scion of the design."""
    return {scion.name: scion.key for scion in scions_of(spec)}


@memoized
def finetune_key(spec: ExperimentSpec) -> str:
    """Key of the grafted model after stage 2; the teacher is not finetuned and has a key of its own."""
    if spec.design.is_teacher:
        return digest({"stage": "teacher", "backbone": spec.design.backbone.digest})
    return digest(
        {
            "stage": "finetune",
            "recipe": RECIPE_VERSIONS["finetune"],
            "scions": scion_keys(spec),
            "backbone": spec.design.backbone.digest,
            "plan": spec.finetune,
        }
    )


@memoized
def protocol_digest(spec: ExperimentSpec) -> str:
    """Digest of how quality is measured; the leaderboard ranks within one."""
    return fingerprint_of(spec).digest


def fingerprint_of(spec: ExperimentSpec) -> ProtocolFingerprint:
    """Fingerprint of everything that the quality metrics depend on, except the evaluated network."""
    return own_fingerprint(spec.backbone.digest, spec.evaluate)


def own_fingerprint(subject: str, protocol: EvaluationProtocol) -> ProtocolFingerprint:
    """Fingerprint of a comparison with the protocol's data set, by default that of the backbone whose digest
    is `subject`.
    """
    network = protocol.feature_digest or feature_digest(protocol.feature_network)
    # A data set that is named brings its held-out images, and the reference has its digest.
    known = cards_with_digest(subject) if protocol.dataset is None else []
    return ProtocolFingerprint(
        recipe=RECIPE_VERSIONS["evaluate"],
        subject=subject,
        protocol=protocol,
        feature_network=network,
        reference=_reference_digest(subject, protocol, network),
        held_out=next((card.held_out.digest for card in known if card.held_out is not None), None),
    )


def _reference_digest(subject: str, protocol: EvaluationProtocol, network: str | None) -> str:
    if protocol.dataset is not None:
        return digest({"images of": protocol.dataset.digest, "seen by": network})
    return digest({"own images of": subject, "seen by": network})


def oracle_path(fingerprint: ProtocolFingerprint) -> str:
    """Path of the metrics of held-out real images; the sampler's settings do not enter it."""
    protocol = fingerprint.protocol
    counted = {
        "samples": protocol.samples,
        "mode": protocol.mode,
        "network": protocol.feature_network,
        "recipe": fingerprint.recipe,
        "reference": fingerprint.reference,
        "held out": fingerprint.held_out,
    }
    return f"oracles/{digest(counted)}.json"


@memoized
def evaluation_key(spec: ExperimentSpec) -> str:
    """Key of the evaluation of this model under this protocol."""
    return digest({"stage": "evaluate", "model": finetune_key(spec), "protocol": protocol_digest(spec)})
