"""Run by Alembic with a connection that `service.store.migrate` hands over."""

from typing import Any

from alembic import context

from grafting_core.failpoints import failpoint
from service.store import check_models, study_models, webhook_models  # noqa: F401 - their tables belong to Base
from service.store.models import Base

connection = context.config.attributes["connection"]


def _passed(**step: Any) -> None:
    failpoint("migrate/step")


context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    on_version_apply=_passed,
)
with context.begin_transaction():
    context.run_migrations()
