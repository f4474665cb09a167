"""The tables of studies. They alone say what was proposed, judged and promoted; Optuna's can be rebuilt."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Base, now, where
from service.schemas.runs import StudyPhase, StudyState

SHARED = ", "
"""Between names of baselines that come to one design."""


class StudyRow(Base):
    """One search. `state` and `phase` are written by `studies.move` alone."""

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
    """Optuna's sampler with every argument, as it is built."""
    scores: Mapped[dict[str, Any]]
    """Item -> replace-one score, once the bank is full."""
    findings: Mapped[dict[str, Any]]
    """What the predictor learned, round by round."""
    idempotency_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=0)
    """Counts changes, for whoever follows."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_experiment_id: Mapped[str | None] = mapped_column(String(64))
    mlflow_url: Mapped[str | None] = mapped_column(String(500))
    """Read and written by 0.1 alone."""
    mlflow_version: Mapped[int] = mapped_column(default=-1)
    """The version that MLflow has."""
    mlflow_error: Mapped[str | None] = mapped_column(String(500))
    """What MLflow could not be told of this study."""


class TrialRow(Base):
    """One proposed design of a study."""

    __tablename__ = "study_trials"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[int]
    source: Mapped[str] = mapped_column(String(80))
    """Who proposed it: `milp`, a sampler, or `baseline deep`; several baselines are joined by SHARED."""
    state: Mapped[str] = mapped_column(String(16))
    assignment: Mapped[dict[str, Any]]
    design_key: Mapped[str] = mapped_column(String(64), index=True)
    params: Mapped[int] = mapped_column(BigInteger)
    flops: Mapped[float]
    latency: Mapped[float | None]
    """Predicted from the study's table, of the backbone's forward; None where the study has no table."""
    score: Mapped[float]
    """Sum of replace-one scores when it was proposed."""
    screened: Mapped[dict[str, Any]]
    """Rung -> value, for every rung that was evaluated."""
    final: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Figures of the evaluation after finetuning."""
    predicted: Mapped[float | None]
    optuna_number: Mapped[int | None]


class StudyRunRow(Base):
    """A run that serves a study. The key makes a second one for the same purpose impossible."""

    __tablename__ = "study_runs"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)
    """`measure`, `fill`, `screen`, `promote`, `calibrate`, `baseline`, `curve`."""
    label: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The round, the trial's number, the baseline's name or what is sampled in how many steps."""
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), unique=True)
    trial: Mapped[int | None]
