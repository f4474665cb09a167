"""A process that dies, fails or finds no space at any failpoint leaves a store that the next one takes up."""

import ast
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from grafting_core.specs.budget import Usage
from grafting_core.storage.checksums import with_checksum
from grafting_core.storage.failpoints import POINTS, arm
from service.db.tables import RunRow
from service.domain.run_controls import extend, prioritise
from service.domain.run_lifecycle import MOVES, move_point
from service.domain.webhook_outbox import register
from service.scheduler.checkpoint_cleanup import CheckpointCleaner
from service.schemas.runs import RunState
from service.schemas.webhooks import WebhookRequest
from service.webhooks.delivery import DeliveryWorker
from tests.support.lab_harness import LabHarness
from tests.support.runs import STARTED
from tests.support.webhook_server import serve_webhooks
from workers.contract import AttemptFailed, AttemptStopped, checkpoints_folder

pytestmark = pytest.mark.large

ROOT = Path(__file__).parent.parent.parent
BUDGET = {"device_seconds": 5.0}
OVERSPENT = AttemptStopped(reason="budget_exhausted", spend=Usage(device_seconds=9.0))
BROKEN = AttemptFailed(reason="internal_error", message="a bug")
Scenario = Callable[[LabHarness], object]


def _queued(harness: LabHarness, **changes: object) -> str:
    return harness.submit(**changes)


def _starting(harness: LabHarness, **changes: object) -> str:
    run = harness.submit(**changes)
    harness.round(2)
    return run


def _running(harness: LabHarness, **changes: object) -> str:
    run = _starting(harness, **changes)
    harness.say(run, STARTED)
    harness.round()
    return run


FROM: dict[RunState, Callable[..., str]] = {"QUEUED": _queued, "STARTING": _starting, "RUNNING": _running}


def _said(state: RunState, *bodies: AttemptFailed | AttemptStopped, **changes: object) -> Scenario:
    def scenario(harness: LabHarness) -> None:
        run = FROM[state](harness, **changes)
        harness.say(run, *bodies)
        harness.round()

    return scenario


def _acted(state: RunState, *actions: str, lost: bool = False) -> Scenario:
    def scenario(harness: LabHarness) -> None:
        run = FROM[state](harness)
        for action in actions:
            harness.apply_action(run, action)  # type: ignore[arg-type]  # a table of them
        if lost:
            harness.lose(run)
        harness.round()

    return scenario


def _lost(state: RunState) -> Scenario:
    return _acted(state, lost=True)


def _finished(harness: LabHarness) -> None:
    harness.finish(_starting(harness))
    harness.round()


def _stopped_again(harness: LabHarness) -> None:
    run = _running(harness, budget=BUDGET)
    harness.say(run, OVERSPENT)
    harness.round()
    harness.apply_action(run, "retry")
    harness.round()


def _failed_again(harness: LabHarness) -> None:
    run = _running(harness)
    harness.say(run, BROKEN)
    harness.round()
    harness.apply_action(run, "retry")


def _unreadable(harness: LabHarness) -> None:
    """A queued run whose budget nobody can read."""
    run = harness.submit()
    with harness.database.writing() as session:
        experiment = session.get_one(RunRow, run).experiment
        experiment.spec = {**experiment.spec, "budget": {"device_seconds": -1}}
    harness.round()


SCENARIOS: dict[tuple[RunState, RunState], Scenario] = {
    ("QUEUED", "STARTING"): _starting,
    ("QUEUED", "PAUSED"): _acted("QUEUED", "pause"),
    ("QUEUED", "STOPPED"): _stopped_again,
    ("QUEUED", "FAILED"): _unreadable,
    ("QUEUED", "CANCELLED"): _acted("QUEUED", "cancel"),
    ("STARTING", "RUNNING"): _running,
    ("STARTING", "QUEUED"): _lost("STARTING"),
    ("STARTING", "PAUSED"): _acted("STARTING", "pause", lost=True),
    ("STARTING", "STOPPED"): _said("STARTING", OVERSPENT, budget=BUDGET),
    ("STARTING", "FAILED"): _said("STARTING", BROKEN),
    ("STARTING", "CANCELLED"): _acted("STARTING", "kill"),
    ("RUNNING", "SUCCEEDED"): _finished,
    ("RUNNING", "QUEUED"): _lost("RUNNING"),
    ("RUNNING", "PAUSED"): _acted("RUNNING", "pause", lost=True),
    ("RUNNING", "STOPPED"): _said("RUNNING", OVERSPENT, budget=BUDGET),
    ("RUNNING", "FAILED"): _said("RUNNING", BROKEN),
    ("RUNNING", "CANCELLED"): _acted("RUNNING", "cancel", lost=True),
    ("PAUSED", "QUEUED"): _acted("QUEUED", "pause", "resume"),
    ("PAUSED", "CANCELLED"): _acted("QUEUED", "pause", "cancel"),
    ("STOPPED", "QUEUED"): _stopped_again,
    ("FAILED", "QUEUED"): _failed_again,
    ("CANCELLED", "QUEUED"): _acted("QUEUED", "cancel", "retry"),
}
"""How a test brings about each allowed move."""


def _extended(harness: LabHarness) -> None:
    run = harness.submit(budget=BUDGET)
    with harness.database.writing() as session:
        extend(session, session.get_one(RunRow, run), 60.0, "key")


def _moved_up(harness: LabHarness) -> None:
    run = harness.submit()
    with harness.database.writing() as session:
        prioritise(session, session.get_one(RunRow, run), 3)


def _told(harness: LabHarness) -> None:
    """A run that ends while somebody listens."""
    harness.settings.webhook_hosts = ["127.0.0.1"]
    with serve_webhooks() as webhook_server:
        with harness.database.writing() as session:
            register(session, WebhookRequest(url=webhook_server.url()), "ann")
        harness.apply_action(harness.submit(), "cancel")
        postman = DeliveryWorker(harness.settings, harness.database)
        postman.round()
        postman.wait(30)


def _tidied(harness: LabHarness) -> None:
    """A failed run with more checkpoints than anybody needs."""
    run = _running(harness)
    for step in (1, 2, 3):
        path = f"{checkpoints_folder(run)}/stage/{step:08d}-a0001.safetensors"
        harness.storage.write_bytes(path, with_checksum(b"state"))
    harness.say(run, BROKEN)
    harness.round()
    CheckpointCleaner(harness.settings, harness.database, harness.storage).round()


PLACES: dict[str, Scenario] = {
    **{
        f"{name}:{{}}:{passing}": _finished
        for name in ("commit/before", "commit/after", "publish/before", "publish/written", "publish/after")
        for passing in (1, 2, 4)
    },
    "ray/submit/before:{}": _starting,
    "ray/submit/after:{}": _starting,
    "ray/stop:{}": _acted("RUNNING", "kill"),
    "submit:{}": _queued,
    "claim:{}": _starting,
    "event:{}": _finished,
    "event:{}:2": _finished,
    "request/pause:{}": _acted("QUEUED", "pause"),
    "request/extend:{}": _extended,
    "request/priority:{}": _moved_up,
    "retention/delete:{}": _tidied,
    "retention/delete:{}:2": _tidied,
    "webhook/announced:{}": _told,
    "webhook/send/before:{}": _told,
    "webhook/send/after:{}": _told,
    **{f"{move_point(*move)}:{{}}": scenario for move, scenario in SCENARIOS.items()},
}


def test_every_allowed_move_has_a_failpoint_and_a_scenario() -> None:
    assert SCENARIOS.keys() == {(state, to) for state, targets in MOVES.items() for to in targets}


def test_every_failpoint_of_the_code_is_in_the_catalogue() -> None:
    found = set()
    for package in ("grafting_core", "workers", "service", "migrations"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
                    found |= {part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)}
    named = {name for name in found if name not in ("request/",)}
    assert named == {name for name in POINTS if "{" not in name}


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    shutil.copy(sqlite_template, tmp_path / "graftlab.db")
    return tmp_path


def _in_child(folder: Path, armed: str, scenario: Scenario) -> int:
    """Play a scenario in a process of its own; returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            harness = LabHarness(folder)
            arm(armed)
            scenario(harness)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


CASES = [
    (place, action)
    for place in PLACES
    for action in ("kill", "raise", "enospc")
    if (action != "enospc" or place.startswith("publish")) and (action == "kill" or "move" not in place)
]


@pytest.mark.parametrize(("place", "action"), CASES)
def test_whatever_happens_there_the_invariants_hold_and_the_next_process_ends_all_runs(
    folder: Path, place: str, action: str
) -> None:
    code = _in_child(folder, place.format(action), PLACES[place])
    if action == "kill":
        assert code == -signal.SIGKILL, "the scenario never came by this failpoint"
    harness = LabHarness(folder)
    with harness.database.writing() as session:
        # The dead process leads until its lease runs out; waiting for that is not what is tested.
        session.execute(text("UPDATE leases SET until = 0"))
    assert harness.violations() == []
    ended = harness.drain()
    assert harness.violations() == []
    assert {state for state, _ in ended.values()} <= {"SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"}
    harness.database.engine.dispose()
