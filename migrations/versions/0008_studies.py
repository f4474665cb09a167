"""Studies, their trials and the runs that serve them"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(length=32), primary_key=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("backbone", sa.String(length=200), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("message", sa.String(length=500)),
        sa.Column("sampler", sa.JSON(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=64), unique=True),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("mlflow_run_id", sa.String(length=64)),
        sa.Column("mlflow_url", sa.String(length=500)),
        sa.Column("mlflow_version", sa.Integer(), nullable=False),
    )
    op.create_index("ix_studies_owner", "studies", ["owner"])
    op.create_index("ix_studies_state", "studies", ["state"])
    op.create_table(
        "study_trials",
        sa.Column("study_id", sa.String(length=32), sa.ForeignKey("studies.id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("assignment", sa.JSON(), nullable=False),
        sa.Column("design_key", sa.String(length=64), nullable=False),
        sa.Column("params", sa.BigInteger(), nullable=False),
        sa.Column("flops", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("screened", sa.JSON(), nullable=False),
        sa.Column("final", sa.JSON()),
        sa.Column("predicted", sa.Double()),
        sa.Column("optuna_number", sa.Integer()),
    )
    op.create_index("ix_study_trials_design_key", "study_trials", ["design_key"])
    op.create_table(
        "study_runs",
        sa.Column("study_id", sa.String(length=32), sa.ForeignKey("studies.id"), primary_key=True),
        sa.Column("role", sa.String(length=32), primary_key=True),
        sa.Column("label", sa.String(length=64), primary_key=True),
        sa.Column("run_id", sa.String(length=32), sa.ForeignKey("runs.id"), nullable=False, unique=True),
        sa.Column("trial", sa.Integer()),
    )


def downgrade() -> None:
    for table in ("study_runs", "study_trials", "studies"):
        op.drop_table(table)
