"""Read text as a plain document: JSON or YAML, restricted to safe features, within size limits.

Both the command line and the service read documents here. Reading takes time linear in the text's length for
every input.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from grafting_core.specs.documents.errors import Problem, SpecError, pointer, shown
from grafting_core.specs.documents.scalars import number
from grafting_core.specs.documents.yaml_reading import NestedTooDeep, TooManyValues, read_yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Limit over all objects, lists and scalars; a study of every site and operator has a few thousand."""
MAX_KEY_CHARACTERS = 200
EMPTY = "the document is empty; write fields such as `name: my design`"


def read_document(text: str) -> Any:
    """Parse JSON (if the text starts like it) or YAML, and check that it has only JSON's types.

    Scalars follow YAML 1.2's core schema, like JSON's (see `scalars`). Raises SpecError: empty or unreadable
    text, repeated keys, aliases, tags, more than 32 levels or 20,000 values, NaN or infinities.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        _refuse("wrong-type", EMPTY)
    if len(text) > MAX_CHARACTERS:
        _refuse(
            "malformed", f"the document has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed"
        )
    try:
        document = _parse(text)
    except (RecursionError, NestedTooDeep) as error:
        raise SpecError([_too_deep("")]) from error
    except TooManyValues as error:
        raise SpecError([_too_many()]) from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        message = "cannot be read as JSON or YAML: " + " ".join(shown_text(str(error)).split())[:300]
        raise SpecError([Problem(pointer="", code="malformed", message=message)]) from error
    if document is None:
        _refuse("wrong-type", EMPTY)
    check_plain(document)
    return document


def shown_text(text: str) -> str:
    """Parser message, which may quote the document, escaped to ASCII so that it can be printed anywhere."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _refuse(code: str, message: str) -> NoReturn:
    raise SpecError([Problem(pointer="", code=code, message=message)])


def _parse(text: str) -> Any:
    if text.lstrip()[:1] in ("{", "["):
        return json.loads(text, object_pairs_hook=_unique_pairs, parse_int=number, parse_float=number)
    return read_yaml(text, MAX_DEPTH, MAX_VALUES)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} appears more than once")
            seen.add(key)
    return made


def check_plain(document: Any) -> None:
    """Raise SpecError unless the document is finite JSON of at most 32 levels and 20,000 values."""
    problems = []
    for count, found in enumerate(_walk(document, (), 0)):
        if count >= MAX_VALUES:
            raise SpecError([_too_many()])
        if found is not None:
            problems.append(found)
    if problems:
        raise SpecError(problems)


def _too_deep(place: str) -> Problem:
    return Problem(pointer=place, code="too-deep", message=f"nested deeper than {MAX_DEPTH} levels")


def _too_many() -> Problem:
    message = f"the document has more than {MAX_VALUES:,} values; split it, or use selectors such as `all`"
    return Problem(pointer="", code="too-many", message=message)


def _walk(value: Any, path: tuple[object, ...], depth: int) -> Iterator[Problem | None]:
    """Problem of every value of the document, or None for a correct one."""
    if depth > MAX_DEPTH:
        yield _too_deep(pointer(*path))
    elif isinstance(value, dict):
        yield None
        for key, item in value.items():
            wrong = _key_problem(key, path)
            if wrong is None:
                yield from _walk(item, (*path, key), depth + 1)
            else:
                yield wrong
    elif isinstance(value, list):
        yield None
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index), depth + 1)
    else:
        yield _scalar_problem(value, path)


def _key_problem(key: object, path: tuple[object, ...]) -> Problem | None:
    if not isinstance(key, str):
        message = f"key {shown(key)} is not text; quote it"
    elif len(key) > MAX_KEY_CHARACTERS:
        message = f"a key has {len(key):,} characters; at most {MAX_KEY_CHARACTERS} are allowed"
    elif not _encodable(key):
        message = f"key {shown(key)} holds a lone surrogate, which is not a character"
    else:
        return None
    return Problem(pointer=pointer(*path), code="bad-key", message=message)


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalar_problem(value: Any, path: tuple[object, ...]) -> Problem | None:
    if isinstance(value, str):
        if _encodable(value):
            return None
        code, message = "bad-text", "holds a lone surrogate, which is not a character"
    elif isinstance(value, float) and not math.isfinite(value):
        code, message = "non-finite", f"{value} is not a finite number"
    elif value is None or isinstance(value, int | float):
        return None
    else:
        code = "bad-type"
        message = f"a {type(value).__name__} is not a JSON value; quote it to mean text"
    return Problem(pointer=pointer(*path), code=code, message=message, given=shown(value))
