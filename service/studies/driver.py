"""Advance each running study by one step: compare what it has with what its phase needs.

Phases: measure (if latency counts) -> fill -> screen -> promote -> learn -> screen ... Each change is one
transaction on the locked study, together with the runs and trials that it adds. Slow work (Optuna,
storage, the integer program) is done before it, and discarded if the study has changed meanwhile. So the
process may be killed at any point.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from optuna.exceptions import OptunaError
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from grafting_core.specs.studies.study import StudySpec
from grafting_core.storage.failpoints import failpoint
from service.control import Control
from service.db.leader_lease import LostLeadership
from service.db.study_tables import StudyRow, TrialRow
from service.db.tables import RunRow
from service.domain.latency_table import latency_rows
from service.domain.registry import refresh
from service.domain.studies import (
    advance,
    apply_to_runs,
    fail_unread,
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
from service.log_once import AWAY, Once, brief
from service.schemas.runs import TERMINAL
from service.studies.promotion import collect_finals, submit_finals
from service.studies.publishing import publish_report
from service.studies.specs import (
    available,
    bank_fill_spec,
    item_scores,
    latency_work,
    screening_work,
    timed,
    unreadable,
)
from service.studies.step_curves import submit_curves
from service.studies.trial_round import note_predictions, numbers_of, open_book, propose

log = logging.getLogger("graftlab.search")


class Driver:
    """Takes one step of every running study."""

    def __init__(self, control: Control) -> None:
        self.control, self.settings = control, control.settings
        self.database, self.storage = control.database, control.storage
        self._say = Once(log)
        self._phases: Mapping[str, Callable[[StudyRow], None]] = {
            "measure": self._measure,
            "fill": self._fill,
            "screen": self._screen,
            "promote": self._promote,
            "learn": self._learn,
        }

    def round(self) -> None:
        """Take one step of every running study, one after the other."""
        for study_id in self.running():
            self.step(study_id)

    def running(self) -> list[str]:
        """Return the ids of the running studies."""
        with self.database.reading() as session:
            return list(session.scalars(select(StudyRow.id).where(StudyRow.state == "RUNNING")))

    def step(self, study_id: str) -> None:
        """Take one step; a study that cannot continue fails without affecting others. Each fault is logged
        once.
        """
        try:
            self._step(study_id)
            self._say.well(study_id)
        except (LostLeadership, OptunaError, OSError, IntegrityError, StaleDataError, *AWAY) as error:
            # A request of a user, or another process, may have changed the study first.
            text = f"a step of study {study_id} failed; it is repeated from the current state: {brief(error)}"
            self._say(study_id, text, trace=True)
        except Exception as error:  # noqa: BLE001 - an error caused by a study ends that study
            self.give_up(study_id, error)

    def _step(self, study_id: str) -> None:
        """Take one step. Raises ValueError if the study cannot continue."""
        with self.database.reading() as session:
            refresh(session)
            study = session.get(StudyRow, study_id)
        if study is None or study.state != "RUNNING":
            return
        if study.phase not in self._phases:
            raise ValueError(f"there is no phase {study.phase!r}; a study is in {', '.join(self._phases)}")
        self._phases[study.phase](study)

    def give_up(self, study_id: str, error: Exception) -> None:
        """End the study as FAILED with the reason, even if parts of it cannot be read."""
        known = isinstance(error, ValueError) and not isinstance(error, ValidationError)
        reason = str(error) if known else f"internal error: {type(error).__name__}: {brief(error)}"
        raised = error.__traceback__ is not None
        self._say(study_id, f"study {study_id} cannot continue: {brief(error)}", trace=raised)
        try:
            with self.database.reading() as session:
                study = session.get_one(StudyRow, study_id)
            self._fail(study, reason)
        except (LostLeadership, OSError, *AWAY):
            return  # the next round tries again
        except Exception as worse:  # noqa: BLE001 - a row that cannot be loaded is ended without loading it
            self._say(
                ("end", study_id), f"study {study_id}: ended without loading it: {brief(worse)}", trace=True
            )
            with self.control.leading() as session:
                fail_unread(session, study_id, reason)

    @contextmanager
    def _changing(self, study: StudyRow) -> Iterator[tuple[Session, StudyRow | None]]:
        """Open a write transaction on one study; yield None for the study if it has changed since it was
        read.
        """
        with self.control.leading() as session:
            row = session.get(StudyRow, study.id, with_for_update=True)
            expected = (study.state, study.phase, study.round)
            same = row is not None and (row.state, row.phase, row.round) == expected
            yield session, row if same else None

    def _fail(self, study: StudyRow, message: str) -> None:
        with self._changing(study) as (session, row):
            if row is not None:
                apply_to_runs(session, row.id, "cancel")
                move(session, row, "FAILED", message)

    def _measure(self, study: StudyRow) -> None:
        """Submit one run that measures the missing rows of the latency table, and store its results."""
        spec = spec_of_study(study)
        with self.database.reading() as session:
            run = run_for(session, study.id, "measure", "latency table")
            rows = latency_rows(session, self.storage, run) if run is not None else []
        if run is None:
            with self._changing(study) as (session, row):
                if row is not None:
                    left = remaining(spec.budget, study_spend(session, row.id))
                    submit_for(session, row, latency_work(spec, left), "measure", "latency table")
            return
        if run.state not in TERMINAL:
            return
        if run.state != "SUCCEEDED":
            return self._fail(study, f"the latency table could not be measured: {run.message or run.state}")
        measured = timed(spec, rows)
        with self._changing(study) as (_, row):
            if row is not None:
                row.spec = measured.model_dump(mode="json")
                failpoint("study/measured")
                advance(row, "fill")

    def _fill(self, study: StudyRow) -> None:
        """Submit one run that distils every (site, kind), and store its scores for the integer program."""
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
        unread = unreadable(spec, self.storage)
        for key in unread:
            self._say(
                ("scion", key), f"study {study.id}: the card of scion {key} cannot be read; it is left out"
            )
        with self._changing(study) as (_, row):
            if row is not None:
                if unread:
                    row.message = f"scions left out because their cards cannot be read: {', '.join(unread)}"[
                        :500
                    ]
                row.spec = spec.model_copy(update={"space": space}).model_dump(mode="json")
                row.scores = scores
                failpoint("study/filled")
                advance(row, "screen")

    def _submit_fill(self, study: StudyRow, spec: StudySpec) -> bool:
        """Submit the run that fills the bank; False if there is nothing to distil."""
        with self._changing(study) as (session, row):
            work = row and bank_fill_spec(spec, remaining(spec.budget, study_spend(session, study.id)))
            if row is not None and work:
                submit_for(session, row, work, "fill", "bank")
            return bool(work) or row is None

    def _screen(self, study: StudyRow) -> None:
        """Propose the round's designs, screen them in one run, and store the results."""
        spec = spec_of_study(study)
        with self.database.reading() as session:
            trials = [trial for trial in trials_of(session, study.id) if trial.round == study.round]
            run = run_for(session, study.id, "screen", str(study.round))
        if not trials:
            self._propose(study)
        elif run is None:
            self._submit_screening(study, spec, trials)
        elif run.state in TERMINAL:
            self._store_screening(study, spec, trials, run)
        else:
            self._hold_to_budget(study, spec)

    def _propose(self, study: StudyRow) -> None:
        with self.database.reading() as session:
            earlier = trials_of(session, study.id)
        proposed = propose(self.settings.optuna_url, study, earlier)
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

    def _store_screening(
        self, study: StudyRow, spec: StudySpec, trials: Sequence[TrialRow], run: RunRow
    ) -> None:
        numbers = numbers_of(spec, trials, self.storage)
        if not any(numbers.values()):
            return self._fail(study, f"the screening ended without a result: {run.message or run.state}")
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
        """Finetune and evaluate the chosen designs in the ordinary queue, and store the results."""
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
        """Refit the predictor, then start the next round while rounds and budget last.

        After the last round, the step curves are measured first.
        """
        spec = spec_of_study(study)
        if study.round >= spec.rounds and self._measures_curves(study, spec):
            return
        with self._changing(study) as (session, row):
            if row is None:
                return
            note_predictions(session, row, trials_of(session, row.id))
            failpoint("study/learned")
            spent, trials = self._spent(session, row, spec), trials_of(session, row.id)
        open_book(self.settings.optuna_url, study, trials)
        ends = spent or study.round >= spec.rounds
        # Written before the study ends, so that a client that waits for its end finds the report.
        publish_report(self.database, self.storage, study.id, "DONE" if ends else None)
        with self._changing(study) as (session, row):
            if row is None or row.version != study.version:
                return  # extended meanwhile: the report is written once more
            if ends:
                move(session, row, "DONE", "the budget is spent; results are kept" if spent else None)
            else:
                advance(row, "screen")

    def _measures_curves(self, study: StudyRow, spec: StudySpec) -> bool:
        """Submit the missing points of the step curves, within the budget; False if none is missing or
        running.
        """
        with self.database.reading() as session:
            under_way = any(run.state not in TERMINAL for _, run in runs_of(session, study.id, ("curve",)))
        if under_way:
            self._hold_to_budget(study, spec)
            return True
        with self._changing(study) as (session, row):
            if row is None:
                return True
            spent = study_spend(session, row.id)
            if spec.budget.exceeded_by(spent):
                return False
            return submit_curves(session, row, remaining(spec.budget, spent)) > 0

    def _spent(self, session: Session, study: StudyRow, spec: StudySpec) -> bool:
        return spec.budget.exceeded_by(study_spend(session, study.id)) is not None

    def _hold_to_budget(self, study: StudyRow, spec: StudySpec) -> None:
        """Cancel unfinished runs once the budget is spent."""
        with self.database.reading() as session:
            if not self._spent(session, study, spec):
                return
        with self._changing(study) as (session, row):
            if row is not None:
                apply_to_runs(session, row.id, "cancel")
