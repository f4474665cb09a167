"""What lists are read by is indexed, and the checks of a whole lab are jobs with progress"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

RUN_INDEXES = {
    "ix_runs_experiment": ["experiment_id"],
    "ix_runs_name": ["name", "id"],
    "ix_runs_state": ["state", "id"],
    "ix_runs_owner": ["owner", "id"],
    "ix_runs_owner_state": ["owner", "state", "id"],
}


def upgrade() -> None:
    op.add_column("runs", sa.Column("name", sa.String(200), nullable=False, server_default=""))
    named = "SELECT name FROM experiments WHERE experiments.id = runs.experiment_id"
    op.execute(f"UPDATE runs SET name = ({named})")  # noqa: S608 - all our own
    for name, columns in RUN_INDEXES.items():
        op.create_index(name, "runs", columns)
    is_open = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_attempts_open", "attempts", ["run_id"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_index("ix_webhook_deliveries_state", "webhook_deliveries", ["webhook_id", "state"])
    op.create_index("ix_webhook_deliveries_ended", "webhook_deliveries", ["ended_at"])
    op.create_table(
        "checks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("quick", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.String(64), nullable=False, server_default=""),
        sa.Column("done", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("total", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("violations", sa.JSON, nullable=False),
        sa.Column("found", sa.Integer, nullable=False, server_default="0"),
        sa.Column("message", sa.String(500)),
        sa.Column("alive_until", sa.Float, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
    )


def downgrade() -> None:
    op.drop_table("checks")
    op.drop_index("ix_webhook_deliveries_ended", "webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_state", "webhook_deliveries")
    op.drop_index("ix_attempts_open", "attempts")
    for name in RUN_INDEXES:
        op.drop_index(name, "runs")
    op.drop_column("runs", "name")
