"""`graft admin` and `graft tracking`: keeping a lab in order."""

from typing import Annotated

import typer

from service.cli.console import Yes, confirm, err, escape, out, print_json, table
from service.cli.options import AsJson, Url, connect
from service.formatting import engineering
from service.schemas.checks import CheckView

admin_app = typer.Typer(help="Keeping a lab in order.", no_args_is_help=True)
tracking_app = typer.Typer(help="What MLflow shows.", no_args_is_help=True)


@admin_app.command("verify")
def verify_command(
    check_id: Annotated[
        str | None, typer.Argument(help="A check that was begun before; else a new one.")
    ] = None,
    url: Url = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The database and the names of files; read no file.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    json: AsJson = False,
) -> None:
    """Check every invariant of the database, and that every file is what was written.

    Says at once under which id it runs; with --wait, or asked by that id, what it has found. Exit 1 where
    something is wrong or the check has not come to its end.
    """
    client = connect(url)
    check = client.check(check_id) if check_id else client.begin_check(quick)
    if wait:
        check = client.wait_for_check(check.id, _tell_progress)
    if json:
        print_json(check)
    else:
        _show_check(check)
    if check.state != "RUNNING" and not check.sound:
        raise typer.Exit(1)


def _tell_progress(check: CheckView) -> None:
    """On standard error: what is printed stays what was found."""
    of = f" {check.done} of {check.total}" if check.total else ""
    err.print(escape(f"{check.step}{of}; {check.found} found"))


def _show_check(check: CheckView) -> None:
    for wrong in check.violations:
        out.print(escape(f"{wrong.invariant}: {wrong.run_id or 'the lab'}: {wrong.text}"), soft_wrap=True)
    if check.found > len(check.violations) and check.violations:
        out.print(f"and {check.found - len(check.violations)} more")
    files = "no file was read (quick)" if check.quick else "every file is what was written"
    if check.state == "RUNNING":
        out.print(f"check {check.id} is under way; `graft admin verify {check.id} --wait` waits for it")
    elif check.state != "DONE":
        out.print(escape(f"check {check.id} is {check.state.lower()}: {check.message}"), soft_wrap=True)
    elif check.sound:
        out.print(f"every invariant holds; {files}")


@admin_app.command("gc")
def collect_command(
    url: Url = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: AsJson = False,
    yes: Yes = False,
) -> None:
    """Delete checkpoints of ended runs that no retry can need. Published results are never touched."""
    if not dry_run:
        confirm("Delete the checkpoints that no retry can need? --dry-run lists them.", yes)
    done = connect(url, timeout=600).collect(dry_run)
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
    done = connect(url).rebuild_tracking()
    out.print(f"{done.runs} runs and {done.studies} studies will be projected to MLflow anew")
