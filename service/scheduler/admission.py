"""Which queued runs start now."""

import logging
from collections.abc import Sequence

from sqlalchemy.orm import Session

from grafting_core.failpoints import failpoint
from grafting_core.spec.budget import Spend
from grafting_core.storage import Storage
from service.settings import Settings
from service.store.accounts import LiveUse, Usage, budget_of, live_use, usage
from service.store.bank import hold
from service.store.forecast import foresee
from service.store.lifecycle import transition
from service.store.models import AttemptRow, RunRow
from service.store.queries import spend_of
from service.store.queueing import Waiting, pop_next, room, shares, waiting
from service.store.reserving import budget_hold, expected

log = logging.getLogger("graftlab.scheduler")
LOOKED_AT = 20
"""Runs of each owner that a round considers: those behind may overtake what does not fit."""


def admit(session: Session, settings: Settings, storage: Storage, clock: float) -> list[str]:
    """Start what is due, fits and is within quotas and budgets; ids of the runs started."""
    free = room(session, settings.cpus, settings.gpus)
    if free.cpus <= 0:
        return []
    lines = waiting(session, LOOKED_AT)
    given = shares(session, settings.cpus, settings.gpus, lines)
    live, started = live_use(session), []
    while lines and free.cpus > 0:
        candidate = pop_next(lines, given)
        if given.quota(candidate):
            continue
        if not free.fits(candidate):
            if candidate.waited_seconds() > settings.hold_line_seconds:
                free.take(candidate)
            continue
        use = _start(session, settings, storage, candidate, live, clock)
        if use is not None:
            free.take(candidate)
            given.add(candidate)
            live.append(use)
            started.append(candidate.id)
    return started


def _start(
    session: Session,
    settings: Settings,
    storage: Storage,
    candidate: Waiting,
    live: Sequence[LiveUse],
    clock: float,
) -> LiveUse | None:
    run = session.get_one(RunRow, candidate.id, with_for_update=True)
    spent = spend_of(session, run.id)
    if budget_of(run).exceeded_by(spent):
        transition(session, run, "STOPPED", "budget_exhausted", "the run's own budget is spent")
        return None
    foresee(session, run)
    want = expected(run, spent)
    if budget_hold(session, candidate, live, usage(run.experiment.backbone, want)):
        return None
    if hold(session, storage, run):
        return None
    _claim(session, run, want, clock + settings.start_seconds)
    return LiveUse(run.id, candidate.keys, Usage(), usage(run.experiment.backbone, want))


def _claim(session: Session, run: RunRow, want: Spend, lease_until: float) -> None:
    run.attempt += 1
    run.reserved_device_seconds, run.reserved_flops = want.device_seconds, want.flops
    run.reserved_images = want.training_images
    session.add(
        AttemptRow(
            run_id=run.id, number=run.attempt, lease_until=lease_until, micro_batches=run.micro_batches
        )
    )
    transition(session, run, "STARTING")
    failpoint("claim")
    log.info("run %s attempt %s: claimed", run.id, run.attempt)
