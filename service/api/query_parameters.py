"""Reject unknown query parameters and unreadable ids: both are mistakes of the caller."""

from typing import Any

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
    unknown = sorted(set(request.query_params) - _names(request.scope["route"]))
    if unknown:
        allowed = sorted(_names(request.scope["route"]))
        message = f"unknown parameter {shown(unknown[0])}{_hint(unknown[0], allowed)}"
        place = pointer("query", unknown[0])
        raise SpecError(
            [Problem(pointer=place, code="unknown-field", message=message, allowed=tuple(allowed))]
        )


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


def _names(route: Any) -> set[str]:
    """Return the names of a route's parameters and those of its dependencies, computed once per route."""
    names: set[str] | None = getattr(route, "known_parameters", None)
    if names is None:
        names = _declared(route.dependant)
        route.known_parameters = names
    return names


def _declared(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_declared(inner) for inner in dependant.dependencies))
