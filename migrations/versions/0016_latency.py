"""A study's designs have a latency, predicted from a measured table"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("study_trials", sa.Column("latency", sa.Double()))


def downgrade() -> None:
    op.drop_column("study_trials", "latency")
