"""Tables of studies: the record of proposals, results and promotions, from which Optuna's can be rebuilt."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Base, now, where
from service.schemas.runs import StudyPhase, StudyState


class StudyRow(Base):
    """One search. `state` and `phase` are written only by `studies.move` and `studies.advance`."""

    __tablename__ = "studies"
    __table_args__ = (Index("ix_studies_mlflow_behind", "id", **where("version > mlflow_version")),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    backbone: Mapped[str] = mapped_column(String(200))
    owner: Mapped[str] = mapped_column(String(64), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    state: Mapped[StudyState] = mapped_column(String(16), index=True)
    phase: Mapped[StudyPhase] = mapped_column(String(16))
    round: Mapped[int] = mapped_column(default=1)
    message: Mapped[str | None] = mapped_column(String(500))
    sampler: Mapped[dict[str, Any]]
    """Optuna's sampler with every argument that it is built with."""
    scores: Mapped[dict[str, Any]]
    """Item -> replace-one score, once the bank is filled."""
    findings: Mapped[dict[str, Any]]
    """Results of the predictor, round by round."""
    idempotency_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=0)
    """Number of changes, by which followers notice them."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_experiment_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_url: Mapped[str | None] = mapped_column(String(500))
    """Read and written only by version 0.1."""
    mlflow_version: Mapped[int] = mapped_column(default=-1)
    """The version that MLflow shows."""
    mlflow_error: Mapped[str | None] = mapped_column(String(500))
    """Error of the last projection to MLflow, if it failed."""


class TrialRow(Base):
    """One proposed design of a study."""

    __tablename__ = "study_trials"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[int]
    proposed_by: Mapped[str] = mapped_column(String(32))
    """`milp`, a sampler, or `baseline`."""
    baselines: Mapped[list[str]] = mapped_column(JSON, server_default="[]", default=list)
    """Names of the baselines that are this design; empty if a sampler proposed it."""
    state: Mapped[str] = mapped_column(String(16))
    assignment: Mapped[dict[str, Any]]
    design_key: Mapped[str] = mapped_column(String(64), index=True)
    params: Mapped[int] = mapped_column(BigInteger)
    flops: Mapped[float]
    latency: Mapped[float | None]
    """Predicted from the study's table, relative to the backbone's forward; None without a table."""
    score: Mapped[float]
    """Sum of replace-one scores at the time of the proposal."""
    screened: Mapped[dict[str, Any]]
    """Rung -> value, for every rung that was evaluated."""
    final: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Metrics of the evaluation after finetuning."""
    predicted: Mapped[float | None]
    optuna_number: Mapped[int | None]


class StudyRunRow(Base):
    """A run that belongs to a study. The key makes a second run for the same purpose impossible."""

    __tablename__ = "study_runs"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)
    """`measure`, `fill`, `screen`, `promote`, `calibrate`, `baseline`, `curve`."""
    label: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Round, number of the trial, name of the baseline, or subject and steps of a sampling curve."""
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), unique=True)
    trial: Mapped[int | None]
