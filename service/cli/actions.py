"""`graft pause`, `resume`, `retry`, `extend`, `cancel`, `kill`, `priority`, `queue` and `budget`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from service.api.schemas import AccountView, ActionResult, QueueView
from service.cli.console import Refused, duration, engineering, out, print_json, table
from service.cli.lab import find_url
from service.client import GraftlabClient

Url = Annotated[
    str | None, typer.Option("--url", help="The lab's address (else GRAFTLAB_URL, else lab.json).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Runs = Annotated[list[str], typer.Argument(help="Run ids, or beginnings.")]
HELP = {
    "pause": "Set runs aside after their next checkpoint; queued ones at once.",
    "resume": "Let paused runs go on where they were.",
    "cancel": "End runs after their next checkpoint; queued ones at once.",
    "kill": "End runs now; what came after the last checkpoint is lost.",
    "retry": "Try runs that failed, stopped or were cancelled again, from their last checkpoint.",
}


def run_id_of(client: GraftlabClient, prefix: str) -> str:
    """The one run whose id begins so. Raises Refused."""
    sensible = prefix.isalnum() and prefix.islower() | prefix.isdigit()
    found = client.runs(prefix=prefix, limit=2).runs if sensible else []
    if len(found) != 1:
        count = len(found) or "no"
        raise Refused([f"{count} runs have an id beginning with {prefix!r}; `graft ls` lists them"])
    return found[0].id


def _act(runs: list[str], url: str | None, action: str, **more: Any) -> None:
    """Exit code 1 where a run refused; the others have been done."""
    client = GraftlabClient(find_url(url))
    results = client.act(action, [run_id_of(client, run) for run in runs], **more)
    for result in results:
        out.print(f"{result.run_id}  {escape(_said(result, action))}")
    if any(result.problem for result in results):
        raise typer.Exit(1)


def _said(result: ActionResult, action: str) -> str:
    if result.problem:
        return result.problem
    if not result.changed:
        return f"{result.state}, as before"
    later = action in ("pause", "cancel") and result.state in ("STARTING", "RUNNING")
    return f"{result.state}; will {action} at its next checkpoint" if later else str(result.state)


def simple_command(action: str) -> Callable[..., None]:
    """The command of an action that takes nothing but runs."""

    def command(runs: Runs, url: Url = None) -> None:
        _act(runs, url, action)

    command.__doc__ = HELP[action]
    return command


def extend_command(
    runs: Runs,
    device_seconds: Annotated[float, typer.Option("--device-seconds", "-s", min=1e-9, help="How many more.")],
    url: Url = None,
) -> None:
    """Grant runs more device-seconds; those that a spent budget stopped go on."""
    _act(runs, url, "extend", device_seconds=device_seconds)


def priority_command(
    priority: Annotated[int, typer.Argument(min=-1000, max=1000, help="Higher goes first.")],
    runs: Runs,
    url: Url = None,
) -> None:
    """Change the place of runs in the queue."""
    _act(runs, url, "priority", priority=priority)


def queue_command(
    run: Annotated[str | None, typer.Argument(help="One run alone: its id, or the beginning.")] = None,
    url: Url = None,
    json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
) -> None:
    """Who is next, what each queued run waits for, and when it should start."""
    client = GraftlabClient(find_url(url))
    view = client.queue(limit=limit, run=run_id_of(client, run) if run else None)
    print_json(view) if json else _show_queue(view)


def _show_queue(view: QueueView) -> None:
    gpus = f", {view.free_gpus} of {view.gpus} GPUs" if view.gpus else ""
    out.print(f"{view.queued} queued; {view.free_cpus} of {view.cpus} CPUs{gpus} free")
    rows = table("#", "run", "name", "owner", "priority", "starts in", "waits for", right=("#", "priority"))
    for entry in view.entries:
        start = duration(entry.expected_start_seconds)
        words = [str(entry.position), entry.run_id, escape(entry.name), escape(entry.owner)]
        rows.add_row(*words, str(entry.priority), start, escape(entry.waits_for))
    out.print(rows)


def budget_command(
    account: Annotated[
        str | None, typer.Argument(help="`lab`, `user/NAME` or `study/NAME`, to set its limits.")
    ] = None,
    device_seconds: Annotated[float | None, typer.Option(min=1e-9)] = None,
    flops: Annotated[float | None, typer.Option(min=1e-9)] = None,
    training_images: Annotated[int | None, typer.Option(min=1)] = None,
    share: Annotated[float | None, typer.Option(min=1e-12, help="Of pretraining compute.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0)] = None,
    max_running: Annotated[int | None, typer.Option(min=0)] = None,
    max_cpus: Annotated[int | None, typer.Option(min=0)] = None,
    max_gpus: Annotated[int | None, typer.Option(min=0)] = None,
    url: Url = None,
    json: AsJson = False,
) -> None:
    """Accounts with what they may use and have used; or set one's limits: what is left out is unlimited."""
    client = GraftlabClient(find_url(url))
    if account is None:
        accounts = client.accounts()
    else:
        budget = {
            "device_seconds": device_seconds,
            "flops": flops,
            "training_images": training_images,
            "share_of_pretraining": share,
        }
        quotas = {
            "max_queued": max_queued,
            "max_running": max_running,
            "max_cpus": max_cpus,
            "max_gpus": max_gpus,
        }
        accounts = [client.set_limits(*_account(account), budget, quotas)]
    print_json(accounts) if json else _show_accounts(accounts)


def _account(text: str) -> tuple[str, str]:
    scope, _, name = text.partition("/")
    if scope not in ("lab", "user", "study") or (not name and scope != "lab"):
        raise Refused([f"{text!r} is no account; write lab, user/NAME or study/NAME"])
    return scope, name or "lab"


def _show_accounts(accounts: list[AccountView]) -> None:
    columns = ("device-s", "FLOPs", "images", "of pretraining")
    rows = table("account", *columns, "quotas", right=columns)
    for account in accounts:
        limits, spent = account.limits, account.spent
        rows.add_row(
            account.scope if account.scope == "lab" else f"{account.scope} {escape(account.name)}",
            _of(spent.device_seconds, limits.device_seconds),
            _of(spent.flops, limits.flops),
            _of(spent.training_images, limits.training_images),
            _of(account.share_of_pretraining, limits.share_of_pretraining),
            _quotas(account),
        )
    out.print(rows)


def _of(used: float, limit: float | None) -> str:
    return engineering(used) if limit is None else f"{engineering(used)} / {engineering(limit)}"


def _quotas(account: AccountView) -> str:
    kinds = ("queued", "running", "cpus", "gpus")
    given = {kind: getattr(account, f"max_{kind}") for kind in kinds}
    return ", ".join(f"{most} {kind}" for kind, most in given.items() if most is not None)


def install(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for action in HELP:
        app.command(action)(simple_command(action))
    app.command("extend")(extend_command)
    app.command("priority")(priority_command)
    app.command("queue")(queue_command)
    app.command("budget")(budget_command)
