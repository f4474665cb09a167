"""`graft up`, `graft down` and `graft demo`: a lab on this machine."""

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.markup import escape

from grafting_core.specs.documents.parsing import read_document
from service.cli.console import Refused, out
from service.cli.discovery import data_folder, lock, user_name
from service.cli.extras import require
from service.cli.progress import follow
from service.cli.views import show_leaderboard
from service.client import GraftlabClient
from service.domain.tracking_endpoints import PREFIX
from service.lab.address import forget_address, read_address
from service.lab.import_roots import import_roots
from service.lab.ports import NoFreePort
from service.lab.processes import end_strays, mark_of
from service.lab.scratch import remove_scratch
from service.lab.supervisor import StartFailed, Supervisor
from service.local_keys import first_key
from service.locking import holder, is_held
from service.settings import cores

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DEMO_DESIGNS = ("teacher", "hyena-x-half", "window-half", "mlp-ratio-3-half")
TRACKING_SECONDS = 30.0
Data = Annotated[Path, typer.Option("--data", help="Folder of the lab's databases, storage and logs.")]
Port = Annotated[
    int,
    typer.Option(min=0, max=65535, help="Port of the API and pages; if it is taken, another one is used."),
]
Cpus = Annotated[int, typer.Option(min=1, help="Number of CPUs that all runs may use together.")]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DOWN_SECONDS = 75.0
"""Longer than the minute that it takes to kill every part of a lab."""
CORES = cores()


def up_command(data: Data = Path("graftlab-data"), port: Port = 8000, cpus: Cpus = CORES) -> None:
    """Start a lab on this machine and keep it running; Ctrl-C stops it completely."""
    with _running(data, port, cpus) as supervisor:
        _say_where(supervisor)
        out.print("Ctrl-C stops the lab.")
        _reconcile_forever(supervisor)


def down_command(data: Data = Path("graftlab-data")) -> None:
    """Stop the lab of a data folder."""
    folder = data_folder(data)
    if not folder.is_dir():
        raise Refused([f"no lab is running on {folder}: there is no such folder"])
    if is_held(folder):
        return _stop_holder(folder)
    held = lock(folder)
    try:
        # If the supervisor itself was killed, its processes may still run.
        strays = end_strays(mark_of(folder))
        address = read_address(folder)
        remove_scratch(address.scratch if address else "")
        forget_address(folder)
    finally:
        held.close()
    if not strays:
        raise Refused([f"no lab is running on {folder}"])
    return out.print(f"{strays} processes left by a killed lab on {escape(str(folder))} were ended")


def _stop_holder(folder: Path) -> None:
    """Send SIGTERM, then SIGKILL, to the process that holds the folder. Raises Refused or StartFailed."""
    process = holder(folder)
    if process is None:
        owner = user_name((folder / "lab.lock").stat().st_uid)
        where = f"a process that cannot be seen from here (of {owner}, or in another container) runs the lab"
        raise Refused([f"{where} on {folder}; stop it there"])
    forced = False
    try:
        process.terminate()
        if not _ends(process, DOWN_SECONDS):
            forced = True
            process.kill()
            if not _ends(process, 10):
                raise StartFailed(f"process {process.pid}, which runs the lab on {folder}, cannot be ended")
    except psutil.AccessDenied as error:
        message = f"the lab on {folder} is {process.username()}'s (process {process.pid})"
        raise Refused([message]) from error
    except psutil.NoSuchProcess:
        pass
    end_strays(mark_of(folder))
    address = read_address(folder)
    remove_scratch(address.scratch if address else "")
    forget_address(folder)
    how = f" by force: it did not react to SIGTERM for {DOWN_SECONDS:.0f} s" if forced else ""
    out.print(f"the lab on {escape(str(folder))} has stopped{how}")


def _ends(process: psutil.Process, seconds: float) -> bool:
    """Wait for a process to end; a zombie that its parent has not collected counts as ended."""
    until = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def demo_command(
    data: Data = Path("graftlab-demo"),
    port: Port = 8000,
    cpus: Cpus = CORES,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab running until Ctrl-C.")] = False,
) -> None:
    """Graft a real pretrained diffusion transformer three ways and rank the results: about ten minutes."""
    with _running(data, port, cpus) as supervisor:
        client = _client(supervisor)
        _say_where(supervisor)
        documents = [read_document((EXAMPLES / f"{name}.yaml").read_text()) for name in DEMO_DESIGNS]
        run_ids = [client.submit(document).run_id for document in documents]
        runs = follow(client, run_ids, supervisor.reconcile)
        _await_tracking(client, run_ids)
        show_leaderboard(client.leaderboard())
        if keep:
            _say_where(supervisor)
            out.print("Ctrl-C stops the lab.")
            _reconcile_forever(supervisor)
        if any(run.state != "SUCCEEDED" for run in runs):
            raise typer.Exit(1)
    again = f"{_program()} up --data {shlex.quote(str(data))}"
    out.print(f"The lab has stopped; its results are kept in {escape(str(data))}. To look at the pages,")
    out.print(f"start it again and open the link that it prints:\n\n  {escape(again)}\n", soft_wrap=True)


def _program() -> str:
    """Return the command `graft` as this user can type it."""
    ours = Path(sys.argv[0])
    on_path = shutil.which("graft")
    return (
        "graft"
        if ours.name != "graft" or (on_path and ours.exists() and ours.samefile(on_path))
        else str(ours)
    )


def _await_tracking(client: GraftlabClient, run_ids: list[str]) -> None:
    """Wait until MLflow, which lags by seconds, shows the runs; at most TRACKING_SECONDS."""
    end = time.monotonic() + TRACKING_SECONDS
    while time.monotonic() < end and not all(client.run(run_id).mlflow_url for run_id in run_ids):
        time.sleep(0.5)


@contextmanager
def _running(data: Path, port: int, cpus: int) -> Iterator[Supervisor]:
    """Yield a ready lab and stop it at the end, also after errors."""
    require("lab", "up")
    folder = data_folder(data)
    held = lock(folder)
    previous = {number: signal.getsignal(number) for number in STOPPING}
    try:
        supervisor = Supervisor(folder, port, cpus)
        _handle_signals()
        try:
            out.print(f"starting the lab in {escape(str(data))} ...", soft_wrap=True)
            began = time.monotonic()
            _start(supervisor)
            out.print(f"ready after {time.monotonic() - began:.0f} s")
            yield supervisor
        finally:
            # A second Ctrl-C, or a second SIGTERM, must not leave half a lab behind.
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)
            supervisor.stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        held.close()


def _handle_signals() -> None:
    """Turn the signals of STOPPING into KeyboardInterrupt.

    SIGINT must be set explicitly: a shell without job control starts background commands with it ignored.
    A SIGHUP that `nohup` ignores stays ignored: the lab then survives the terminal.
    """
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _start(supervisor: Supervisor) -> None:
    try:
        supervisor.start()
        supervisor.wait_ready()
    except NoFreePort:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StartFailed(f"the lab cannot start: {error.strerror or error}{where}") from error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _reconcile_forever(supervisor: Supervisor) -> None:
    while True:
        supervisor.reconcile()
        time.sleep(0.5)


def _client(supervisor: Supervisor) -> GraftlabClient:
    """Connect with this lab's own key, whatever key the environment holds for another lab."""
    return GraftlabClient(supervisor.address.url, key=first_key(supervisor.folder))


def _say_where(supervisor: Supervisor) -> None:
    link = _client(supervisor).login_link()
    out.print(f"  pages   {link}  (works once; `graft open` prints another)", soft_wrap=True)
    out.print(f"  MLflow  {supervisor.address.url}{PREFIX}/")
    roots = ", ".join(map(str, import_roots(supervisor.settings)))
    where = f"registered from {escape(roots)}" if roots else "registered from no folder"
    out.print(f"  models  {where} (GRAFTLAB_IMPORT_ROOTS)", soft_wrap=True)
    for line in supervisor.without():
        out.print(escape(line), soft_wrap=True)
