"""Kinds of work beside grafts"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("experiments") as table:
        table.add_column(sa.Column("kind", sa.String(length=16), server_default="graft", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("experiments") as table:
        table.drop_column("kind")
