"""Priorities, wishes, leases and accounts"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PRETRAINING_FLOPS = {"dit-xl-2-256": 1.2751872e21, "testbed/dit-fashion": 292_899_815_424_000.0}
"""Backbone -> compute of its pretraining."""
RUN_COLUMNS = (
    sa.Column("owner", sa.String(length=64), server_default="lab", nullable=False),
    sa.Column("study", sa.String(length=64), nullable=True),
    sa.Column("precedence", sa.Integer(), server_default="0", nullable=False),
    sa.Column("workers", sa.Integer(), server_default="1", nullable=False),
    sa.Column("cpus", sa.Integer(), server_default="1", nullable=False),
    sa.Column("gpus", sa.Integer(), server_default="0", nullable=False),
    sa.Column("kill_requested_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("pause_requested_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
    sa.Column("micro_batches", sa.Integer(), server_default="1", nullable=False),
    sa.Column("extra_device_seconds", sa.Double(), server_default="0", nullable=False),
    sa.Column("planned", sa.JSON(), nullable=True),
    sa.Column("reserved_device_seconds", sa.Double(), server_default="0", nullable=False),
    sa.Column("reserved_flops", sa.Double(), server_default="0", nullable=False),
    sa.Column("reserved_images", sa.BigInteger(), server_default="0", nullable=False),
)
ATTEMPT_COLUMNS = (
    sa.Column("lease_until", sa.Double(), nullable=True),
    sa.Column("reason", sa.String(length=32), nullable=True),
    sa.Column("micro_batches", sa.Integer(), server_default="1", nullable=False),
)


def upgrade() -> None:
    with op.batch_alter_table("experiments") as table:
        table.add_column(sa.Column("study", sa.String(length=64), nullable=True))
    with op.batch_alter_table("runs") as table:
        for column in RUN_COLUMNS:
            table.add_column(column.copy())
        table.create_index("ix_runs_queue", ["state", "owner", "precedence", "id"])
    with op.batch_alter_table("attempts") as table:
        for column in ATTEMPT_COLUMNS:
            table.add_column(column.copy())
        table.alter_column("training_images", existing_type=sa.Integer(), type_=sa.BigInteger())
    _create_accounts()
    _fill_resources()
    _fill_accounts()


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        *(
            sa.Column(f"max_{what}", sa.Integer(), nullable=True)
            for what in ("queued", "running", "cpus", "gpus")
        ),
        sa.Column("device_seconds", sa.Double(), nullable=False),
        sa.Column("flops", sa.Double(), nullable=False),
        sa.Column("training_images", sa.BigInteger(), nullable=False),
        sa.Column("share_of_pretraining", sa.Double(), nullable=False),
        sa.Column("recent_seconds", sa.Double(), nullable=False),
        sa.Column("recent_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "name"),
    )


def _fill_resources() -> None:
    """What runs ask for, and whose they are, was in their experiments alone."""
    names = ("experiment_id", "workers", "cpus", "gpus", "owner")
    runs = sa.table("runs", *(sa.column(name) for name in names))
    experiments = sa.table("experiments", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("owner"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(experiments)).all():
        asked = row.spec["resources"]
        cpus, gpus = (asked["workers"] * asked[f"{kind}_per_worker"] for kind in ("cpus", "gpus"))
        if (cpus, gpus, row.owner) != (1, 0, "lab"):
            values = {"workers": asked["workers"], "cpus": cpus, "gpus": gpus, "owner": row.owner}
            connection.execute(sa.update(runs).where(runs.c.experiment_id == row.id).values(**values))


def _fill_accounts() -> None:
    """As if they had been charged from the beginning."""
    runs = sa.table("runs", *(sa.column(name) for name in ("id", "experiment_id", "owner")))
    experiments = sa.table("experiments", sa.column("id"), sa.column("backbone"))
    used = ("device_seconds", "flops", "training_images")
    attempts = sa.table("attempts", *(sa.column(name) for name in ("run_id", "ended_at", *used)))
    query = (
        sa.select(runs.c.owner, experiments.c.backbone, *(sa.func.sum(attempts.c[name]) for name in used))
        .join_from(attempts, runs, runs.c.id == attempts.c.run_id)
        .join(experiments, experiments.c.id == runs.c.experiment_id)
        .where(attempts.c.ended_at.is_not(None))
        .group_by(runs.c.owner, experiments.c.backbone)
    )
    totals: dict[tuple[str, str], list[float]] = {("lab", "lab"): [0.0] * 4}
    for owner, backbone, *sums in op.get_bind().execute(query):
        pretraining = PRETRAINING_FLOPS.get(backbone)
        share = float(sums[1]) / pretraining if pretraining else 0.0
        for key in (("lab", "lab"), ("user", owner)):
            before = totals.get(key, [0.0] * 4)
            totals[key] = [old + float(new) for old, new in zip(before, [*sums, share], strict=True)]
    _insert_accounts(totals)


def _insert_accounts(totals: dict[tuple[str, str], list[float]]) -> None:
    names = ("scope", "name", "device_seconds", "flops", "training_images", "share_of_pretraining")
    columns = [sa.column(name) for name in (*names, "recent_seconds", "recent_at")]
    table = sa.table("accounts", *columns, sa.column("limits", sa.JSON()))
    rows = [
        {**dict(zip(names, (*key, *total), strict=True)), "recent_seconds": 0, "recent_at": 0, "limits": {}}
        for key, total in totals.items()
    ]
    op.bulk_insert(table, rows)


def downgrade() -> None:
    op.drop_table("accounts")
    with op.batch_alter_table("attempts") as table:
        table.alter_column("training_images", existing_type=sa.BigInteger(), type_=sa.Integer())
        for column in reversed(ATTEMPT_COLUMNS):
            table.drop_column(column.name)
    with op.batch_alter_table("runs") as table:
        table.drop_index("ix_runs_queue")
        for column in reversed(RUN_COLUMNS):
            table.drop_column(column.name)
    with op.batch_alter_table("experiments") as table:
        table.drop_column("study")
