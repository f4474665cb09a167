"""Whether an experiment fits into the memory of its workers, and the settings with which it would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.memory import MemoryNeed, distillation_memory, finetuning_memory, sampling_memory

MOST = 1024
"""Of parts of a batch, and of workers, that are tried."""

Settings = dict[str, int | str]


@dataclass(frozen=True)
class MemoryProblem:
    """A stage that does not fit, and the settings with which it would; none where nothing helps."""

    stage: str
    message: str
    settings: Settings


def memory_problems(
    spec: ExperimentSpec, card: BackboneCard, available: int, *, accumulation_steps: int = 1
) -> list[MemoryProblem]:
    """Stages of which one worker takes more than the `available` bytes, each with what would fit.

    Tried in this order: more parts of a batch, one after the other (the same result, to rounding), more
    workers, features that are not stored, a smaller micro batch of sampling, and half precision.
    """
    start = _Choice(spec, accumulation_steps)
    stages: dict[str, tuple[_Need, Iterator[tuple[Settings, _Choice]]]] = {}
    if not spec.design.is_teacher:
        stages["distill"] = _distillation, _for_distillation(start)
        stages["finetune"] = _finetuning, _for_finetuning(start)
    stages["evaluate"] = _sampling, _for_sampling(start)
    problems = (
        _problem(stage, available, need(card, start), ((told, need(card, each)) for told, each in others))
        for stage, (need, others) in stages.items()
    )
    return [problem for problem in problems if problem is not None]


def check_memory(
    spec: ExperimentSpec, card: BackboneCard, available: int, *, accumulation_steps: int = 1
) -> None:
    """Raises ValueError with every problem where the experiment does not fit."""
    problems = memory_problems(spec, card, available, accumulation_steps=accumulation_steps)
    if problems:
        raise ValueError("; ".join(problem.message for problem in problems))


@dataclass(frozen=True)
class _Choice:
    """An experiment, and in how many parts its workers compute their batches."""

    spec: ExperimentSpec
    accumulation_steps: int

    @property
    def workers(self) -> int:
        return self.spec.resources.workers

    def changed(self, part: str, **changes: object) -> "_Choice":
        """With other fields of one part of the experiment."""
        plan = getattr(self.spec, part).model_copy(update=changes)
        return _Choice(self.spec.model_copy(update={part: plan}), self.accumulation_steps)


_Need = Callable[[BackboneCard, _Choice], MemoryNeed]


def _distillation(card: BackboneCard, choice: _Choice) -> MemoryNeed:
    """Of the worker with the most sites: they are shared out."""
    parts = choice.spec.design.parts
    own = parts[: -(-len(parts) // choice.workers)]
    return distillation_memory(card, own, choice.spec.distill, accumulation_steps=choice.accumulation_steps)


def _finetuning(card: BackboneCard, choice: _Choice) -> MemoryNeed:
    spec = choice.spec
    return finetuning_memory(
        card, spec.design, spec.finetune, workers=choice.workers, accumulation_steps=choice.accumulation_steps
    )


def _sampling(card: BackboneCard, choice: _Choice) -> MemoryNeed:
    return sampling_memory(card, choice.spec.design, choice.spec.evaluate)


def _for_distillation(start: _Choice) -> Iterator[tuple[Settings, _Choice]]:
    yield from _parts(start, start.spec.distill.batch_size)
    yield from _workers(start, lambda count: count <= len(start.spec.design.parts))
    if start.spec.distill.features == "stored":
        yield {"distill.features": "fresh"}, start.changed("distill", features="fresh")
    yield {"distill.precision": "bfloat16"}, start.changed("distill", precision="bfloat16")


def _for_finetuning(start: _Choice) -> Iterator[tuple[Settings, _Choice]]:
    size = start.spec.finetune.batch_size
    yield from _parts(start, size // start.workers)
    yield from _workers(start, lambda count: size % count == 0)
    yield {"finetune.precision": "bfloat16"}, start.changed("finetune", precision="bfloat16")


def _for_sampling(start: _Choice) -> Iterator[tuple[Settings, _Choice]]:
    size = start.spec.evaluate.micro_batch
    while size > 1:
        size //= 2
        yield {"evaluate.micro_batch": size}, start.changed("evaluate", micro_batch=size)
    yield {"evaluate.precision": "bfloat16"}, start.changed("evaluate", precision="bfloat16")


def _parts(start: _Choice, rows: int) -> Iterator[tuple[Settings, _Choice]]:
    for parts in _doubled(start.accumulation_steps):
        if parts <= rows:
            yield {"accumulation_steps": parts}, _Choice(start.spec, parts)


def _workers(start: _Choice, fits: Callable[[int], bool]) -> Iterator[tuple[Settings, _Choice]]:
    for count in _doubled(start.workers):
        if fits(count):
            yield {"resources.workers": count}, start.changed("resources", workers=count)


def _doubled(start: int) -> Iterator[int]:
    """Twice, four times ... `start`."""
    value = 2 * start
    while value <= MOST:
        yield value
        value *= 2


def _problem(
    stage: str, available: int, need: MemoryNeed, others: Iterator[tuple[Settings, MemoryNeed]]
) -> MemoryProblem | None:
    if need.total <= available:
        return None
    what = f"{stage} takes {_gigabytes(need.total)} of the {_gigabytes(available)} of a worker"
    for settings, other in others:
        if other.total <= available:
            told = " and ".join(f"{name} {value}" for name, value in settings.items())
            return MemoryProblem(
                stage, f"{what}; with {told} it would take {_gigabytes(other.total)}", settings
            )
    fixed = _gigabytes(need.total - need.activations)
    return MemoryProblem(stage, f"{what}, {fixed} of them whatever the batch; take a larger device", {})


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
