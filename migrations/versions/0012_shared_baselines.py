"""Baselines that come to one design are named together"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SHORT, LONG = sa.String(32), sa.String(80)


def upgrade() -> None:
    with op.batch_alter_table("study_trials") as table:
        table.alter_column(
            "source", existing_type=sa.String(32), type_=sa.String(80), existing_nullable=False
        )


def downgrade() -> None:
    op.execute("UPDATE study_trials SET source = substr(source, 1, 32)")
    with op.batch_alter_table("study_trials") as table:
        table.alter_column(
            "source", existing_type=sa.String(80), type_=sa.String(32), existing_nullable=False
        )
