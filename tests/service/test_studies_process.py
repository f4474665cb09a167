"""Studies are driven by a process of their own: one leads, and what is wrong with one study ends that one."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from grafting_core.storage.failpoints import SLEEP_SECONDS
from service.db.engine import Database
from service.db.leader_lease import Leadership, LostLeadership
from service.db.study_tables import StudyRow, StudyRunRow, TrialRow
from service.domain.studies import create_study, trials_of
from service.domain.study_feasibility import parse_feasible_study
from service.domain.study_samplers import sampler_record
from service.settings import Settings
from service.studies import driver as driver_module
from service.studies.driver import Driver
from service.studies.threads import MOST, StepHangs, StepThreads
from tests.support.builders import study_document
from tests.support.control import studies_control

pytestmark = pytest.mark.large

PROCESS = [sys.executable, "-m", "service.processes.studies"]
STEP_SECONDS = 100.0


def new_study(database: Database, **changes: object) -> str:
    """A study whose bank is filled: its next step is a proposal."""
    spec = parse_feasible_study(study_document(**changes))
    with database.writing() as session:
        study = create_study(session, spec, sampler_record(spec.sampler), "digest", None, "ann")
        study.phase = "screen"
        return study.id


def study(database: Database, study_id: str) -> StudyRow:
    with database.reading() as session:
        return session.get_one(StudyRow, study_id)


def trials(database: Database, study_id: str) -> list[TrialRow]:
    with database.reading() as session:
        return trials_of(session, study_id)


def screenings(database: Database, study_id: str) -> list[str]:
    """Labels of the runs that screen."""
    with database.reading() as session:
        mine = select(StudyRunRow.label).where(StudyRunRow.study_id == study_id)
        return list(session.scalars(mine.where(StudyRunRow.role == "screen")))


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def at_work(study_id: str) -> bool:
    """Whether a step of the study is under way."""
    return any(each.name == f"study {study_id}" for each in threading.enumerate())


@contextmanager
def process(settings: Settings, **changes: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The process over this database; `changes` are variables of its environment."""
    told = {
        "GRAFTLAB_DATA_DIR": str(settings.data_dir),
        "GRAFTLAB_DATABASE_URL": settings.database_url,
        "GRAFTLAB_ROUND_SECONDS": "0.05",
        "GRAFTLAB_LEAD_SECONDS": "1",
    }
    with subprocess.Popen(PROCESS, env={**os.environ, **told, **changes}) as started:
        try:
            yield started
        finally:
            started.kill()


def test_a_proposal_that_hangs_holds_up_no_other_study_and_ends_its_own(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, sound = new_study(database), new_study(database)
    entered, let_go, original = threading.Event(), threading.Event(), driver_module.propose

    def propose(url: str, row: StudyRow, earlier: list[TrialRow]) -> list[TrialRow]:
        if row.id == hung:
            entered.set()
            assert let_go.wait(120)
        return original(url, row, earlier)

    monkeypatch.setattr(driver_module, "propose", propose)
    now = [0.0]
    steps = StepThreads(Driver(studies_control(settings, database)), STEP_SECONDS, lambda: now[0])

    def screened() -> list[str]:
        steps.round()
        return screenings(database, sound)

    until(screened)
    assert entered.is_set()
    assert (study(database, hung).state, trials(database, hung)) == ("RUNNING", [])

    until(lambda: not at_work(sound))
    now[0] = STEP_SECONDS + 1
    with pytest.raises(StepHangs, match=hung):
        steps.round()
    ended = study(database, hung)
    assert ended.state == "FAILED"
    assert "took longer than 100 s" in str(ended.message)
    assert study(database, sound).state == "RUNNING"

    let_go.set()
    until(lambda: not at_work(hung))
    assert trials(database, hung) == []


def test_a_study_takes_one_step_at_a_time(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_study(database)
    calls, let_go = [], threading.Event()

    def propose(url: str, row: StudyRow, earlier: list[TrialRow]) -> list[TrialRow]:
        calls.append(row.id)
        assert let_go.wait(120)
        raise OSError("a fault that passes")

    monkeypatch.setattr(driver_module, "propose", propose)
    steps = StepThreads(Driver(studies_control(settings, database)), STEP_SECONDS)
    for _ in range(5):
        steps.round()
    until(lambda: calls)
    assert len(calls) == 1
    let_go.set()
    steps.wait(60)
    steps.round()
    until(lambda: len(calls) == 2)


def test_more_studies_than_steps_at_a_time_all_go_on(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {new_study(database) for _ in range(MOST)}
    others = {new_study(database) for _ in range(2 * MOST)}
    calls, let_go = [], threading.Event()

    def propose(url: str, row: StudyRow, earlier: list[TrialRow]) -> list[TrialRow]:
        calls.append(row.id)
        if row.id in slow and len(slow & set(calls)) < MOST:
            assert let_go.wait(120)
        raise OSError("a fault that passes")

    monkeypatch.setattr(driver_module, "propose", propose)
    steps = StepThreads(Driver(studies_control(settings, database)), STEP_SECONDS)

    def all_called() -> bool:
        steps.round()
        return slow | others == set(calls)

    until(all_called)
    let_go.set()
    steps.wait(60)


def test_a_process_that_lost_its_lease_changes_no_study(settings: Settings, database: Database) -> None:
    study_id = new_study(database)
    control = studies_control(settings, database)
    control.lease.release()
    assert Leadership(database, 60.0, "studies").claim()
    before = study(database, study_id).version
    Driver(control).step(study_id)
    assert (study(database, study_id).version, trials(database, study_id)) == (before, [])
    with pytest.raises(LostLeadership), control.leading():
        pass


def test_scheduler_and_studies_lead_side_by_side(database: Database) -> None:
    scheduler, studies = (Leadership(database, 60.0, name) for name in ("scheduler", "studies"))
    assert scheduler.claim()
    assert studies.claim()
    assert not Leadership(database, 60.0, "studies").claim()
    studies.release()
    with database.reading() as session:
        assert scheduler.holds(session)
    assert Leadership(database, 60.0, "studies").claim()


def test_a_process_killed_while_it_proposes_is_followed_by_one_that_goes_on(
    settings: Settings, database: Database
) -> None:
    study_id = new_study(database)
    with process(settings, FAILPOINT="study/proposed:kill") as first:
        assert first.wait(120) == -signal.SIGKILL
    assert trials(database, study_id) == []
    with process(settings) as second:
        until(lambda: screenings(database, study_id))
        second.terminate()
        assert second.wait(30) == 0
    assert [trial.number for trial in trials(database, study_id)] == list(range(6))
    assert Leadership(database, 60.0, "studies").claim()


def test_a_process_whose_step_hangs_fails_that_study_and_ends(settings: Settings, database: Database) -> None:
    study_id = new_study(database)
    seconds = str(SLEEP_SECONDS / 6)
    with process(settings, FAILPOINT="study/proposed:sleep", GRAFTLAB_STUDY_STEP_SECONDS=seconds) as hung:
        assert hung.wait(120) == 1
    assert study(database, study_id).state == "FAILED"
    assert trials(database, study_id) == []


def test_a_sampler_that_lacks_its_package_ends_its_study_with_the_way_to_install_it(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_id = new_study(database, sampler={"kind": "gp"})
    monkeypatch.setattr("service.studies.trial_round.find_spec", lambda name: None)
    Driver(studies_control(settings, database)).step(study_id)
    ended = study(database, study_id)
    assert ended.state == "FAILED"
    assert "`pip install 'graftlab[gp]'`" in str(ended.message)


def test_readyz_says_how_to_start_the_process_and_that_one_leads(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.routes.health.FRESH_SECONDS", 0.0)
    missing = client.get("/readyz")
    assert missing.status_code == 503
    assert "`python -m service.processes.studies`" in missing.json()["parts"]["studies"]
    assert "graftlab_studies_leads 0.0" in client.get("/metrics").text
    assert Leadership(database, 60.0, "studies").claim()
    assert client.get("/readyz").json()["parts"]["studies"] == "ok"
    assert "graftlab_studies_leads 1.0" in client.get("/metrics").text
