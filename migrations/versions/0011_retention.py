"""How far the checkpoints of ended runs have been let go"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("swept", sa.String(length=8), server_default="", nullable=False))
        table.create_index("ix_runs_swept", ["swept", "ended_at"])


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_index("ix_runs_swept")
        table.drop_column("swept")
