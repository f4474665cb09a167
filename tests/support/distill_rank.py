"""One rank of a DISTILL stage as a separate process.

`python -m tests.support.distill_rank FOLDER RUN RANK WORLD STEPS` writes a checkpoint after every step.
The ranks synchronise through files, instead of `torch.distributed` barriers as in a lab.
"""

import itertools
import sys
import time
from pathlib import Path

import torch

from grafting_core.backbones.registry import load_backbone
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from tests.support.builders import experiment
from workers.contract import RunTicket
from workers.events import EventLog
from workers.observer import StopCondition
from workers.stages import distill
from workers.stages.context import Context, Group
from workers.usage import UsageMeter

LAYERS = [0, 3, 5]


def spec(steps: int) -> ExperimentSpec:
    plan = {"steps": steps, "batch_size": 8, "held_out": 16, "images": 200}
    return experiment(layers=LAYERS, distill=plan)


def meeting(folder: Path, rank: int, world: int):
    """Return a barrier of processes."""
    numbers = itertools.count()

    def barrier() -> None:
        number = next(numbers)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}-{rank}").touch()
        while len(list(folder.glob(f"{number}-*"))) < world:
            time.sleep(0.01)

    return barrier


def main(folder: str, run: str, rank: int, world: int, steps: int) -> None:
    torch.set_num_threads(1)
    storage, work = Storage(folder), spec(steps)
    ticket = RunTicket(run_id=run, attempt=1, work=work, storage=folder, checkpoint_seconds=1e-9)
    meter = UsageMeter(work, time.time())
    group = Group(Shard(rank, world), barrier=meeting(Path(folder) / "meeting", rank, world))
    events = EventLog(storage, ticket) if rank == 0 else None
    stop_condition = StopCondition(storage, ticket, meter)
    distill.run(
        Context(ticket, storage, load_backbone("testbed/dit-fashion"), group, meter, stop_condition, events)
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
