"""What is checked before a study is kept: that some design of its space meets its limits."""

from collections.abc import Sequence
from typing import Any

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.parsing import parse_study
from grafting_core.specs.studies.space import Cost
from grafting_core.specs.studies.study import Limit, StudySpec


def parse_feasible_study(document: Any) -> StudySpec:
    """Parse, resolve and prove feasible. Raises SpecError with the nearest feasible value.

    A limit on latency is checked by `check_limits` as soon as the table is measured.
    """
    spec = parse_study(document)
    check_limits(spec, [limit for limit in spec.limits if limit.cost != "latency"])
    return spec


def check_limits(spec: StudySpec, limits: Sequence[Limit]) -> None:
    """Raises SpecError where no design of the space keeps all of these limits."""
    for limit in limits:
        least = Proposer(spec.space, {}).least(limit.cost)
        _check(spec, limit.cost, [], limit.at_most, least)
    if len(limits) > 1:
        _check_together(spec, limits)


def _check_together(spec: StudySpec, limits: Sequence[Limit]) -> None:
    """Limits that can be met one by one but not at once: the last is the one to give way."""
    try:
        Proposer(spec.space, {}, tuple(limits)).least(limits[-1].cost)
    except NoDesign:
        *others, last = limits
        least = Proposer(spec.space, {}, tuple(others)).least(last.cost)
        _check(spec, last.cost, [f"{each.cost} <= {each.of_backbone:.4g}x" for each in others], -1.0, least)


def _check(spec: StudySpec, cost: Cost, beside: list[str], at_most: float, least: Chosen) -> None:
    reached, base = spec.space.total(cost, least), spec.space.base(cost)
    if reached <= at_most:
        return
    nearest = f"<= {_above(reached / base)}x"
    condition = f" with {' and '.join(beside)}" if beside else ""
    message = f"no design meets this{condition}; "
    message += f"the least {cost} this space reaches is {_amount(reached)}: {nearest!r}"
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


def _amount(total: float) -> str:
    """Counts in full, shares to four decimals."""
    return f"{total:,}" if isinstance(total, int) else f"{total:.4f}"
