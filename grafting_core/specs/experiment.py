"""The whole submission, resolved: what is hashed, stored and handed to a worker."""

from typing import Annotated, Literal

from pydantic import Field

from grafting_core.specs.backbone import BackboneRef, backbone_cards
from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget
from grafting_core.specs.canonical import digest, memoized
from grafting_core.specs.design import GraftDesign
from grafting_core.specs.features import feature_digest
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.results import ProtocolFingerprint
from grafting_core.specs.scions import ScionSpec

RECIPE_VERSIONS = {"finetune": 2, "evaluate": 4}
"""Bumped when a stage's arithmetic changes, so that old artifacts are not mistaken for new ones."""


MOST_WORKERS = 1024


class Resources(Frozen):
    """What an attempt asks of the cluster. Not part of any digest: it changes speed, not results."""

    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    cpus_per_worker: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=16)] = 0

    @property
    def devices_per_worker(self) -> int:
        """What device-seconds count: the worker's GPUs, or the worker itself where it has none."""
        return max(1, self.gpus_per_worker)

    @property
    def devices(self) -> int:
        """Of all workers: 8 GPUs for 100 s are 800 device-seconds, on one worker or on eight."""
        return self.workers * self.devices_per_worker


class ExperimentSpec(Frozen):
    """Design, the three stages' settings and limits. What follows the stages does not enter the digest."""

    kind: Literal["graft"] = "graft"
    name: str
    design: GraftDesign
    distill: DistillPlan
    finetune: FinetunePlan
    evaluate: EvaluationProtocol
    keep_samples: bool = False
    """Whether the images are published beside their figures; like budget and resources in no digest."""
    budget: Budget = Budget()
    resources: Resources = Resources()
    fresh: bool = False
    """Finetune and evaluate anew even where that has been done; scions come from the bank nevertheless."""
    restore_one: bool = False
    """Score every scion by what the grafted design gains from putting the original back there."""

    @property
    def backbone(self) -> BackboneRef:
        return self.design.backbone

    @property
    def digest(self) -> str:
        """Names what is to be computed: equal digests, equal results."""
        return evaluation_key(self)


def scions_of(spec: ExperimentSpec) -> tuple[ScionSpec, ...]:
    """The scions that the design is put together from, edits before pairs."""
    return tuple(
        ScionSpec(backbone=spec.backbone, part=part, plan=spec.distill) for part in spec.design.parts
    )


def scion_keys(spec: ExperimentSpec) -> dict[str, str]:
    """Key of every scion of the design, by its site."""
    return {scion.name: scion.key for scion in scions_of(spec)}


@memoized
def finetune_key(spec: ExperimentSpec) -> str:
    """Key of the grafted model after stage 2; the teacher's own is finetuned by nobody."""
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
    """Names how quality is measured; the leaderboard ranks within one of these."""
    return fingerprint_of(spec).digest


def fingerprint_of(spec: ExperimentSpec) -> ProtocolFingerprint:
    """Everything that the quality figures depend on, besides the network that is judged."""
    return own_fingerprint(spec.backbone.digest, spec.evaluate)


def own_fingerprint(subject: str, protocol: EvaluationProtocol) -> ProtocolFingerprint:
    """Of a comparison with the images of the backbone with this digest."""
    network = protocol.feature_digest or feature_digest(protocol.feature_network)
    known = [card for card in backbone_cards().values() if card.digest == subject]
    return ProtocolFingerprint(
        recipe=RECIPE_VERSIONS["evaluate"],
        subject=subject,
        protocol=protocol,
        feature_network=network,
        reference=digest({"own images of": subject, "seen by": network}),
        held_out=next((card.held_out.digest for card in known if card.held_out is not None), None),
    )


@memoized
def evaluation_key(spec: ExperimentSpec) -> str:
    """Key of the evaluation of this very model under this very protocol."""
    return digest({"stage": "evaluate", "model": finetune_key(spec), "protocol": protocol_digest(spec)})
