"""The label of a submission is its tag; more columns take the field's terms. The lab has to be stopped."""

import time

import sqlalchemy as sa
from alembic import op
from alembic.util.exc import CommandError

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

COLUMNS = (
    ("experiments", "study", "tag"),
    ("runs", "study", "tag"),
    ("runs", "micro_batches", "accumulation_steps"),
    ("attempts", "micro_batches", "accumulation_steps"),
    ("attempts", "turn", "ticket_index"),
    ("study_trials", "source", "proposed_by"),
)
"""Table, old name, new name."""
BASELINE = "baseline "
"""How the old `source` of baselines begins; their names follow, with a comma and a space between them."""


def upgrade() -> None:
    _refuse_a_live_lab()
    for table, old, new in COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    op.execute("UPDATE accounts SET scope = 'tag' WHERE scope = 'study'")
    op.add_column("study_trials", sa.Column("baselines", sa.JSON(), server_default="[]", nullable=False))
    _name_baselines()
    with op.batch_alter_table("study_trials") as trials:
        trials.alter_column("proposed_by", existing_type=sa.String(80), type_=sa.String(32))


def _refuse_a_live_lab() -> None:
    """Processes of an older version would go on with columns that are gone."""
    until = op.get_bind().scalar(sa.text("SELECT max(until) FROM leases"))
    left = (until or 0.0) - time.time()
    if left > 0:
        raise CommandError(
            "this database belongs to a lab that runs with an older version; stop it (`graft down`) and "
            f"start again, or wait {left:.0f} s if it was killed"
        )


def _trials() -> sa.TableClause:
    return sa.table("study_trials", sa.column("proposed_by"), sa.column("baselines"))


def _name_baselines() -> None:
    """`baseline deep, uniform` becomes `baseline` and `["deep", "uniform"]`."""
    trials = _trials()
    names = sa.func.replace(sa.func.substr(trials.c.proposed_by, len(BASELINE) + 1), ", ", '", "')
    listed = sa.literal('["').concat(names).concat('"]')
    if op.get_bind().dialect.name == "postgresql":
        listed = sa.cast(listed, sa.JSON())
    named = trials.c.proposed_by.startswith(BASELINE)
    op.execute(sa.update(trials).where(named).values(proposed_by=BASELINE.strip(), baselines=listed))


def downgrade() -> None:
    with op.batch_alter_table("study_trials") as table:
        table.alter_column("proposed_by", existing_type=sa.String(32), type_=sa.String(80))
    trials = _trials()
    text = sa.cast(trials.c.baselines, sa.Text())
    names = sa.func.replace(sa.func.substr(text, 3, sa.func.length(text) - 4), '", "', ", ")
    source = sa.literal(BASELINE).concat(names)
    op.execute(sa.update(trials).where(text != "[]").values(proposed_by=source))
    with op.batch_alter_table("study_trials") as table:
        table.drop_column("baselines")
    op.execute("UPDATE accounts SET scope = 'study' WHERE scope = 'tag'")
    for table, old, new in reversed(COLUMNS):
        op.alter_column(table, new, new_column_name=old)
