"""Find runs that were deleted in MLflow, or that a new MLflow database lacks, and project them again."""

import time
from collections.abc import Sequence

from sqlalchemy import select

from service.db.engine import Database
from service.tracking.items import Items
from service.tracking.target import Target

AT_ONCE = 200
LOOK_SECONDS = 10.0
"""Time between two checks of AT_ONCE entries; after a loss the next ones are checked at once."""


class LostRuns:
    """Checks everything that was projected, a few entries at a time, in an endless cycle."""

    def __init__(self, database: Database, target: Target, items: Sequence[Items]) -> None:
        self._database, self._target, self._items = database, target, items
        self._places = [""] * len(items)
        self._due = 0.0

    def look(self) -> bool:
        """Check the next entries if it is time; return whether some were lost."""
        if time.monotonic() < self._due:
            return False
        lost = [self._look(number) for number in range(len(self._items))]
        self._due = 0.0 if any(lost) else time.monotonic() + LOOK_SECONDS
        return any(lost)

    def _look(self, number: int) -> bool:
        items, place = self._items[number], self._places[number]
        tracked = items.table.mlflow_run_id
        query = select(items.table.id, tracked).where(tracked.is_not(None), items.table.id > place)
        with self._database.reading() as session:
            page = [
                (item, run_id or "")
                for item, run_id in session.execute(query.order_by(items.table.id).limit(AT_ONCE))
            ]
        self._places[number] = page[-1][0] if len(page) == AT_ONCE else ""
        existing = self._target.there([run_id for _, run_id in page])
        lost = [item for item, run_id in page if run_id not in existing]
        for item in lost:
            items.forget(item)
        return bool(lost)
