"""Reject unknown query parameters: they are mistakes."""

from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.documents.explain import nearest
from grafting_core.specs.naming import unseen
from service.api.problems import ApiError

MAX_PART = 200
"""Characters of a part of the path that a route reads as an id or a name."""


async def known_parameters(request: Request) -> None:
    """Dependency of the whole application. Raises SpecError naming the first unknown parameter, and ApiError
    where a part of the path is no name of anything.

    Asynchronous, as all dependencies that wait for nothing: others cost a change of threads each.
    """
    for value in request.path_params.values():
        _check_part(value)
    for name, value in request.query_params.multi_items():
        _check_legible(name, value)
    unknown = sorted(set(request.query_params) - _names(request.scope["route"]))
    if unknown:
        allowed = sorted(_names(request.scope["route"]))
        message = f"unknown parameter {shown(unknown[0])}{nearest(unknown[0], allowed)}"
        place = pointer("query", unknown[0])
        raise SpecError(
            [Problem(pointer=place, code="unknown-field", message=message, allowed=tuple(allowed))]
        )


def _check_part(value: object) -> None:
    """Ids and names in a path are short and can be seen; longer ones reach no database and no file."""
    if isinstance(value, str) and (len(value) > MAX_PART or any(map(unseen, value))):
        raise ApiError("not-found", f"nothing is called {shown(value, 60)}")


def _check_legible(name: str, value: str) -> None:
    wrong = next((found for found in map(unseen, value) if found), None)
    if wrong is not None:
        message = f"a character of {shown(value, 60)} is {wrong}; leave it out"
        place = pointer("query", name)
        raise SpecError([Problem(pointer=place, code="bad-text", message=message, given=shown(value))])


def _names(route: Any) -> set[str]:
    """Names of a route's parameters, those of its dependencies too; found once a route."""
    found: set[str] | None = getattr(route, "known_parameters", None)
    if found is None:
        found = _wanted(route.dependant)
        route.known_parameters = found
    return found


def _wanted(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_wanted(inner) for inner in dependant.dependencies))
