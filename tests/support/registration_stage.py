"""Carry out a registration's stage in this process, without a lab around it."""

from pathlib import Path
from typing import Any

from grafting_core.specs.registration import RegistrationSpec
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from workers.contract import RunTicket, StageReport
from workers.events import EventLog
from workers.observer import StopCondition
from workers.stages.context import Context, Group
from workers.stages.register import run
from workers.usage import UsageMeter


def ticket(tmp_path: Path, source: Path, attempt: int = 1, **changes: Any) -> RunTicket:
    work = RegistrationSpec(what="backbone", name="mine", **{"path": str(source), **changes})
    roots = (str(tmp_path / "models"),)
    return RunTicket(
        run_id="r1", attempt=attempt, work=work, storage=str(tmp_path / "storage"), import_roots=roots
    )


def context(given: RunTicket) -> Context:
    storage, meter = Storage(given.storage), UsageMeter(given.work, 0.0)
    stop = StopCondition(storage, given, meter)
    return Context(given, storage, None, Group(Shard()), meter, stop, EventLog(storage, given))


def registered(tmp_path: Path, source: Path, **changes: Any) -> StageReport:
    return run(context(ticket(tmp_path, source, **changes)))
