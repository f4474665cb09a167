"""Reject unknown and repeated query parameters and unreadable ids: all are mistakes of the caller."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.documents.explain import nearest
from grafting_core.specs.naming import unseen
from service.api.problems import ApiError

RENAMED = {"study": "tag"}
"""Parameters of earlier versions -> what they are called now."""
MAX_PART = 200
"""Length limit of an id or a name in the path."""


async def known_parameters(request: Request) -> None:
    """Check the query and the path of a request; a dependency of the whole application.

    Raises SpecError naming the first unknown parameter, and ApiError if a part of the path cannot be a
    name. It is async, like all dependencies that do not block: a sync one costs a change of threads.
    """
    for value in request.path_params.values():
        _check_part(value)
    for name, value in request.query_params.multi_items():
        _check_legible(name, value)
    declared = _declared(request.scope["route"])
    _check_known(request.query_params.keys(), declared)
    _check_single(Counter(name for name, _ in request.query_params.multi_items()), declared)


def _check_known(names: Iterable[str], declared: Mapping[str, bool]) -> None:
    unknown = sorted(set(names) - declared.keys())
    if unknown:
        allowed = sorted(declared)
        message = f"unknown parameter {shown(unknown[0])}{_hint(unknown[0], allowed)}"
        place = pointer("query", unknown[0])
        raise SpecError(
            [Problem(pointer=place, code="unknown-field", message=message, allowed=tuple(allowed))]
        )


def _check_single(counts: Mapping[str, int], declared: Mapping[str, bool]) -> None:
    """Refuse several values where one is used: all but the last would be ignored silently."""
    repeated = sorted(name for name, count in counts.items() if count > 1 and not declared[name])
    if repeated:
        message = f"the parameter is given {counts[repeated[0]]} times; give it once"
        raise SpecError([Problem(pointer=pointer("query", repeated[0]), code="repeated", message=message)])


def _hint(name: str, allowed: list[str]) -> str:
    if RENAMED.get(name) in allowed:
        return f"; it is called {RENAMED[name]!r} now"
    return nearest(name, allowed)


def _check_part(value: object) -> None:
    """Refuse ids and names that are too long or hold invisible characters, before any look-up. Raises
    ApiError.
    """
    if isinstance(value, str) and (len(value) > MAX_PART or any(map(unseen, value))):
        raise ApiError("not-found", f"nothing is called {shown(value, 60)}")


def _check_legible(name: str, value: str) -> None:
    wrong = next((name for name in map(unseen, value) if name), None)
    if wrong is not None:
        message = f"a character of {shown(value, 60)} is {wrong}; leave it out"
        place = pointer("query", name)
        raise SpecError([Problem(pointer=place, code="bad-text", message=message, given=shown(value))])


def _declared(route: Any) -> Mapping[str, bool]:
    """Return the route's parameters and those of its dependencies, and whether each takes several values.

    It is computed once per route.
    """
    declared: dict[str, bool] | None = getattr(route, "declared_parameters", None)
    if declared is None:
        declared = dict(_parameters(route.dependant))
        route.declared_parameters = declared
    return declared


def _parameters(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    for field in dependant.query_params:
        yield field.alias, _takes_several(field.field_info.annotation)
    for inner in dependant.dependencies:
        yield from _parameters(inner)


def _takes_several(annotation: object) -> bool:
    return get_origin(annotation) in (list, tuple, set) or any(
        _takes_several(each) for each in get_args(annotation)
    )
