"""Single flight across runs: nobody makes what a live run is making, and all who asked share the cost."""

import pytest
from sqlalchemy import select

from grafting_core.specs.budget import Usage
from grafting_core.specs.experiment import evaluation_key, finetune_key, scion_keys
from service.db.engine import Database
from service.db.tables import RunDependencyRow, RunRow
from service.domain.artifact_dependencies import needed_by_others
from service.domain.run_queries import run_detail
from service.scheduler.loop import Scheduler
from service.settings import Settings
from tests.support.builders import experiment
from tests.support.control import new_scheduler
from tests.support.fakes import FakeCluster
from tests.support.runs import log_of, queue, state
from workers.contract import (
    AttemptStarted,
    AttemptSucceeded,
    PartProgress,
    Progress,
    StageDone,
    StageReport,
)

ONE = {"layers": [1, 3]}
TWO = {"layers": [3, 5]}


@pytest.fixture
def scheduler(settings: Settings, database: Database) -> Scheduler:
    return new_scheduler(settings, database, FakeCluster())


def publish(scheduler: Scheduler, folder: str, key: str) -> None:
    scheduler.control.storage.write_bytes(f"{folder}/{key}/card.json", b"{}")


def rounds(scheduler: Scheduler, count: int = 2) -> None:
    for _ in range(count):
        scheduler.round()


def message(database: Database, run: str) -> str | None:
    with database.reading() as session:
        return session.get_one(RunRow, run).message


def distilled(scheduler: Scheduler, run: str, made: dict[str, Usage], **changes: object) -> None:
    """The run's worker publishes these scions and says so."""
    for key in made:
        publish(scheduler, "scions", key)
    log = log_of(scheduler, run)
    log.write(AttemptStarted(host="h", pid=1, device="cpu"))
    total = sum(made.values(), Usage())
    log.write(StageDone(report=StageReport(stage="distill", key="k", made=made, spend=total)))
    log.write(AttemptSucceeded(spend=total)) if changes.get("ends") else None


def test_a_run_waits_while_another_makes_what_it_needs_and_says_so(
    scheduler: Scheduler, database: Database
) -> None:
    first, second, other = queue(database, **ONE), queue(database, **TWO), queue(database, layers=[6])
    rounds(scheduler)
    assert [state(database, run)[0] for run in (first, second, other)] == ["STARTING", "QUEUED", "STARTING"]
    expected = f"waits for run {first}, which is making 1 of the scions that this one needs"
    assert message(database, second) == expected


def test_it_starts_as_soon_as_the_shared_scions_are_there(scheduler: Scheduler, database: Database) -> None:
    first, second = queue(database, **ONE), queue(database, **TWO)
    rounds(scheduler)
    publish(scheduler, "scions", scion_keys(experiment(**TWO))["block 3 attention"])
    rounds(scheduler)
    assert state(database, first)[0] == "STARTING"
    assert state(database, second)[0] == "STARTING"
    assert message(database, second) is None


def test_cancelling_one_frees_the_other(scheduler: Scheduler, database: Database) -> None:
    first, second = queue(database, **ONE), queue(database, **TWO)
    rounds(scheduler)
    scheduler.control.settings.cancel_grace_seconds = -1.0
    with database.writing() as session:
        row = session.get_one(RunRow, first)
        row.cancel_requested_at = row.created_at
    rounds(scheduler)
    assert state(database, first)[0] == "CANCELLED"
    assert state(database, second)[0] == "STARTING"


def test_two_runs_of_one_design_do_everything_once(scheduler: Scheduler, database: Database) -> None:
    _, second = queue(database), queue(database)
    spec = experiment()
    rounds(scheduler)
    for key in scion_keys(spec).values():
        publish(scheduler, "scions", key)
    rounds(scheduler)
    assert "is making the model" in str(message(database, second))
    publish(scheduler, "models", finetune_key(spec))
    rounds(scheduler)
    assert "is making the evaluation" in str(message(database, second))
    publish(scheduler, "evaluations", evaluation_key(spec))
    rounds(scheduler)
    assert state(database, second)[0] == "STARTING"


def test_spend_is_split_among_those_who_asked(scheduler: Scheduler, database: Database) -> None:
    first, second, third = (queue(database, **change) for change in (ONE, TWO, TWO))
    rounds(scheduler)
    with database.writing() as session:
        session.get_one(RunRow, third).state = "CANCELLED"  # no longer asks
    shared = scion_keys(experiment(**ONE))["block 3 attention"]
    own = scion_keys(experiment(**ONE))["block 1 attention"]
    spend = Usage(device_seconds=10.0, flops=1e9, training_images=96)
    distilled(scheduler, first, {shared: spend, own: spend}, ends=True)
    rounds(scheduler)

    def paid(run: str) -> tuple[float, float]:
        with database.reading() as session:
            detail = run_detail(session, run)
            assert detail is not None
            return detail.spend.device_seconds, detail.spend.flops

    assert paid(first) == (15.0, 1.5e9)
    assert paid(second) == (5.0, 0.5e9)
    assert paid(third) == (0.0, 0.0)


def test_a_report_that_is_repeated_is_charged_once(scheduler: Scheduler, database: Database) -> None:
    first, second = queue(database, **ONE), queue(database, **TWO)
    rounds(scheduler)
    shared = scion_keys(experiment(**ONE))["block 3 attention"]
    distilled(scheduler, first, {shared: Usage(device_seconds=10.0, flops=1e9)})
    report = StageReport(stage="distill", key="k", made={shared: Usage(device_seconds=10.0, flops=1e9)})
    log_of(scheduler, first).write(StageDone(report=report))
    rounds(scheduler)
    with database.reading() as session:
        moved = session.scalars(
            select(RunDependencyRow).where(RunDependencyRow.key == shared).order_by(RunDependencyRow.run_id)
        ).all()
        assert [row.device_seconds for row in moved] == [-5.0, 5.0]
        assert [row.run_id for row in moved] == [first, second]


def test_what_an_unfinished_run_needs_is_known(scheduler: Scheduler, database: Database) -> None:
    run = queue(database, **ONE)
    keys = list(scion_keys(experiment(**ONE)).values())
    with database.writing() as session:
        assert needed_by_others(session, [*keys, "x"]) == dict.fromkeys(keys, run)
        session.get_one(RunRow, run).state = "SUCCEEDED"
        session.flush()
        assert needed_by_others(session, keys) == {}


def test_a_run_shows_where_each_operator_of_its_pass_is(scheduler: Scheduler, database: Database) -> None:
    run = queue(database, **ONE)
    rounds(scheduler)
    log = log_of(scheduler, run)
    log.write(AttemptStarted(host="h", pid=1, device="cpu"))
    part = PartProgress(name="block 1 attention hyena_x", step=3, total_steps=6, loss=0.5, seconds_left=2.0)
    wild = part.model_copy(update={"ending": "diverged", "reason": "a loss of nan at step 2"})
    log.write(Progress(stage="distill", step=3, total_steps=6, parts=(part, wild)))
    log.write(Progress(stage="distill", step=4, total_steps=6))
    rounds(scheduler)
    with database.reading() as session:
        detail = run_detail(session, run)
        assert detail is not None
        assert detail.parts == [part, wild]
