"""Checks of the whole lab as jobs: a thread does the work, the database holds its progress.

The thread ends with its process. A check without a sign of life for ALIVE_SECONDS counts as interrupted.
"""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from grafting_core.storage.storage import Storage
from service.db.check_tables import CheckRow
from service.db.engine import Database
from service.db.tables import now
from service.domain.artifact_contents import damaged_files, folders
from service.domain.invariants import INVARIANTS, Violation, missing_artifacts
from service.domain.run_lifecycle import new_run_id
from service.schemas.checks import CheckPage, CheckView
from service.schemas.runs import ViolationView

log = logging.getLogger("graftlab.api")
ALIVE_SECONDS = 60.0
TOLD_SECONDS = 1.0
"""Least time between two writes of the progress."""
SHOWN = 1_000
"""Limit of stored violations; repair these before looking for more."""
KEPT = 50
"""Number of ended checks that are kept."""


def begin(session: Session, clock: float, *, quick: bool) -> tuple[CheckRow, bool]:
    """Return a new check, or the running one of this kind, and whether it is new."""
    mark_interrupted(session, clock)
    under_way = select(CheckRow).where(CheckRow.state == "RUNNING", CheckRow.quick.is_(quick))
    running = session.scalars(under_way.order_by(CheckRow.id)).first()
    if running is not None:
        return running, False
    row = CheckRow(id=new_run_id(), quick=quick, state="RUNNING", violations=[])
    row.alive_until, row.step = clock + ALIVE_SECONDS, "starting"
    session.add(row)
    session.flush()
    _forget_old(session)
    return row, True


def _forget_old(session: Session) -> None:
    old = select(CheckRow).where(CheckRow.state != "RUNNING").order_by(CheckRow.id.desc()).offset(KEPT)
    for row in session.scalars(old.limit(KEPT)):
        session.delete(row)


def mark_interrupted(session: Session, clock: float) -> None:
    """Mark running checks whose process has died."""
    died = (CheckRow.state == "RUNNING") & (CheckRow.alive_until < clock)
    message = "the process that ran the check has ended; start another check"
    values = {"state": "INTERRUPTED", "message": message, "ended_at": now()}
    session.execute(update(CheckRow).where(died).values(**values))


def check_page(session: Session, clock: float, limit: int) -> CheckPage:
    """List checks, newest first, without their violations."""
    rows = session.scalars(select(CheckRow).order_by(CheckRow.id.desc()).limit(limit))
    return CheckPage(checks=[check_view(row, clock).model_copy(update={"violations": []}) for row in rows])


def check_view(row: CheckRow, clock: float) -> CheckView:
    """Return the view of a check; one whose process died is shown as interrupted even before it is marked."""
    died = row.state == "RUNNING" and row.alive_until < clock
    return CheckView(
        id=row.id,
        quick=row.quick,
        state="INTERRUPTED" if died else row.state,
        step=row.step,
        done=row.done,
        total=row.total,
        sound=row.found == 0 if row.state == "DONE" else None,
        found=row.found,
        violations=[ViolationView(**wrong) for wrong in row.violations],
        message=row.message,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


@dataclass
class Checking:
    """One check while it runs."""

    database: Database
    storage: Storage
    check_id: str
    quick: bool
    _found: list[Violation] = field(default_factory=list)
    _count: int = 0
    _told: float = 0.0

    def start(self) -> threading.Thread:
        """Run the check in a thread that ends with its process."""
        thread = threading.Thread(target=self.run, name=f"check-{self.check_id}", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        """Run the whole check; an exception is recorded on the check."""
        ended = threading.Event()
        alive = threading.Thread(target=self._say_alive, args=(ended,), daemon=True)
        alive.start()
        try:
            self._invariants()
            self._files()
            self._end("DONE", None)
        except Exception as error:
            log.exception("check %s failed", self.check_id)
            self._end("FAILED", f"{type(error).__name__}: {error}"[:500])
        finally:
            ended.set()
            alive.join()

    def _say_alive(self, ended: threading.Event) -> None:
        """Renew the sign of life regularly, however long one query or one file takes."""
        while not ended.wait(ALIVE_SECONDS / 4):
            with suppress(SQLAlchemyError):
                self._note()

    def _invariants(self) -> None:
        for number, (name, check) in enumerate(INVARIANTS.items()):
            self._tell(f"database: {name}", number, len(INVARIANTS), at_once=True)
            # One transaction per invariant, so that none stays open for the whole check.
            with self.database.reading() as session:
                self.database.take_time(session)
                for run_id, text in check(session):
                    self._add(Violation(name, run_id, text))
                    self._tell(f"database: {name}", number, len(INVARIANTS))

    def _files(self) -> None:
        self._tell("files that reports name", 0, 0, at_once=True)
        with self.database.reading() as session:
            self.database.take_time(session)
            for run_id, text in missing_artifacts(session, self.storage):
                self._add(Violation("artifacts-exist", run_id, text))
        if self.quick:
            return
        every = folders(self.storage)
        for number, folder in enumerate(every):
            self._tell("contents of files", number, len(every))
            for path, wrong in damaged_files(self.storage, folder):
                self._add(Violation("files-intact", "", f"{path}: {wrong}"))
        self._tell("contents of files", len(every), len(every), at_once=True)

    def _add(self, wrong: Violation) -> None:
        self._count += 1
        if len(self._found) < SHOWN:
            self._found.append(wrong)

    def _tell(self, step: str, done: int, total: int, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._told < TOLD_SECONDS:
            return
        self._told = time.monotonic()
        try:
            self._note(step=step, done=done, total=total)
        except SQLAlchemyError as error:
            log.warning("check %s cannot record its progress: %s", self.check_id, type(error).__name__)

    def _end(self, state: str, message: str | None) -> None:
        violations = [asdict(wrong) for wrong in self._found]
        self._note(state=state, message=message, violations=violations, ended_at=now())

    def _note(self, **values: object) -> None:
        with self.database.writing() as session:
            alive = self.database.clock(session) + ALIVE_SECONDS
            mine = (CheckRow.id == self.check_id) & (CheckRow.state == "RUNNING")
            renewal = update(CheckRow).where(mine).values(alive_until=alive, found=self._count, **values)
            session.execute(renewal)
