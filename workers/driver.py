"""The driver of one attempt: `python -m workers.driver --storage URI --run RUN --attempt N`.

Exit code 0: the attempt ended as its last event says, even if it failed. Other codes: that event could not
be written.
"""

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version

import ray

from grafting_core.specs.budget import Usage
from grafting_core.storage.storage import Storage
from workers.contract import (
    DRIVER_ONLY_KINDS,
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    EventBody,
    RunTicket,
    attempt_folder,
    ticket_path,
)
from workers.events import EventLog
from workers.failures import classify
from workers.launch import launch
from workers.liveness import HeartbeatThread
from workers.logs import setup_logging
from workers.reuse import WarmGroup

REPORTED = ("torch", "diffusers", "ray")


def main() -> int:
    """Parse the command line, run the attempt, then the attempts that are handed over to the same group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", required=True, type=int)
    arguments = parser.parse_args()
    setup_logging()
    storage = Storage(arguments.storage)
    ticket = storage.read_model(ticket_path(arguments.run, arguments.attempt), RunTicket)
    host = WarmGroup(storage, ticket, lambda next_ticket: _begin(storage, next_ticket))
    try:
        run_attempt(storage, ticket, host)
    finally:
        host.close()
    return 0


def _begin(storage: Storage, ticket: RunTicket) -> Callable[[], None]:
    """Open the log, start the heartbeat and write the first event; returns the function that ends them."""
    if storage.is_local:
        _print_to(storage, ticket)
    heartbeat = HeartbeatThread(storage, ticket)
    heartbeat.start()
    EventLog(storage, ticket).write(_started())
    return heartbeat.stop


def _print_to(storage: Storage, ticket: RunTicket) -> None:
    """Redirect output of this process and its children to the attempt's log file, which the service reads."""
    path = f"{attempt_folder(ticket.run_id, ticket.attempt)}/log.txt"
    storage.write_bytes(path, b"")
    descriptor = os.open(storage.local_path(path), os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())


def _started() -> AttemptStarted:
    versions = {name: version(name) for name in REPORTED}
    return AttemptStarted(host=platform.node(), pid=os.getpid(), device=platform.machine(), versions=versions)


def run_attempt(storage: Storage, first: RunTicket, host: WarmGroup) -> None:
    """Run the worker group until it ends; an exception fails the attempt that was running, if any."""
    began = time.monotonic()
    if first.work.kind not in DRIVER_ONLY_KINDS:
        host.start()
    try:
        _fit(first, time.time())
        if first.work.kind in DRIVER_ONLY_KINDS:
            spend = Usage(device_seconds=(time.monotonic() - began) * first.work.resources.devices)
            EventLog(storage, first).write(AttemptSucceeded(spend=spend))
    except Exception as error:
        if host.ticket is None:
            raise
        # A new log: rank 0 has written events in the meantime.
        EventLog(storage, host.ticket).write(_ending(storage, host.ticket, host.began, error))


def _ending(storage: Storage, ticket: RunTicket, began: float, error: Exception) -> EventBody:
    """Last event after an exception. Its spend is time; FLOPs and images are in the last progress event."""
    reason, message = classify(error)
    spend = Usage(device_seconds=(time.monotonic() - began) * ticket.work.resources.devices)
    if reason in ("user_request", "budget_exhausted", "preempted"):
        return AttemptStopped(reason=reason, spend=spend)
    text = "".join(traceback.format_exception(error))
    storage.write_bytes(f"{attempt_folder(ticket.run_id, ticket.attempt)}/error.txt", text.encode())
    print(text, file=sys.stderr, flush=True)
    return AttemptFailed(reason=reason, message=message, spend=spend)


def _fit(ticket: RunTicket, started: float) -> None:
    ray.init(address="auto", log_to_driver=True, logging_level="WARNING")
    DRIVERS.get(ticket.work.kind, launch)(ticket, started)


def _screen(ticket: RunTicket, started: float) -> None:
    """Run a screening. Imported here: other kinds of work need no Ray Tune and start seconds sooner."""
    from workers.stages.screen import screen  # noqa: PLC0415

    screen(ticket, started)


DRIVERS: Mapping[str, Callable[[RunTicket, float], None]] = {"screening": _screen}
"""Kinds of work that the driver runs itself -> function; all others run in a worker group."""


if __name__ == "__main__":
    sys.exit(main())
