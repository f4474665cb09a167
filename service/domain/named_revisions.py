"""Revisions of registered things that a piece of work names."""

from collections.abc import Mapping

from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.filling import FillSpec
from grafting_core.specs.jobs import Job
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.registration import RegistrationSpec, What
from grafting_core.specs.screening import ScreeningSpec


def revisions_named_by(work: Job) -> Mapping[What, Mapping[str, str]]:
    """Backbones, data sets and feature networks that the work needs: digest -> the name that it uses."""
    named = {protocol.feature_digest: protocol.feature_network for protocol in _protocols(work)}
    return {
        "backbone": {ref.digest: ref.name for ref in _backbones(work) if ref.digest},
        "dataset": {ref.digest: ref.name for ref in _datasets(work)},
        "features": {digest: name for digest, name in named.items() if digest},
    }


def _backbones(work: Job) -> list[BackboneRef]:
    encoder = work.encoder if isinstance(work, RegistrationSpec) else None
    return [work.backbone, *([encoder] if encoder else [])]


def _plans(work: Job) -> list[DistillPlan | FinetunePlan | EvaluationProtocol]:
    if isinstance(work, ExperimentSpec):
        return [work.distill, work.finetune, work.evaluate]
    if isinstance(work, ScreeningSpec):
        return [work.distill, work.evaluate]
    return [work.plan] if isinstance(work, FillSpec) else []


def _protocols(work: Job) -> list[EvaluationProtocol]:
    return [plan for plan in _plans(work) if isinstance(plan, EvaluationProtocol)]


def _datasets(work: Job) -> list[DatasetRef]:
    refs = [plan.dataset for plan in _plans(work) if plan.dataset is not None]
    own = work.dataset if isinstance(work, RegistrationSpec) else None
    return [*refs, *([own] if own else [])]
