"""What is checked before a study is kept: that some design of its space meets its limits."""

from typing import Any

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.studies.integer_program import NoDesign, Proposer
from grafting_core.specs.studies.parsing import parse_study
from grafting_core.specs.studies.study import StudySpec


def open_study(document: Any) -> StudySpec:
    """Parse, resolve and prove feasible. Raises SpecError with the nearest feasible value."""
    spec = parse_study(document)
    for limit in spec.limits:
        least = Proposer(spec.space, {}).least(limit.cost)
        _check(spec, limit.cost, [], limit.at_most, least)
    if len(spec.limits) > 1:
        _check_together(spec)
    return spec


def _check_together(spec: StudySpec) -> None:
    """Limits that can be met one by one but not at once: the last is the one to give way."""
    try:
        Proposer(spec.space, {}, spec.limits).least(spec.limits[-1].cost)
    except NoDesign:
        *others, last = spec.limits
        least = Proposer(spec.space, {}, tuple(others)).least(last.cost)
        _check(spec, last.cost, [f"{each.cost} <= {each.of_backbone:.4g}x" for each in others], -1.0, least)


def _check(spec: StudySpec, cost: str, beside: list[str], at_most: float, least: Any) -> None:
    space = spec.space
    reached = space.flops(least) if cost == "flops" else space.params(least)
    base = space.base_flops if cost == "flops" else space.base_params
    if reached <= at_most:
        return
    nearest = f"<= {_above(reached / base)}x"
    condition = f" with {' and '.join(beside)}" if beside else ""
    message = (
        f"no design meets this{condition}; the least {cost} this space reaches is {reached:,}: {nearest!r}"
    )
    given = next(limit for limit in spec.limits if limit.cost == cost)
    raise SpecError(
        [
            Problem(
                pointer=pointer("limits", cost),
                code="infeasible",
                message=message,
                given=shown(f"<= {given.of_backbone:.6g}x"),
                allowed=(nearest,),
            )
        ]
    )


def _above(share: float) -> str:
    """Four decimals, never below the share."""
    return f"{int(share * 10_000) / 10_000 + 0.0001:.4f}"
