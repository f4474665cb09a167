"""Worker groups that carry out several attempts"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("job", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("turn", sa.Integer(), server_default="1", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.drop_column("turn")
        table.drop_column("job")
