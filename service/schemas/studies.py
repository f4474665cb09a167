"""What the REST API answers about studies; the client parses the same classes."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.studies.study import StudySpec
from service.schemas.runs import StudyPhase, StudyState, View


class StudyView(View):
    """One study as the list shows it."""

    id: str
    name: str
    backbone: str
    owner: str
    state: StudyState
    phase: StudyPhase
    round: int
    rounds: int
    message: str | None = None
    quality: str
    objectives: list[str]
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
    """Where the lab shows it in MLflow, relative to the lab's own address."""
    mlflow_error: str | None = None
    """What MLflow could not be told of it."""


class StudyTrial(View):
    """One proposed design and what is known of it."""

    number: int
    round: int
    source: str
    state: str
    assignment: dict[str, str]
    params: int
    flops: float
    latency: float | None = None
    """Predicted from the study's latency table, of the backbone's forward."""
    score: float
    screened: dict[str, float]
    predicted: float | None = None
    final: dict[str, float] | None = None


class StudyRun(View):
    """A run that serves the study. Quality and costs are those of its finished evaluation."""

    role: str
    label: str
    run_id: str
    trial: int | None
    state: str
    quality: float | None = None
    flops: float | None = None
    """Of one forward, or for fewer steps the same share of it."""
    params: float | None = None
    latency: float | None = None
    """Predicted from the study's latency table, of the backbone's forward; for fewer steps a share of it."""
    measured_latency: float | None = None
    """Median ratio of interleaved forwards of this network and the backbone, on the table's hardware."""
    measured_latency_low: float | None = None
    measured_latency_high: float | None = None
    """95 % by bootstrap."""
    keeps_latency: bool | None = None
    """Whether the measured ratio keeps the study's limit; None where either is missing."""
    sampling_steps: int | None = None
    seconds_per_image: float | None = None
    """Sampled and decoded, by the clock of `hardware`."""
    hardware: str | None = None
    device_seconds: float


class Comparison(View):
    """The best promoted design against one baseline under the same limits."""

    baseline: str
    run_id: str
    value: float | None
    ahead: float | None
    """By how much the best promoted is lower; negative where the baseline won."""


class StudyDetail(StudyView):
    """One study with everything it has."""

    spec: StudySpec
    sampler: dict[str, Any]
    findings: dict[str, Any]
    trial_rows: list[StudyTrial]
    runs: list[StudyRun]
    comparisons: list[Comparison]
    best_trial: int | None = None
    rank_correlation: float | None = None
    """Spearman's, of the first rung against final quality, over finished designs."""


class StudyPage(View):
    """Newest first; `next_cursor` asks for older ones."""

    studies: list[StudyView]
    next_cursor: str | None = None


class StudyAnswer(View):
    """202: where the study will be found."""

    study_id: str
    url: str
    notes: list[str] = []
    """What is allowed, but seldom meant."""


class StudyExtension(Frozen):
    """More of everything that is given; the study goes on from where it ended.

    `version` is the study's as it was looked at, so that a repeated request cannot extend it twice.
    """

    version: Annotated[int, Field(ge=0, lt=2**31)]
    trials: Annotated[int, Field(ge=0, le=10_000)] = 0
    promote: Annotated[int, Field(ge=0, le=1000)] = 0
    rounds: Annotated[int, Field(ge=0, le=100)] = 0
    device_seconds: Annotated[float, Field(ge=0, le=1e9)] = 0.0
