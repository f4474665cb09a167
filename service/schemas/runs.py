"""Responses about runs, queue, accounts and leaderboard; the client parses the same classes."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.cost import ExperimentPlan
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import Job, as_graft
from grafting_core.specs.results import MeasuredCost
from service.schemas.names import BackboneName, Intervals, Metrics, Shown
from workers.contract import Event, PartProgress, Reason, StageReport

RunState = Literal["QUEUED", "STARTING", "RUNNING", "PAUSED", "SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"]
Role = Literal["viewer", "runner", "admin"]
Sees = Literal["lab", "own"]
KeyKind = Literal["key", "login", "session"]
TERMINAL: frozenset[RunState] = frozenset({"SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"})
"""Terminal states. STOPPED is a partial result: the budget was spent, or the design diverged."""


StudyState = Literal["RUNNING", "PAUSED", "DONE", "STOPPED", "FAILED"]
StudyPhase = Literal["measure", "fill", "screen", "promote", "learn"]


class View(BaseModel):
    """Base of responses: fields that a newer service adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StageProgress(View):
    """Progress of the current stage."""

    stage: str
    step: int
    total_steps: int
    seconds_left: float | None = None


class Forecast(View):
    """Expected device-seconds, and the interval into which four of five of the `runs` behind it fell."""

    device_seconds: float
    low: float
    high: float
    runs: int


KeyState = Literal["banked", "in_flight", "new"]


class Holding(View):
    """Cache status of one stage of a plan: published, being made or waited for by a run, or new."""

    stage: str
    states: dict[str, KeyState]
    """State by the names that the stage's keys have in the plan."""
    new_spend: Usage
    """Cost of the new artifacts only."""
    waits_for: list[str] = []
    """Runs that will make what is in flight."""


class PlanAnswer(ExperimentPlan):
    """Plan, and forecast from the lab's own history; None if there is no history."""

    forecast: Forecast | None = None
    holdings: list[Holding] = []


class RunView(View):
    """List entry of a run."""

    id: str
    kind: str
    name: str
    owner: str = "lab"
    backbone: BackboneName
    state: RunState
    reason: Reason | None = None
    message: str | None = None
    attempt: int
    experiment_digest: str
    protocol_digest: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    pause_requested_at: datetime | None = None
    tag: str | None = None
    """Label of the submission; for a run of a study, the study's id."""
    priority: int = 0
    accumulation_steps: int = 1
    progress: StageProgress | None = None
    spend: Usage
    share_of_pretraining: float | None = None
    """None where it is not known what the backbone cost to make."""
    forecast: Forecast | None = None
    """Forecast when the run was queued; the actual use is in `spend`."""
    metrics: Metrics
    intervals: Intervals = {}
    """95 % intervals of the metrics that have one."""
    cost: MeasuredCost | None = None
    mlflow_url: str | None = None
    """Address of the run in MLflow, relative to the lab's own address."""
    mlflow_error: str | None = None
    """Error of the last projection to MLflow, if it failed."""
    withheld: bool = False
    """Whether it works with something private that the reader may not know of. Names of such things are
    replaced; its messages are left out, and its events, log and files are refused.
    """


class RunDetail(RunView):
    """One run with its spec and the reports of finished stages."""

    work: Shown[Job]
    stages: list[Shown[StageReport]]
    parts: list[PartProgress] = []
    """Progress of each operator while the run distils them."""

    @property
    def experiment(self) -> ExperimentSpec:
        """Spec of a graft. Raises ValueError for a run of another kind."""
        return as_graft(self.work)


class RunPage(View):
    """Runs, newest first; `next_cursor` requests older ones."""

    runs: list[RunView]
    next_cursor: str | None = None


class SubmitAnswer(View):
    """Answer 202 with the run's address."""

    run_id: str
    experiment_digest: str
    url: str
    notes: list[str] = []
    """Remarks on values that are allowed but rarely intended."""


class OperatorView(View):
    """One kind of operator: its slots, its fields, and its cost at the dims of DiT-XL/2."""

    kind: str
    slots: list[str]
    summary: str
    fields: dict[str, object]
    num_params: int
    operator_flops: int
    feature_flops: int
    total_flops: int
    """FLOPs including those that the paper's two columns leave out."""


class BackboneView(View):
    """One known backbone."""

    name: str
    digest: str
    depth: int
    width: int
    num_heads: int
    num_tokens: int
    num_params: int
    forward_flops: int
    pretraining_flops: float | None = None
    """None: not known."""
    runnable: bool
    figures: dict[str, float]
    owner: str = ""
    """Who registered it; empty where it comes with a package."""
    private: bool = False
    revision: int | None = None
    damaged: bool = False
    """Whether a check has found other files than were registered; registering it again heals it."""
    size: int = 0
    """Bytes of what was registered."""
    licence: str | None = None
    arithmetic: str = "diffusers"
    """Formulas that it is computed by: those of diffusers' class or those of the original DiT."""
    grafts: list[str] = []
    """Kinds of operators that were grafted into it before, each with how many."""
    origin: str | None = None
    """Where it was imported from."""
    registering: str | None = None
    """The run that registers another revision."""


class RunEvent(View):
    """One event of a run as the stream sends it; `id` counts from 1 without gaps within the run."""

    id: int
    kind: Literal["state", "attempt", "request"]
    state: RunState | None = None
    reason: Reason | None = None
    event: Shown[Event] | None = None
    request: str | None = None
    """Request to the run: `pause`, `extend by 60 device-seconds`."""
    at: datetime


class EventPage(View):
    """Events in order; `next_after` requests the following ones."""

    events: list[RunEvent]
    next_after: int | None = None


class ActionResult(View):
    """Result of one action on one run; `problem` says why it was refused."""

    run_id: str
    state: RunState | None = None
    changed: bool = False
    problem: str | None = None


class QueueEntry(View):
    """A queued run, its position and what it waits for."""

    run_id: str
    name: str
    owner: str
    priority: int
    position: int
    """Position from 1; the number of runs ahead is one less."""
    behind: list[str]
    """The runs directly ahead, nearest first, at most three."""
    lacks: Literal["nothing", "cpus", "gpus", "quota", "budget", "another run", "back-off"]
    waits_for: str
    expected_start_seconds: float | None
    """Seconds from now, if no run overtakes; None without a history to predict from."""


class QueueView(View):
    """Queue in the order in which runs will start."""

    cpus: int
    free_cpus: int
    gpus: int
    free_gpus: int
    queued: int
    entries: list[QueueEntry]


class AccountView(View):
    """Limits of a user, a tag or the lab, its use by ended attempts, and by live ones."""

    scope: Literal["lab", "user", "tag"]
    name: str
    limits: Budget
    max_queued: int | None = None
    max_running: int | None = None
    max_cpus: int | None = None
    max_gpus: int | None = None
    max_registered_bytes: int | None = None
    spent: Usage
    share_of_pretraining: float
    claimed: Usage
    """Use or reservation of live attempts."""


class ViolationView(View):
    """One invariant that does not hold; `run_id` is empty if it does not concern a run."""

    invariant: str
    run_id: str
    text: str


class CollectedRun(View):
    """An ended run and its surplus checkpoints."""

    run_id: str
    state: RunState
    files: int
    bytes: int


class Collected(View):
    """Checkpoints that `graft admin gc` deleted, or would delete."""

    runs: list[CollectedRun]
    files: int
    bytes: int
    dry_run: bool


class TrackingRebuilt(View):
    """Number of runs and studies that are sent to MLflow again."""

    runs: int
    studies: int = 0


class TrackingState(View):
    """Lag of MLflow behind the lab."""

    runs: int
    """Number of runs with events that MLflow does not have."""
    events: int
    studies: int
    since: datetime | None = None
    """Time of the oldest event that MLflow does not have."""
    wrong: str | None = None
    """The reason MLflow cannot be used, and the command to run."""
    with_errors: int = 0
    """Number of runs and studies with entries that MLflow refused."""
