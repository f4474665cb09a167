"""`graft pause`, `resume`, `retry`, `extend`, `cancel`, `kill`, `priority`, `queue` and `budget`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from service.cli.accounts import budget_command
from service.cli.console import Refused, Yes, confirm, escape, out, print_json, say, table, visible
from service.cli.options import AsJson, Url, connect
from service.client import GraftlabClient
from service.formatting import duration
from service.schemas.runs import ActionResult, QueueView

Runs = Annotated[list[str], typer.Argument(help="Run ids, or their beginnings.")]
HELP = {
    "pause": "Pause runs after their next checkpoint; queued ones at once.",
    "resume": "Continue paused runs where they stopped.",
    "cancel": "End runs after their next checkpoint; queued ones at once.",
    "kill": "End runs now; work since the last checkpoint is lost.",
    "retry": "Retry runs that failed, stopped or were cancelled, from their last checkpoint.",
}


def run_id_of(client: GraftlabClient, prefix: str) -> str:
    """Return the id of the one run whose id begins with `prefix`. Raises Refused."""
    sensible = prefix.isalnum() and prefix.islower() | prefix.isdigit()
    matching = client.runs(prefix=prefix, limit=2).runs if sensible else []
    if len(matching) != 1:
        count = len(matching) or "no"
        raise Refused([f"{count} runs have an id beginning with {prefix!r}; `graft ls` lists them"])
    return matching[0].id


def _act(runs: list[str], url: str | None, action: str, **more: Any) -> None:
    """Apply an action to runs; exit with code 1 if any run refused it. The other runs are changed."""
    client = connect(url)
    results = client.act(action, [run_id_of(client, run) for run in runs], **more)
    for result in results:
        out.print(f"{result.run_id}  {escape(_outcome(result, action))}")
    if any(result.problem for result in results):
        raise typer.Exit(1)


def _outcome(result: ActionResult, action: str) -> str:
    if result.problem:
        return result.problem
    if not result.changed:
        return f"{result.state}, unchanged"
    later = action in ("pause", "cancel") and result.state in ("STARTING", "RUNNING")
    return f"{result.state}; will {action} at its next checkpoint" if later else str(result.state)


def simple_command(action: str) -> Callable[..., None]:
    """Make the command of an action that needs only runs."""

    def command(runs: Runs, url: Url = None) -> None:
        _act(runs, url, action)

    command.__doc__ = HELP[action]
    return command


def ending_command(action: str) -> Callable[..., None]:
    """Make the command of an action that ends runs; it asks for confirmation if work or several runs are
    lost.
    """

    def command(runs: Runs, url: Url = None, yes: Yes = False) -> None:
        if action == "kill":
            confirm(f"End {_counted(runs)} now and lose the work since the last checkpoint?", yes)
        elif len(runs) > 1:
            confirm(f"End {_counted(runs)}?", yes)
        _act(runs, url, action)

    command.__doc__ = HELP[action]
    return command


def _counted(runs: list[str]) -> str:
    return f"run {visible(runs[0])}" if len(runs) == 1 else f"{len(runs)} runs"


def extend_command(
    runs: Runs,
    device_seconds: Annotated[
        float, typer.Option("--device-seconds", "-s", min=1e-9, help="Number of device-seconds to add.")
    ],
    url: Url = None,
) -> None:
    """Grant runs more device-seconds; runs that stopped on their budget continue."""
    _act(runs, url, "extend", device_seconds=device_seconds)


def priority_command(
    priority: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher runs first.")],
    runs: Runs,
    url: Url = None,
) -> None:
    """Set the priority of runs in the queue."""
    _act(runs, url, "priority", priority=priority)


def queue_command(
    run: Annotated[
        str | None, typer.Argument(help="Show only this run: its id, or the beginning of it.")
    ] = None,
    url: Url = None,
    json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
) -> None:
    """Show the queue in order, with what each run waits for and its expected start."""
    client = connect(url)
    view = client.queue(limit=limit, run=run_id_of(client, run) if run else None)
    print_json(view) if json else _show_queue(view)
    if run is None and view.queued > len(view.entries):
        say([f"{len(view.entries)} of {view.queued} queued runs; --limit shows up to 200"])


def _show_queue(view: QueueView) -> None:
    gpus = f", {view.free_gpus} of {view.gpus} GPUs" if view.gpus else ""
    out.print(f"{view.queued} queued; {view.free_cpus} of {view.cpus} CPUs{gpus} free")
    rows = table("#", "run", "name", "owner", "priority", "starts in", "waits for", right=("#", "priority"))
    for entry in view.entries:
        start = duration(entry.expected_start_seconds)
        words = [str(entry.position), entry.run_id, escape(entry.name), escape(entry.owner)]
        rows.add_row(*words, str(entry.priority), start, escape(entry.waits_for))
    out.print(rows)


def install(app: typer.Typer) -> None:
    """Register these commands with the command line."""
    for action in HELP:
        make = ending_command if action in ("kill", "cancel") else simple_command
        app.command(action)(make(action))
    app.command("extend")(extend_command)
    app.command("priority")(priority_command)
    app.command("queue")(queue_command)
    app.command("budget")(budget_command)
