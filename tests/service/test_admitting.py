"""What the queue explains is what admission does, whoever waits for whatever."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from grafting_core.storage.storage import Storage
from service.db.engine import Database
from service.db.tables import AccountRow, AttemptRow, EventRow, RunDependencyRow, RunRow, now
from service.domain.queue_explain import queue_view
from service.scheduler.claims import admit, decide, note_set_aside
from service.schemas.runs import QueueEntry
from service.settings import Settings
from tests.support.builders import document, experiment, study_document
from tests.support.runs import queue

CPUS, GPUS = 4, 2
PATIENCE = 600.0
START = "it starts in the next round"


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    settings.cpus, settings.gpus, settings.hold_line_seconds = CPUS, GPUS, PATIENCE
    return settings


@pytest.fixture
def template(database: Database) -> dict[str, Any]:
    """The columns of a run, for others like it."""
    run = queue(database, layers=[1])
    with database.writing() as session:
        row = session.get_one(RunRow, run)
        columns = {each.key: getattr(row, each.key) for each in RunRow.__table__.columns}
        _clear(session)
    return columns


def _clear(session: Session) -> None:
    for table in (EventRow, RunDependencyRow, AttemptRow, RunRow, AccountRow):
        session.execute(delete(table))


OWNERS, TAGS = ("ann", "bob", "cy"), (None, "s1", "s2")
RUN = st.fixed_dictionaries(
    {
        "owner": st.sampled_from(OWNERS),
        "tag": st.sampled_from(TAGS),
        "precedence": st.integers(-1, 1),
        "cpus": st.integers(1, CPUS + 2),
        "gpus": st.integers(0, GPUS + 1),
        "state": st.sampled_from(["QUEUED"] * 6 + ["RUNNING", "PAUSED"]),
        "key": st.sampled_from(["", "a", "b", "c"]),
        "late": st.booleans(),
        "old": st.booleans(),
        "seconds": st.sampled_from([None, 5.0, 50.0]),
    }
)
LIMITS = st.dictionaries(
    st.sampled_from([("lab", "lab"), *(("user", name) for name in OWNERS), ("tag", "s1"), ("tag", "s2")]),
    st.fixed_dictionaries(
        {
            "limits": st.sampled_from([{}, {"device_seconds": 60.0}, {"device_seconds": 5.0}]),
            "device_seconds": st.sampled_from([0.0, 10.0]),
            "max_running": st.sampled_from([None, 1, 2]),
            "max_cpus": st.sampled_from([None, 2]),
            "max_gpus": st.sampled_from([None, 1]),
        }
    ),
)


def fill(
    session: Session, template: dict[str, Any], runs: list[dict[str, Any]], limits: dict[Any, Any]
) -> None:
    _clear(session)
    for index, given_run in enumerate(runs):
        run = dict(given_run)
        key, late, old, seconds = (run.pop(name) for name in ("key", "late", "old", "seconds"))
        live = run["state"] == "RUNNING"
        run |= {
            "id": f"r{index:05d}",
            "created_at": now() - timedelta(seconds=2 * PATIENCE if old else 0),
            "not_before": now() + timedelta(hours=1) if late else None,
            "forecast": {"device_seconds": seconds} if seconds else None,
            "attempt": int(live),
            "reserved_device_seconds": (seconds or 0.0) if live else 0.0,
        }
        session.execute(insert(RunRow), [{**template, **run}])
        if key:
            session.add(RunDependencyRow(run_id=run["id"], folder="scions", key=key))
        if live:
            session.add(AttemptRow(run_id=run["id"], number=1))
    for (scope, name), columns in limits.items():
        session.add(AccountRow(scope=scope, name=name, **columns))


def explained(database: Database, settings: Settings, storage: Storage) -> dict[str, QueueEntry]:
    with database.reading() as session:
        view = queue_view(
            session,
            settings.cpus,
            settings.gpus,
            10_000,
            published=lambda folder, key: storage.exists(f"{folder}/{key}/card.json"),
            hold_line_seconds=settings.hold_line_seconds,
        )
    return {entry.run_id: entry for entry in view.entries}


def admitted(database: Database, settings: Settings, storage: Storage) -> list[str]:
    with database.reading() as session:
        decided = decide(session, settings, storage)
    with database.writing() as session:
        return admit(session, settings, decided, database.clock(session))


@given(st.lists(RUN, max_size=40), LIMITS)
@examples(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_on_random_queues_exactly_those_start_of_which_the_queue_says_so(
    database: Database,
    settings: Settings,
    template: dict[str, Any],
    runs: list[dict[str, Any]],
    limits: dict[Any, Any],
) -> None:
    storage = Storage(settings.storage)
    storage.write_bytes("scions/c/card.json", b"{}")
    with database.writing() as session:
        fill(session, template, runs, limits)
    told = explained(database, settings, storage)
    assert told.keys() == {f"r{index:05d}" for index, run in enumerate(runs) if run["state"] == "QUEUED"}
    started = admitted(database, settings, storage)
    assert {run for run, entry in told.items() if entry.waits_for == START} == set(started)
    for run, entry in told.items():
        assert (entry.lacks == "nothing") == (run in started)
    _check(runs, limits, started)


def _check(runs: list[dict[str, Any]], limits: dict[Any, Any], started: list[str]) -> None:
    """What holds whoever decided: devices, quotas, spent budgets, back-off."""
    mine = [runs[int(run[1:])] for run in started]
    live = [run for run in runs if run["state"] == "RUNNING"]
    if started:
        assert sum(run["cpus"] for run in [*live, *mine]) <= CPUS
    assert not any(run["late"] for run in mine)
    for run in mine:
        for key in (("lab", "lab"), ("user", run["owner"]), ("tag", run["tag"])):
            account = limits.get(key, {"limits": {}, "device_seconds": 0.0})
            assert account["device_seconds"] < account["limits"].get("device_seconds", 1e9)
        most = limits.get(("user", run["owner"]), {}).get("max_running")
        if most is not None:
            assert sum(each["owner"] == run["owner"] for each in [*live, *mine]) <= most


def plain(**changes: Any) -> dict[str, Any]:
    given_run = {"owner": "ann", "tag": None, "precedence": 0, "cpus": 1, "gpus": 0, "state": "QUEUED"}
    return {**given_run, "key": "", "late": False, "old": False, "seconds": None, **changes}


SPENT = {("tag", "s1"): {"limits": {"device_seconds": 5.0}, "device_seconds": 10.0}}
CLAIMED = {("tag", "s1"): {"limits": {"device_seconds": 60.0}, "device_seconds": 10.0}}
RUNNING = plain(state="RUNNING", key="a", tag="s1", seconds=45.0)


@pytest.mark.parametrize(
    ("held", "limits", "lacks"),
    [
        (plain(tag="s1"), SPENT, "budget"),
        (plain(tag="s1", seconds=50.0), CLAIMED, "budget"),
        (plain(key="a"), {}, "another run"),
        (plain(late=True), {}, "back-off"),
        (plain(cpus=CPUS + 1), {}, "cpus"),
        (plain(gpus=GPUS + 1, old=True), {}, "gpus"),
        (plain(cpus=2), {("user", "ann"): {"limits": {}, "device_seconds": 0.0, "max_cpus": 2}}, "quota"),
        (plain(tag="s1", cpus=CPUS, old=True), SPENT, "budget"),
    ],
)
def test_however_many_runs_are_held_the_owners_next_one_starts(
    database: Database,
    settings: Settings,
    template: dict[str, Any],
    held: dict[str, Any],
    limits: dict[Any, Any],
    lacks: str,
) -> None:
    storage = Storage(settings.storage)
    with database.writing() as session:
        fill(session, template, [RUNNING, *[held] * 130, plain()], limits)
    told = explained(database, settings, storage)
    assert {told[f"r{index:05d}"].lacks for index in range(1, 131)} == {lacks}
    assert told["r00131"].waits_for == START
    assert admitted(database, settings, storage) == ["r00131"]


def test_a_run_that_can_start_no_more_is_set_aside_told_why_and_holds_no_line(
    database: Database, settings: Settings, template: dict[str, Any]
) -> None:
    storage = Storage(settings.storage)
    with database.writing() as session:
        fill(session, template, [plain(cpus=8, old=True, precedence=-1), *[plain(cpus=2)] * 2], {})
        assert note_set_aside(session, settings) == 1
    told = explained(database, settings, storage)["r00000"]
    expected = f"it asks for 8 CPUs and the lab has {CPUS}: it waits until the lab has that many"
    assert (told.position, told.lacks, told.waits_for) == (3, "cpus", expected)
    with database.reading() as session:
        assert session.get_one(RunRow, "r00000").message == f"set aside: {expected}"
    assert admitted(database, settings, storage) == ["r00001", "r00002"]
    settings.cpus = 16
    with database.writing() as session:
        assert note_set_aside(session, settings) == 0
        assert session.get_one(RunRow, "r00000").message is None
    assert admitted(database, settings, storage) == ["r00000"]


def test_a_run_that_cannot_be_read_fails_with_the_reason_and_the_next_one_starts(
    database: Database, settings: Settings
) -> None:
    storage = Storage(settings.storage)
    bad, good = queue(database), queue(database, layers=[5])
    with database.writing() as session:
        spec = session.get_one(RunRow, bad).experiment
        spec.spec = {**spec.spec, "budget": {"device_seconds": "many"}}
    assert admitted(database, settings, storage) == [good]
    with database.reading() as session:
        run = session.get_one(RunRow, bad)
        assert (run.state, run.reason) == ("FAILED", "internal_error")
        assert "device_seconds" in str(run.message)


def test_storage_is_asked_outside_of_every_write_transaction(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, writing = Storage(settings.storage), []
    first, second = queue(database, layers=[1]), queue(database, layers=[1, 3])
    original = storage.exists

    def exists(path: str) -> bool:
        assert not writing
        return original(path)

    monkeypatch.setattr(storage, "exists", exists)
    with database.reading() as session:
        decided = decide(session, settings, storage)
    with database.writing() as session:
        writing.append(True)
        assert admit(session, settings, decided, database.clock(session)) == [first]
        assert "waits for run" in str(session.get_one(RunRow, second).message)


WANTED: list[tuple[dict[str, Any], str]] = [
    ({"gpus_per_worker": 1, "workers": 4}, "4 workers of 1 GPUs need 4; the lab has 2"),
    ({"cpus_per_worker": 5}, "1 workers of 5 CPUs need 5; the lab has 4: at most 4 per worker"),
    ({"workers": 8}, "8 workers of 1 CPUs need 8; the lab has 4"),
]


@pytest.mark.parametrize(("resources", "message"), WANTED)
@pytest.mark.parametrize("route", ["experiments", "studies", "scions:fill", "analyses"])
def test_devices_that_the_lab_does_not_have_are_refused_with_what_it_has(
    settings: Settings, client: TestClient, route: str, resources: dict[str, Any], message: str
) -> None:
    offer = {"replace": "attention", "layers": [1], "with": [{"kind": "hyena_x"}]}
    backbone = {"backbone": "testbed/dit-fashion"}
    asked: dict[str, dict[str, Any]] = {
        "experiments": document(finetune={"batch_size": 16, "steps": 8, "images": 200}),
        "studies": study_document(),
        "scions:fill": {**backbone, "offers": [offer]},
        "analyses": backbone,
    }
    answer = client.post(f"/api/v1/{route}", json={**asked[route], "resources": resources})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["pointer"].split("/")[1], problem["message"]) == ("resources", message)
    assert client.get("/api/v1/queue").json()["queued"] == 0
    assert client.get("/api/v1/studies").json()["studies"] == []


@pytest.mark.parametrize("route", ["experiments", "experiments/plan", "studies"])
def test_a_batch_that_the_workers_cannot_share_is_refused_with_numbers_that_fit(
    settings: Settings, client: TestClient, route: str
) -> None:
    made = study_document if route == "studies" else document
    plan = {"finetune": {"batch_size": 64, "steps": 8, "images": 200}}
    answer = client.post(f"/api/v1/{route}", json={**made(**plan), "resources": {"workers": 3}})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["pointer"] == "/resources/workers"
    assert problem["allowed"] == ["1", "2", "4", "8", "16", "32", "64"]
    assert "63 or 66 for finetune.batch_size" in problem["message"]


def test_work_that_finetunes_nothing_may_have_any_number_of_workers() -> None:
    assert experiment(resources={"workers": 3}, finetune={"steps": 0}).resources.workers == 3
    assert experiment(edits=[], resources={"workers": 3}).resources.workers == 3
