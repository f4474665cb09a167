"""Tables, columns and events take the field's terms. The lab has to be stopped."""

import time

import sqlalchemy as sa
from alembic import op
from alembic.util.exc import CommandError

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

TABLES = {"standings": "leaderboard_entries", "needs": "run_dependencies", "scheduler_lease": "leases"}
INDEXES = {
    "rank": ("is_current", "protocol_digest", "value", "run_id"),
    "teacher": ("is_teacher", "is_current", "protocol_digest", "value"),
    "owner": ("owner", "protocol_digest", "value"),
    "digest": ("digest",),
}
"""Of the leaderboard's entries: last part of the name -> columns."""


def upgrade() -> None:
    _refuse_a_live_lab()
    _rename(TABLES)
    _index("standings", "leaderboard_entries", "leaderboard_entries")
    op.drop_index("ix_needs_key", "run_dependencies")
    op.create_index("ix_run_dependencies_key", "run_dependencies", ["key"])
    op.drop_index("ix_runs_swept", "runs")
    op.alter_column("runs", "swept", new_column_name="checkpoints_pruned")
    op.create_index("ix_runs_checkpoints_pruned", "runs", ["checkpoints_pruned", "ended_at"])
    _rename_events("wish", "request")


def _refuse_a_live_lab() -> None:
    """Processes of an older version would go on with tables that are gone."""
    until = op.get_bind().scalar(sa.text("SELECT max(until) FROM scheduler_lease"))
    left = (until or 0.0) - time.time()
    if left > 0:
        raise CommandError(
            "this database belongs to a lab that runs with an older version; stop it (`graft down`) and "
            f"start again, or wait {left:.0f} s if it was killed"
        )


def _rename(tables: dict[str, str]) -> None:
    for old, new in tables.items():
        op.rename_table(old, new)


def _index(old: str, new: str, table: str) -> None:
    for name, columns in INDEXES.items():
        op.drop_index(f"ix_{old}_{name}", table)
        op.create_index(f"ix_{new}_{name}", table, list(columns))


def _rename_events(old: str, new: str) -> None:
    """A kind of event, and the key of its body that has the same name."""
    if op.get_bind().dialect.name == "sqlite":
        body = f"json_set(json_remove(body, '$.{old}'), '$.{new}', json_extract(body, '$.{old}'))"
    else:
        body = f"jsonb_set(body::jsonb - '{old}', '{{{new}}}', body::jsonb -> '{old}')::json"
    op.execute(f"UPDATE events SET kind = '{new}', body = {body} WHERE kind = '{old}'")  # noqa: S608 - constants


def downgrade() -> None:
    _rename_events("request", "wish")
    op.drop_index("ix_runs_checkpoints_pruned", "runs")
    op.alter_column("runs", "checkpoints_pruned", new_column_name="swept")
    op.create_index("ix_runs_swept", "runs", ["swept", "ended_at"])
    op.drop_index("ix_run_dependencies_key", "run_dependencies")
    op.create_index("ix_needs_key", "run_dependencies", ["key"])
    _index("leaderboard_entries", "standings", "leaderboard_entries")
    _rename({new: old for old, new in TABLES.items()})
