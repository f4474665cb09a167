"""Project runs to MLflow from their events, repeatable from any point."""

import io
import time
from collections.abc import Callable

from mlflow.entities import Metric, RunTag
from PIL import Image
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.study_tables import StudyRow
from service.db.tables import EventRow, RunRow
from service.direct import reach_mlflow
from service.domain.registry import EVERYBODY, refresh, show_to
from service.domain.run_queries import events_after, run_detail
from service.domain.visibility import hidden_runs
from service.schemas.runs import TERMINAL, RunDetail, RunEvent
from service.settings import Settings
from service.tracking.deleted import LostRuns
from service.tracking.items import Items
from service.tracking.run_metrics import metrics, params
from service.tracking.studies import StudyForwarder, parent_tags
from service.tracking.target import Target, plain
from workers.contract import StageDone

TAG = "graftlab.run_id"
WITHOUT_BACKBONE = "registrations"
"""Experiment of runs that concern no backbone of the lab yet; others are in that of their backbone."""
ENDED = {"SUCCEEDED": "FINISHED", "STOPPED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
FILES = frozenset(("samples.png", "report.json"))
"""Artifacts of stages that MLflow shows."""
PAGE = 500
LONGEST_WAIT = 600.0
"""Longest time between two attempts to read a file that cannot be read."""


class Forwarder:
    """Projects every run from its cursor. Metrics repeat with equal step and time, so repetition is
    harmless.
    """

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self.settings, self.database, self.storage = settings, database, storage
        self.target = Target(settings.mlflow_url)
        self.runs = Items(database, self.target, RunRow)
        self.studies = StudyForwarder(database, self.target, Items(database, self.target, StudyRow))
        self._lost = LostRuns(database, self.target, [self.runs, self.studies.items])
        self._waits: dict[str, tuple[float, float]] = {}
        """Run -> time until which it waits for an unreadable file, and the current length of the wait."""

    def round(self) -> bool:
        """Run one round of projection; return whether more can be done at once. Raises Away."""
        # Read each time: the server may have made its secret since.
        reach_mlflow(self.settings.mlflow_url, self.settings.mlflow_token())
        with self.database.reading() as session:
            refresh(session)
        show_to(EVERYBODY)  # MLflow shows everything to all users
        # Studies first: a run is nested under its parent when it is created.
        self.studies.round()
        for run_id in self.runs.behind():
            if self._waits.get(run_id, (0.0, 0.0))[0] <= time.monotonic():
                self.runs.project(run_id, self._forward)
        lost = self._lost.look()
        return lost or any(run_id not in self._waits for run_id in self.runs.behind())

    def _forward(self, run_id: str) -> None:
        """Project one page of a run's events."""
        with self.database.reading() as session:
            query = select(RunRow.mlflow_run_id, RunRow.mlflow_event, RunRow.last_event)
            tracked, cursor, last = session.execute(query.where(RunRow.id == run_id)).one()
            detail = run_detail(session, run_id)
        if run_id in hidden_runs():
            return self._remember(run_id, last)
        if detail is None:
            raise ValueError("the run does not exist any more")
        after = cursor if tracked else 0
        events, numbers, wrong = self._events(run_id, after)
        tracked = tracked or self._find_or_create(detail)
        done = max(numbers, default=last)
        refused, unread = self._send(tracked, events, files=not detail.withheld)
        self._status(tracked, detail, events, reopened=after > 0)
        self.runs.note(run_id, [*wrong, *refused, *unread.values()])
        self._wait(run_id, bool(unread))
        return self._remember(run_id, min([done, *(number - 1 for number in unread)]))

    def _events(self, run_id: str, after: int) -> tuple[list[RunEvent], list[int], list[str]]:
        """Return a page of events, the numbers it covers, and the errors of unreadable ones."""
        with self.database.reading() as session:
            query = select(EventRow.seq).where(EventRow.run_id == run_id, EventRow.seq > after)
            numbers = list(session.scalars(query.order_by(EventRow.seq).limit(PAGE)))
        events: list[RunEvent] = []
        wrong: list[str] = []
        try:
            events = self._read(run_id, after, PAGE)
        except OperationalError:
            raise
        except Exception:  # noqa: BLE001 - one event is wrong; reading them singly finds it
            for number in numbers:
                self._try(wrong, f"event {number}", lambda: events.extend(self._read(run_id, number - 1, 1)))  # noqa: B023 - called at once
        return events, numbers, wrong

    def _read(self, run_id: str, after: int, limit: int) -> list[RunEvent]:
        with self.database.reading() as session:
            return events_after(session, run_id, after, limit)

    def _try(self, wrong: list[str], what: str, step: Callable[[], object]) -> None:
        """Run a step that concerns only this item; add its error to the list."""
        try:
            step()
        except OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - any content of the item
            wrong.append(f"{what} cannot be projected to MLflow: {plain(error)}")

    def _find_or_create(self, detail: RunDetail) -> str:
        """Return the MLflow run tagged with our id; an earlier process may have died at any point of this."""
        experiment_id = self.target.experiment(detail.backbone or WITHOUT_BACKBONE)
        started = int(detail.created_at.timestamp() * 1000)
        tags = {TAG: detail.id, **parent_tags(self.database, detail.id)}
        mlflow_run = self.target.run(experiment_id, detail.name, started, TAG, tags)
        tracked = str(mlflow_run.info.run_id)
        missing = [param for param in params(detail) if param.key not in mlflow_run.data.params]
        wrong = self.target.log(tracked, params=missing)
        name, text = f"{detail.kind}.json", detail.work.model_dump_json(indent=2).encode()
        wrong += self._upload(tracked, name, lambda: self._file(tracked, name, text))
        self.runs.note(detail.id, wrong)
        self._update(detail.id, mlflow_experiment_id=experiment_id, mlflow_run_id=tracked)
        return tracked

    def _upload(self, tracked: str, what: str, step: Callable[[], object]) -> list[str]:
        """Upload a file; return what prevented it. Raises Away or Lost."""
        wrong: list[str] = []
        self._try(wrong, what, step)
        if wrong:
            self.target.check_run(tracked)
        return wrong

    def _send(self, tracked: str, events: list[RunEvent], files: bool) -> tuple[list[str], dict[int, str]]:
        """Send events, with the files of their stages if `files`.

        Return what MLflow refused, and the events whose files cannot be read now.
        """
        wrong: list[str] = []
        values: list[Metric] = []
        unread: dict[int, str] = {}
        for event in events:
            self._try(wrong, f"event {event.id}", lambda: values.extend(metrics(event)))  # noqa: B023 - called at once
        wrong += self.target.log(tracked, metrics=values)
        for event in events if files else ():
            body = event.event.body if event.event else None
            artifacts = body.report.artifacts if isinstance(body, StageDone) else {}
            for name in sorted(FILES & artifacts.keys()):
                try:
                    wrong += self._copy(tracked, name, artifacts[name])
                except OSError as error:
                    unread[event.id] = (
                        f"{artifacts[name]} cannot be read ({plain(error)}); will be tried again"
                    )
        return wrong, unread

    def _copy(self, tracked: str, name: str, path: str) -> list[str]:
        """Upload a file to MLflow; return what prevented it. Raises OSError if it cannot be read now."""
        try:
            content = self.storage.read_bytes(path)
        except FileNotFoundError:
            return [f"{path} does not exist any more; it is left out of MLflow"]
        return self._upload(tracked, path, lambda: self._file(tracked, name, content))

    def _file(self, tracked: str, name: str, content: bytes) -> None:
        if name.endswith(".png"):
            self.target.client.log_image(tracked, Image.open(io.BytesIO(content)), artifact_file=name)
        else:
            self.target.client.log_text(tracked, content.decode(), name)

    def _status(self, tracked: str, detail: RunDetail, events: list[RunEvent], reopened: bool) -> None:
        states = [event.state for event in events if event.state]
        if states and states[-1] in TERMINAL:
            self._close(tracked, detail, states[-1])
        elif states and reopened:
            self.target.client.update_run(tracked, status="RUNNING")

    def _close(self, tracked: str, detail: RunDetail, state: str) -> None:
        at = int((detail.ended_at or detail.created_at).timestamp() * 1000)
        spend = {f"spend.{name}": value for name, value in detail.spend.model_dump().items()}
        if detail.share_of_pretraining is not None:
            spend["spend.share_of_pretraining"] = detail.share_of_pretraining
        figures = [Metric(name, float(value), at, 0) for name, value in spend.items()]
        wrong = self.target.log(tracked, metrics=figures, tags=[RunTag("graftlab.state", state)])
        self.runs.note(detail.id, wrong)
        self.target.client.set_terminated(tracked, ENDED[state], at)

    def _wait(self, run_id: str, waits: bool) -> None:
        """Delay the next projection of a run with an unreadable file, longer each time; other runs do not
        wait.
        """
        if not waits:
            self._waits.pop(run_id, None)
            return
        wait = min(LONGEST_WAIT, 2 * self._waits.get(run_id, (0.0, 0.5))[1])
        self._waits[run_id] = (time.monotonic() + wait, wait)

    def _remember(self, run_id: str, number: int) -> None:
        self._update(run_id, mlflow_event=number)

    def _update(self, run_id: str, **values: object) -> None:
        with self.database.writing() as session:
            session.execute(update(RunRow).where(RunRow.id == run_id).values(values))
