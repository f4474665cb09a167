"""Latency of every page and route of a large lab: `python -m benchmarks.growth [--write] [--runs 100000]`.

Measures on SQLite and PostgreSQL the requests that `benchmarks.routes` finds in the application, prints a
table, and with `--write` puts it into docs/results/load.md. `benchmarks.service` includes it.
"""

import argparse
import contextlib
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil
from fastapi import FastAPI

from benchmarks.grown_lab import Size, grow
from benchmarks.lab_under_load import Api, api_over, database_of
from benchmarks.routes import LEFT_OUT, Reading, readings
from grafting_core.storage.storage import Storage
from service.app import create_app
from service.db.engine import Database
from service.settings import Settings

REPORT = Path(__file__).parent.parent / "docs" / "results" / "load.md"
HEADING = "## Every page and route of a grown lab"
PROMISED_MS, TIMES = 300.0, 20
Figures = dict[str, tuple[float, float]]
"""Route -> p50 and p95 in milliseconds."""


def measure(kind: str, size: Size) -> Figures:
    """Measure on one database. The API runs as under `graft up`."""
    with (
        tempfile.TemporaryDirectory(prefix="graftlab-grown-") as name,
        database_of(kind, Path(name)) as database,
    ):
        folder = Path(name)
        storage = Storage(Settings(data_dir=folder).storage)
        began = time.monotonic()
        grown = grow(database, storage, size)
        print(f"{kind}: filled in {time.monotonic() - began:.0f} s", flush=True)
        with application(database, folder) as app:
            requests = readings(app, grown)
        with api_over(database, folder) as api:
            return {reading.route: timed(api, reading) for reading in requests}


@contextlib.contextmanager
def application(database: Database, folder: Path) -> Iterator[FastAPI]:
    """Yield the application, whose routes are listed."""
    url = database.engine.url.render_as_string(hide_password=False)
    app = create_app(Settings(data_dir=folder, database_url=url))
    yield app
    app.state.lab.database.engine.dispose()


def timed(api: Api, reading: Reading) -> tuple[float, float]:
    """Return p50 and p95 of sequential requests, without the first. Raises RuntimeError if one is refused."""
    line = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
    times = [_seconds(line, api, reading) for _ in range(TIMES + 1)][1:]
    line.close()
    return 1000 * statistics.median(times), 1000 * sorted(times)[int(0.95 * TIMES) - 1]


def _seconds(line: http.client.HTTPConnection, api: Api, reading: Reading) -> float:
    began = time.perf_counter()
    line.request("GET", reading.address, headers=api.headers)
    answer = line.getresponse()
    body = answer.read()
    if reading.route != "/readyz" and (answer.status >= 400) != reading.refused:
        raise RuntimeError(f"{reading.address}: {answer.status} {body[:300]!r}")
    return time.perf_counter() - began


def section(size: Size, found: dict[str, Figures]) -> str:
    """Return the table, slowest first."""
    slowest = sorted(next(iter(found.values())), key=lambda route: -max(f[route][1] for f in found.values()))
    names = " | ".join(f"{kind} p50 | p95" for kind in found)
    rows = [_row(route, [figures[route] for figures in found.values()]) for route in slowest]
    left_out = "; ".join(f"`{route}` ({reason})" for route, reason in LEFT_OUT.items())
    return "\n".join(
        [
            HEADING,
            "",
            f"Measured with a load average of {os.getloadavg()[1]:.1f} on {psutil.cpu_count()} cores.",
            f"{size.runs:,} runs that have ended, {size.queued:,} queued, one under way with {size.events:,}"
            f" events, and {size.others:,} each of",
            "studies, scions, accounts, keys, webhooks and deliveries of one webhook, and a tenth as many"
            " registered backbones. Milliseconds from the",
            f"request to the end of the answer, {TIMES} times one after another; each route by itself and"
            " with each of its",
            f"parameters (then with the largest page). Promised: p95 below {PROMISED_MS:g} ms. Left out: "
            f"{left_out}.",
            "",
            f"| route | {names} | kept |",
            f"|---|{'---|---|' * len(found)}---|",
            *rows,
            "",
        ]
    )


def _row(route: str, figures: Sequence[tuple[float, float]]) -> str:
    cells = " | ".join(f"{p50:.1f} | {p95:.1f}" for p50, p95 in figures)
    kept = all(p95 < PROMISED_MS for _, p95 in figures)
    return f"| `{route}` | {cells} | {'yes' if kept else 'NO'} |"


def write(text: str) -> None:
    """Replace the section in the report."""
    rest = REPORT.read_text().split(HEADING)[0].rstrip()
    REPORT.write_text(f"{rest}\n\n{text}")


def of_all(kinds: Iterable[str], size: Size) -> str:
    """Return the section for these databases."""
    return section(size, {kind: measure(kind, size) for kind in kinds})


def main() -> None:
    """Measure both databases, print, and write if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/results/load.md")
    parser.add_argument(
        "--runs", type=int, default=100_000, help="and as many events, a tenth as many queued"
    )
    parser.add_argument("--only", choices=["sqlite", "postgresql"], action="append")
    given = parser.parse_args()
    size = Size(given.runs, given.runs // 10, given.runs, max(20, given.runs // 100))
    text = of_all(given.only or ["sqlite", "postgresql"], size)
    print(text)
    if given.write:
        write(text)


if __name__ == "__main__":
    main()
