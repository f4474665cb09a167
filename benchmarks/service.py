"""The service under load on SQLite and PostgreSQL: `python -m benchmarks.service [--write] [--soak 1800]`.

Prints a table of p50/p95/p99 in milliseconds with the promised limits; `--write` puts it into
docs/results/load.md. `--soak SECONDS` adds resident memory under half the submission load. Clients, API
and database share the machine.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import math
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import select, text, update

from benchmarks import growth
from benchmarks.grown_lab import Size
from benchmarks.lab_under_load import DESIGN, Api, analyse, api_over, copy, copy_run, database_of, template
from grafting_core.storage.storage import Storage
from service.control import ClusterControl
from service.db.engine import Database
from service.db.leader_lease import Leadership
from service.db.tables import AttemptRow, RunRow, now
from service.domain.run_lifecycle import record
from service.scheduler.loop import Scheduler
from service.settings import Settings
from workers.contract import Event, Progress

REPORT = Path(__file__).parent.parent / "docs" / "results" / "load.md"
HEAD = "| what | database | p50 | p95 | p99 | promised | kept |\n|---|---|---|---|---|---|---|"
RUNS, EVENTS, LISTENERS = 100_000, 1_000_000, 200
QUEUES = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Line:
    """One row of the table in the unit `unit`; the promise concerns p95, or the value."""

    what: str
    database: str
    figures: tuple[float, ...]
    unit: str
    promise: str
    kept: bool

    def __str__(self) -> str:
        shown = [f"{figure:,.0f}" if figure >= 10 else f"{figure:.1f}" for figure in self.figures]
        cells = [*shown, *[""] * (3 - len(shown))]
        first = f"{cells[0]} {self.unit}"
        kept = "yes" if self.kept else "NO"
        return (
            f"| {self.what} | {self.database} | {first} | {cells[1]} | {cells[2]} | {self.promise} | {kept} |"
        )


def line(what: str, database: str, seconds: Sequence[float], at_most_ms: float) -> Line:
    """Return percentiles of times, and whether the 95th meets the promise."""
    p50, p95, p99 = (1000 * percentile(seconds, share) for share in (0.5, 0.95, 0.99))
    return Line(what, database, (p50, p95, p99), "ms", f"p95 <= {at_most_ms:g} ms", p95 <= at_most_ms)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Caller:
    """One kept-alive connection."""

    def __init__(self, api: Api) -> None:
        self._api, self._http = api, http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)

    def ask(self, method: str, path: str, document: object = None) -> float:
        """Return the seconds until the whole answer has arrived. Raises RuntimeError unless it is a
        success.
        """
        headers = {**self._api.headers, "Content-Type": "application/json"}
        began = time.perf_counter()
        self._http.request(method, path, json.dumps(document) if document else None, headers)
        answer = self._http.getresponse()
        body = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {body[:300]!r}")
        return time.perf_counter() - began


def sustained(api: Api, seconds: float, callers: int = 8) -> float:
    """Return the submissions per second that `callers` reach, each sending as soon as it is answered."""
    end, counts = time.monotonic() + seconds, [0] * callers

    def work(index: int) -> None:
        caller = Caller(api)
        while time.monotonic() < end:
            caller.ask("POST", "/api/v1/experiments", DESIGN)
            counts[index] += 1

    _together(work, callers)
    return sum(counts) / seconds


def submissions(api: Api, rate: float, seconds: float, callers: int = 16) -> list[float]:
    """Return times of submissions sent at a fixed rate, including the wait for a free caller."""
    began, taken = time.perf_counter(), itertools.count()
    times: list[float] = []

    def work(_: int) -> None:
        caller = Caller(api)
        while (due := began + next(taken) / rate) < began + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            caller.ask("POST", "/api/v1/experiments", DESIGN)
            times.append(time.perf_counter() - due)

    _together(work, callers)
    return times


def _together(work: Callable[[int], None], callers: int) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sequential(api: Api, paths: Iterator[str], count: int = 150) -> list[float]:
    """Return times of sequential requests, without the first few."""
    caller = Caller(api)
    return [caller.ask("GET", next(paths)) for _ in range(count + 10)][10:]


def measure_submissions(kind: str, database: Database, api: Api) -> Iterator[Line]:
    """Measure submissions, with only the callers running besides."""
    at_rate = submissions(api, 50, 10)
    yield line("submit at 50/s", kind, at_rate, 100)
    least = 100 if kind == "sqlite" else 200
    reached = sustained(api, 8)
    yield Line("submissions sustained", kind, (reached,), "/s", f">= {least}/s", reached >= least)


def measure_reading(kind: str, database: Database, api: Api) -> Iterator[Line]:
    """Measure lists, leaderboard and events of large tables."""
    with database.writing() as session:
        run = template(session, succeeded=True)
        copy_run(session, run, RUNS, "0b")
    analyse(database)
    cursors = (f"0b{10_000_000 + random.randrange(100, RUNS)}" for _ in itertools.count())
    pages = (f"/api/v1/runs?limit=50&cursor={cursor}" for cursor in cursors)
    yield line(f"50 runs of {RUNS:,}", kind, sequential(api, pages), 50)
    yield line(
        f"leaderboard of {RUNS:,}", kind, sequential(api, itertools.repeat("/api/v1/leaderboard")), 100
    )
    with database.writing() as session:
        copy(session, "runs", f"id = '{run.id}'", 1, id="'0event'", last_event=str(EVENTS))
        kept = "id = (SELECT max(id) FROM events)"
        copy(session, "events", kept, EVENTS, id="", run_id="'0event'", seq="n.i")
    analyse(database)
    starts = (random.randrange(EVENTS) for _ in itertools.count())
    pages = (f"/api/v1/runs/0event/history?limit=200&after={start}" for start in starts)
    yield line(f"200 events of a run with {EVENTS:,}", kind, sequential(api, pages), 50)


def measure_streams(kind: str, database: Database, api: Api) -> Iterator[Line]:
    """Measure ten listeners on each of twenty runs, with an event every 50 ms for ten seconds."""
    with database.writing() as session:
        runs = [template(session, succeeded=False).id for _ in range(LISTENERS // 10)]
    latencies = asyncio.run(_listen(api, database, runs))
    yield line(f"event to each of {LISTENERS} listeners", kind, latencies, 1000)
    if kind == "postgresql":
        with database.reading() as session:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'load' AND pid <> pg_backend_pid()"
            open_now = float(session.execute(text(query)).scalar_one())
        yield Line("connections the listeners leave open", kind, (open_now,), "", "<= 10", open_now <= 10)


async def _listen(api: Api, database: Database, runs: list[str]) -> list[float]:
    latencies: list[float] = []
    tasks = [
        asyncio.create_task(_listener(api, runs[index % len(runs)], latencies)) for index in range(LISTENERS)
    ]
    await asyncio.sleep(3)
    await asyncio.to_thread(_tell, database, runs)
    await asyncio.sleep(3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    expected = 200 * LISTENERS // len(runs)
    if len(latencies) != expected:
        raise RuntimeError(f"{expected} events should have arrived, {len(latencies)} did")
    return latencies


async def _listener(api: Api, run: str, latencies: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"GET /api/v1/runs/{run}/events?after=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    writer.write(f"{head}Authorization: {api.headers['Authorization']}\r\n\r\n".encode())
    while data := await reader.readline():
        if data.startswith(b"data: {") and b'"progress"' in data:
            latencies.append(time.time() - json.loads(data[6:])["event"]["at"])


def _tell(database: Database, runs: list[str]) -> None:
    for number in range(200):
        run_id = runs[number % len(runs)]
        body = Progress(stage="finetune", step=number, total_steps=200, values={"loss": 0.5})
        with database.writing() as session:
            event = Event(run_id=run_id, attempt=1, seq=1 + number, at=time.time(), body=body)
            run = session.get_one(RunRow, run_id, with_for_update=True)
            record(session, run, "attempt", event.model_dump(mode="json"))
        time.sleep(0.05)


class IdleCluster:
    """Job table instead of Ray, in which every job runs: only the scheduler's own work is measured."""

    def submit(self, job: str, entrypoint: str) -> None: ...

    def running(self) -> list[str]:
        return []

    def status(self, job: str) -> str | None:
        return "RUNNING"

    def stop(self, job: str) -> None: ...


def _scheduler(settings: Settings, database: Database) -> Scheduler:
    lease = Leadership(database, settings.lead_seconds, "scheduler")
    return Scheduler(ClusterControl(settings, database, Storage(settings.storage), lease, IdleCluster()))


def measure_scheduler(kind: str, database: Database, folder: Path) -> Iterator[Line]:
    """Measure rounds over a long queue, then the first round of a new scheduler over many live attempts."""
    settings = Settings(data_dir=folder, database_url=database.url, cpus=1)
    with database.writing() as session:
        session.execute(text("UPDATE runs SET state = 'SUCCEEDED' WHERE state <> 'SUCCEEDED'"))
    scheduler = _scheduler(settings, database)
    medians: dict[int, float] = {}
    for prefix, length in zip(("1q", "2q", "3q"), QUEUES, strict=True):
        with database.writing() as session:
            run = template(session, succeeded=False)  # a new run: the last round has started the previous one
            copy_run(session, run, length - max(medians, default=0), prefix)
        analyse(database)
        rounds = [_timed(scheduler.round) for _ in range(23)][3:]
        medians[length] = statistics.median(rounds)
        yield line(f"scheduler round, {length:,} queued", kind, rounds, 100)
    yield _growth(kind, medians)
    scheduler.control.lease.release()
    with database.writing() as session:
        session.execute(update(RunRow).where(RunRow.state != "SUCCEEDED").values(state="SUCCEEDED"))
        some = list(session.scalars(select(RunRow.id).where(RunRow.id > "3q1000", RunRow.id < "3q10001001")))
        session.execute(update(RunRow).where(RunRow.id.in_(some)).values(state="RUNNING", attempt=1))
        session.add_all(AttemptRow(run_id=run_id, number=1, submitted_at=now()) for run_id in some)
    fresh = _scheduler(settings, database)
    seconds = _timed(fresh.round)
    fresh.control.lease.release()
    yield Line("restart with 1,000 live attempts", kind, (seconds,), "s", "<= 60 s", seconds <= 60)


def _growth(kind: str, medians: dict[int, float]) -> Line:
    """Return the growth of a round with the queue's length; a logarithm would give 2 from 100 to 10,000."""
    least, most = min(medians), max(medians)
    allowed = math.log(most) / math.log(least)
    grown = medians[most] / medians[least]
    what = f"growth of a round from {least:,} to {most:,} queued"
    return Line(what, kind, (grown,), "x", f"<= {allowed:g}x, a logarithm's", grown <= allowed)


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_memory(kind: str, database: Database, api: Api, seconds: float) -> Iterator[Line]:
    """Measure the growth of the API's resident memory from the first tenth to the last, at 25
    submissions/s.
    """
    first_process = psutil.Process(api.process.pid)
    processes, seen = [first_process, *first_process.children(recursive=True)], []
    loader = threading.Thread(target=submissions, args=(api, 25, seconds))
    loader.start()
    while loader.is_alive():
        seen.append(sum(process.memory_info().rss for process in processes) / 2**20)
        time.sleep(1)
    tenth = max(1, len(seen) // 10)
    first = statistics.mean(seen[tenth : 2 * tenth])
    growth = 100 * (statistics.mean(seen[-tenth:]) / first - 1)
    what = f"memory growth in {seconds / 60:.0f} min at 25/s, from {first:.0f} MiB"
    yield Line(what, kind, (growth,), "%", "<= 5 %", growth <= 5)


def measure(kind: str, soak: float) -> Iterator[Line]:
    """Yield all lines of one database."""
    with (
        tempfile.TemporaryDirectory(prefix="graftlab-load-") as name,
        database_of(kind, Path(name)) as database,
    ):
        folder = Path(name)
        with api_over(database, folder) as api:
            yield from measure_submissions(kind, database, api)
            yield from measure_streams(kind, database, api)
            if soak:
                yield from measure_memory(kind, database, api, soak)
            yield from measure_reading(kind, database, api)
        yield from measure_scheduler(kind, database, folder)


def main() -> None:
    """Measure both databases, print, and write the report if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/results/load.md")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of half load for the memory line")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], action="append")
    given = parser.parse_args()
    print(HEAD)
    lines = []
    for kind in given.only or ["sqlite", "postgresql"]:
        for found in measure(kind, given.soak):
            print(found, flush=True)
            lines.append(str(found))
    grown = growth.of_all(given.only or ["sqlite", "postgresql"], Size())
    print(grown)
    if given.write:
        REPORT.write_text(report(lines))
        growth.write(grown)


def report(lines: list[str]) -> str:
    """Return the page, with place and time of the measurement and the machine's load."""
    busy = f"load average {os.getloadavg()[1]:.1f}"
    machine = f"{psutil.cpu_count()} cores, {platform.system()} {platform.machine()} ({busy})"
    return INTRODUCTION.format(machine=machine, day=f"{datetime.now(UTC):%Y-%m-%d}") + "\n".join(lines) + "\n"


INTRODUCTION = f"""# The service under load

Measured by `make load` on {{machine}}, {{day}}. Clients, API and database share the machine. SQLite commits
with `synchronous=FULL`, PostgreSQL with `fsync`. The API is one process on SQLite and one per core on
PostgreSQL, as by default. Figures are milliseconds unless a unit is named. The scheduler's rows measure its
own work: Ray is replaced by a job table that answers at once.

{HEAD}
"""


if __name__ == "__main__":
    main()
