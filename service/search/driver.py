"""The step that carries every study on: compare what it has with what its phase wants, do the next thing.

fill -> screen -> promote -> learn -> screen ... Each change is one transaction on the locked study, together
with the runs and trials it brings about; whatever is slow (Optuna, storage, the integer program) happens
before it, and is thrown away if the study has moved on meanwhile. So it may be killed anywhere.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from optuna.exceptions import OptunaError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from grafting_core.failpoints import failpoint
from grafting_core.spec.study import StudySpec
from grafting_core.storage import Storage
from service.api.schemas import TERMINAL
from service.search.apart import proposals
from service.search.learning import note_predictions, numbers_of, open_book
from service.search.promoting import collect_finals, submit_finals
from service.search.publishing import publish_report
from service.search.works import available, fill_work, item_scores, screening_work
from service.settings import Settings
from service.store.engine import Database
from service.store.models import RunRow
from service.store.studies import (
    advance,
    ask_runs,
    move,
    remaining,
    run_for,
    runs_of,
    spec_of_study,
    study_spend,
    submit_for,
    touch,
    trials_of,
)
from service.store.study_models import StudyRow, TrialRow

log = logging.getLogger("graftlab.search")


class Driver:
    """Carries out one step of every running study."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self.settings, self.database, self.storage = settings, database, storage
        self._phases: Mapping[str, Callable[[StudyRow], None]] = {
            "fill": self._fill,
            "screen": self._screen,
            "promote": self._promote,
            "learn": self._learn,
        }

    def round(self) -> None:
        """One step of each; a study that cannot go on fails alone."""
        with self.database.reading() as session:
            running = list(session.scalars(select(StudyRow).where(StudyRow.state == "RUNNING")))
        for study in running:
            try:
                self._phases[study.phase](study)
            except ValueError as error:
                log.exception("study %s cannot go on", study.id)
                self._fail(study, str(error))
            except (SQLAlchemyError, OptunaError, OSError):
                log.exception("a step of study %s failed; the next one starts from what is", study.id)
            except Exception as error:
                log.exception("study %s cannot go on", study.id)
                self._fail(study, f"internal error: {type(error).__name__}: {error}")

    def _changing(self, study: StudyRow) -> "Change":
        return Change(self.database, study)

    def _fail(self, study: StudyRow, message: str) -> None:
        with self._changing(study) as (session, row):
            if row is not None:
                ask_runs(session, row.id, "cancel")
                move(session, row, "FAILED", message)

    def _fill(self, study: StudyRow) -> None:
        """One run that distils every (site, kind); its scores are the integer program's."""
        spec = spec_of_study(study)
        with self.database.reading() as session:
            run = run_for(session, study.id, "fill", "bank")
        if run is not None and run.state not in TERMINAL:
            return
        if run is None and self._submit_fill(study, spec):
            return
        if run is not None and run.state != "SUCCEEDED":
            return self._fail(study, f"the bank could not be filled: {run.message or run.state}")
        space, scores = available(spec, self.storage), item_scores(spec, self.storage)
        with self._changing(study) as (_, row):
            if row is not None:
                row.spec = spec.model_copy(update={"space": space}).model_dump(mode="json")
                row.scores = scores
                failpoint("study/filled")
                advance(row, "screen")

    def _submit_fill(self, study: StudyRow, spec: StudySpec) -> bool:
        """False where there is nothing to distil."""
        with self._changing(study) as (session, row):
            work = row and fill_work(spec, remaining(spec.budget, study_spend(session, study.id)))
            if row is not None and work:
                submit_for(session, row, work, "fill", "bank")
            return bool(work) or row is None

    def _screen(self, study: StudyRow) -> None:
        """Propose, judge in one run, take the numbers in."""
        spec = spec_of_study(study)
        with self.database.reading() as session:
            trials = [trial for trial in trials_of(session, study.id) if trial.round == study.round]
            run = run_for(session, study.id, "screen", str(study.round))
        if not trials:
            self._propose(study)
        elif run is None:
            self._submit_screening(study, spec, trials)
        elif run.state in TERMINAL:
            self._take_numbers(study, spec, trials, run)
        else:
            self._hold_to_budget(study, spec)

    def _propose(self, study: StudyRow) -> None:
        with self.database.reading() as session:
            earlier = trials_of(session, study.id)
        proposed = proposals(self.settings.optuna_url, study, earlier)
        failpoint("study/proposed")
        with self._changing(study) as (session, row):
            if row is not None and len(trials_of(session, row.id)) == len(earlier):
                session.add_all(proposed)
                if proposed:
                    touch(row)
                else:
                    advance(row, "learn")

    def _submit_screening(self, study: StudyRow, spec: StudySpec, trials: Sequence[TrialRow]) -> None:
        with self._changing(study) as (session, row):
            if row is None:
                return
            spent = study_spend(session, row.id)
            if spec.budget.exceeded_by(spent):
                return advance(row, "learn")
            work = screening_work(spec, row.round, trials, remaining(spec.budget, spent))
            submit_for(session, row, work, "screen", str(row.round))

    def _take_numbers(
        self, study: StudyRow, spec: StudySpec, trials: Sequence[TrialRow], run: RunRow
    ) -> None:
        numbers = numbers_of(spec, trials, self.storage)
        if not any(numbers.values()):
            return self._fail(study, f"the screening ended without a number: {run.message or run.state}")
        with self._changing(study) as (session, row):
            if row is None:
                return
            for trial in trials_of(session, row.id):
                if trial.number in numbers:
                    trial.screened = numbers[trial.number]
                    trial.state = "SCREENED" if len(trial.screened) == len(spec.rungs) else "PRUNED"
            failpoint("study/screened")
            advance(row, "promote")

    def _promote(self, study: StudyRow) -> None:
        """Finetune and evaluate the chosen, in the ordinary queue."""
        spec = spec_of_study(study)
        with self.database.reading() as session:
            finals = runs_of(session, study.id, ("promote", "calibrate", "baseline"))
        if not any(row.label.startswith(f"{study.round}/") for row, _ in finals):
            self._submit_finals(study, spec)
        elif all(run.state in TERMINAL for _, run in finals):
            with self._changing(study) as (session, row):
                if row is not None:
                    collect_finals(session, row)
                    failpoint("study/promoted")
                    advance(row, "learn")
        else:
            self._hold_to_budget(study, spec)

    def _submit_finals(self, study: StudyRow, spec: StudySpec) -> None:
        with self._changing(study) as (session, row):
            if row is None:
                return
            spent = study_spend(session, row.id)
            if spec.budget.exceeded_by(spent) or not submit_finals(
                session, row, remaining(spec.budget, spent)
            ):
                advance(row, "learn")

    def _learn(self, study: StudyRow) -> None:
        """Refit; go on with the next round while rounds and budget last."""
        spec = spec_of_study(study)
        with self._changing(study) as (session, row):
            if row is None:
                return
            note_predictions(session, row, trials_of(session, row.id))
            failpoint("study/learned")
            spent, trials = self._spent(session, row, spec), trials_of(session, row.id)
        open_book(self.settings.optuna_url, study, trials)
        ends = spent or study.round >= spec.rounds
        # Before the study ends, so that whoever waits for its end finds the report.
        publish_report(self.database, self.storage, study.id, "DONE" if ends else None)
        with self._changing(study) as (session, row):
            if row is None or row.version != study.version:
                return  # extended meanwhile: the report is written once more
            if ends:
                move(session, row, "DONE", "the budget is spent; what was found is kept" if spent else None)
            else:
                advance(row, "screen")

    def _spent(self, session: Session, study: StudyRow, spec: StudySpec) -> bool:
        return spec.budget.exceeded_by(study_spend(session, study.id)) is not None

    def _hold_to_budget(self, study: StudyRow, spec: StudySpec) -> None:
        """Where the budget is spent, unfinished runs end: it is a limit, not a wish."""
        with self.database.reading() as session:
            if not self._spent(session, study, spec):
                return
        with self._changing(study) as (session, row):
            if row is not None:
                ask_runs(session, row.id, "cancel")


class Change:
    """A write transaction on one study; gives None for the study where it has moved on since it was read."""

    def __init__(self, database: Database, study: StudyRow) -> None:
        self._context, self._seen = database.writing(), study

    def __enter__(self) -> tuple[Session, StudyRow | None]:
        session = self._context.__enter__()
        row = session.get(StudyRow, self._seen.id, with_for_update=True)
        same = row is not None and (row.state, row.phase, row.round) == (
            self._seen.state,
            self._seen.phase,
            self._seen.round,
        )
        return session, row if same else None

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]  # what Python passes to any __exit__
