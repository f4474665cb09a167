"""What the REST API answers; the client parses the same classes."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from grafting_core.spec.budget import Spend
from grafting_core.spec.experiment import ExperimentSpec
from grafting_core.spec.planning import ExperimentPlan
from grafting_core.spec.plans import EvaluationProtocol
from grafting_core.spec.work import Work, as_graft
from workers.contract import Event, Reason, StageReport

RunState = Literal["QUEUED", "STARTING", "RUNNING", "PAUSED", "SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"]
Role = Literal["viewer", "runner", "admin"]
Sees = Literal["lab", "own"]
TERMINAL: frozenset[RunState] = frozenset({"SUCCEEDED", "STOPPED", "FAILED", "CANCELLED"})
"""STOPPED is a result cut short: a spent budget, a deadline, a design that diverged."""


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


class PlanAnswer(ExperimentPlan):
    """The plan, and what the lab's own history says of its duration; None where there is no history."""

    forecast: Forecast | None = None


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
    progress: StageProgress | None = None
    spend: Spend
    share_of_pretraining: float
    forecast: Forecast | None = None
    """As it was when the run was queued; what came of it is in `spend`."""
    metrics: dict[str, float]
    mlflow_url: str | None = None


class RunDetail(RunView):
    """One run with its spec and the reports of the stages done."""

    work: Work
    stages: list[StageReport]

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


class LeaderboardRow(View):
    """One finished run; changes are relative to the teacher under the same protocol (0.1 is +10 %)."""

    rank: int
    run_id: str
    name: str
    is_teacher: bool
    metric: str
    value: float
    value_change: float | None
    num_params: int
    params_change: float | None
    flops_per_image: int
    flops_change: float | None
    spend: Spend
    share_of_pretraining: float


class LeaderboardGroup(View):
    """Rows measured in the very same way; groups are never ranked together."""

    backbone: str
    protocol_digest: str
    protocol: EvaluationProtocol
    metric: str
    total: int
    """Of all ranked runs; `rows` are the first of them, or those after the cursor."""
    rows: list[LeaderboardRow]
    next_cursor: str | None = None


class Leaderboard(View):
    groups: list[LeaderboardGroup]


class OperatorView(View):
    """One kind: where it fits, its fields, and its cost at the dims of DiT-XL/2."""

    kind: str
    slots: list[str]
    summary: str
    fields: dict[str, object]
    num_params: int
    operator_flops: int
    feature_flops: int


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
    kind: Literal["state", "attempt"]
    state: RunState | None = None
    reason: Reason | None = None
    event: Event | None = None
    at: datetime


class EventPage(View):
    """Events in order; `next_after` asks for the following ones."""

    events: list[RunEvent]
    next_after: int | None = None


class KeyView(View):
    """A key without its secret; `prefix` is how the secret begins."""

    id: int
    prefix: str
    owner: str
    role: Role
    sees: Sees
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class KeyMade(KeyView):
    """The one answer that holds the secret."""

    key: str


class LoginLink(View):
    """Where a browser gets in, once."""

    path: str
    expires_at: datetime


class Whoami(View):
    """Whom a key stands for."""

    owner: str
    role: Role
    sees: Sees
    expires_at: datetime | None = None
