"""`graft up`, `graft down` and `graft demo`: a lab on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer

from grafting_core.spec.document import read_document
from service.cli.console import Refused, out
from service.cli.follow import follow
from service.cli.lab import lock, read_address
from service.cli.supervisor import Supervisor, end_strays
from service.cli.views import show_leaderboard
from service.client import GraftlabClient
from service.tracking.endpoints import PREFIX

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DEMO_DESIGNS = ("teacher", "hyena-x-half", "window-half", "mlp-ratio-3-half")
TRACKING_SECONDS = 30.0
Data = Annotated[Path, typer.Option("--data", help="Folder of the lab's databases, storage and logs.")]
Port = Annotated[int, typer.Option(help="Of the API and pages; another one where it is taken.")]
Cpus = Annotated[int, typer.Option(min=1, help="That runs may use together.")]
STOPPING = (signal.SIGINT, signal.SIGTERM)
CORES = os.cpu_count() or 1


def up_command(data: Data = Path("graftlab-data"), port: Port = 8000, cpus: Cpus = CORES) -> None:
    """Start a lab on this machine and keep it running; Ctrl-C stops all of it."""
    with _running(data, port, cpus) as supervisor:
        out.print("Ctrl-C stops the lab.")
        _tend_for_ever(supervisor)


def down_command(data: Data = Path("graftlab-data")) -> None:
    """Stop the lab of a data folder."""
    address = read_address(data)
    if address is None:
        raise Refused([f"no lab is running on {data}"])
    if psutil.pid_exists(address.pid):
        os.kill(address.pid, signal.SIGTERM)
        psutil.Process(address.pid).wait(60)
    # Where the supervisor itself was killed, its processes are still there.
    end_strays(data)
    (data / "lab.json").unlink(missing_ok=True)
    out.print(f"the lab on {data} has stopped")


def demo_command(
    data: Data = Path("graftlab-demo"),
    port: Port = 8000,
    cpus: Cpus = CORES,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab running until Ctrl-C.")] = False,
) -> None:
    """Graft a real pretrained diffusion transformer three ways and rank the results: about ten minutes."""
    with _running(data, port, cpus) as supervisor:
        client = GraftlabClient(supervisor.address.url)
        documents = [read_document((EXAMPLES / f"{name}.yaml").read_text()) for name in DEMO_DESIGNS]
        run_ids = [client.submit(document).run_id for document in documents]
        runs = follow(client, run_ids, supervisor.tend)
        _await_tracking(client, run_ids)
        show_leaderboard(client.leaderboard())
        _say_where(supervisor)
        if keep:
            out.print("Ctrl-C stops the lab.")
            _tend_for_ever(supervisor)
        if any(run.state != "SUCCEEDED" for run in runs):
            raise typer.Exit(1)
    out.print(f"The lab has stopped; `graft up --data {data}` brings it back with everything it found.")


def _await_tracking(client: GraftlabClient, run_ids: list[str]) -> None:
    """MLflow is a few seconds behind; give it the time to show what the leaderboard shows."""
    end = time.monotonic() + TRACKING_SECONDS
    while time.monotonic() < end and not all(client.run(run_id).mlflow_url for run_id in run_ids):
        time.sleep(0.5)


@contextmanager
def _running(data: Path, port: int, cpus: int) -> Iterator[Supervisor]:
    """A lab that is ready, and stopped at the end whatever happens."""
    held = lock(data)
    supervisor = Supervisor(data, port, cpus)
    # SIGINT too: a shell without job control starts background commands with it ignored.
    previous = [signal.signal(number, _interrupt) for number in STOPPING]
    try:
        out.print(f"starting the lab in {data} ...")
        began = time.monotonic()
        supervisor.start()
        supervisor.wait_ready()
        out.print(f"ready after {time.monotonic() - began:.0f} s")
        _say_where(supervisor)
        yield supervisor
    finally:
        # A second Ctrl-C, or a second SIGTERM, must not leave half a lab behind.
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()
        for number, handler in zip(STOPPING, previous, strict=True):
            signal.signal(number, handler)
        held.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tend_for_ever(supervisor: Supervisor) -> None:
    while True:
        supervisor.tend()
        time.sleep(0.5)


def _say_where(supervisor: Supervisor) -> None:
    link = GraftlabClient(supervisor.address.url).login_link()
    out.print(f"  pages   {link}  (works once; `graft open` prints another)", soft_wrap=True)
    out.print(f"  MLflow  {supervisor.address.url}{PREFIX}/")
