"""Contract between the control plane and an attempt: the ticket in, events out, files in shared storage.

Layout under the storage root (an fsspec URI):

    scions/<key>/                      distilled operator: operator.safetensors, card.json
    models/<key>/                      finetuned graft: model.safetensors (EMA weights), card.json
    profiles/<backbone digest>/<key>/  profile.json, profile.png, card.json
    evaluations/<key>/                 report.json, samples.png, chunks/<first index>.chunk, samples.npz
    costs/<key>/<hardware>.json        measured cost of the evaluated network on one kind of hardware
    latencies/<key>.json               row of the latency table: one operator on one kind of device
    screened/<key>.json                value of a hybrid on one rung of a screening
    references/<key>/                  reference.npz: statistics that samples are compared with
    registry/<what>/<digest>/          content/ (files of a registered folder), card.json
    registry/staging/<run>/            files that a registration has copied so far
    exports/<key>/                     content/ (a graft as diffusers loads it), card.json
    exports/staging/<run>/             files of an export that is being written
    hosts/idle/<job>.json, hosts/<job>/  worker groups between two tickets
    runs/<run>/ticket-<attempt>.json   the ticket, written by the scheduler
    runs/<run>/attempts/<attempt>/     events/<seq, 8 digits>.json, heartbeat, stop, budget, log.txt
    runs/<run>/checkpoints/<stage key>/<step, 8 digits>-a<attempt>.safetensors, best.json

Every file is written atomically. Event files are numbered from 1 without gaps.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import AliasChoices, Field, ValidationError

from grafting_core.specs.base import Frozen
from grafting_core.specs.budget import Budget, Usage
from grafting_core.specs.canonical import digest
from grafting_core.specs.jobs import Job
from grafting_core.specs.private_names import Intervals, Metrics
from grafting_core.specs.registration import Registered, Registry
from grafting_core.specs.results import MeasuredCost
from grafting_core.storage.storage import Storage

StageName = Literal["distill", "finetune", "evaluate", "analyze", "screen", "measure", "register", "export"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""Stage names in the order in which they are displayed."""

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
    "bad_input",
    "internal_error",
]

StopCause = Literal["completed", "reused", "budget_exhausted"]


class RunTicket(Frozen):
    """Everything that a worker receives. It holds no database address and no secret."""

    run_id: str
    attempt: Annotated[int, Field(ge=1)]
    work: Job
    storage: str
    spent: Usage = Usage()
    """Usage of earlier attempts, which counts toward the budget."""
    budget: Budget | None = None
    """Budget of the whole run, extensions included; the job's own budget where this is None."""
    accumulation_steps: Annotated[
        int, Field(ge=1, validation_alias=AliasChoices("accumulation_steps", "micro_batches"))
    ] = 1
    """Number of parts that a training batch is split into so that it fits into memory.

    Tickets of older versions have the second name.
    """
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    silence_seconds: Annotated[float, Field(gt=0)] = 60.0
    """An attempt without heartbeat for this long is replaced; a worker ends itself after two thirds."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 30.0
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Number of a stage's newest checkpoints to keep while it runs."""
    keep_best: bool = False
    """Whether to keep the checkpoint with the lowest loss as well."""
    registered: Registry = Registry()
    """Cards of registered things that the work names."""
    import_roots: tuple[str, ...] = ()
    """Folders of the worker's machine from which may be registered."""
    closed_folders: tuple[str, ...] = ()
    """Folders of the lab itself, from which may not be registered."""
    warm_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the worker group waits for another ticket after this one; 0: it ends."""


class StageReport(Frozen):
    """Result of one stage."""

    stage: StageName
    key: str
    artifacts: dict[str, str] = {}
    """URI relative to the storage root, by name (`samples.png`, `model`, or a site's scion)."""
    metrics: Metrics = {}
    intervals: Intervals = {}
    """95 % intervals of the metrics that have one."""
    cost: MeasuredCost | None = None
    """Measured on the hardware of this attempt."""
    spend: Usage = Usage()
    stop_cause: StopCause = "completed"
    made: dict[str, Usage] = {}
    """Key -> usage, of the artifacts that this run published."""
    made_by: dict[str, str] = {}
    """Artifact -> run that made it, of reused artifacts."""
    found: dict[str, Usage] = {}
    """Key -> usage of making it, of reused scions."""
    registered: Registered | None = None
    """The card of what was registered, if the stage registers."""
    notes: tuple[str, ...] = ()
    """Messages for people, such as damaged files that were found and repaired."""


class AttemptStarted(Frozen):
    """The driver has started."""

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
    """State of one student in a distillation pass, or how and why it ended."""

    name: str
    step: int
    total_steps: int
    loss: float | None = None
    seconds_left: float | None = None
    ending: str | None = None
    reason: str = ""


class Progress(Frozen):
    """State of a stage; `values` are curves (`loss`, `loss/block 1 attention`, `fid...`)."""

    type: Literal["progress"] = "progress"
    stage: StageName
    step: int
    total_steps: int
    seconds_left: float | None = None
    values: Metrics = {}
    parts: tuple[PartProgress, ...] = ()
    """One entry per operator where the stage trains several."""
    spend: Usage = Usage()
    """Usage of this attempt so far, over all stages."""


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
    """The attempt failed; `reason` decides whether another attempt follows."""

    type: Literal["attempt_failed"] = "attempt_failed"
    reason: Reason
    message: str
    spend: Usage = Usage()


EventBody = Annotated[
    AttemptStarted | StageStarted | Progress | StageDone | AttemptSucceeded | AttemptStopped | AttemptFailed,
    Field(discriminator="type"),
]


class Event(Frozen):
    """One numbered event of an attempt. `at` is the worker's clock and for display only."""

    run_id: str
    attempt: int
    seq: Annotated[int, Field(ge=1)]
    at: float
    body: EventBody


class Heartbeat(Frozen):
    """Heartbeat file, rewritten every few seconds by a separate thread; readers compare it, not times."""

    beat: int
    pid: int


class Stop(Frozen):
    """A request to end the attempt at its next step."""

    reason: Reason


DRIVER_ONLY_KINDS = frozenset({"screening"})
"""Kinds of work that run in the driver itself: no worker group waits for a next ticket after them."""


class WarmWorker(Frozen):
    """A worker group that has run `ticket_index` tickets and accepts another one of the same shape."""

    job: str
    ticket_index: Annotated[int, Field(ge=1, lt=2**31)]
    shape: str
    cpus: Annotated[int, Field(ge=0)]
    gpus: Annotated[int, Field(ge=0)]


class Assignment(Frozen):
    """The next ticket of a worker group; None: the group ends."""

    run_id: str | None = None
    attempt: int = 0


def host_shape(work: Job) -> str:
    """Digest of what a worker group holds: tickets of equal shape can run in the same group."""
    return digest({"backbone": work.backbone, "resources": work.resources})


IDLE_FOLDER = "hosts/idle"


def idle_path(job: str) -> str:
    """Path of the note that a waiting worker group writes, and deletes before it works."""
    return f"{IDLE_FOLDER}/{job}.json"


def handover_path(job: str, ticket_index: int) -> str:
    """Path where the scheduler writes the assignment for an idle worker group."""
    return f"hosts/{job}/next-{ticket_index}.json"


def retire_path(job: str) -> str:
    """Path of the file whose presence ends an idle worker group."""
    return f"hosts/{job}/retire"


def begin_path(job: str, ticket_index: int) -> str:
    """Path where the driver tells its workers to begin this ticket."""
    return f"hosts/{job}/begin-{ticket_index}.json"


def done_path(job: str, ticket_index: int) -> str:
    """Path where rank 0 tells its driver that this ticket is done."""
    return f"hosts/{job}/done-{ticket_index}"


def attempt_folder(run_id: str, attempt: int) -> str:
    """Folder of an attempt relative to the storage root."""
    return f"runs/{run_id}/attempts/{attempt}"


def checkpoints_folder(run_id: str) -> str:
    """Folder of a run's checkpoints, with a subfolder for each stage key."""
    return f"runs/{run_id}/checkpoints"


BEST = "best.json"


class BestCheckpoint(Frozen):
    """File name of the checkpoint with the lowest mean loss since the checkpoint before it."""

    name: Annotated[str, Field(pattern=r"^[^/\\]+\.safetensors$")]
    loss: float


def best_in(storage: Storage, folder: str) -> BestCheckpoint | None:
    """Note about the best checkpoint of a folder; None if note or checkpoint is missing or unreadable."""
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
    """Path of a budget that was changed after the ticket was written."""
    return f"{attempt_folder(run_id, attempt)}/budget"


def submission_id(run_id: str, attempt: int) -> str:
    """Ray job id; Ray refuses an id that exists, so submitting twice is harmless."""
    return f"run-{run_id}-{attempt}"


_SUBMISSION = re.compile(r"run-([0-9a-z]{1,32})-([1-9][0-9]{0,8})")


def attempt_of(job: str) -> tuple[str, int] | None:
    """Run and attempt that `submission_id` encodes; None for the id of a job that is not ours."""
    found = _SUBMISSION.fullmatch(job)
    return (found[1], int(found[2])) if found else None
