"""Map an exception, however deeply wrapped, to a reason of the contract."""

import errno
from collections.abc import Iterator

from workers.contract import Reason

BY_NAME: dict[str, Reason] = {
    "Diverged": "diverged",
    "OutOfMemoryError": "out_of_memory",
    "MemoryError": "out_of_memory",
    "CorruptArtifact": "invalid_checkpoint",
    "BadInput": "bad_input",
    "ActorDiedError": "worker_lost",
    "RayActorError": "worker_lost",
    "WorkerCrashedError": "worker_lost",
    "WorkerHealthCheckFailedError": "worker_lost",
    "NodeDiedError": "node_fault",
}
STOPS: dict[str, Reason] = {
    "user_request": "user_request",
    "budget_exhausted": "budget_exhausted",
    "preempted": "preempted",
    # A newer attempt has taken over.
    "worker_lost": "worker_lost",
}


def classify(error: BaseException) -> tuple[Reason, str]:
    """Reason and a message of at most 500 characters. Types are matched by name: causes arrive pickled."""
    for cause in _causes(error):
        name = type(cause).__name__
        if name == "AttemptStoppedEarly":
            return STOPS.get(str(cause), "internal_error"), str(cause)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return "storage_full", _message(cause)
        if getattr(cause, "preempted", False) is True:
            return "preempted", _message(cause)
        for known, reason in BY_NAME.items():
            if known in {base.__name__ for base in type(cause).__mro__}:
                return reason, _message(cause)
    return "internal_error", _message(_innermost(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, its causes, and the failures that Ray Train collected by worker."""
    pending, seen = [error], set()
    while pending:
        cause = pending.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = [cause.__cause__, cause.__context__, getattr(cause, "cause", None)]
        inner += list(getattr(cause, "worker_failures", {}).values())
        pending += [other for other in inner if isinstance(other, BaseException)]


def _innermost(error: BaseException) -> BaseException:
    return list(_causes(error))[-1]


def _message(error: BaseException) -> str:
    """Its type and last line; of what people can put right, the sentence alone.

    Ray raises an error of a task as one of a class that it makes from the error's own; its `cause` is the
    error itself.
    """
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    if type(error).__name__ == "BadInput":
        return " ".join(str(error).split())[:500]
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:500]
