"""Follow runs: live progress on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from service.cli.console import escape, out
from service.cli.views import runs_table, stage_text
from service.client import GraftlabClient
from service.formatting import duration
from service.schemas.runs import TERMINAL, RunDetail

POLL_SECONDS = 1.0
LINE_SECONDS = 10.0


def follow(
    client: GraftlabClient,
    run_ids: list[str],
    on_poll: Callable[[], None] = lambda: None,
    console: Console = out,
) -> list[RunDetail]:
    """Poll runs until all have ended and return their final state; `on_poll` is called at every poll."""
    show = _live if console.is_terminal else _lines
    return show(client, run_ids, on_poll, console)


def _look(client: GraftlabClient, run_ids: list[str]) -> list[RunDetail]:
    return [client.run(run_id) for run_id in run_ids]


def _live(
    client: GraftlabClient, run_ids: list[str], on_poll: Callable[[], None], console: Console
) -> list[RunDetail]:
    runs = _look(client, run_ids)
    with Live(runs_table([*runs]), console=console, refresh_per_second=4) as live:
        while not all(run.state in TERMINAL for run in runs):
            on_poll()
            time.sleep(POLL_SECONDS)
            runs = _look(client, run_ids)
            live.update(runs_table([*runs]))
    return runs


def _lines(
    client: GraftlabClient, run_ids: list[str], on_poll: Callable[[], None], console: Console
) -> list[RunDetail]:
    began, shown, printed = time.monotonic(), 0.0, dict.fromkeys(run_ids, "")
    while True:
        on_poll()
        runs = _look(client, run_ids)
        regular = time.monotonic() - shown > LINE_SECONDS
        for run in runs:
            changed = run.state != printed[run.id]
            if changed or (regular and run.state not in TERMINAL and run.progress):
                printed[run.id] = run.state
                console.print(f"{duration(time.monotonic() - began):>6}  {_line(run)}", soft_wrap=True)
        shown = time.monotonic() if regular else shown
        if all(run.state in TERMINAL for run in runs):
            return runs
        time.sleep(POLL_SECONDS)


def _line(run: RunDetail) -> str:
    left = (
        f", {duration(run.progress.seconds_left)} left" if run.progress and run.progress.seconds_left else ""
    )
    return f"{escape(run.name):24} {run.state:9} {stage_text(run)}{left}"
