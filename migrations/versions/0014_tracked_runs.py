"""How far a run was projected to MLflow stands in the run, and what is behind is found by an index"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

BEHIND = {"runs": "last_event > mlflow_event", "studies": "version > mlflow_version"}
EXPERIMENT = {
    "sqlite": "substr(mlflow_url, instr(mlflow_url, '/#/experiments/') + 15, "
    "instr(substr(mlflow_url, instr(mlflow_url, '/#/experiments/') + 15), '/') - 1)",
    "postgresql": "split_part(split_part(mlflow_url, '/#/experiments/', 2), '/', 1)",
}
"""The experiment's id in an address that was kept whole."""


def upgrade() -> None:
    for table in BEHIND:
        op.add_column(table, sa.Column("mlflow_experiment_id", sa.String(64)))
        op.add_column(table, sa.Column("mlflow_error", sa.String(500)))
    op.add_column("runs", sa.Column("mlflow_run_id", sa.String(64)))
    op.add_column("runs", sa.Column("mlflow_event", sa.Integer(), nullable=False, server_default="0"))
    _take_over()
    op.create_index("ix_runs_mlflow_run_id", "runs", ["mlflow_run_id"])
    for table, condition in BEHIND.items():
        only = sa.text(condition)
        name = f"ix_{table}_mlflow_behind"
        op.create_index(name, table, ["id"], sqlite_where=only, postgresql_where=only)


def _take_over() -> None:
    """What was projected so far."""
    cursor = "SELECT {} FROM tracking_cursors WHERE run_id = runs.id"
    op.execute(
        f"UPDATE runs SET mlflow_run_id = ({cursor.format('mlflow_run_id')}), "  # noqa: S608 - fixed words
        f"mlflow_event = coalesce(({cursor.format('last_seq')}), 0) "
        "WHERE id IN (SELECT run_id FROM tracking_cursors)"
    )
    experiment = EXPERIMENT[op.get_bind().dialect.name]
    for table in BEHIND:
        op.execute(
            f"UPDATE {table} SET mlflow_experiment_id = {experiment} "  # noqa: S608 - fixed words
            "WHERE mlflow_url LIKE '%/#/experiments/%/runs/%'"
        )


def downgrade() -> None:
    for table in BEHIND:
        op.drop_index(f"ix_{table}_mlflow_behind", table)
    op.drop_index("ix_runs_mlflow_run_id", "runs")
    for name in ("mlflow_run_id", "mlflow_event"):
        op.drop_column("runs", name)
    for table in BEHIND:
        for name in ("mlflow_experiment_id", "mlflow_error"):
            op.drop_column(table, name)
