"""Start worker groups: one process as a Ray task, several processes by Ray Train, which sets up DDP.

Train starts five more processes than its workers (controller, placement-group cleaner, synchronisation, data
sets, pre-emption watcher) and imports itself in each of them. A single process needs no synchronisation and
starts its first stage in about half the time without them.
"""

import os
from typing import Any

import ray

from workers.contract import RunTicket
from workers.logs import importing

OWN_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Train's process that watches for nodes being drained; `workers.liveness` does so within the workers."""


def launch(ticket: RunTicket, started: float) -> None:
    """Run the ticket, and those handed over after it, in a worker group; return when the group has ended."""
    if ticket.work.resources.workers == 1:
        return _launch_single(ticket, started)
    return _launch_ddp(ticket, started)


def _launch_single(ticket: RunTicket, started: float) -> None:
    resources = ticket.work.resources
    options = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker, "max_retries": 0}
    ray.get(ray.remote(**options)(graft_worker).remote(ticket.model_dump_json(), started))


def graft_worker(ticket: str, started: float) -> None:
    """Run tickets as a group of one process.

    The imports are here because the driver does not need them and starts seconds sooner without them.
    """
    with importing():
        from workers.group import train_loop  # noqa: PLC0415

    train_loop(RunTicket.model_validate_json(ticket), started)


def _launch_ddp(ticket: RunTicket, started: float) -> None:
    # Imported here: a group of one process needs no Train and starts seconds sooner without it.
    from ray.train import RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    os.environ[OWN_WATCHER] = "0"
    resources = ticket.work.resources
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"ticket": ticket.model_dump_json(), "started": started},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
        ),
        torch_config=TorchConfig(),
        run_config=RunConfig(
            name=f"attempt-{ticket.attempt}", storage_path=f"{ticket.storage}/runs/{ticket.run_id}/train"
        ),
    )
    trainer.fit()


def train_rank(config: dict[str, Any]) -> None:
    """Run tickets as one rank of a Ray Train group.

    `config` holds the first ticket as JSON and the start time of its attempt. The imports are here because
    the driver does not need them and starts seconds sooner without them.
    """
    with importing():
        import ray.train.torch  # noqa: PLC0415
        import torch.distributed as dist  # noqa: PLC0415

        from grafting_core.training.finetune import Shard  # noqa: PLC0415
        from workers.group import train_loop  # noqa: PLC0415
        from workers.stages.context import Group  # noqa: PLC0415

    world, device = ray.train.get_context(), ray.train.torch.get_device()
    share = Shard(world.get_world_rank(), world.get_world_size())
    group = Group(share, ray.train.torch.prepare_model, dist.barrier, device)
    train_loop(RunTicket.model_validate_json(config["ticket"]), config["started"], group)
