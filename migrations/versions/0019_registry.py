"""Registered backbones, data sets and feature networks, the right to register, and its quota"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

UNDER_WAY = sa.text("state = 'registering'")
DONE = sa.text("state IN ('ready', 'removed')")


def upgrade() -> None:
    op.create_table(
        "registered",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("what", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("revision", sa.Integer()),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("card", sa.JSON()),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("licence", sa.String(length=100)),
        sa.Column("run_id", sa.String(length=32), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    _index("under_way", ["what", "name"], UNDER_WAY)
    _index("revision", ["what", "name", "revision"], DONE)
    op.create_index("ix_registered_owner", "registered", ["owner", "state"])
    op.create_index("ix_registered_run", "registered", ["run_id"])
    # Older processes of the lab go on: what they write has no such right.
    op.add_column("api_keys", sa.Column("registers", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("accounts", sa.Column("max_registered_bytes", sa.BigInteger()))


def _index(name: str, columns: list[str], rows: sa.TextClause) -> None:
    only = {"sqlite_where": rows, "postgresql_where": rows}
    op.create_index(f"ix_registered_{name}", "registered", columns, unique=True, **only)


def downgrade() -> None:
    op.drop_column("accounts", "max_registered_bytes")
    op.drop_column("api_keys", "registers")
    op.drop_table("registered")
