"""`graft admin` and `graft tracking`: keeping a lab in order."""

from typing import Annotated

import typer
from rich.markup import escape

from service.cli.console import engineering, out, print_json, table
from service.cli.lab import find_url
from service.client import GraftlabClient

admin_app = typer.Typer(help="Keeping a lab in order.", no_args_is_help=True)
tracking_app = typer.Typer(help="What MLflow shows.", no_args_is_help=True)
Url = Annotated[
    str | None, typer.Option("--url", help="The lab's address (else GRAFTLAB_URL, else lab.json).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@admin_app.command("verify")
def verify_command(url: Url = None, json: AsJson = False) -> None:
    """Check every invariant over database and storage; exit 1 where one does not hold."""
    found = GraftlabClient(find_url(url), timeout=600).verify()
    if json:
        print_json(found)
    for wrong in [] if json else found.violations:
        out.print(escape(f"{wrong.invariant}: {wrong.run_id or 'the lab'}: {wrong.text}"), soft_wrap=True)
    if not found.sound:
        raise typer.Exit(1)
    if not json:
        out.print("every invariant holds")


@admin_app.command("gc")
def collect_command(
    url: Url = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: AsJson = False,
) -> None:
    """Let go the checkpoints of ended runs that no retry can need. Published results are never touched."""
    done = GraftlabClient(find_url(url), timeout=600).collect(dry_run)
    if json:
        return print_json(done)
    rows = table("run", "state", "files", "bytes", right=("files", "bytes"))
    for each in done.runs:
        rows.add_row(each.run_id, each.state, str(each.files), engineering(each.bytes, "B"))
    if done.runs:
        out.print(rows)
    verb = "would be freed" if done.dry_run else "freed"
    return out.print(f"{engineering(done.bytes, 'B')} {verb}: {done.files} files of {len(done.runs)} runs")


@admin_app.callback()
def _admin() -> None:
    """Keeping a lab in order."""


@tracking_app.callback()
def _tracking() -> None:
    """What MLflow shows."""


@tracking_app.command("rebuild")
def rebuild_command(url: Url = None) -> None:
    """Have every run and study projected to MLflow anew, also what could not be shown there before."""
    done = GraftlabClient(find_url(url)).rebuild_tracking()
    out.print(f"{done.runs} runs and {done.studies} studies will be projected to MLflow anew")
