"""What the leaderboard ranks by, beside the runs"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "standings",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("protocol_digest", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("backbone", sa.String(length=200), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("is_teacher", sa.Boolean(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("metric", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("num_params", sa.BigInteger(), nullable=False),
        sa.Column("flops_per_image", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"]),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("ix_standings_digest", "standings", ["digest"])
    op.create_index("ix_standings_rank", "standings", ["is_current", "protocol_digest", "value", "run_id"])
    op.create_index(
        "ix_standings_teacher", "standings", ["is_teacher", "is_current", "protocol_digest", "value"]
    )
    op.create_index("ix_standings_owner", "standings", ["owner", "protocol_digest", "value"])
    _stand_all()


def _stand_all() -> None:
    """Places of the runs that have succeeded so far, the latest of an experiment being the current one."""
    bind = op.get_bind()
    done = bind.execute(sa.text(SUCCEEDED)).mappings().all()
    latest = {row["digest"]: row["run_id"] for row in done}
    places = [place for row in done if (place := _place(dict(row), latest))]
    if places:
        table = sa.Table("standings", sa.MetaData(), autoload_with=bind)
        bind.execute(table.insert(), places)


SUCCEEDED = """
    SELECT runs.id AS run_id, experiments.digest, experiments.protocol_digest, experiments.backbone,
           experiments.owner, experiments.name, experiments.spec, stage_reports.report
    FROM runs JOIN experiments ON experiments.id = runs.experiment_id
              JOIN stage_reports ON stage_reports.run_id = runs.id AND stage_reports.stage = 'evaluate'
    WHERE runs.state = 'SUCCEEDED' AND experiments.kind = 'graft' ORDER BY runs.id
"""


def _place(row: dict[str, Any], latest: dict[str, str]) -> dict[str, Any] | None:
    spec, metrics = _plain(row.pop("spec")), _plain(row.pop("report"))["metrics"]
    metric = next((name for name in metrics if name.startswith("fid")), None)
    if metric is None or not {"num_params", "flops_per_image"} <= metrics.keys():
        return None
    return {
        **row,
        "is_teacher": not spec["design"]["edits"],
        "is_current": latest[row["digest"]] == row["run_id"],
        "metric": metric,
        "value": metrics[metric],
        "num_params": int(metrics["num_params"]),
        "flops_per_image": int(metrics["flops_per_image"]),
    }


def _plain(document: Any) -> dict[str, Any]:
    """SQLite gives JSON as text, PostgreSQL as what it says."""
    return json.loads(document) if isinstance(document, str) else document


def downgrade() -> None:
    op.drop_table("standings")
