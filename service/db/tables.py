"""Tables of the service. They alone hold state; storage holds artifacts."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from grafting_core.specs.budget import Usage
from service.schemas.runs import KeyKind, Role, RunState, Sees


class UtcTime(TypeDecorator[datetime]):
    """Column of aware UTC times on both databases; SQLite itself stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


def where(condition: str) -> dict[str, Any]:
    """Return the arguments of a partial index over the rows for which the condition is true."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Base(DeclarativeBase):
    """Base of all tables. Names of constraints are fixed, so that migrations can refer to them."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: UtcTime}


class ExperimentRow(Base):
    """One resolved submission of any kind of work. A repeated request finds it by its idempotency key."""

    __tablename__ = "experiments"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), server_default="graft")
    tag: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    backbone: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    protocol_digest: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    owner: Mapped[str] = mapped_column(String(64), server_default="lab", index=True)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    """Digest of owner and key, so that two users may choose the same key."""
    request_digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)


class RunRow(Base):
    """One run of an experiment. `state` is written only by `run_lifecycle.transition`."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_state_created_at", "state", "created_at"),
        Index("ix_runs_queue", "state", "owner", "precedence", "id"),
        Index("ix_runs_checkpoints_pruned", "checkpoints_pruned", "ended_at"),
        Index("ix_runs_experiment", "experiment_id"),
        Index("ix_runs_name", "name", "id"),
        Index("ix_runs_state", "state", "id"),
        Index("ix_runs_owner", "owner", "id"),
        Index("ix_runs_owner_state", "owner", "state", "id"),
        Index("ix_runs_mlflow_run_id", "mlflow_run_id"),
        Index("ix_runs_mlflow_behind", "id", **where("last_event > mlflow_event")),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey("experiments.id"))
    owner: Mapped[str] = mapped_column(String(64), server_default="lab", default="lab")
    name: Mapped[str] = mapped_column(String(200), server_default="", default="")
    """Copy of the experiment's name, so that lists are read from one index."""
    tag: Mapped[str | None] = mapped_column(String(64))
    precedence: Mapped[int] = mapped_column(server_default="0", default=0)
    """Minus the priority, so that one ascending index gives the order of the queue."""
    workers: Mapped[int] = mapped_column(server_default="1", default=1)
    cpus: Mapped[int] = mapped_column(server_default="1", default=1)
    gpus: Mapped[int] = mapped_column(server_default="0", default=0)
    """Devices of all workers together: an attempt gets all of them or none."""
    state: Mapped[RunState] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None] = mapped_column(String(500))
    attempt: Mapped[int] = mapped_column(default=0)
    last_event: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    kill_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(server_default="0", default=0)
    """Ended attempts that count against the limit; an explicit retry resets them."""
    accumulation_steps: Mapped[int] = mapped_column(server_default="1", default=1)
    """Number of parts in which a training batch is computed; doubled when memory runs out."""
    extra_device_seconds: Mapped[float] = mapped_column(server_default="0", default=0.0)
    """Device-seconds granted beyond the budget of the submission."""
    planned: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Stage -> FLOPs and images by formula, if the kind of work has one."""
    reserved_device_seconds: Mapped[float] = mapped_column(server_default="0", default=0.0)
    reserved_flops: Mapped[float] = mapped_column(server_default="0", default=0.0)
    reserved_images: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    """Amounts that a live attempt may still use of shared budgets."""
    checkpoints_pruned: Mapped[str] = mapped_column(String(8), server_default="", default="")
    """The stage of deleting its checkpoints after its end: see `domain.checkpoint_retention`."""
    stage: Mapped[str | None] = mapped_column(String(16))
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    seconds_left: Mapped[float | None] = mapped_column(Float)
    forecast: Mapped[dict[str, Any] | None]
    mlflow_url: Mapped[str | None] = mapped_column(String(500))
    """Read and written only by version 0.1."""
    mlflow_experiment_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_event: Mapped[int] = mapped_column(server_default="0", default=0)
    """Number of the last event sent to MLflow."""
    mlflow_error: Mapped[str | None] = mapped_column(String(500))
    """Error of the last projection to MLflow, if it failed."""
    experiment: Mapped[ExperimentRow] = relationship(lazy="joined", innerjoin=True)

    @property
    def devices(self) -> int:
        """Number of devices that its device-seconds count: all its GPUs, or its workers if they have no
        GPU.
        """
        return max(self.workers, self.gpus)


OPEN = text("ended_at IS NULL")


class AttemptRow(Base):
    """One Ray job. The number is the fencing token; `event_seq` is the last event applied."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_open", "run_id", sqlite_where=OPEN, postgresql_where=OPEN),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    submitted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    event_seq: Mapped[int] = mapped_column(default=0)
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    flops: Mapped[float] = mapped_column(default=0.0)
    training_images: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_until: Mapped[float | None]
    """Seconds since 1970 by the database's clock; an attempt not renewed by then is lost."""
    reason: Mapped[str | None] = mapped_column(String(32))
    accumulation_steps: Mapped[int] = mapped_column(server_default="1", default=1)
    job: Mapped[str | None] = mapped_column(String(64))
    """Ray job that runs the attempt: its own, or a warm worker group left by an earlier attempt."""
    ticket_index: Mapped[int] = mapped_column(server_default="1", default=1)
    """Position among the tickets of that job."""

    @property
    def spend(self) -> Usage:
        return Usage(
            device_seconds=self.device_seconds, flops=self.flops, training_images=self.training_images
        )


class StageRow(Base):
    """The accepted report of one stage of a run."""

    __tablename__ = "stage_reports"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    attempt: Mapped[int]
    report: Mapped[dict[str, Any]]


class RunDependencyRow(Base):
    """Need of a run for the artifact `<folder>/<key>`. The amounts are its share of the cost, or minus what
    others share.
    """

    __tablename__ = "run_dependencies"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    folder: Mapped[str] = mapped_column(String(16))
    device_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    flops: Mapped[float] = mapped_column(Float, default=0.0)
    training_images: Mapped[int] = mapped_column(BigInteger, default=0)


class EventRow(Base):
    """Event of a run, numbered from 1 without gaps."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("run_id", "seq", name="uq_events_run_id_seq"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    seq: Mapped[int]
    at: Mapped[datetime] = mapped_column(default=now)
    kind: Mapped[str] = mapped_column(String(16))
    body: Mapped[dict[str, Any]]


class LeaderRow(Base):
    """Lease of the leading process: of the schedulers (row 1), of those that drive studies (row 2)."""

    __tablename__ = "leases"

    id: Mapped[int] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    until: Mapped[float] = mapped_column(Float)
    """Seconds since 1970 by the database's clock."""


class AccountRow(Base):
    """Limits of a user, a tag or the lab, and the use of its ended attempts."""

    __tablename__ = "accounts"

    scope: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """Fields of a `Budget`; missing ones are unlimited."""
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    max_cpus: Mapped[int | None]
    max_gpus: Mapped[int | None]
    max_registered_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of what a user has registered."""
    device_seconds: Mapped[float] = mapped_column(default=0.0)
    flops: Mapped[float] = mapped_column(default=0.0)
    training_images: Mapped[int] = mapped_column(BigInteger, default=0)
    share_of_pretraining: Mapped[float] = mapped_column(default=0.0)
    recent_seconds: Mapped[float] = mapped_column(default=0.0)
    """Device-seconds that halve every day, for fair shares."""
    recent_at: Mapped[float] = mapped_column(default=0.0)


class TrackingRow(Base):
    """Read and written only by version 0.1; now each run holds how far it was projected to MLflow."""

    __tablename__ = "tracking_cursors"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    last_seq: Mapped[int] = mapped_column(default=0)
    closed: Mapped[bool] = mapped_column(default=False)


class KeyRow(Base):
    """An API key, login code or browser session. Only the SHA-256 of its secret is stored, as `digest`."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[KeyKind] = mapped_column(String(8))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    role: Mapped[Role] = mapped_column(String(8))
    sees: Mapped[Sees] = mapped_column(String(8))
    registers: Mapped[bool] = mapped_column(server_default=false(), default=False)
    """Whether it may register backbones, data sets and feature networks."""
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    """The key that opened this session; revoked with it."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class LeaderboardEntryRow(Base):
    """Leaderboard entry of a succeeded graft. An experiment that ran several times has one current entry."""

    __tablename__ = "leaderboard_entries"
    __table_args__ = (
        Index("ix_leaderboard_entries_rank", "is_current", "protocol_digest", "value", "run_id"),
        Index("ix_leaderboard_entries_teacher", "is_teacher", "is_current", "protocol_digest", "value"),
        Index("ix_leaderboard_entries_owner", "owner", "protocol_digest", "value"),
    )

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    protocol_digest: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    backbone: Mapped[str] = mapped_column(String(200))
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    is_teacher: Mapped[bool]
    is_current: Mapped[bool]
    metric: Mapped[str] = mapped_column(String(100))
    value: Mapped[float]
    num_params: Mapped[int] = mapped_column(BigInteger)
    flops_per_image: Mapped[int] = mapped_column(BigInteger)
    first_run_id: Mapped[str | None] = mapped_column(String(32))
    """First run that succeeded with this design, its owner, and when."""
    first_owner: Mapped[str | None] = mapped_column(String(64))
    first_at: Mapped[datetime | None]
    made_device_seconds: Mapped[float | None]
    """Use of that run plus the full price of artifacts it reused; None if unknown."""
    made_flops: Mapped[float | None]
    made_training_images: Mapped[int | None] = mapped_column(BigInteger)
