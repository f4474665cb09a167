"""A worker group of one: a Ray task, without the helpers that Train keeps beside a group.

Train runs five processes beside its workers (controller, placement-group cleaner, synchronisation, datasets,
pre-emption watcher) and imports itself in each of them. One process has nobody to be kept in step with, and
starts its first stage in about half the time without them.
"""

import ray

from workers.contract import RunTicket
from workers.gc_pause import importing


def train_alone(ticket: RunTicket, started: float) -> None:
    """Let one process walk the ticket and those handed over after it, and wait for its end."""
    asked = ticket.work.resources
    options = {"num_cpus": asked.cpus_per_worker, "num_gpus": asked.gpus_per_worker, "max_retries": 0}
    ray.get(ray.remote(**options)(graft_worker).remote(ticket.model_dump_json(), started))


def graft_worker(ticket: str, started: float) -> None:
    """The process of that group. Imported here: the driver needs none of it and starts seconds sooner."""
    with importing():
        from workers.group import train_loop  # noqa: PLC0415

    train_loop(RunTicket.model_validate_json(ticket), started)
