"""Query parameters are as strict as bodies: a name that no route knows is a mistake, not a wish to ignore."""

from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant

from grafting_core.spec.explain import nearest
from grafting_core.spec.problems import Problem, SpecError, pointer, shown


async def known_parameters(request: Request) -> None:
    """Dependency of the whole application. Raises SpecError naming the first unknown parameter.

    Asynchronous, as all dependencies that wait for nothing: others cost a change of threads each.
    """
    unknown = sorted(set(request.query_params) - _names(request.scope["route"]))
    if unknown:
        allowed = sorted(_names(request.scope["route"]))
        message = f"unknown parameter {shown(unknown[0])}{nearest(unknown[0], allowed)}"
        place = pointer("query", unknown[0])
        raise SpecError(
            [Problem(pointer=place, code="unknown-field", message=message, allowed=tuple(allowed))]
        )


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
