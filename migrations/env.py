"""Run by Alembic with a connection that `service.store.migrate` hands over."""

from alembic import context

from service.store import study_models  # noqa: F401 - its tables belong to Base
from service.store.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True
)
with context.begin_transaction():
    context.run_migrations()
