"""What a page or route reads does not grow with what it does not show: counted, not timed, so that no
machine's load can change it. The routes are taken from the application: new ones are held to it too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event as sql_event
from sqlalchemy import select

from benchmarks.grown_lab import Grown, Size, grow
from benchmarks.routes import readings
from grafting_core.storage.storage import Storage
from service.app import create_app
from service.db.engine import Database
from service.db.migrate import upgrade
from service.db.tables import RunRow
from service.domain.queue_explain import queue_view
from service.domain.run_curves import POINTS, SPANS, WITHIN, loss_curves
from service.local_keys import first_key
from service.settings import Settings
from tests.support.databases import new_database

SIZES = (Size(200, 120, 400, 60), Size(800, 480, 1600, 240))
"""Pages are full at the first; the second is four times as large."""
LIMIT = 20
WINDOWS = {
    "service.domain.stopped_runs.SHOWN": 5,
    "service.domain.stopped_runs.LOOKED_AT": 10,
    "service.domain.rung_agreement.NEWEST": 40,
    "service.domain.bank_catalog.LOOKED_AT": 30,
    "service.domain.run_curves.POINTS": 100,
    "service.domain.queue_explain.FOLLOWED": 10,
    "service.domain.admission.PAGE": 10,
    "service.domain.admission.HELD_AT_MOST": 10,
    "benchmarks.grown_lab.OWNER": "'user' || CAST(n.i % 5 AS TEXT)",
    "benchmarks.grown_lab.PROTOCOL": "'protocol 0'",
    "benchmarks.grown_lab.PROTOCOLS": 1,
    "benchmarks.grown_lab.STUDY_RUNS": 2,
}
"""Made smaller, so that small labs fill them."""
SHOW_ALL = ("/api/v1/keys", "/api/v1/accounts", "/api/v1/webhooks", "/api/v1/backbones", "/operators")
"""These list everything there is."""
COUNT = ("leaderboard", "/metrics", "/api/v1/queue", "/api/v1/webhooks", "/api/v1/admin/tracking")
"""These say how many there are of something, and may walk an index to do so."""
KEY_LOOKED_UP = 5
"""Statements: what is remembered of a key is looked up anew every few seconds, whichever route is asked."""
STEPS_A_ROW = 12
"""Of SQLite's machine, to count one row by an index."""


@dataclass
class Effort:
    """What a request made a database do."""

    statements: int = 0
    rows: int = 0
    steps: int = 0
    """Hundreds of instructions of SQLite's machine; 0 elsewhere."""


def watch(database: Database, effort: Effort) -> None:
    """Count from now on."""

    def row(cursor: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        effort.rows += 1
        return values

    def step() -> int:
        effort.steps += 1
        return 0

    def checked_out(connection: Any, *rest: object) -> None:
        if database.engine.dialect.name == "sqlite":
            connection.row_factory = row
            connection.set_progress_handler(step, 100)

    def executed(connection: object, cursor: Any, *rest: object) -> None:
        effort.statements += 1
        effort.rows += max(0, cursor.rowcount)

    sql_event.listen(database.engine, "checkout", checked_out)
    sql_event.listen(database.engine, "after_cursor_execute", executed)


@pytest.fixture(params=["sqlite", "postgresql"])
def efforts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Effort]]:
    """What each route costs in a lab, and in one four times as large."""
    for name, value in WINDOWS.items():
        monkeypatch.setattr(name, value)
    found = []
    for number, size in enumerate(SIZES):
        folder = tmp_path / str(number)
        folder.mkdir()
        url = new_database(request, request.param, folder)
        found.append(dict(measured(Settings(data_dir=folder, database_url=url, cpus=4), size)))
    return found


def measured(settings: Settings, size: Size) -> Iterator[tuple[str, Effort]]:
    app = create_app(settings)
    database: Database = app.state.lab.database
    grown = grow(database, Storage(settings.storage), size)
    effort = Effort()
    watch(database, effort)
    headers = {"Authorization": f"Bearer {first_key(settings.data_dir)}"}
    with TestClient(app, "http://127.0.0.1", headers=headers, raise_server_exceptions=False) as client:
        client.get("/healthz")
        for reading in readings(app, grown, LIMIT):
            client.get(reading.address, follow_redirects=False)  # what is remembered is read now
            effort.statements = effort.rows = effort.steps = 0
            answer = client.get(reading.address, follow_redirects=False)
            if not reading.route.startswith("/readyz"):
                assert (answer.status_code >= 400) == reading.refused, (reading, answer.text[:300])
            yield reading.route, Effort(effort.statements, effort.rows, effort.steps)
    database.engine.dispose()


def test_no_route_reads_more_in_a_larger_lab_than_it_shows(efforts: list[dict[str, Effort]]) -> None:
    small, large = efforts
    assert small.keys() == large.keys()
    assert len(small) > 50
    grew = {
        route: (small[route], large[route]) for route in large if grows(route, small[route], large[route])
    }
    assert grew == {}, grew


def grows(route: str, before: Effort, after: Effort) -> bool:
    """Whether a route does more than a few rows' worth of further work in the larger lab."""
    if route in SHOW_ALL:
        return after.statements > before.statements + KEY_LOOKED_UP
    more = SIZES[1].runs + SIZES[1].queued - SIZES[0].runs - SIZES[0].queued
    steps = 1.2 * before.steps + 60
    if route == "/" or any(part in route for part in COUNT):
        steps += STEPS_A_ROW * 3 * more / 100
    few = after.statements <= before.statements + KEY_LOOKED_UP and after.rows <= before.rows + 12
    return not few or after.steps > steps


@pytest.fixture
def grown(database: Database, tmp_path: Path) -> Grown:
    return grow(database, Storage(str(tmp_path / "storage")), Size(30, 40, 3000, 12))


def test_a_curve_is_drawn_from_so_many_events_and_keeps_its_ends(database: Database, grown: Grown) -> None:
    with database.reading() as session:
        last = session.get_one(RunRow, grown.eventful).last_event
        curves = loss_curves(session, grown.eventful, last)
    points = curves["finetune"]
    assert POINTS / 2 < len(points) <= POINTS + SPANS * WITHIN
    assert (points[0], points[-1]) == ((2, 0.5), (3000, 1 / 3000))
    assert points == sorted(points)


def test_the_beginning_of_the_queue_is_the_whole_ones_and_a_run_is_found_in_its_place(
    database: Database, grown: Grown
) -> None:
    with database.reading() as session:
        whole = queue_view(session, 4, 0, 200)
        first = queue_view(session, 4, 0, 5)
        one = queue_view(session, 4, 0, 50, grown.queued)
    assert len(whole.entries) == whole.queued == first.queued == 41
    assert first.entries == whole.entries[:5]
    assert [entry.position for entry in whole.entries] == list(range(1, 42))
    assert one.entries == [entry for entry in whole.entries if entry.run_id == grown.queued]


def test_a_run_far_behind_is_placed_by_priority_and_age(
    database: Database, grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.domain.queue_explain.FOLLOWED", 3)
    with database.reading() as session:
        waiting = session.scalars(select(RunRow).where(RunRow.state == "QUEUED")).all()
        ordered = sorted(waiting, key=lambda run: (run.precedence, run.id))
        [entry] = queue_view(session, 4, 0, 50, ordered[-2].id).entries
        assert queue_view(session, 4, 0, 50, grown.ended).entries == []
    assert (entry.run_id, entry.position, entry.behind) == (ordered[-2].id, len(ordered) - 1, [])
    assert entry.expected_start_seconds is None


def test_lists_are_filtered_in_the_database_and_paged_to_the_end(database: Database, grown: Grown) -> None:
    app_lists = [
        {"name": "design 7"},
        {"states": ("FAILED", "STOPPED")},
        {"owner": "user3"},
        {"owner": "user3", "states": ("QUEUED", "SUCCEEDED")},
        {"prefix": "0b1000000"},
    ]
    from service.domain.run_queries import find_runs

    with database.reading() as session:
        everything = find_runs(session, limit=200).runs
        for asked in app_lists:
            expected = [
                run.id
                for run in everything
                if run.name == asked.get("name", run.name)
                and run.owner == asked.get("owner", run.owner)
                and run.state in asked.get("states", (run.state,))
                and run.id.startswith(asked.get("prefix", ""))
            ]
            found, cursor = [], None
            while True:
                page = find_runs(session, limit=2, before=cursor, **asked)
                found += [run.id for run in page.runs]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert found == expected
            assert expected


def test_a_database_of_before_knows_the_names_of_its_runs(database_url: str) -> None:
    from service.db.migrate import downgrade
    from service.domain.submission import submit
    from tests.support.builders import experiment

    database = Database(database_url)
    with database.writing() as session:
        run_id = submit(session, experiment(name="old one"), "digest", None).id
    downgrade(database, "0012")
    upgrade(database)
    with database.reading() as session:
        assert session.get_one(RunRow, run_id).name == "old one"
    database.engine.dispose()
