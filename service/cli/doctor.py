"""`graft doctor`: check every dependency of a lab, and say how to repair what fails."""

import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import httpx
import typer
from rich.markup import escape

from service.cli.console import out, print_json, table
from service.cli.discovery import data_folder, find_url
from service.cli.options import AsJson, Url
from service.client import ApiProblem, GraftlabClient, LabUnreachable
from service.domain.tracking_server import check_server
from service.lab.address import read_address
from service.local_keys import key_header
from service.schemas.runs import TrackingState
from service.settings import Settings

LEAST = {"torch": (2, 6), "ray": (2, 52), "mlflow": (3, 15), "starlette": (0, 47, 2), "diffusers": (0, 35)}
"""Oldest versions without known vulnerabilities that matter here."""
LEAST_FREE = 5e9
LATE = timedelta(minutes=2)
MLFLOW_REMEDY = (
    "see logs/mlflow.log; runs continue and nothing is lost: the lab sends MLflow the rest once it answers"
)
UP = "start the lab with `graft up`"
REMEDIES = {
    "database": "check GRAFTLAB_DATABASE_URL and logs/api.log; PostgreSQL must run, SQLite needs free space",
    "storage": "free space on the disk of GRAFTLAB_STORAGE, and let the lab's user write there",
    "scheduler": "start `python -m service.processes.scheduler`, as `graft up` does; see logs/scheduler.log",
    "studies": "start `python -m service.processes.studies`, as `graft up` does; see logs/studies.log",
    "ray": "start a cluster, or correct GRAFTLAB_RAY_DASHBOARD and its token; see logs/ray.log",
}
Data = Annotated[Path, typer.Option("--data", help="Folder of the lab's databases, storage and logs.")]


class Finding(NamedTuple):
    """One dependency; `remedy` is empty if it is in order."""

    what: str
    seen: str
    remedy: str = ""


def doctor_command(data: Data = Path("graftlab-data"), url: Url = None, json: AsJson = False) -> None:
    """Check Python, packages, disk, API, key, database, storage, processes, Ray, webhooks and MLflow."""
    folder = data_folder(data)
    lab = _lab(find_url(url))
    mlflow = _mlflow(find_url(url), folder, answers=len(lab) > 1)
    findings = [_python(), *map(_package, LEAST), _disk(folder), *lab, mlflow]
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        _show(findings)
    if any(finding.remedy for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    rows = table("", "part", "state", "remedy")
    for finding in findings:
        mark = "[red]missing[/]" if finding.remedy else "[green]ok[/]"
        rows.add_row(mark, finding.what, escape(finding.seen), escape(finding.remedy))
    out.print(rows)


def _python() -> Finding:
    seen = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", seen, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _package(name: str) -> Finding:
    least = ".".join(map(str, LEAST[name]))
    remedy = f'`pip install "{name}>={least}"`'
    try:
        seen = version(name)
    except PackageNotFoundError:
        return Finding(name, "not installed", remedy)
    numbers = tuple(int(part) for part in seen.split("+")[0].split(".") if part.isdigit())
    return Finding(name, seen, "" if numbers >= LEAST[name] else remedy)


def _disk(folder: Path) -> Finding:
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    remedy = "" if free >= LEAST_FREE else "free some space: checkpoints and artifacts need gigabytes"
    return Finding("disk", f"{free / 1e9:.1f} GB free at {existing}", remedy)


def _lab(url: str) -> list[Finding]:
    try:
        answer = httpx.get(f"{url}/readyz", headers=key_header(url), timeout=10, trust_env=False)
        ready = answer.json()["parts"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return [Finding("API", f"no lab answers at {url}", UP)]
    parts = [
        Finding(name, seen, "" if seen == "ok" else REMEDIES.get(name, "see the lab's logs"))
        for name, seen in ready.items()
    ]
    return [Finding("API", url), _called("key", lambda: _whoami(url)), *parts, *_webhooks(url)]


def _whoami(url: str) -> str:
    who = GraftlabClient(url).whoami()
    return f"{who.owner}, {who.role}"


def _called(what: str, call: Callable[[], str]) -> Finding:
    try:
        return Finding(what, call())
    except (ApiProblem, LabUnreachable) as error:
        return Finding(what, str(error), "set GRAFTLAB_KEY to a key of this lab; `graft keys make` makes one")


def _webhooks(url: str) -> list[Finding]:
    """Return a finding for each webhook that had errors, as far as this key may see them."""
    try:
        hooks = GraftlabClient(url).webhooks()
    except (ApiProblem, LabUnreachable):
        return []
    failing = [hook for hook in hooks if hook.failed or hook.last_error]
    return [
        Finding(
            f"webhook {hook.id}",
            f"{hook.url}: {hook.failed} failed, {hook.pending} waiting; {hook.last_error or 'works again'}",
            f"check its receiver; `graft webhook deliveries {hook.id}` shows all, `rm {hook.id}` removes it"
            if hook.last_error
            else "",
        )
        for hook in failing
    ]


def _mlflow(url: str, folder: Path, answers: bool) -> Finding:
    """Return the lab's view of MLflow; if no lab answers, check MLflow itself at the data folder's
    address.
    """
    reason = "no lab answers"
    try:
        if answers:
            return _compared(GraftlabClient(url).tracking())
    except (ApiProblem, LabUnreachable) as error:
        reason = str(error)
    address = read_address(folder)
    if address is None:
        return Finding("MLflow", f"not checked: {reason}")
    wrong = check_server(Settings(data_dir=folder.absolute(), mlflow_url=address.mlflow_url))
    return Finding("MLflow", wrong or f"{address.mlflow_url} answers", MLFLOW_REMEDY if wrong else "")


def _compared(state: TrackingState) -> Finding:
    """Return how far MLflow is behind the lab, and its own error."""
    behind = f"{state.events} events of {state.runs} runs and {state.studies} studies behind"
    since = f", since {state.since:%Y-%m-%d %H:%M:%S} UTC" if state.since else ""
    late = state.since is not None and datetime.now(UTC) - state.since > LATE
    seen = f"{behind}{since}" if state.runs or state.studies else "up to date"
    if state.with_errors:
        seen += f"; {state.with_errors} runs or studies have entries that MLflow refused"
    if state.wrong:
        return Finding("MLflow", f"{state.wrong}; {seen}", MLFLOW_REMEDY)
    return Finding("MLflow", seen, "see logs/tracking.log: is the forwarder running?" if late else "")
