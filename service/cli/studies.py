"""`graft study`: create, follow and control studies."""

import time
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from service.cli.console import (
    All,
    Refused,
    Yes,
    confirm,
    err,
    escape,
    first_of,
    out,
    print_json,
    say,
    table,
    visible,
)
from service.cli.documents import read_design, refusing
from service.cli.options import AsJson, Url, connect
from service.client import ApiProblem, GraftlabClient
from service.domain.study_report_paths import REPORT_FILES
from service.formatting import duration
from service.schemas.studies import StudyDetail, StudyPage, StudyView

study_app = typer.Typer(help="Studies: searches of a space of designs within limits.", no_args_is_help=True)
Study = Annotated[str, typer.Argument(help="Study id, or the beginning of it.")]
POLL_SECONDS = 1.0
LINE_SECONDS = 15.0


def _study_id(client: GraftlabClient, prefix: str) -> str:
    """Return the id of the one study whose id begins with `prefix`. Raises Refused."""
    sensible = prefix.isascii() and prefix.isalnum() and prefix.islower() | prefix.isdigit()
    ids = [study.id for study in client.studies(2, prefix=prefix[:32]).studies] if sensible else []
    if len(ids) != 1:
        raise Refused(
            [f"{len(ids) or 'no'} studies have ids beginning with {prefix!r}; `graft study ls` lists them"]
        )
    return ids[0]


@study_app.command("create")
def create_command(
    file: Annotated[Path, typer.Argument(help="Study file, YAML or JSON; - for standard input.")],
    url: Url = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the study to its end; exit 0 if it is DONE.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Folder for the report, with --wait.")] = None,
    json: AsJson = False,
) -> None:
    """Create and start a study."""
    client = connect(url)
    answer = refusing(file, lambda: client.create_study(read_design(file)))
    if answer.notes and not json:
        say(f"note: {note}" for note in answer.notes)
    if not wait:
        print_json(answer) if json else out.print(
            f"{answer.study_id}  {client.url}/studies/{answer.study_id}"
        )
        return
    console = err if json else out
    detail = _follow(client, answer.study_id, console)
    folder = export or Path(f"study-{detail.id}")
    if detail.state == "DONE":
        _export(client, detail.id, folder, console)
    _finish(detail, json)


@study_app.command("ls")
def list_command(
    url: Url = None,
    json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 50,
    everything: All = False,
) -> None:
    """List studies, newest first."""
    studies, more = first_of(connect(url).all_studies(min(limit + 1, 200)), limit, everything, "studies")
    if json:
        return print_json(StudyPage(studies=studies, next_cursor=studies[-1].id if more else None))
    rows = table("id", "name", "state", "phase", "trials", "finished", "best", "device-s", right=("best",))
    for study in studies:
        best = "-" if study.best is None else f"{study.best:.4g}"
        figures = [str(study.trials), str(study.finished), best, f"{study.spend.device_seconds:.0f}"]
        rows.add_row(study.id, escape(study.name), study.state, study.phase, *figures)
    return out.print(rows)


@study_app.command("show")
def show_command(study: Study, url: Url = None, json: AsJson = False) -> None:
    """Show one study: its phase, its finished designs, and the baselines."""
    client = connect(url)
    detail = client.study(_study_id(client, study))
    print_json(detail) if json else _show(detail)


@study_app.command("watch")
def watch_command(study: Study, url: Url = None, json: AsJson = False) -> None:
    """Follow a study to its end."""
    client = connect(url)
    _finish(_follow(client, _study_id(client, study), err if json else out), json)


@study_app.command("pause")
def pause_command(study: Study, url: Url = None) -> None:
    """Pause a study; its runs pause after their next checkpoint."""
    _change(study, url, "pause")


@study_app.command("resume")
def resume_command(study: Study, url: Url = None) -> None:
    """Continue a paused study where it stopped."""
    _change(study, url, "resume")


@study_app.command("stop")
def stop_command(study: Study, url: Url = None, yes: Yes = False) -> None:
    """End a study and its runs; all results are kept."""
    confirm(f"Stop study {visible(study)} and end its runs?", yes)
    _change(study, url, "stop")


@study_app.command("extend")
def extend_command(
    study: Study,
    url: Url = None,
    trials: Annotated[int, typer.Option(min=0, help="Number of further designs to screen.")] = 0,
    promote: Annotated[
        int, typer.Option(min=0, help="Number of further designs to promote to full runs.")
    ] = 0,
    rounds: Annotated[
        int, typer.Option(min=0, help="Number of further rounds that they are spread over.")
    ] = 1,
    device_seconds: Annotated[float, typer.Option(min=0, help="Device-seconds to add to its budget.")] = 0.0,
) -> None:
    """Give a study more designs, rounds or budget, and continue it."""
    client = connect(url)
    more = {"trials": trials, "promote": promote, "rounds": rounds, "device_seconds": device_seconds}
    _say(client.extend_study(_study_id(client, study), **more))


@study_app.command("best")
def best_command(study: Study, url: Url = None, json: AsJson = False) -> None:
    """Print the best finished design as a file for `graft submit`."""
    client = connect(url)
    document = client.best_design(_study_id(client, study))
    if json:
        return print_json(document)
    return out.out(yaml.safe_dump(document, sort_keys=False), highlight=False)


@study_app.command("export")
def export_command(
    study: Study,
    folder: Annotated[Path | None, typer.Option(help="Folder to write; default: study-<id>.")] = None,
    url: Url = None,
) -> None:
    """Write the report: HTML, Markdown and pictures."""
    client = connect(url)
    study_id = _study_id(client, study)
    _export(client, study_id, folder or Path(f"study-{study_id}"))


def _change(study: str, url: str | None, action: str) -> None:
    client = connect(url)
    _say(client.change_study(_study_id(client, study), action))


def _export(client: GraftlabClient, study_id: str, folder: Path, console: Console = out) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for name in REPORT_FILES:
        try:
            content = client.study_report(study_id, name)
        except ApiProblem:
            continue  # a picture that lacked the data to be drawn
        (folder / name).write_bytes(content)
        written += 1
    if not written:
        raise Refused([f"study {study_id} has no report yet; it is written when a round ends"])
    console.print(f"{written} files in {escape(str(folder))}: report.html, report.md and pictures")


def _follow(client: GraftlabClient, study_id: str, console: Console = out) -> StudyDetail:
    """Follow a study until it has ended; print a line at every change of phase, and every few seconds."""
    began, shown, printed = time.monotonic(), 0.0, ("", "", 0)
    while True:
        detail = client.study(study_id)
        place = (detail.state, detail.phase, detail.round)
        if place != printed or time.monotonic() - shown > LINE_SECONDS:
            console.print(f"{duration(time.monotonic() - began):>6}  {_line(detail)}", soft_wrap=True)
            printed, shown = place, time.monotonic()
        if detail.state in ("DONE", "STOPPED", "FAILED"):
            return detail
        time.sleep(POLL_SECONDS)


def _line(study: StudyView) -> str:
    best = "" if study.best is None else f", best {study.quality} {study.best:.4g}"
    place = f"round {study.round} of {study.rounds}, {study.phase}"
    counts = f"{study.trials} designs, {study.screened} screened, {study.finished} finished"
    return f"{study.state:8} {place:24} {counts}{best}, {study.spend.device_seconds:.0f} device-s"


def _say(study: StudyView) -> None:
    out.print(f"{study.id}  {escape(study.name)}  {_line(study)}", soft_wrap=True)


def _finish(detail: StudyDetail, json: bool) -> None:
    print_json(detail) if json else _show(detail)
    if detail.state != "DONE":
        raise typer.Exit(1)


def _show(detail: StudyDetail) -> None:
    _say(detail)
    if detail.message:
        out.print(f"  {escape(detail.message)}", soft_wrap=True)
    rows = table("run", "as", "state", detail.quality, "FLOPs", "params", "device-s", right=(detail.quality,))
    space = detail.spec.space
    for run in sorted(detail.runs, key=lambda run: run.quality if run.quality is not None else float("inf")):
        quality = "-" if run.quality is None else f"{run.quality:.4g}"
        flops = "-" if run.flops is None else f"{run.flops / space.base_flops:.3f}x"
        params = "-" if run.params is None else f"{run.params / space.base_params:.3f}x"
        label = f"{run.role} {run.label}"
        rows.add_row(run.run_id, label, run.state, quality, flops, params, f"{run.device_seconds:.0f}")
    out.print(rows)
    if detail.rank_correlation is not None:
        out.print(f"  rank correlation of screening and final quality: {detail.rank_correlation:.3f}")
