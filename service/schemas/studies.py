"""Responses and requests of studies; the client parses the same classes."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.studies.study import StudySpec
from service.schemas.names import BackboneName, MetricName, Metrics, Shown
from service.schemas.runs import StudyPhase, StudyState, View


class StudyView(View):
    """List entry of a study."""

    id: str
    name: str
    backbone: BackboneName
    owner: str
    state: StudyState
    phase: StudyPhase
    round: int
    rounds: int
    message: str | None = None
    quality: MetricName
    objectives: list[MetricName]
    trials: int
    screened: int
    finished: int
    best: float | None = None
    """Quality of the best promoted design so far."""
    budget: Budget
    spend: Usage
    version: int
    created_at: datetime
    ended_at: datetime | None = None
    mlflow_url: str | None = None
    """Address of the study in MLflow, relative to the lab's own address."""
    mlflow_error: str | None = None
    """Error of the last projection to MLflow, if it failed."""
    withheld: bool = False
    """Whether it works with something private that the reader may not know of. Names of such things are
    replaced; its messages are left out, and its report is refused.
    """


class StudyTrial(View):
    """One proposed design and its results."""

    number: int
    round: int
    proposed_by: str
    """`milp`, a sampler, or `baseline`."""
    baselines: list[str] = []
    """Names of the baselines that are this design."""
    state: str
    assignment: dict[str, str]
    params: int
    flops: float
    latency: float | None = None
    """Predicted from the study's latency table, relative to the backbone's forward."""
    score: float
    screened: Metrics
    predicted: float | None = None
    final: Metrics | None = None


class StudyRun(View):
    """A run that belongs to the study. Quality and costs are those of its finished evaluation."""

    role: str
    label: str
    run_id: str
    trial: int | None
    state: str
    quality: float | None = None
    flops: float | None = None
    """FLOPs of one forward; for fewer sampling steps the same share of it."""
    params: float | None = None
    latency: float | None = None
    """Predicted from the study's latency table, relative to the backbone's forward; for fewer steps a share
    of it.
    """
    measured_latency: float | None = None
    """Median ratio of interleaved forwards of this network and the backbone, on the table's hardware."""
    measured_latency_low: float | None = None
    measured_latency_high: float | None = None
    """95 % interval by bootstrap."""
    keeps_latency: bool | None = None
    """Whether the measured ratio meets the study's limit; None if either is missing."""
    sampling_steps: int | None = None
    seconds_per_image: float | None = None
    """Measured seconds to sample and decode one image on `hardware`."""
    hardware: str | None = None
    device_seconds: float


class Comparison(View):
    """The best promoted design compared with one baseline under the same limits."""

    baseline: str
    run_id: str
    value: float | None
    ahead: float | None
    """Amount by which the best promoted design is lower; negative if the baseline is better."""


class Finding(View):
    """What the predictor of final quality has learned; no weights if too few designs have finished."""

    trained_on: int
    leave_one_out_error: float | None = None
    weights: Metrics = {}


class StudyDetail(StudyView):
    """One study with its trials, runs and comparisons."""

    spec: Shown[StudySpec]
    sampler: dict[str, Any]
    findings: dict[str, Finding]
    """Predictor of final quality after each round, by the number of the round."""
    trial_rows: list[StudyTrial]
    runs: list[StudyRun]
    comparisons: list[Comparison]
    best_trial: int | None = None
    rank_correlation: float | None = None
    """Spearman's correlation of the first rung with final quality, over finished designs."""


class StudyPage(View):
    """Studies, newest first; `next_cursor` requests older ones."""

    studies: list[StudyView]
    next_cursor: str | None = None


class StudyAnswer(View):
    """Answer 202 with the study's address."""

    study_id: str
    url: str
    notes: list[str] = []
    """Remarks on values that are allowed but rarely intended."""


class StudyExtension(Frozen):
    """Additions to a study, which continues where it ended.

    `version` is the study's version as last read, so that a repeated request cannot extend it twice.
    """

    version: Annotated[int, Field(ge=0, lt=2**31)]
    trials: Annotated[int, Field(ge=0, le=10_000)] = 0
    promote: Annotated[int, Field(ge=0, le=1000)] = 0
    rounds: Annotated[int, Field(ge=0, le=100)] = 0
    device_seconds: Annotated[float, Field(ge=0, le=1e9)] = 0.0
