"""`graft admin` and `graft tracking`: keeping a lab in order."""

from typing import Annotated

import typer
from rich.markup import escape

from service.cli.console import out, print_json
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


@admin_app.callback()
def _admin() -> None:
    """Keeping a lab in order."""


@tracking_app.callback()
def _tracking() -> None:
    """What MLflow shows."""


@tracking_app.command("rebuild")
def rebuild_command(url: Url = None) -> None:
    """Have every run projected to MLflow anew, where its database was lost."""
    done = GraftlabClient(find_url(url)).rebuild_tracking()
    out.print(f"{done.runs} runs will be projected to MLflow anew")
