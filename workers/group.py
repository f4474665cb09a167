"""Main loop of every process in a worker group: the stages of one attempt, in order."""

import gc
import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import torch

from grafting_core.backbones.base import Backbone
from grafting_core.backbones.registry import load_backbone
from grafting_core.specs.backbone import BackboneRef
from grafting_core.specs.jobs import Job
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from grafting_core.training.observer import StopRequested
from workers.contract import AttemptSucceeded, RunTicket, StageDone, StageName
from workers.events import EventLog
from workers.liveness import DrainWatch, own_node_drains
from workers.logs import setup_logging
from workers.observer import AttemptStoppedEarly, StopCondition
from workers.registered import make_known
from workers.reuse import receive_tickets
from workers.stages import analyze, distill, evaluate, export, fill, finetune, measure, register
from workers.stages.context import Context, Group, Stage
from workers.usage import UsageMeter, difference

log = logging.getLogger(__name__)
STAGES: Mapping[StageName, Stage] = {
    "distill": distill.run,
    "finetune": finetune.run,
    "evaluate": evaluate.run,
}


WITHOUT_BACKBONE = frozenset({"registration"})
"""Kinds of work for which no backbone is loaded ahead."""


def train_loop(first: RunTicket, started: float, group: Group | None = None) -> None:
    """Run tickets from the first, whose attempt began at `started`, until no other follows."""
    setup_logging()
    group = group or single_process(first.work)
    storage = Storage(first.storage)
    began: float | None = started
    watch = DrainWatch(storage, first, own_node_drains)
    watch.start()
    for ticket in receive_tickets(storage, first, group.leads):
        watch.ticket = ticket
        _serve(ticket, began or time.time(), group)
        began = None


def single_process(work: Job) -> Group:
    """Group of a single process, on the device that its work requests."""
    return Group(Shard(), device=torch.device("cuda" if work.resources.gpus_per_worker else "cpu"))


def _serve(ticket: RunTicket, started: float, group: Group) -> None:
    """Run one ticket and free its memory."""
    torch.set_num_threads(ticket.work.resources.cpus_per_worker)
    make_known(Storage(ticket.storage), ticket.registered)
    context = _context(ticket, started, group)
    log.info("attempt %s of %s on %s", ticket.attempt, ticket.work.name, group.device)
    PIPELINES[ticket.work.kind](context)
    if context.events is not None:
        context.events.write(AttemptSucceeded(spend=context.meter.total()))
    del context
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@lru_cache(maxsize=1)
def _backbone(ref: BackboneRef, device: torch.device) -> Backbone:
    """Loaded once for all tickets: no stage changes it. Raises ValueError if its weights are others."""
    backbone = load_backbone(ref.name, device)
    if backbone.card.digest != ref.digest:
        raise ValueError("this worker's backbone weights differ from those that the work was planned for")
    return backbone


def _context(ticket: RunTicket, started: float, group: Group) -> Context:
    storage = Storage(ticket.storage)
    meter = UsageMeter(ticket.work, started)
    backbone = None if ticket.work.kind in WITHOUT_BACKBONE else _backbone(ticket.work.backbone, group.device)
    events = EventLog(storage, ticket) if group.leads else None
    return Context(ticket, storage, backbone, group, meter, StopCondition(storage, ticket, meter), events)


def run_stages(context: Context) -> None:
    """Run the stages of a graft; the teacher has nothing to train and is only evaluated."""
    stages: tuple[StageName, ...] = ("distill", "finetune", "evaluate")
    for stage in stages[-1:] if context.spec.design.is_teacher else stages:
        run_stage(context, STAGES[stage])


def run_stage(context: Context, stage: Stage) -> None:
    """Run one stage and write its report as an event. Raises AttemptStoppedEarly with the reason."""
    before = context.meter.total()
    log.info("%s begins", stage.__module__.rsplit(".", 1)[-1])
    try:
        report = stage(context)
    except StopRequested as stop:
        raise AttemptStoppedEarly(str(context.stop_condition.reason())) from stop
    spend = difference(context.meter.total(), before)
    log.info("%s %s after %.1f device-seconds", report.stage, report.stop_cause, spend.device_seconds)
    if context.events is not None:
        context.events.write(StageDone(report=report.model_copy(update={"spend": spend})))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PIPELINES: Mapping[str, Callable[[Context], None]] = {
    "graft": run_stages,
    "fill": partial(run_stage, stage=fill.run),
    "analysis": partial(run_stage, stage=analyze.run),
    "latency": partial(run_stage, stage=measure.run),
    "registration": partial(run_stage, stage=register.run),
    "export": partial(run_stage, stage=export.run),
}
"""Kind of work -> function that runs it."""
