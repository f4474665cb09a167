"""`graft admin` and `graft tracking`: checks, clean-up and the projection to MLflow."""

from typing import Annotated

import typer

from service.cli.console import Yes, confirm, err, escape, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.formatting import engineering
from service.schemas.checks import CheckView

admin_app = typer.Typer(help="Check and clean up a lab.", no_args_is_help=True)
tracking_app = typer.Typer(help="Projection of runs and studies to MLflow.", no_args_is_help=True)


@admin_app.command("verify")
def verify_command(
    check_id: Annotated[
        str | None, typer.Argument(help="Show this earlier check instead of starting a new one.")
    ] = None,
    url: Url = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the database and the names of files; read no files.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    json: AsJson = False,
) -> None:
    """Check every invariant of the database, and that every file has its recorded content.

    Prints the check's id at once; with --wait or that id, prints its findings. Exit code 1 if something is
    wrong or the check was interrupted.
    """
    client = connect(url)
    check = client.check(check_id) if check_id else client.begin_check(quick)
    if wait:
        check = client.wait_for_check(check.id, _print_progress)
    if json:
        print_json(check)
    else:
        _show_check(check)
    if check.state != "RUNNING" and not check.sound:
        raise typer.Exit(1)


def _print_progress(check: CheckView) -> None:
    """Print progress on standard error, so that standard output holds only the findings."""
    of = f" {check.done} of {check.total}" if check.total else ""
    err.print(escape(f"{check.step}{of}; {check.found} found"))


def _show_check(check: CheckView) -> None:
    for wrong in check.violations:
        out.print(escape(f"{wrong.invariant}: {wrong.run_id or 'the lab'}: {wrong.text}"), soft_wrap=True)
    if check.found > len(check.violations) and check.violations:
        out.print(f"and {check.found - len(check.violations)} more")
    files = "no file was read (quick)" if check.quick else "every file has its recorded content"
    if check.state == "RUNNING":
        out.print(f"check {check.id} is running; `graft admin verify {check.id} --wait` waits for it")
    elif check.state != "DONE":
        out.print(escape(f"check {check.id} is {check.state.lower()}: {check.message}"), soft_wrap=True)
    elif check.sound:
        out.print(f"every invariant holds; {files}")


@admin_app.command("gc")
def collect_command(
    url: Url = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be deleted.")] = False,
    json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Delete checkpoints of ended runs that no retry can need. Published results are never deleted."""
    if not dry_run:
        confirm("Delete the checkpoints that no retry can need? --dry-run lists them.", yes)
    done = connect(url, timeout=600).collect(dry_run)
    if json:
        return print_json(done)
    rows = table("run", "state", "files", "bytes", right=("files", "bytes"))
    for run in done.runs:
        rows.add_row(run.run_id, run.state, str(run.files), engineering(run.bytes, "B"))
    if done.runs:
        out.print(rows)
    verb = "would be freed" if done.dry_run else "freed"
    return out.print(f"{engineering(done.bytes, 'B')} {verb}: {done.files} files of {len(done.runs)} runs")


@admin_app.callback()
def _admin() -> None:
    """Check and clean up a lab."""


@tracking_app.callback()
def _tracking() -> None:
    """Projection of runs and studies to MLflow."""


@tracking_app.command("rebuild")
def rebuild_command(url: Url = None) -> None:
    """Send every run and study to MLflow again, including entries that failed before."""
    done = connect(url).rebuild_tracking()
    out.print(f"{done.runs} runs and {done.studies} studies will be sent to MLflow again")
