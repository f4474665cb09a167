"""Retry policy by the reason why an attempt ended."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from service.db.tables import RunRow
from service.schemas.runs import RunState
from workers.contract import Reason

LONGEST_BACK_OFF = 600.0


@dataclass(frozen=True)
class Policy:
    """Rules for an attempt that ended; `ends` is the state of a run that is not retried."""

    ends: RunState = "FAILED"
    retry: bool = False
    counted: bool = True
    """Whether the attempt counts against the limit of attempts."""
    back_off: bool = True
    smaller_batch: bool = False
    """Whether the next attempt computes the same global batch in twice as many parts."""


POLICIES: Mapping[Reason, Policy] = {
    "user_request": Policy(ends="CANCELLED"),
    "budget_exhausted": Policy(ends="STOPPED"),
    # A diverging design is a result, and would diverge again under the same seed.
    "diverged": Policy(ends="STOPPED"),
    "out_of_memory": Policy(retry=True, counted=False, back_off=False, smaller_batch=True),
    "worker_lost": Policy(retry=True),
    "invalid_checkpoint": Policy(retry=True),
    "storage_full": Policy(retry=True),
    # Another attempt would read the same files.
    "bad_input": Policy(),
    # Not caused by the run.
    "node_fault": Policy(retry=True, counted=False),
    "preempted": Policy(retry=True, counted=False, back_off=False),
    "internal_error": Policy(),
}


def back_off(run: RunRow, base: float) -> float:
    """Return the seconds until the next attempt: doubling, at most ten minutes, spread by 20 % over runs."""
    spread = 0.8 + 0.4 * (zlib.crc32(f"{run.id}/{run.attempt}".encode()) % 1000) / 1000
    return min(LONGEST_BACK_OFF, base * 2.0 ** max(0, run.failures - 1)) * spread


def can_split(run: RunRow) -> bool:
    """Check whether every worker's share of the training batch can be halved once more.

    Evaluation cannot be split: its batch shape is part of the protocol, since it changes the metrics.
    """
    plan = run.experiment.spec.get(run.stage or "", {})
    workers = run.experiment.spec["resources"]["workers"]
    return bool(run.accumulation_steps * 2 * workers <= plan.get("batch_size", 0))
