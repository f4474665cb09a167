"""Check, before a study is stored, that some design of its space meets its limits."""

from collections.abc import Sequence
from typing import Any

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.studies.integer_program import Chosen, NoDesign, Proposer
from grafting_core.specs.studies.parsing import parse_study
from grafting_core.specs.studies.space import Cost
from grafting_core.specs.studies.study import Limit, StudySpec


def parse_feasible_study(document: Any) -> StudySpec:
    """Parse and resolve a study and prove it feasible. Raises SpecError with the nearest feasible value.

    A limit on latency is checked by `check_limits` once the table is measured.
    """
    spec = parse_study(document)
    check_limits(spec, [limit for limit in spec.limits if limit.cost != "latency"])
    return spec


def check_limits(spec: StudySpec, limits: Sequence[Limit]) -> None:
    """Raises SpecError if no design of the space meets all of these limits."""
    for limit in limits:
        least = Proposer(spec.space, {}).least(limit.cost)
        _check(spec, limit.cost, [], limit.at_most, least)
    if len(limits) > 1:
        _check_together(spec, limits)


def _check_together(spec: StudySpec, limits: Sequence[Limit]) -> None:
    """Raises SpecError, naming the last limit, if limits can be met one by one but not at once."""
    try:
        Proposer(spec.space, {}, tuple(limits)).least(limits[-1].cost)
    except NoDesign:
        *others, last = limits
        least = Proposer(spec.space, {}, tuple(others)).least(last.cost)
        _check(
            spec, last.cost, [f"{limit.cost} <= {limit.of_backbone:.4g}x" for limit in others], -1.0, least
        )


def _check(spec: StudySpec, cost: Cost, together_with: list[str], at_most: float, least: Chosen) -> None:
    reached, base = spec.space.total(cost, least), spec.space.base(cost)
    if reached <= at_most:
        return
    nearest = f"<= {_above(reached / base)}x"
    condition = f" with {' and '.join(together_with)}" if together_with else ""
    message = f"no design meets this{condition}; "
    message += f"the least {cost} in this space is {_amount(reached)}: {nearest!r}"
    failed = next(limit for limit in spec.limits if limit.cost == cost)
    raise SpecError(
        [
            Problem(
                pointer=pointer("limits", cost),
                code="infeasible",
                message=message,
                given=shown(f"<= {failed.of_backbone:.6g}x"),
                allowed=(nearest,),
            )
        ]
    )


def _above(share: float) -> str:
    """Format with four decimals, rounded up above the share."""
    return f"{int(share * 10_000) / 10_000 + 0.0001:.4f}"


def _amount(total: float) -> str:
    """Format counts in full, shares with four decimals."""
    return f"{total:,}" if isinstance(total, int) else f"{total:.4f}"
