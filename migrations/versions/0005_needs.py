"""What runs need of what is published under keys"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "needs",
        sa.Column("run_id", sa.String(length=32), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("key", sa.String(length=64), primary_key=True),
        sa.Column("folder", sa.String(length=16), nullable=False),
        sa.Column("device_seconds", sa.Float(), nullable=False),
        sa.Column("flops", sa.Float(), nullable=False),
        sa.Column("training_images", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_needs_key", "needs", ["key"])


def downgrade() -> None:
    op.drop_table("needs")
