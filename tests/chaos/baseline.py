"""Weights of a design whose run nothing interrupts, computed in this process in an empty folder."""

import tempfile
import time
from pathlib import Path

import torch

from grafting_core.backbones.registry import load_backbone
from grafting_core.specs.experiment import ExperimentSpec, finetune_key
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from workers.contract import RunTicket
from workers.events import EventLog
from workers.group import run_stages
from workers.observer import StopCondition
from workers.stages.context import Context, Group
from workers.usage import UsageMeter


def weights_of(storage: Path, spec: ExperimentSpec) -> tuple[bytes, bytes]:
    """The finetuned model's bytes as they should be, and as they are in the lab's storage."""
    torch.set_num_threads(spec.resources.cpus_per_worker)
    path = f"models/{finetune_key(spec)}/model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        _carry_out(Path(folder), spec)
        return (Path(folder) / path).read_bytes(), (storage / path).read_bytes()


def _carry_out(folder: Path, spec: ExperimentSpec) -> None:
    ticket = RunTicket(run_id="r", attempt=1, work=spec, storage=str(folder))
    storage, meter = Storage(str(folder)), UsageMeter(spec, time.time())
    brake, events = StopCondition(storage, ticket, meter), EventLog(storage, ticket)
    backbone = load_backbone(spec.backbone.name)
    run_stages(Context(ticket, storage, backbone, Group(Shard()), meter, brake, events))
