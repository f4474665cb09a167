"""The leaderboard shows what a design cost to make and who made it first, whoever asked for it last"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

PIECE = 500
"""Runs whose reports are read at a time."""
FIRST = ("first_run_id", "first_owner", "first_at")
MADE = ("made_device_seconds", "made_flops", "made_training_images")


def upgrade() -> None:
    for name, kind in (
        ("first_run_id", sa.String(32)),
        ("first_owner", sa.String(64)),
        ("first_at", sa.DateTime(timezone=True)),
        ("made_device_seconds", sa.Double()),
        ("made_flops", sa.Double()),
        ("made_training_images", sa.BigInteger()),
    ):
        op.add_column("standings", sa.Column(name, kind))
    _name_the_first()
    _count_all()


def _name_the_first() -> None:
    op.execute(
        "UPDATE standings SET first_run_id = "
        "(SELECT min(other.run_id) FROM standings other WHERE other.digest = standings.digest)"
    )
    op.execute(
        "UPDATE standings SET "
        "first_owner = (SELECT owner FROM runs WHERE runs.id = standings.first_run_id), "
        "first_at = (SELECT ended_at FROM runs WHERE runs.id = standings.first_run_id)"
    )


def _count_all() -> None:
    """A run that found nothing made has made all itself and cost what it used; of others it stays open."""
    bind = op.get_bind()
    ids = bind.execute(sa.text("SELECT DISTINCT first_run_id FROM standings ORDER BY 1")).scalars().all()
    for start in range(0, len(ids), PIECE):
        piece = ids[start : start + PIECE]
        found = {row.run_id for row in _rows(bind, REPORTS, piece) if _found_something(row.report)}
        used = [row for row in _rows(bind, USED, piece) if row.run_id not in found]
        for run_id, *figures in used:
            values = dict(zip(MADE, figures, strict=True))
            bind.execute(sa.text(COUNTED), {"run_id": run_id, **values})


REPORTS = "SELECT run_id, report FROM stage_reports WHERE run_id IN :ids"
USED = (
    "SELECT run_id, sum(device_seconds), sum(flops), sum(training_images) FROM attempts "
    "WHERE run_id IN :ids GROUP BY run_id"
)
COUNTED = (
    "UPDATE standings SET made_device_seconds = :made_device_seconds, made_flops = :made_flops, "
    "made_training_images = :made_training_images "
    "WHERE digest = (SELECT digest FROM standings WHERE run_id = :run_id)"
)


def _rows(bind: sa.Connection, query: str, ids: list[str]) -> list[Any]:
    asked = sa.text(query).bindparams(sa.bindparam("ids", expanding=True))
    return list(bind.execute(asked, {"ids": ids}))


def _found_something(document: Any) -> bool:
    """SQLite gives JSON as text, PostgreSQL as what it says."""
    report = json.loads(document) if isinstance(document, str) else document
    return bool(report.get("made_by")) or report.get("stop_cause") == "reused"


def downgrade() -> None:
    for name in (*FIRST, *MADE):
        op.drop_column("standings", name)
