"""What every process of the worker group runs: the stages of one attempt, in order."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from grafting_core.backbones.loader import load_backbone
from grafting_core.finetuning import Share
from grafting_core.observing import StopRequested
from grafting_core.storage import Storage
from workers.contract import RunTicket, StageDone, StageName
from workers.events import EventLog
from workers.metering import Meter, difference
from workers.observer import AttemptStoppedEarly, Brake
from workers.stages import analyze, distill, evaluate, fill, finetune
from workers.stages.context import Context, Group, Stage

STAGES: Mapping[StageName, Stage] = {
    "distill": distill.run,
    "finetune": finetune.run,
    "evaluate": evaluate.run,
}


def train_loop(config: dict[str, Any]) -> None:
    """Entry of one Ray Train worker; `config` holds the ticket as JSON and when the attempt began."""
    ticket = RunTicket.model_validate_json(config["ticket"])
    torch.set_num_threads(ticket.work.resources.cpus_per_worker)
    WALKS[ticket.work.kind](_context(ticket, config["started"], _group()))


def _group() -> Group:
    world = ray.train.get_context()
    share = Share(world.get_world_rank(), world.get_world_size())
    if share.world == 1:
        return Group(share)
    return Group(share, ray.train.torch.prepare_model, dist.barrier)


def _context(ticket: RunTicket, started: float, group: Group) -> Context:
    storage = Storage(ticket.storage)
    meter = Meter(ticket.work, started)
    backbone = load_backbone(ticket.work.backbone.name, ray.train.torch.get_device())
    if backbone.card.digest != ticket.work.backbone.digest:
        raise ValueError("this worker has other weights of the backbone than the work was planned for")
    events = EventLog(storage, ticket) if group.leads else None
    return Context(ticket, storage, backbone, group, meter, Brake(storage, ticket, meter), events)


def run_stages(context: Context) -> None:
    """Walk the stages; the teacher alone is only evaluated."""
    stages: tuple[StageName, ...] = ("distill", "finetune", "evaluate")
    for stage in stages[-1:] if context.spec.design.is_teacher else stages:
        run_stage(context, STAGES[stage])


def run_stage(context: Context, stage: Stage) -> None:
    """One stage and its report. Raises AttemptStoppedEarly with the reason."""
    before = context.meter.total()
    try:
        report = stage(context)
    except StopRequested as stop:
        raise AttemptStoppedEarly(str(context.brake.reason())) from stop
    spend = difference(context.meter.total(), before)
    if context.events is not None:
        context.events.write(StageDone(report=report.model_copy(update={"spend": spend})))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


WALKS: Mapping[str, Callable[[Context], None]] = {
    "graft": run_stages,
    "fill": partial(run_stage, stage=fill.run),
    "analysis": partial(run_stage, stage=analyze.run),
}
"""Kind of work -> what carries it out."""
