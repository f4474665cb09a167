"""Revision 0018: what an older lab stored as `study`, `micro_batches`, `turn` and `source` is found again."""

import time
from typing import Any

import pytest
from alembic.util.exc import CommandError
from sqlalchemy import text
from sqlalchemy.orm import Session

from grafting_core.specs.budget import Budget
from service.db.engine import Database
from service.db.migrate import check, downgrade, upgrade
from service.db.study_tables import TrialRow
from service.db.tables import AccountRow, AttemptRow, ExperimentRow, RunRow, now
from service.domain.budget_limits import AccountLimits, set_limits
from service.domain.invariants import verify
from service.domain.studies import create_study
from service.domain.study_feasibility import parse_feasible_study
from service.domain.submission import QueueOptions, submit
from tests.support.builders import experiment, study_document

TRIALS = (("milp", []), ("baseline", ["deep"]), ("baseline", ["deep", "top_local"]), ("random", []))
SOURCES = ["milp", "baseline deep", "baseline deep, top_local", "random"]
"""As 0017 has them."""


def fill(session: Session) -> tuple[str, str]:
    """A tagged run with an attempt and a limited account, and a study; their ids."""
    run = submit(session, experiment(), "digest", None, placing=QueueOptions(tag="sweep"))
    run.attempt, run.accumulation_steps = 1, 4
    host = {"job": "run-earlier-a1", "ticket_index": 3}
    session.add(AttemptRow(run_id=run.id, number=1, accumulation_steps=2, ended_at=now(), **host))
    set_limits(session, ("tag", "sweep"), AccountLimits(budget=Budget(device_seconds=60.0)))
    study = create_study(session, parse_feasible_study(study_document()), {}, "digest", None, "lab")
    for number, (proposed_by, baselines) in enumerate(TRIALS):
        session.add(trial(study.id, number, proposed_by=proposed_by, baselines=baselines))
    return run.id, study.id


def trial(study_id: str, number: int, **given: Any) -> TrialRow:
    given |= {"round": 1, "state": "PROPOSED", "assignment": {}, "params": 1, "flops": 1.0, "score": 0.0}
    return TrialRow(study_id=study_id, number=number, design_key=str(number), screened={}, **given)


def assert_as_0017_had_it(session: Session) -> None:
    runs = "SELECT runs.study, experiments.study, micro_batches FROM runs JOIN experiments "
    query = f"{runs} ON experiments.id = runs.experiment_id"
    assert session.execute(text(query)).one() == ("sweep", "sweep", 4)
    assert session.execute(text("SELECT turn, micro_batches FROM attempts")).one() == (3, 2)
    assert session.scalars(text("SELECT source FROM study_trials ORDER BY number")).all() == SOURCES
    assert set(session.scalars(text("SELECT scope FROM accounts"))) == {"lab", "user", "study"}


def assert_as_today(session: Session, run_id: str, study_id: str) -> None:
    run, attempt = session.get_one(RunRow, run_id), session.get_one(AttemptRow, (run_id, 1))
    assert (run.tag, session.get_one(ExperimentRow, run.experiment_id).tag) == ("sweep", "sweep")
    assert (run.accumulation_steps, attempt.accumulation_steps, attempt.ticket_index) == (4, 2, 3)
    trials = [session.get_one(TrialRow, (study_id, number)) for number in range(len(TRIALS))]
    assert tuple((each.proposed_by, each.baselines) for each in trials) == TRIALS
    assert session.get_one(AccountRow, ("tag", "sweep")).limits == {"device_seconds": 60.0}
    assert session.get(AccountRow, ("tag", study_id)) is not None
    assert verify(session) == []


def test_rows_go_down_and_up_with_their_values(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as session:
        run_id, study_id = fill(session)
    downgrade(database, "0017")
    with database.reading() as session:
        assert_as_0017_had_it(session)
    upgrade(database)
    check(database)
    with database.reading() as session:
        assert_as_today(session, run_id, study_id)
    database.engine.dispose()


@pytest.mark.parametrize("lease", [1, 2])
def test_columns_are_not_renamed_while_a_process_of_the_lab_leads(database_url: str, lease: int) -> None:
    """The scheduler's, or that of the process that drives studies."""
    database = Database(database_url)
    downgrade(database, "0017")
    with database.writing() as session:
        row = "INSERT INTO leases (id, holder, until) VALUES (:id, 'older', :until)"
        session.execute(text(row), {"id": lease, "until": time.time() + 30})
    with pytest.raises(CommandError, match=r"stop it .*graft down"):
        upgrade(database)
    with database.writing() as session:
        assert session.scalar(text("SELECT count(study) FROM runs")) == 0
        session.execute(text("UPDATE leases SET until = 0"))
    upgrade(database)
    check(database)
    database.engine.dispose()
