"""Runs and studies one by one: what is wrong with one is named once and holds no other up."""

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
    """Projects items of a table, each on its own account."""

    def __init__(self, database: Database, target: Target, table: Table) -> None:
        self._database, self._target, self.table = database, target, table
        self._named: set[tuple[str, str]] = set()
        self._kind = "run" if table is RunRow else "study"

    @property
    def _counted(self) -> tuple[InstrumentedAttribute[int], InstrumentedAttribute[int], int]:
        """What happened, what of it was projected, and where that begins."""
        if self.table is RunRow:
            return RunRow.last_event, RunRow.mlflow_event, 0
        return StudyRow.version, StudyRow.mlflow_version, -1

    def behind(self) -> list[str]:
        """Of which MLflow does not know everything. The index holds these alone."""
        happened, told, _ = self._counted
        query = select(self.table.id).where(happened > told).order_by(self.table.id)
        with self._database.reading() as session:
            return list(session.scalars(query))

    def project(self, item: str, forward: Callable[[str], None]) -> None:
        """Project one. Raises Away or OperationalError where that says nothing about this item.

        What MLflow has lost is begun anew. What fails for a reason of its own is passed over.
        """
        try:
            try:
                forward(item)
            except Lost:
                self.forget(item)
                forward(item)
        except (Away, OperationalError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the item holds
            self._target.check()
            self.note(item, [f"it cannot be shown in MLflow: {plain(error)}"])
            self._pass_over(item)

    def note(self, item: str, texts: Sequence[str]) -> None:
        """Name in the log and on the item what could not be projected, each thing once."""
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
        """Have it projected from its beginning."""
        _, told, start = self._counted
        nothing = {"mlflow_run_id": None, "mlflow_experiment_id": None, "mlflow_error": None}
        self._set(item, **nothing, **{told.key: start})

    def _pass_over(self, item: str) -> None:
        happened, told, _ = self._counted
        self._set(item, **{told.key: happened})

    def _set(self, item: str, **values: object) -> None:
        """By its id: a row that cannot be read can still be written."""
        with self._database.writing() as session:
            session.execute(update(self.table).where(self.table.id == item).values(values))
