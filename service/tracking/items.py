"""Projection of single runs and studies: an error of one is logged once and does not stop others."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute

from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.db.tables import RunRow
from service.tracking.target import Away, Lost, Target, plain

log = logging.getLogger("graftlab.tracking")
Table = type[RunRow] | type[StudyRow]
LONGEST_NOTE = 500
REMEMBERED = 10_000


class Items:
    """Projects items of a table independently of each other."""

    def __init__(self, database: Database, target: Target, table: Table) -> None:
        self._database, self._target, self.table = database, target, table
        self._named: set[tuple[str, str]] = set()
        self._kind = "run" if table is RunRow else "study"

    @property
    def _counted(self) -> tuple[InstrumentedAttribute[int], InstrumentedAttribute[int], int]:
        """Return the columns of changes and of projected changes, and the latter's initial value."""
        if self.table is RunRow:
            return RunRow.last_event, RunRow.mlflow_event, 0
        return StudyRow.version, StudyRow.mlflow_version, -1

    def behind(self) -> list[str]:
        """Return ids of which MLflow lacks changes. A partial index holds only these."""
        happened, projected, _ = self._counted
        query = select(self.table.id).where(happened > projected).order_by(self.table.id)
        with self._database.reading() as session:
            return list(session.scalars(query))

    def project(self, item: str, forward: Callable[[str], None]) -> None:
        """Project one item. Raises Away or OperationalError, which say nothing about this item.

        An item that MLflow has lost is projected from its beginning. One that fails for its own reason is
        skipped.
        """
        try:
            try:
                forward(item)
            except Lost:
                self.forget(item)
                forward(item)
        except (Away, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - any content of the item
            self._target.check()
            self.note(item, [f"it cannot be projected to MLflow: {plain(error)}"])
            self._skip(item)

    def note(self, item: str, texts: Sequence[str]) -> None:
        """Log and store on the item what could not be projected, each text once."""
        new = [text for text in dict.fromkeys(texts) if (item, text) not in self._named]
        if not new:
            return
        if len(self._named) > REMEMBERED:
            self._named.clear()
        self._named.update((item, text) for text in new)
        with self._database.writing() as session:
            noted = session.scalar(select(self.table.mlflow_error).where(self.table.id == item)) or ""
            new = [text for text in new if text not in noted]
            whole = "; ".join(filter(None, [noted, *new]))[:LONGEST_NOTE]
            session.execute(update(self.table).where(self.table.id == item).values(mlflow_error=whole))
        for text in new:
            log.warning("%s %s: %s", self._kind, item, text)

    def forget(self, item: str) -> None:
        """Reset an item, so that it is projected from its beginning."""
        _, projected, start = self._counted
        nothing = {"mlflow_run_id": None, "mlflow_experiment_id": None, "mlflow_error": None}
        self._set(item, **nothing, **{projected.key: start})

    def _skip(self, item: str) -> None:
        happened, projected, _ = self._counted
        self._set(item, **{projected.key: happened})

    def _set(self, item: str, **values: object) -> None:
        """Update the row by id: one that cannot be read can still be written."""
        with self._database.writing() as session:
            session.execute(update(self.table).where(self.table.id == item).values(values))
