"""What the REST API answers; the client parses the same classes."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.cost import ExperimentPlan
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import Job, as_graft
from grafting_core.specs.plans import EvaluationProtocol
from grafting_core.specs.results import MeasuredCost, ProtocolFingerprint
from workers.contract import Event, PartProgress, Reason, StageReport

RunState = Literal["QUEUED", "STARTING", "RUNNING", "PAUSED", "SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"]
Role = Literal["viewer", "runner", "admin"]
Sees = Literal["lab", "own"]
KeyKind = Literal["key", "login", "session"]
TERMINAL: frozenset[RunState] = frozenset({"SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"})
"""STOPPED is a result cut short: a spent budget, a design that diverged."""


StudyState = Literal["RUNNING", "PAUSED", "DONE", "STOPPED", "FAILED"]
StudyPhase = Literal["measure", "fill", "screen", "promote", "learn"]


class View(BaseModel):
    """Answers tolerate fields a newer service adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class StageProgress(View):
    """Where the current stage is."""

    stage: str
    step: int
    total_steps: int
    seconds_left: float | None = None


class Forecast(View):
    """Device-seconds expected, and the interval that four of five of the `runs` behind it fell into."""

    device_seconds: float
    low: float
    high: float
    runs: int


KeyState = Literal["banked", "in_flight", "new"]


class Holding(View):
    """One stage of a plan against what the lab has: published, being made or waited for by a run, or new."""

    stage: str
    states: dict[str, KeyState]
    """By the names that the stage's keys have in the plan."""
    new_spend: Usage
    """What is new, alone."""
    waits_for: list[str] = []
    """Runs that are to make what is in flight."""


class PlanAnswer(ExperimentPlan):
    """The plan, and what the lab's own history says of its duration; None where there is no history."""

    forecast: Forecast | None = None
    holdings: list[Holding] = []


class RunView(View):
    """One run as the list shows it."""

    id: str
    kind: str
    name: str
    owner: str = "lab"
    backbone: str
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
    study: str | None = None
    priority: int = 0
    micro_batches: int = 1
    progress: StageProgress | None = None
    spend: Usage
    share_of_pretraining: float
    forecast: Forecast | None = None
    """As it was when the run was queued; what came of it is in `spend`."""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    """95 %, of the metrics that have one."""
    cost: MeasuredCost | None = None
    mlflow_url: str | None = None
    """Where the lab shows it in MLflow, relative to the lab's own address."""
    mlflow_error: str | None = None
    """What MLflow could not be told of it."""


class RunDetail(RunView):
    """One run with its spec and the reports of the stages done."""

    work: Job
    stages: list[StageReport]
    parts: list[PartProgress] = []
    """Where each operator of a pass is, while one runs."""

    @property
    def experiment(self) -> ExperimentSpec:
        """The work of a graft. Raises ValueError for a run of another kind."""
        return as_graft(self.work)


class RunPage(View):
    """Newest first; `next_cursor` asks for older ones."""

    runs: list[RunView]
    next_cursor: str | None = None


class SubmitAnswer(View):
    """202: where the run will be found."""

    run_id: str
    experiment_digest: str
    url: str
    notes: list[str] = []
    """What is allowed, but seldom meant."""


class FirstMade(View):
    """Who made a design first; `another's` where the reader does not see that run."""

    run_id: str
    owner: str
    at: datetime | None = None
    visible: bool = True
    """Whether the reader sees that run."""


class LeaderboardRow(View):
    """One finished run; changes are relative to the teacher (0.1 is +10 %), of quality to its figure under
    the same protocol.
    """

    rank: int
    rank_from: int
    rank_to: int
    """First and last rank, in this answer, of those whose figures cannot be told apart from this one's."""
    run_id: str
    name: str
    is_teacher: bool
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    """95 % of what other draws of as many samples give."""
    value_change: float | None
    num_params: int
    params_change: float | None
    flops_per_image: int
    flops_change: float | None
    made: Usage | None = None
    """What it cost to make the design, what was found made at its full price; None where that is not known.

    It is the first run's: asking for a finished design again does not change it.
    """
    spend: Usage
    """What this run paid."""
    saved: Usage | None = None
    """What was not paid because it was there already: `made` less `spend`."""
    first: FirstMade | None = None
    share_of_pretraining: float | None
    """Of `made`."""

    @property
    def tied(self) -> bool:
        return self.rank_from != self.rank_to

    @property
    def ranks(self) -> str:
        """`3`, or `3-4` where two rows are tied."""
        return f"{self.rank_from}-{self.rank_to}" if self.tied else str(self.rank)


class LeaderboardGroup(View):
    """Rows measured in the very same way; groups are never ranked together."""

    backbone: str
    protocol_digest: str
    protocol: EvaluationProtocol
    fingerprint: ProtocolFingerprint | None = None
    """All that the digest covers: network and reference by digest, version of the arithmetic."""
    metric: str
    total: int
    """Of all ranked runs; `rows` are the first of them, or those after the cursor."""
    rows: list[LeaderboardRow]
    next_cursor: str | None = None


class CutShort(View):
    """A run that a spent budget or divergence ended: what it reached stays."""

    run_id: str
    name: str
    protocol_digest: str
    reason: Reason
    reached: str
    rungs: dict[str, float]
    """Numbers of the fidelity ladder that it had when it ended."""
    spend: Usage


class Leaderboard(View):
    groups: list[LeaderboardGroup]
    other_protocols: list[str] = []
    """Digests of smaller groups, which an answer about all leaves out: ask for each as `protocol`."""
    cut_short: list[CutShort] = []


class OperatorView(View):
    """One kind: where it fits, its fields, and its cost at the dims of DiT-XL/2."""

    kind: str
    slots: list[str]
    summary: str
    fields: dict[str, object]
    num_params: int
    operator_flops: int
    feature_flops: int
    total_flops: int
    """With what the paper's two columns leave out."""


class BackboneView(View):
    """One backbone the lab can name."""

    name: str
    digest: str
    depth: int
    width: int
    num_heads: int
    num_tokens: int
    num_params: int
    forward_flops: int
    pretraining_flops: float
    runnable: bool
    figures: dict[str, float]


class RunEvent(View):
    """One event of a run as the stream sends it; `id` counts from 1 without gaps within the run."""

    id: int
    kind: Literal["state", "attempt", "request"]
    state: RunState | None = None
    reason: Reason | None = None
    event: Event | None = None
    request: str | None = None
    """What somebody asked of the run: `pause`, `extend by 60 device-seconds`."""
    at: datetime


class EventPage(View):
    """Events in order; `next_after` asks for the following ones."""

    events: list[RunEvent]
    next_after: int | None = None


class ActionResult(View):
    """What came of one action on one run; `problem` says why nothing did."""

    run_id: str
    state: RunState | None = None
    changed: bool = False
    problem: str | None = None


class QueueEntry(View):
    """Where a queued run stands and what it waits for."""

    run_id: str
    name: str
    owner: str
    priority: int
    position: int
    """From 1; as many as one less are ahead."""
    behind: list[str]
    """The runs directly ahead, nearest first, at most three."""
    lacks: Literal["nothing", "cpus", "gpus", "quota", "budget", "another run", "back-off"]
    waits_for: str
    expected_start_seconds: float | None
    """From now, if nothing overtakes; None where the lab has no history to tell from."""


class QueueView(View):
    """The queue in the order in which runs will start."""

    cpus: int
    free_cpus: int
    gpus: int
    free_gpus: int
    queued: int
    entries: list[QueueEntry]


class AccountView(View):
    """What a user, a study or the lab may use, has used by ended attempts, and has under way."""

    scope: Literal["lab", "user", "study"]
    name: str
    limits: Budget
    max_queued: int | None = None
    max_running: int | None = None
    max_cpus: int | None = None
    max_gpus: int | None = None
    spent: Usage
    share_of_pretraining: float
    claimed: Usage
    """Used or set aside by attempts under way."""


class ViolationView(View):
    """One invariant that does not hold; `run_id` is empty where it is not about a run."""

    invariant: str
    run_id: str
    text: str


class CollectedRun(View):
    """A run that has ended, and what of its checkpoints is not needed any more."""

    run_id: str
    state: RunState
    files: int
    bytes: int


class Collected(View):
    """What `graft admin gc` deleted, or would delete."""

    runs: list[CollectedRun]
    files: int
    bytes: int
    dry_run: bool


class TrackingRebuilt(View):
    """How many runs and studies start anew."""

    runs: int
    studies: int = 0


class TrackingState(View):
    """How far MLflow is behind the lab."""

    runs: int
    """Of which MLflow does not know everything."""
    events: int
    studies: int
    since: datetime | None = None
    """When the oldest thing happened that MLflow does not know."""
    wrong: str | None = None
    """Why MLflow cannot be used, and what to run."""
    with_errors: int = 0
    """Runs and studies of which something cannot be shown in MLflow."""
