"""From text to a plain document: JSON or YAML, without the tricks either can play."""

import json
import math
from collections.abc import Iterator
from typing import Any

import yaml

from grafting_core.spec.problems import Problem, SpecError, pointer, shown

MAX_DEPTH = 32


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses repeated keys and aliases (a few bytes of which can expand to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_repeats(keys)
        return super().construct_mapping(node, deep=deep)


def _refuse_repeats(keys: list[Any]) -> None:
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise ValueError(f"key {shown(repeated[0])} appears more than once")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeats([key for key, _ in pairs])
    return dict(pairs)


def read_document(text: str) -> Any:
    """Parse JSON (where the text starts like it) or YAML, and check it holds JSON's types only.

    Raises SpecError: unreadable text, repeated keys, aliases, more than 32 levels, NaN or infinities.
    """
    try:
        document = _parse(text)
    except RecursionError as error:
        raise SpecError([_too_deep("")]) from error
    except (ValueError, TypeError, yaml.YAMLError) as error:
        message = "cannot be read as JSON or YAML: " + " ".join(str(error).split())[:300]
        raise SpecError([Problem(pointer="", code="malformed", message=message)]) from error
    check_plain(document)
    return document


def _parse(text: str) -> Any:
    if text.lstrip()[:1] in ("{", "["):
        return json.loads(text, object_pairs_hook=_unique_pairs)
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, only stricter


def check_plain(document: Any) -> None:
    """Raise SpecError unless the document is finite JSON of at most 32 levels."""
    problems = list(_unplain(document, (), 0))
    if problems:
        raise SpecError(problems)


def _too_deep(place: str) -> Problem:
    return Problem(pointer=place, code="too-deep", message=f"nested deeper than {MAX_DEPTH} levels")


def _unplain(value: Any, path: tuple[object, ...], depth: int) -> Iterator[Problem]:
    place = pointer(*path)
    if depth > MAX_DEPTH:
        yield _too_deep(place)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield Problem(
                    pointer=place, code="bad-key", message=f"key {shown(key)} is not text; quote it"
                )
            yield from _unplain(item, (*path, key), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unplain(item, (*path, index), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(
            pointer=place, code="non-finite", message=f"{value} is not a finite number", given=shown(value)
        )
    elif value is not None and not isinstance(value, str | int | float | bool):
        message = f"a {type(value).__name__} is not a JSON value; quote it to mean text"
        yield Problem(pointer=place, code="bad-type", message=message, given=shown(value))
