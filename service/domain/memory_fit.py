"""Preflight at submission: whether an experiment fits into the memory of the lab's workers."""

from collections.abc import Iterator

from grafting_core.specs.backbone import card_of
from grafting_core.specs.documents.errors import Problem, SpecError
from grafting_core.specs.experiment import ExperimentSpec, Resources
from grafting_core.specs.jobs import Job
from grafting_core.specs.memory_fit import MemoryProblem, memory_problems
from service.settings import Settings

PARTS = "accumulation_steps"


def accumulation_that_fits(settings: Settings, work: Job) -> int:
    """Return the number of parts of a training batch with which the work fits into a worker's memory.

    It is 1 if the memory is unknown or the work is no graft. Raises SpecError if smaller parts do not
    suffice, naming the setting that would.
    """
    available = memory_of_worker(settings, work.resources)
    if available is None or not isinstance(work, ExperimentSpec):
        return 1
    card, steps = card_of(work.backbone), 1
    while problems := memory_problems(work, card, available, accumulation_steps=steps):
        smaller = [problem.settings.get(PARTS) for problem in problems]
        if not all(smaller):
            raise SpecError(list(_described(problems)))
        steps = max(int(parts) for parts in smaller if parts)
    return steps


def memory_of_worker(settings: Settings, resources: Resources) -> int | None:
    """Return the bytes that one worker may use, or None if the lab does not know them."""
    if resources.gpus_per_worker:
        gigabytes = settings.gpu_memory_gb
        return None if gigabytes is None else int(gigabytes * 1e9)
    return None if settings.memory_gb is None else int(settings.memory_gb * 1e9 / resources.workers)


def _described(problems: list[MemoryProblem]) -> Iterator[Problem]:
    for problem in problems:
        if PARTS not in problem.settings:
            name = next(iter(problem.settings), "resources")
            yield Problem(pointer=f"/{name.replace('.', '/')}", code="out-of-range", message=problem.message)
