"""Every way an attempt can end has the reason that its retry policy needs."""

import errno

import pytest
from ray.exceptions import RayTaskError

from grafting_core.training.optim import Diverged
from workers.failures import classify
from workers.group import AttemptStoppedEarly
from workers.stages.intake import BadInput


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class RayActorError(Exception):
    """As Ray names it."""


class ActorDiedError(RayActorError):
    """As Ray names its child."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Diverged("loss of nan"), "diverged"),
        (OutOfMemoryError("CUDA"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
        (ActorDiedError("killed"), "worker_lost"),
        (AttemptStoppedEarly("user_request"), "user_request"),
        (AttemptStoppedEarly("budget_exhausted"), "budget_exhausted"),
        (KeyError("x"), "internal_error"),
    ],
)
def test_the_cause_decides_however_deeply_it_is_wrapped(error: Exception, reason: str) -> None:
    assert classify(error)[0] == reason
    wrapped = RuntimeError("training failed")
    wrapped.__cause__ = RuntimeError("worker failed")
    wrapped.__cause__.__context__ = error
    assert classify(wrapped)[0] == reason


def test_an_actor_whose_node_was_taken_away_was_preempted() -> None:
    error = ActorDiedError("its node is gone")
    error.preempted = True  # type: ignore[attr-defined]  # as Ray says of such
    assert classify(error)[0] == "preempted"


def test_worker_failures_of_ray_train_are_looked_into() -> None:
    error = RuntimeError("group failed")
    error.worker_failures = {0: Diverged("loss of inf")}  # type: ignore[attr-defined]  # as Ray Train attaches them
    assert classify(error) == ("diverged", "Diverged: loss of inf")


def test_bad_input_from_a_task_of_ray_is_told_in_its_own_sentence() -> None:
    """Ray raises a class of its own, made of itself and of the task's error."""
    raised = RayTaskError("work", "Traceback of the worker", BadInput("no folder")).as_instanceof_cause()
    assert classify(raised) == ("bad_input", "no folder")


def test_messages_are_one_short_line() -> None:
    assert len(classify(ValueError("x" * 9999))[1]) == 500
