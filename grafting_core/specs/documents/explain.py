"""Convert pydantic's validation errors to problems with pointers into the user's document."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from grafting_core.specs.documents.errors import MAX_PROBLEMS, Problem, SpecError, pointer, shown
from grafting_core.specs.operators import FAILURES, KINDS

LONGEST_NAME = 100
"""Longer names get no suggestion."""
CODES = {
    "extra_forbidden": "unknown-field",
    "missing": "missing-field",
    "finite_number": "non-finite",
    "json_invalid": "bad-text",
    "layer_selector": "bad-layers",
    "pairing": "bad-pairs",
    "union_tag_invalid": "unknown-operator",
    "union_tag_not_found": "missing-field",
    "literal_error": "not-allowed",
}


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` if an allowed name is similar, else an empty string."""
    if len(name) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def refused(error: ValidationError, document: Any, model: type[BaseModel]) -> SpecError:
    """SpecError with the first errors and the number of the others."""
    problems = explain(error, document, model)
    return SpecError(problems, error.error_count() - len(problems))


def explain(error: ValidationError, document: Any, model: type[BaseModel]) -> list[Problem]:
    """One problem per error in document order, up to `MAX_PROBLEMS`."""
    first = error.errors(include_url=False)[:MAX_PROBLEMS]
    return [_problem(details, document, model) for details in first]


def _problem(details: ErrorDetails, document: Any, model: type[BaseModel]) -> Problem:
    kind = details["type"]
    path = _path(details, document)
    if kind == "extra_forbidden":
        return _unknown_field(path, document, model)
    if kind == "union_tag_invalid":
        return _unknown_kind(path, document)
    if kind == "union_tag_not_found":
        path = (*path, "kind")
    return Problem(
        pointer=pointer(*path),
        code=CODES.get(kind, _code_of(kind)),
        message=_message(details),
        given=None if kind == "missing" else shown(details["input"]),
        allowed=_allowed(details),
    )


def _code_of(kind: str) -> str:
    bounds = ("greater_than", "less_than", "too_short", "too_long", "string_pattern")
    return "out-of-range" if any(bound in kind for bound in bounds) else "wrong-type"


def _message(details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return f"{details['loc'][-1]} is required"
    text = details["msg"][0].lower() + details["msg"][1:]
    if details["type"] == "string_type" and isinstance(details["input"], bool):
        return f"{text}; YAML reads yes, no, on, off, true and false as truth values, quote the word"
    if details["type"] == "string_type" and isinstance(details["input"], int | float):
        return f"{text}; quote a number that is meant as text"
    return text


def _allowed(details: ErrorDetails) -> tuple[str, ...]:
    expected = details.get("ctx", {}).get("expected", "")
    return tuple(part.strip(" '") for part in expected.replace(" or ", ",").split(",") if part.strip(" '"))


def _path(details: ErrorDetails, document: Any) -> tuple[object, ...]:
    """Location of the error without the union tags that pydantic adds and the document does not have."""
    path: list[object] = []
    value = document
    last = len(details["loc"]) - 1
    for position, part in enumerate(details["loc"]):
        if _has(value, part):
            value = value[part]
        elif not (details["type"] == "missing" and position == last):
            continue
        path.append(part)
    return tuple(path)


def _has(container: Any, part: object) -> bool:
    if isinstance(container, list):
        return isinstance(part, int) and part < len(container)
    return isinstance(container, dict) and part in container


def _at(path: tuple[object, ...], document: Any) -> Any:
    for part in path:
        document = document[part]
    return document


def _unknown_field(path: tuple[object, ...], document: Any, model: type[BaseModel]) -> Problem:
    *parents, name = path
    allowed = _fields(tuple(parents), document, model)
    message = f"unknown field {shown(name)}{nearest(str(name), allowed)}"
    return Problem(
        pointer=pointer(*path), code="unknown-field", message=message, given=shown(name), allowed=allowed
    )


def _unknown_kind(path: tuple[object, ...], document: Any) -> Problem:
    given = _at(path, document).get("kind")
    message = f"unknown operator {shown(given)}{nearest(str(given), KINDS)}"
    if isinstance(given, str) and given in FAILURES:
        message = f"operator {shown(given)} cannot be used: {FAILURES[given]}"
    place = pointer(*path, "kind")
    return Problem(
        pointer=place, code="unknown-operator", message=message, given=shown(given), allowed=tuple(KINDS)
    )


def _fields(path: tuple[object, ...], document: Any, model: type[BaseModel]) -> tuple[str, ...]:
    """Field names that the object at `path` may have, from the annotations of the models."""
    candidates = [model]
    for part in path:
        if isinstance(part, int):
            continue
        found = [info for cls in candidates for name, info in _named(cls) if name == part]
        candidates = [cls for info in found for cls in _models(info.annotation)]
    value = _at(path, document)
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in KINDS:
        candidates = [cls for cls in candidates if cls is KINDS[kind]] or candidates
    return tuple(name for cls in candidates for name, _ in _named(cls))


def _named(cls: type[BaseModel]) -> list[tuple[str, Any]]:
    return [(info.alias or name, info) for name, info in cls.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _models(part)]
