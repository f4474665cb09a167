"""A worker group of several: Ray Train starts them, joins them for DDP and ends them together."""

import os
from typing import Any

import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from workers.contract import RunTicket
from workers.gc_pause import importing

OWN_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Train's process that looks for nodes being drained: `workers.preemption` does so within the workers."""


def train_together(ticket: RunTicket, started: float) -> None:
    """Let a group walk the ticket and those handed over after it, and wait for its end."""
    os.environ[OWN_WATCHER] = "0"
    resources = ticket.work.resources
    trainer = TorchTrainer(
        enter,
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


def enter(config: dict[str, Any]) -> None:
    """Entry of one Ray Train worker; `config` holds the first ticket as JSON and when its attempt began.

    Imported here: the driver needs none of it and starts seconds sooner.
    """
    with importing():
        from grafting_core.training.finetune import Share  # noqa: PLC0415
        from workers.group import train_loop  # noqa: PLC0415
        from workers.stages.context import Group  # noqa: PLC0415

    world, device = ray.train.get_context(), ray.train.torch.get_device()
    share = Share(world.get_world_rank(), world.get_world_size())
    group = Group(share, ray.train.torch.prepare_model, dist.barrier, device)
    train_loop(RunTicket.model_validate_json(config["ticket"]), config["started"], group)
