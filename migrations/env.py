"""Run by Alembic with a connection that `service.db.migrate` hands over."""

from typing import Any

from alembic import context

from grafting_core.storage.failpoints import failpoint
from service.db import (
    check_tables,  # noqa: F401 - their tables belong to Base
    registry_tables,  # noqa: F401 - their tables belong to Base
    study_tables,  # noqa: F401 - their tables belong to Base
    webhook_tables,  # noqa: F401 - their tables belong to Base
)
from service.db.tables import Base

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
