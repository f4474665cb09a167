"""All that passes between the control plane and an attempt: a ticket in, events out, files between.

Layout under the storage root (an fsspec URI):

    scions/<key>/                      distilled operator: operator.safetensors, card.json
    models/<key>/                      finetuned graft: model.safetensors (EMA weights), card.json
    profiles/<backbone digest>/<key>/  profile.json, profile.png, card.json
    evaluations/<key>/                 report.json, samples.png, chunks/<first index>.chunk; see kept_samples
    costs/<key>/<hardware>.json        what the network of this evaluation costs by the clock
    latencies/<key>.json               a row of the latency table: one operator on one kind of device
    references/<key>/                  reference.npz: what samples are compared with
    hosts/idle/<job>.json, hosts/<job>/  worker groups between two tickets
    runs/<run>/ticket-<attempt>.json   what the scheduler asks for
    runs/<run>/attempts/<attempt>/     events/<seq, 8 digits>.json, heartbeat, stop, budget, log.txt
    runs/<run>/checkpoints/<stage key>/<step, 8 digits>-a<attempt>.safetensors, best.json

Every file is written whole or not at all. Event files are numbered from 1 without gaps.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import AliasChoices, Field, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.canonical import digest
from grafting_core.specs.jobs import Job
from grafting_core.specs.results import MeasuredCost
from grafting_core.storage.storage import Storage

StageName = Literal["distill", "finetune", "evaluate", "analyze", "screen", "measure"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which they are shown."""

Reason = Literal[
    "user_request",
    "budget_exhausted",
    "diverged",
    "out_of_memory",
    "worker_lost",
    "node_fault",
    "preempted",
    "invalid_checkpoint",
    "storage_full",
    "internal_error",
]

StopCause = Literal["completed", "reused", "budget_exhausted"]


class RunTicket(Frozen):
    """All a worker is told. It holds no database address and no secret."""

    run_id: str
    attempt: Annotated[int, Field(ge=1)]
    work: Job
    storage: str
    spent: Usage = Usage()
    """What earlier attempts used, for the budget."""
    budget: Budget | None = None
    """What the run may use in all, extensions included; the work's own where it is not given."""
    accumulation_steps: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("accumulation_steps", "micro_batches"))
    ] = 1
    """Parts a training batch is computed in, so that it fits into memory.

    Tickets of older versions have the second name.
    """
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    silence_seconds: Annotated[float, Field(gt=0)] = 60.0
    """An attempt that shows no life for this long is replaced; a worker ends itself after two thirds."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 30.0
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of a stage's newest checkpoints stay while it runs."""
    keep_best: bool = False
    """Whether the one with the lowest loss stays as well."""
    warm_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long the worker group waits for another ticket once this one is done; 0: it ends."""


class StageReport(Frozen):
    """What one stage yielded."""

    stage: StageName
    key: str
    artifacts: dict[str, str] = {}
    """URI relative to the storage root, by name (`samples.png`, `model`, or a site's scion)."""
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    """95 %, of the metrics that have one."""
    cost: MeasuredCost | None = None
    """By clock, on the hardware of this attempt."""
    spend: Usage = Usage()
    stop_cause: StopCause = "completed"
    made: dict[str, Usage] = {}
    """Key -> use, of what this run has added to what others can use."""
    made_by: dict[str, str] = {}
    """Artifact -> run that made it, of what was found and reused."""
    found: dict[str, Usage] = {}
    """Key -> its full price, of scions that were found and reused."""
    notes: tuple[str, ...] = ()
    """What people should know, such as damage that was found and repaired."""


class AttemptStarted(Frozen):
    """The driver is up."""

    type: Literal["attempt_started"] = "attempt_started"
    host: str
    pid: int
    device: str
    versions: dict[str, str] = {}


class StageStarted(Frozen):
    """A stage begins, or resumes at `step` from a checkpoint."""

    type: Literal["stage_started"] = "stage_started"
    stage: StageName
    key: str
    step: int = 0
    total_steps: int


class PartProgress(Frozen):
    """Where one of the operators of a pass is, or how and why it ended."""

    name: str
    step: int
    total_steps: int
    loss: float | None = None
    seconds_left: float | None = None
    ending: str | None = None
    reason: str = ""


class Progress(Frozen):
    """Where a stage is; `values` are curves (`loss`, `loss/block 1 attention`, `fid...`)."""

    type: Literal["progress"] = "progress"
    stage: StageName
    step: int
    total_steps: int
    seconds_left: float | None = None
    values: dict[str, float] = {}
    parts: tuple[PartProgress, ...] = ()
    """One an operator where the stage trains several."""
    spend: Usage = Usage()
    """Of this attempt so far, all stages together."""


class StageDone(Frozen):
    """A stage has published its artifacts."""

    type: Literal["stage_done"] = "stage_done"
    report: StageReport


class AttemptSucceeded(Frozen):
    """Every stage is done."""

    type: Literal["attempt_succeeded"] = "attempt_succeeded"
    spend: Usage


class AttemptStopped(Frozen):
    """The attempt obeyed a stop file after writing a checkpoint."""

    type: Literal["attempt_stopped"] = "attempt_stopped"
    reason: Reason
    spend: Usage


class AttemptFailed(Frozen):
    """The attempt gave up; `reason` decides whether another follows."""

    type: Literal["attempt_failed"] = "attempt_failed"
    reason: Reason
    message: str
    spend: Usage = Usage()


EventBody = Annotated[
    AttemptStarted | StageStarted | Progress | StageDone | AttemptSucceeded | AttemptStopped | AttemptFailed,
    Field(discriminator="type"),
]


class Event(Frozen):
    """One numbered fact from an attempt. `at` is the worker's clock and for display only."""

    run_id: str
    attempt: int
    seq: Annotated[int, Field(ge=1)]
    at: float
    body: EventBody


class Heartbeat(Frozen):
    """Rewritten every few seconds by a thread of its own; readers look for change, not for time."""

    beat: int
    pid: int


class Stop(Frozen):
    """A request to end the attempt at its next step."""

    reason: Reason


DRIVER_ONLY_KINDS = frozenset({"screening"})
"""Kinds of work that the driver of the attempt carries out itself: no worker group waits after them."""


class WarmWorker(Frozen):
    """A worker group that has done `ticket_index` tickets and would take another of the same shape."""

    job: str
    ticket_index: Annotated[int, Field(ge=1, lt=2**31)]
    shape: str
    cpus: Annotated[int, Field(ge=0)]
    gpus: Annotated[int, Field(ge=0)]


class Assignment(Frozen):
    """Which ticket a worker group carries out next; none means that it ends."""

    run_id: str | None = None
    attempt: int = 0


def host_shape(work: Job) -> str:
    """Names what a worker group holds: tickets of equal shape can follow each other in it."""
    return digest({"backbone": work.backbone, "resources": work.resources})


IDLE_FOLDER = "hosts/idle"


def idle_path(job: str) -> str:
    """Written by a waiting worker group, gone while it works."""
    return f"{IDLE_FOLDER}/{job}.json"


def handover_path(job: str, ticket_index: int) -> str:
    """Where the scheduler puts the ticket that an idle worker group shall take."""
    return f"hosts/{job}/next-{ticket_index}.json"


def retire_path(job: str) -> str:
    """Its presence asks an idle worker group to end."""
    return f"hosts/{job}/retire"


def begin_path(job: str, ticket_index: int) -> str:
    """From the driver to its workers: begin this ticket."""
    return f"hosts/{job}/begin-{ticket_index}.json"


def done_path(job: str, ticket_index: int) -> str:
    """From rank 0 to its driver: this ticket is done."""
    return f"hosts/{job}/done-{ticket_index}"


def attempt_folder(run_id: str, attempt: int) -> str:
    """Relative to the storage root."""
    return f"runs/{run_id}/attempts/{attempt}"


def checkpoints_folder(run_id: str) -> str:
    """Holds a folder for each stage's key."""
    return f"runs/{run_id}/checkpoints"


BEST = "best.json"


class BestCheckpoint(Frozen):
    """Which checkpoint beside it has the lowest loss so far: its mean since the checkpoint before."""

    name: Annotated[str, Field(pattern=r"^[^/\\]+\.safetensors$")]
    loss: float


def best_in(storage: Storage, folder: str) -> BestCheckpoint | None:
    """What the note in a folder of checkpoints says, where what it names is there."""
    try:
        note = storage.read_model(f"{folder}/{BEST}", BestCheckpoint)
    except (FileNotFoundError, ValidationError):
        return None
    return note if storage.exists(f"{folder}/{note.name}") else None


def ticket_path(run_id: str, attempt: int) -> str:
    return f"runs/{run_id}/ticket-{attempt}.json"


def event_path(run_id: str, attempt: int, seq: int) -> str:
    return f"{attempt_folder(run_id, attempt)}/events/{seq:08d}.json"


def budget_path(run_id: str, attempt: int) -> str:
    """Where a budget that was changed after the ticket was written is found."""
    return f"{attempt_folder(run_id, attempt)}/budget"


def submission_id(run_id: str, attempt: int) -> str:
    """Ray job id: create-if-absent, so submitting twice is harmless."""
    return f"run-{run_id}-{attempt}"


_SUBMISSION = re.compile(r"run-([0-9a-z]{1,32})-([1-9][0-9]{0,8})")


def attempt_of(job: str) -> tuple[str, int] | None:
    """Run and attempt that `submission_id` names; None for the job of somebody else, whatever its id is."""
    found = _SUBMISSION.fullmatch(job)
    return (found[1], int(found[2])) if found else None
